"The explorer as a person uses it: JupyterLab in a real Chromium, opened by `vlnotes explore`."
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

for name in ("jupyterlab", "ipywidgets", "anywidget"): pytest.importorskip(name, reason="the explorer needs the extra explore")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need the extra dev")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium (Debian: apt install chromium)")

PATIENCE = 180_000 # milliseconds: a busy machine is slow, not broken
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
OWN = ("/lab/api/news", "/lab/api/update", "/restart", "/shutdown") # JupyterLab's: news and updates it asks its server for, and requests that end with a kernel


@pytest.fixture(scope="module")
def lab(tmp_path_factory): # address of a JupyterLab that `vlnotes explore` opened
    root = tmp_path_factory.mktemp("lab")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    homes = {"HOME": "home", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings",
             "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "VLNOTES_DATA": "data"}
    command = [Path(sys.executable).with_name("vlnotes"), "explore", root/"work", "--no-browser", "--port", str(port), "--",
               "--allow-root", "--ServerApp.port_retries=0", "--IdentityProvider.token=secret", "--ServerApp.ip=127.0.0.1"]
    with open(root/"log", "w") as log:
        server = subprocess.Popen(command, cwd=root, env=os.environ | {k: str(root/v) for k, v in homes.items()}, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + PATIENCE / 1000
            while not _answers(f"http://127.0.0.1:{port}/api?token=secret"):
                assert server.poll() is None and time.monotonic() < until, (root/"log").read_text()[-3000:]
                time.sleep(.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try: server.wait(60)
            except subprocess.TimeoutExpired: server.kill(); server.wait()

def _answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError: return False

@pytest.fixture
def seen(): # what must stay empty: requests that failed or left the machine, errors on the console
    return []

@pytest.fixture
def page(lab, seen):
    def ours(url): return not any(k in url for k in OWN)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 1440, "height": 1300})
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: seen.append(f"left the machine: {r.url}") if not r.url.startswith((lab, lab.replace("http", "ws"), "data:", "blob:")) else None)
        page.on("requestfailed", lambda r: seen.append(f"failed: {r.url} {r.failure}") if ours(r.url) else None)
        page.on("response", lambda r: seen.append(f"{r.status}: {r.url}") if r.status >= 400 and ours(r.url) else None)
        page.on("console", lambda m: seen.append(f"console: {m.text}") if m.type == "error" and ours(m.location.get("url") or "") else None)
        page.on("pageerror", lambda e: seen.append(f"error: {e}"))
        yield page
        browser.close()

def opened(lab, page): # the app, ready
    expect = playwright.expect
    expect.set_options(timeout=PATIENCE)
    page.goto(f"{lab}/?token=secret") # where `vlnotes explore` sends the browser
    page.wait_for_url("**/lab/tree/explore.ipynb*")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle") # the toolbar's own sign is idle before the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    app = page.locator(".vln-app")
    expect(app.locator(".vln-depth button[aria-checked=true]")).to_contain_text("layer4")
    expect(app.locator(".vln-grid button[title]:not([title=''])")).to_have_count(36) # every cell was described
    expect(app.locator(".vln-status")).to_contain_text("ready")
    return app


