"The documentation's site, built and then used in a real browser: front page, search, API, figures, formulas, light and dark, telephone."
import fcntl
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

ROOT = Path(__file__).resolve().parents[1]
for package in ("nbdev", "sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx_design", "latex2mathml"):
    pytest.importorskip(package, reason="building the documentation needs the extra docs")
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDTHS = {"desk": {"width": 1380, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The site, built once for all processes of the tests: the first builds, the others wait."
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"): shared = shared.parent # one folder a worker, below that of the session
    shared = shared / "site-of-the-documentation"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "log").exists():
            done = subprocess.run([sys.executable, ROOT / "tools/docs.py", "--out", shared / "site", "--work", shared / "work"], capture_output=True, text=True, cwd=shared)
            (shared / "log").write_text(json.dumps([done.returncode, done.stdout + done.stderr]))
    code, said = json.loads((shared / "log").read_text())
    assert code == 0, said[-6000:]
    return shared / "site"


@pytest.fixture(scope="module")
def address(built):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=built))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None: pytest.skip("there is no Chromium here: apt-get install chromium")
    play = pytest.importorskip("playwright.sync_api", reason="pages are tried in a browser through playwright, of the extra dev")
    with play.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address, tmp_path):
    "Opens a page; afterwards no request may have failed or left this machine, and the console must be without errors."
    bad, contexts = [], []
    def open_(page, width="desk", scheme="light", base=address):
        context = chromium.new_context(viewport=WIDTHS[width], color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("console", lambda m: bad.append(f"{page}: {m.text}") if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda e: bad.append(f"{page}: {e}"))
        tab.on("requestfailed", lambda r: bad.append(f"{page}: {r.url} failed"))
        tab.on("request", lambda r: bad.append(f"{page} asks {r.url}") if not r.url.startswith((base, "data:")) else None)
        tab.on("response", lambda r: bad.append(f"{page}: {r.status} of {r.url}") if r.status >= 400 else None)
        tab.goto(base + page)
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=tmp_path / f"{page.replace('/', '-')}-{width}-{scheme}.png")
        return tab
    yield open_
    for c in contexts: c.close()
    assert not bad, bad


def loaded(tab): return tab.evaluate("() => [...document.querySelectorAll('article img')].map(i => i.complete && i.naturalWidth > 0)")
def overflow(tab): return tab.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")


class Page(HTMLParser):
    "Links and anchors of a page."
    def __init__(self): super().__init__(); self.links, self.ids, self.asked = [], set(), []
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        for k in ("src", "srcset", "data"):
            if a.get(k): self.asked.append(a[k])
        if tag == "link" and a.get("href") and a.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"): self.asked.append(a["href"])


@pytest.fixture(scope="module")
def pages(built):
    found = {}
    for p in built.rglob("*.html"):
        found[p.relative_to(built).as_posix()] = page = Page()
        page.feed(p.read_text(encoding="utf-8"))
        page.text = p.read_text(encoding="utf-8")
    return found


# ---- what is in the files

def test_every_notebook_has_a_page(pages):
    sys.path.insert(0, str(ROOT / "tools"))
    import docs
    assert {f"{docs.page_of(p)}.html" for p in docs.notebooks(ROOT)} <= set(pages)
    assert {f"{p}.html" for p in ("library", "tutorials", "experiments", "commands", "data-sets", "verified", "changelog", "citing", "contributing", "guide/limits", "guide/gallery", "search", "genindex")} <= set(pages)


def test_no_link_leads_nowhere(pages, built):
    lost = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z][a-z0-9+.-]*:|//", link): continue
            to, anchor = urldefrag(unquote(urljoin(f"/{name}", link)))
            to = to.lstrip("/") or name
            if to not in pages and not (built / to).is_file(): lost.append(f"{name}: {link}")
            elif anchor and to in pages and anchor not in pages[to].ids: lost.append(f"{name}: {link} (no such anchor)")
    assert not lost, lost[:20]


def test_no_page_asks_another_host(pages, built):
    far = [f"{n}: {a}" for n, p in pages.items() for a in p.asked if re.match(r"[a-z]+:|//", a) and not a.startswith("data:")]
    assert not far, far[:10]
    for p in built.rglob("*.css"): assert not re.search(r"url\(\s*[\"']?(https?:)?//", p.read_text(encoding="utf-8")), p


def test_no_directive_is_left_as_text(pages):
    bad = [(n, m[0]) for n, p in pages.items() if (m := re.search(r".{30}(\{py:|\{doc\}|\{ref\}|\{download\}|:::|show_doc\().{10}|^#\s*\| ", re.sub(r"<[^>]+>", "", p.text), re.M))]
    assert not bad, bad[:5]


def test_source_links_lead_to_the_lines(pages):
    found = re.findall(r'href="(https://github\.com/[^"]+/blob/main/(vlnotes/plots\.py)#L(\d+)-L(\d+))"', pages["plots.html"].text)
    lines = (ROOT / "vlnotes/plots.py").read_text(encoding="utf-8").splitlines()
    assert len(found) >= 10 and all(re.match(r"\s*(@|def |class )", lines[int(a) - 1]) and int(b) <= len(lines) for _, _, a, b in found)


# ---- in a browser

def test_front_page(visit):
    tab = visit("index.html")
    assert tab.inner_text("h1").startswith("vlnotes") and "puts into words what a vision encoder represents" in tab.inner_text("article")
    assert loaded(tab) and all(loaded(tab)) and overflow(tab) == 0
    assert [t.lower() for t in tab.locator(".sidebar-tree .caption-text").all_inner_texts()] == ["learn", "look up", "results", "project"] # in capitals by style
    assert tab.locator(".sidebar-tree a:visible").count() < 30 # not every page at once
    tab.click(".sidebar-tree a:has-text('Experiments')")
    tab.wait_for_url("**/experiments.html")
    tab.click("article a:has-text('coca_layers') >> nth=0")
    tab.wait_for_url("**/experiments/coca_layers.html")
    assert "Last kept result" in tab.inner_text("article")


