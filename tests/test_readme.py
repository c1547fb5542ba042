"README.md comes from nbs/index.ipynb, and the packaging metadata says what settings.ini says."
import base64
import importlib.util
import json
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

PNG = b"\x89PNG not a real one"


def cell(source, kind="code", outputs=()): return {"cell_type": kind, "source": source, "outputs": list(outputs)}
def shown(**data): return {"output_type": "display_data", "data": {k.replace("_", "/"): v for k, v in data.items()}}
def page(*cells): return tool.readme({"cells": list(cells)})[0]


def test_code_and_outputs():
    got = page(cell("# vlnotes", "markdown"), cell("#| eval: false\nprint('a')", outputs=[{"output_type": "stream", "name": "stdout", "text": ["a\n"]}]),
               cell("x", outputs=[shown(text_plain="3", text_markdown="**3**", text_html="<b>3</b>")]))
    assert got == f"{tool.NOTE}\n\n# vlnotes\n\n```python\nprint('a')\n```\n\n```\na\n```\n\n```python\nx\n```\n\n**3**\n"


@pytest.mark.parametrize("source", ["#| hide\nx = 1", "#|hide\nx = 1", "#| default_exp index\n", "#| include: false\nx = 1"])
def test_hidden_cells_are_left_out(source): assert page(cell(source, outputs=[shown(text_plain="3")])) == tool.NOTE + "\n"


def test_an_unechoed_cell_shows_its_output_alone():
    assert page(cell("#| echo: false\nx", outputs=[shown(text_plain="3")])) == f"{tool.NOTE}\n\n```\n3\n```\n"


@pytest.mark.parametrize("link, want", [
    ("[a](tutorials/a.ipynb)", "[a](nbs/tutorials/a.ipynb)"), ("![f](images/f.png)", "![f](nbs/images/f.png)"),
    ("[l](../LICENSE)", "[l](LICENSE)"), ("[h](https://example.org/a)", "[h](https://example.org/a)"), ("[s](#usage)", "[s](#usage)"),
    ('<img width="9" src="images/f.png">', '<img width="9" src="nbs/images/f.png">'),
    ("```sh\n[a](b)\n```", "```sh\n[a](b)\n```")])
def test_links_are_those_of_the_top_folder(link, want): assert page(cell(link, "markdown")).endswith(f"\n\n{want}\n")


def test_an_output_with_a_fence_gets_a_longer_one():
    assert "````\n```\na\n```\n````" in page(cell("x", outputs=[shown(text_plain="```\na\n```")]))


def test_a_stored_error_is_refused():
    with pytest.raises(ValueError, match="no such layer"): page(cell("x", outputs=[{"output_type": "error", "evalue": "no such layer"}]))


def test_files_are_written_checked_and_removed(tmp_path):
    def run(*a): return subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--root", tmp_path, *a], capture_output=True, text=True)
    nb = tmp_path / "nbs" / "index.ipynb"
    assert "does not exist" in run().stderr
    nb.parent.mkdir()
    nb.write_text(json.dumps({"cells": [cell("x", outputs=[shown(image_png=base64.b64encode(PNG).decode())])]}))
    assert run("--check").returncode == 1 and not (tmp_path / "README.md").exists()
    assert run().returncode == 0 and run("--check").returncode == 0
    assert (tmp_path / "nbs" / "images" / "readme-1.png").read_bytes() == PNG
    assert "![](nbs/images/readme-1.png)" in (tmp_path / "README.md").read_text()
    nb.write_text(json.dumps({"cells": []}))
    assert "readme-1.png" in run("--check").stderr
    run()
    assert not (tmp_path / "nbs" / "images" / "readme-1.png").exists() and run("--check").returncode == 0


@pytest.mark.skipif(not (ROOT / "nbs" / "index.ipynb").exists(), reason="no front page yet")
def test_readme_is_up_to_date(): tool.main(["--check"])


# ---- packaging

def metadata(tmp_path):
    "What setup.py gives setuptools."
    code = "import json, sys, setuptools; setuptools.setup = lambda **k: print(json.dumps(k)); exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    code = f"__file__ = 'setup.py'; {code}"
    return json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_metadata_is_what_settings_say(tmp_path):
    pytest.importorskip("setuptools")
    cp = ConfigParser(delimiters=["="], interpolation=None)
    cp.read(ROOT / "settings.ini", encoding="utf-8")
    c, m = cp["DEFAULT"], metadata(tmp_path)
    extras = m["extras_require"]
    assert m["install_requires"] == c["requirements"].split() and m["version"] == c["version"]
    assert set(extras) == {"clip", "text", "data", "label", "bert", "java", "explore", "docs", "dev", "all"}
    assert set(extras["all"]) == {r for e in ("clip", "text", "data", "label", "bert", "java", "explore") for r in extras[e]}
    assert {r for e in ("clip", "text", "data", "bert", "java") for r in extras[e]} <= set(extras["dev"])
    assert {"nbdev>=2.4.14,<3", "fastcore<2", "execnb<0.2"} <= set(extras["dev"])
    assert m["entry_points"]["console_scripts"] == ["vlnotes=vlnotes.cli:main"]
    assert all("=vlnotes." in d for d in m["entry_points"]["vlnotes.describers"])
    assert {"vlnotes", "vlnotes.experiments", "vlnotes.tutorials"} <= set(m["packages"])
    assert {"references.bib", "weights/*.safetensors"} <= set(m["package_data"]["vlnotes"])
    assert {"*.ipynb", "results/*.json"} <= set(m["package_data"]["vlnotes.experiments"]) # tutorials read the kept results


def test_version_is_one(): assert f'__version__ = "{metadata(None)["version"]}"' in (ROOT / "vlnotes" / "__init__.py").read_text()