@pytest.mark.slow
def test_a_person_looks_around(lab, page, seen, tmp_path):
    expect, app = playwright.expect, opened(lab, page)
    page.keyboard.press("Control+b") # the list of files makes room
    app.screenshot(path=tmp_path/"first.png")
    assert app.locator(".vln-base").evaluate("i => i.complete && i.naturalWidth") == 84

    app.locator(".vln-layer select").select_option("layer2") # a dropdown changes the layer
    expect(app.locator(".vln-grid button")).to_have_count(121)
    expect(app.locator(".vln-depth button[aria-checked=true]")).to_contain_text("layer2")
    app.locator(".vln-depth button", has_text="layer3").click() # and so does a row
    expect(app.locator(".vln-layer select")).to_have_value("layer3")
    expect(app.locator(".vln-grid button[title]:not([title=''])")).to_have_count(36)

    note = app.locator(".vln-cell")
    cells = app.locator(".vln-grid button")
    cells.nth(5).click() # a click on the picture changes the note
    expect(note).to_contain_text("row 1, column 6 of 6 × 6")
    first = note.inner_text()
    assert cells.nth(5).get_attribute("title").split(" . ")[0] in first.replace("\u2009", "").replace("\xa0", " ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(note).to_contain_text("row 2, column 5 of 6 × 6")
    expect(app.locator(".vln-grid button[aria-current]")).to_have_count(1)
    assert cells.nth(10).evaluate("b => b === document.activeElement && b.hasAttribute('aria-current')")

    app.locator(".vln-phrase input").fill("the color is blue") # a typed phrase draws a map
    page.keyboard.press("Enter")
    app.locator(".vln-heat[src^='data:image/png']").wait_for()
    expect(app.locator(".vln-heard")).to_contain_text("“the color is blue” at each cell of layer3")
    assert app.locator(".vln-heat").evaluate("i => i.complete && i.naturalWidth") == 6
    app.screenshot(path=tmp_path/"phrase.png")
    app.locator(".vln-phrase input").fill("a zebra")
    page.keyboard.press("Enter")
    expect(app.locator(".vln-heard .vln-said")).to_contain_text("does not know 'zebra'")

    app.locator(".vln-unit input").fill("layer4:17") # a filter shows its words and regions
    page.keyboard.press("Enter")
    expect(app.locator(".vln-regions img")).to_have_count(10)
    expect(app.locator(".vln-filter .vln-note")).to_contain_text("the")
    app.locator(".vln-more button, button.vln-more").first.click()
    expect(app.locator(".vln-filter h5")).to_have_text("layer4:18")

    app.locator(".vln-method select").select_option("villa") # no model of it comes along
    expect(app.locator(".vln-status .vln-said")).to_contain_text("villa has no model")
    expect(app.locator(".vln-method select")).to_have_value("devil")
    app.locator(".vln-thumbs button").nth(2).click()
    expect(app.locator(".vln-image select")).to_have_value("test-000002")
    expect(app.locator(".vln-status .vln-said")).to_have_count(0)
    app.screenshot(path=tmp_path/"third.png")

    for width in (900, 1200, 1600): # nothing sticks out, whatever the width
        page.set_viewport_size({"width": width, "height": 1300})
        page.wait_for_function("w => innerWidth === w && document.querySelector('.vln-app').offsetWidth < w", arg=width)
        assert app.evaluate("a => [a, ...a.querySelectorAll('.vln-main, .vln-left, .vln-right, .vln-bar, .vln-card')].every(e => e.scrollWidth <= e.clientWidth + 1)"), width
        app.screenshot(path=tmp_path/f"wide{width}.png")
    assert seen == []


@pytest.mark.slow
def test_a_restarted_kernel_is_told_and_the_cell_runs_again(lab, page, seen, tmp_path):
    expect, app = playwright.expect, opened(lab, page)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator("[data-command='kernelmenu:restart']").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(app).to_have_class(re.compile("jupyter-widgets-disconnected"))
    expect(app.locator(".vln-dead")).to_be_visible()
    expect(app.locator(".vln-dead")).to_contain_text("run the cell again")
    app.screenshot(path=tmp_path/"dead.png")
    expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    alive = page.locator(".vln-app:not(.jupyter-widgets-disconnected)")
    expect(alive.locator(".vln-grid button[title]:not([title=''])")).to_have_count(36)
    alive.locator(".vln-layer select").select_option("layer3")
    expect(alive.locator(".vln-depth button[aria-checked=true]")).to_contain_text("layer3")
    expect(alive.locator(".vln-dead")).to_be_hidden()
    assert seen == []