@pytest.mark.parametrize("over", ["http", "file"])
def test_search(visit, built, over):
    base = {"base": f"file://{built}/"} if over == "file" else {}
    tab = visit("index.html", **base)
    tab.fill(".sidebar-search", "saliency")
    tab.press(".sidebar-search", "Enter")
    tab.wait_for_selector("#search-results ul.search li a")
    tab.wait_for_function("() => /found|matching/i.test(document.querySelector('#search-results').innerText)")
    hits = tab.locator("#search-results ul.search li").all_inner_texts()
    assert any("vlnotes.devil.explain.saliency" in h for h in hits[:5]), hits[:5] # the object itself comes early
    tab.click("#search-results ul.search li a >> nth=0")
    tab.wait_for_load_state()
    assert "saliency" in tab.inner_text("article").lower()


def test_api_page(visit):
    tab = visit("hooks.html")
    tap = tab.locator("dl.py:has(> dt[id='vlnotes.hooks.tap'])")
    assert "model" in tap.locator("dt").first.inner_text() and "Raw outputs of the named modules" in tap.inner_text()
    row = tap.locator("tr").filter(has=tab.locator("td:first-child", has_text=re.compile("^stop$")))
    assert row.locator("td").all_inner_texts() == ["stop", "bool", "True", "end the pass after the last module asked for"]
    assert re.search(r"/blob/main/vlnotes/hooks\.py#L\d+-L\d+$", tap.locator("a.reference.external").first.get_attribute("href"))
    assert tab.locator("div.cell").count() > 10 and "torch.Size" in tab.locator("div.cell_output").first.inner_text() # lessons, with the values stored in the notebook
    order = tab.locator("dl.py > dt[id]").evaluate_all("ts => ts.map(t => t.id)")
    assert order.index("vlnotes.hooks.first") < order.index("vlnotes.hooks.to_feat") < order.index("vlnotes.hooks.select")


def test_notebook_with_figure_and_formula(visit):
    tab = visit("villa/mapping.html")
    assert all(loaded(tab)) and len(loaded(tab)) >= 2
    box = tab.locator("math[display=block]").first.bounding_box()
    assert box["width"] > 100 and box["height"] > 20 and tab.locator("math").count() > 3
    assert "$" not in tab.locator("article p").all_inner_texts()[3]
    assert all(a and a != "../_images" for a in tab.locator("div.cell_output img").evaluate_all("ts => ts.map(t => t.alt)"))


def test_experiment_with_its_kept_result(visit):
    m = json.loads((ROOT / "nbs/experiments/results/villa_stage1.json").read_text(encoding="utf-8"))
    tab = visit("experiments/villa_stage1.html")
    said = tab.inner_text("article")
    assert m["started"][:10] in said and "vlnotes run villa_stage1" in said and f"{m['metrics']['scores']['villa']['f1']:.3f}" in said
    assert all(loaded(tab)) and loaded(tab)
    tab.click("summary:has-text('How this result was made')")
    assert m["git"]["commit"][:10] in tab.inner_text("article")
    with tab.expect_download() as kept: tab.locator("a.download").first.evaluate("a => a.click()")
    assert json.loads(Path(kept.value.path()).read_text(encoding="utf-8")) == m


@pytest.mark.parametrize("page", ["guide/gallery.html", "guide/limits.html", "devil/explain.html"])
def test_pictures_stand_on_light_ground_in_the_dark(visit, page):
    tab = visit(page, scheme="dark")
    colours = tab.evaluate("() => [...document.querySelectorAll('article img')].map(i => getComputedStyle(i).backgroundColor)")
    assert all(loaded(tab)) and set(colours) <= {"rgb(255, 255, 255)"} and (colours or page == "guide/limits.html")
    dark = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150


def test_light_and_dark_can_be_chosen(visit, tmp_path):
    tab = visit("guide/gallery.html")
    ground = lambda: sum(map(int, re.findall(r"\d+", tab.evaluate("() => getComputedStyle(document.body).backgroundColor"))[:3]))
    assert ground() > 700
    for _ in range(3):
        tab.locator("button.theme-toggle:visible").first.click()
        if tab.get_attribute("body", "data-theme") == "dark": break
    assert tab.get_attribute("body", "data-theme") == "dark" and ground() < 150
    assert tab.evaluate("() => getComputedStyle(document.querySelector('article img')).backgroundColor") == "rgb(255, 255, 255)"
    tab.reload()
    assert tab.get_attribute("body", "data-theme") == "dark" # remembered
    tab.screenshot(path=tmp_path / "chosen-dark.png")


@pytest.mark.parametrize("page", ["index.html", "hooks.html", "notes.html", "villa/mapping.html", "experiments/scoreboard.html", "experiments/devil_captions.html", "guide/gallery.html", "guide/limits.html", "commands.html", "data-sets.html", "citing.html", "search.html"])
def test_a_telephone_shows_every_page_in_its_width(visit, page):
    tab = visit(page, width="phone")
    assert overflow(tab) == 0
    tab.locator("label[for='__navigation']:visible").first.click()
    tab.wait_for_selector(".sidebar-tree a:has-text('Library')", state="visible")


def test_code_can_be_copied(visit):
    tab = visit("index.html")
    tab.hover("div.highlight-sh >> nth=0")
    assert tab.locator("button.copybtn").count() >= 5 and tab.locator("button.copybtn").first.is_visible()
