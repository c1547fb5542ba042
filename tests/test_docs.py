"The documentation's builder: what it reads from modules and notebooks, and what it refuses. The site itself is tested in test_site."
import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import docs
from pages import api, convert, extra, figures, results

NOTEBOOKS = docs.notebooks(ROOT)
EXPERIMENTS = [p for p in NOTEBOOKS if p.startswith("nbs/experiments/")]
KEPT = [(p, m) for found in results.kept(ROOT / "nbs/experiments/results").values() for p, m in found]
SOURCE = '''
"A module."
from dataclasses import dataclass
from vlnotes.docmnist import Scenes

@dataclass(frozen=True)
class Point:
    "A place; `x` grows to the right."
    x: float # in pixels | of the image
    y: float = 0. # likewise

    @property
    def far(self) -> float: # from the origin
        "How far."
        return 1.
    def silent(self): return 2
    @classmethod
    def at(cls, name: str): # one of the known places
        "A known place."

def crop(image, # anything
         size: tuple[int, int] = (84, # height
                                  84), # height and width
         *, fill: "str|None" = None, mode='a', # *raw* or <b>
         **more # passed on
        ) -> "Point": # the corner
    """Cut it out.

    Costs $5 < $6, says `a < b`."""

def double(x): return 2 * x # twice as much

async def wait(a: int, b: int) -> None: "Two numbers."

@patch
def name(self: Point) -> str: # short
    "Its name."

def _hidden(x): "Not shown."
'''


@pytest.fixture
def module(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    return api.read(tmp_path / "m.py", "vlnotes.m")


def rows(markdown): return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in markdown.split("\n") if line.startswith("|")][2:]


# ---- what a module offers

def test_public_names_are_found(module): assert list(module) == ["Point", "crop", "double", "wait", "Point.name"]


def test_a_comment_belongs_to_the_last_argument_on_its_line(module):
    said = {p.name: (p.type, p.default, p.about) for p in module["crop"].params}
    assert said == {"image": ("", None, "anything"), "size": ("tuple[int, int]", "(84, 84)", "height and width"), "*": ("", None, ""),
                    "fill": ("'str|None'", "None", ""), "mode": ("", "'a'", "*raw* or <b>"), "**more": ("", None, "passed on")}
    assert (module["crop"].returns, module["crop"].result) == ("Point", "the corner")


def test_a_one_liners_comment_is_about_its_result(module):
    e = module["double"]
    assert e.result == "twice as much" and not e.params[0].about


def test_fields_properties_and_added_methods(module):
    e = module["Point"]
    assert [(p.name, p.default, p.about) for p in e.params] == [("x", None, "in pixels | of the image"), ("y", "0.0", "likewise")]
    assert [(m.kind, m.name, m.options) for m in e.members] == [("property", "Point.far", ()), ("method", "Point.at", ("classmethod",))] # `silent` says nothing
    assert [p.name for p in e.members[1].params] == ["name"] and module["Point.name"].kind == "method" and not module["Point.name"].params


def test_an_entry_as_markdown(module):
    text = api.markdown(module["Point"])
    assert text.startswith("::::{py:class} Point(x, y=0.0)\n:module: vlnotes.m\n") and text.endswith("\n::::") and ":::{py:property} far\n" in text and ":classmethod:" in text
    assert rows(text)[:2] == [["`x`", "`float`", "", r"in pixels \| of the image"], ["`y`", "`float`", "`0.0`", "likewise"]]
    text = api.markdown(module["crop"])
    assert text.startswith(":::{py:function} crop(image, size=(84, 84), *, fill=None, mode='a', **more) -> Point\n") # types stand in the table
    assert r"Costs \$5 &lt; \$6, says `a < b`." in text and ["`mode`", "", "`'a'`", r"\*raw\* or &lt;b>"] in rows(text) and ["*returns*", "`Point`", "", "the corner"] in rows(text)
    assert ":::{py:function} wait(a: int, b: int)\n:module: vlnotes.m\n:async:" in api.markdown(module["wait"]) and not rows(api.markdown(module["wait"]))
    assert api.markdown(module["Point.name"]).startswith(":::{py:method} Point.name() -> str\n")


def test_every_function_of_the_library_can_be_read():
    found = {m: api.read(p, f"vlnotes.{m}") for p in (ROOT / "vlnotes").rglob("*.py") if not p.name.startswith("_") for m in [".".join(p.relative_to(ROOT / "vlnotes").with_suffix("").parts)]}
    assert sum(map(len, found.values())) > 600 and all(api.markdown(e) for es in found.values() for e in es.values())
    assert "on any grid over the image" in api.markdown(found["plots"]["overlay"])


# ---- links and names

@pytest.fixture
def site(tmp_path):
    for f in ("nbs/a.ipynb", "nbs/deep/01_b.ipynb", "nbs/images/p.png", "LICENSE", "data/README.md", "m.py", "n.py"):
        (tmp_path / f).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f).write_text(SOURCE if f == "m.py" else "def crop(x): 'Another.'\ndef only_here(x): 'One.'" if f == "n.py" else "")
    s = convert.Site(tmp_path, "https://example.org/r/", "main")
    s.pages = {"nbs/a.ipynb": "a", "nbs/deep/01_b.ipynb": "deep/b", "data/README.md": "data-sets"}
    for m in ("m", "n"): s.add_module(tmp_path / f"{m}.py", f"vlnotes.{m}")
    s.page_of = {"deep.b": "deep/b"}
    return s


@pytest.mark.parametrize("link, want", [
    ("[b](deep/01_b.ipynb)", "[b](../deep/b.ipynb)"), ("[b](deep/01_b.ipynb#the-end)", "[b](../deep/b.ipynb#the-end)"), ("![p](images/p.png)", "![p](../images/p.png)"),
    ("[l](../LICENSE)", "[l](https://example.org/r/blob/main/LICENSE)"), ("[d](../data/README.md)", "[d](../data-sets.md)"), ("[i](images)", "[i](https://example.org/r/tree/main/nbs/images)"),
    ("[h](https://example.org/x)", "[h](https://example.org/x)"), ("[s](#here)", "[s](#here)"), ("[`f`[0]](a.ipynb)", "[`f`[0]](../a.ipynb)"),
    ("```\n[b](nowhere.ipynb)\n```", "```\n[b](nowhere.ipynb)\n```"), ('<img width="3" src="images/p.png">', '<img width="3" src="../images/p.png">')])
def test_links_lead_to_pages(site, link, want):
    assert site.links(link, "nbs", "deep/page") == want and not site.broken
    assert (site.files == {"nbs/images/p.png": "images/p.png"}) == ("p.png" in link)


@pytest.mark.parametrize("link", ["[b](nowhere.ipynb)", "![p](images/q.png)", "[up](../../../../etc/hosts)"])
def test_a_link_to_nowhere_is_told(site, link):
    site.links(link, "nbs", "page")
    assert len(site.broken) == 1 and "page: the link to" in site.broken[0]


@pytest.mark.parametrize("text, module, want", [
    ("`crop`", "vlnotes.m", "{py:obj}`crop <vlnotes.m.crop>`"), ("`crop`", "vlnotes.n", "{py:obj}`crop <vlnotes.n.crop>`"), ("`crop`", "", "`crop`"), # two modules have one
    ("`m.crop()`", "", "{py:obj}`m.crop() <vlnotes.m.crop>`"), ("`vlnotes.m.Point.at`", "", "{py:obj}`vlnotes.m.Point.at <vlnotes.m.Point.at>`"),
    ("`only_here`", "vlnotes.m", "{py:obj}`only_here <vlnotes.n.only_here>`"), ("`double`", "", "`double`"), # a common word
    ("`x = crop`", "vlnotes.m", "`x = crop`"), ("[`crop`](a.md)", "vlnotes.m", "[`crop`](a.md)"), ("# `crop`", "vlnotes.m", "# `crop`"),
    ("```\n`crop`\n```", "vlnotes.m", "```\n`crop`\n```"), ("`deep.b`", "", "[`deep.b`](deep/b.ipynb)"), ("`m.html`", "", "`m.html`")])
def test_names_lead_to_their_explanation(site, text, module, want): assert site.refer(text, module) == want


def test_a_name_that_a_module_imports_is_the_imported_one(site):
    site.imports["vlnotes.n"]["Place"] = "vlnotes.m.Point"
    assert site.resolve("Place", "vlnotes.n") == "vlnotes.m.Point" and site.resolve("Place", "vlnotes.m") is None


# ---- notebooks

@pytest.mark.parametrize("levels, want", [("# ## ###", "# ## ###"), ("# ### ###", "# ## ###"), ("## # ##", "# ## ##"), ("# # #", "# ## ##")])
def test_headings_come_in_order(levels, want):
    text = "\n\n".join(f"{h} t" for h in levels.split()) + "\n\n```\n# no heading\n```"
    got = convert.Headings().order(text)
    assert re.findall(r"^(#+) t", got, re.M) == want.split() and "```\n# no heading\n```" in got


def cell(source, kind="code", outputs=(), tags=()): return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}, "outputs": list(outputs)}
def shown(**data): return {"output_type": "display_data", "data": {k.replace("_", "/"): v for k, v in data.items()}, "metadata": {}}
def made(site, *cells, module="", origin=""): return convert.convert({"cells": list(cells)}, site, "nbs/a.ipynb", "a", module, origin)["cells"]


def test_front_matter_becomes_the_title(site):
    got = made(site, cell("---\ntitle: A story\ndescription: \"of b\"\n---", "raw"), origin="*from here*")
    assert got[0]["source"].split("\n\n")[:3] == ["# A story", "> of b", "*from here*"]


def test_code_loses_directives_and_hidden_cells(site):
    got = made(site, cell("# t", "markdown"), cell("#| eval: false\nx = 1"), cell("#| echo: false\ny", outputs=[shown(text_plain="3")]), cell("#| include: false\nz = 1"), cell("#| code-fold: true"),
               cell("w", tags=["hide-input", "parameters"]))
    assert [c["source"] for c in got[1:]] == ["x = 1", "y", "w"] and [c["metadata"]["tags"] for c in got[1:]] == [[], ["remove-input"], ["hide-input"]]


def test_outputs_are_the_stored_ones(site):
    out = [{"output_type": "stream", "name": "stderr", "text": "warning"}, {"output_type": "stream", "name": "stdout", "text": "hello"},
           shown(text_markdown="[b](deep/01_b.ipynb)", **{"application_vnd.jupyter.widget-view+json": {}}), shown(image_png="AA==", image_jpeg="AA==", text_plain="<Figure>")]
    got = made(site, cell("# t", "markdown"), cell("Two circles. They touch.", "markdown"), cell("x", outputs=out))[-1]
    assert [o["output_type"] for o in got["outputs"]] == ["stream", "display_data", "display_data"] and got["outputs"][1]["data"] == {"text/markdown": "[b](deep/b.ipynb)"}
    assert "image/jpeg" not in got["outputs"][2]["data"] and got["metadata"]["mystnb"]["image"]["alt"] == "Two circles."
    with pytest.raises(ValueError, match="no such layer"): made(site, cell("# t", "markdown"), cell("x", outputs=[{"output_type": "error", "evalue": "no such layer"}]))


def test_exported_cells_become_objects(site):
    got = made(site, cell("# m\n\n> line", "markdown"), cell("## part\nSee `crop`.", "markdown"), cell("show_doc(crop)"), cell("show_doc(crop)"), cell("show_doc(unknown)"), module="vlnotes.m")
    assert [c["source"].split("\n")[0] for c in got] == ["# m", "## part", ":::{py:function} crop(image, size=(84, 84), *, fill=None, mode='a', **more) -> Point"]
    assert "{py:obj}`crop <vlnotes.m.crop>`" in got[1]["source"]


def test_objects_stand_as_the_module_defines_them(site):
    got = made(site, cell("# m", "markdown"), cell("show_doc(double)"), cell("show_doc(crop)"), cell("show_doc(wait)"), cell("1"), cell("show_doc(Point)"), module="vlnotes.m")
    assert [re.search(r"(\w+)\(", c["source"])[1] for c in got if "{py:" in c["source"] and "{py:property" not in c["source"]] == ["crop", "double", "wait"] and "Point(" in got[-1]["source"]


def test_a_notebook_without_a_title_is_refused(site):
    with pytest.raises(ValueError, match="nbs/a.ipynb has no title"): made(site, cell("x = 1"))


def test_nbdevs_processor_places_the_objects(tmp_path):
    pytest.importorskip("nbdev", reason="the documentation needs nbdev, of the extra docs")
    lesson = [cell("#| default_exp m"), cell("#| export\ndef crop(x): 'Cut.'\nclass Point: 'A place.'"), cell("#| hide\nx = 1"), cell("crop(1)")]
    title = {"cell_type": "markdown", "source": "# m", "metadata": {}}
    nb = {"cells": [c | {"id": f"c{k}"} for k, c in enumerate([title, *lesson])], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "m.ipynb").write_text(json.dumps(nb))
    assert [c["source"].strip().split("\n")[-1] for c in convert.process(tmp_path / "m.ipynb")["cells"]] == ["# m", "show_doc(Point)", "show_doc(crop)", "crop(1)"]


# ---- the order of things

CONTENTS = tomllib.loads((ROOT / "tools/pages/contents.toml").read_text(encoding="utf-8"))


def test_every_notebook_has_its_place():
    pages = [docs.page_of(p) for p in NOTEBOOKS if p.split("/")[1] not in ("experiments", "tutorials", "guide", "index.ipynb")]
    placed = [p for g in docs.grouped(pages, CONTENTS) for p in g["pages"]]
    assert sorted(placed) == sorted(pages) # each once
    for kind in ("experiments", "tutorials", "guide"):
        there = [Path(p).stem for p in NOTEBOOKS if p.startswith(f"nbs/{kind}/")]
        assert not (lost := set(there) - set(CONTENTS[kind])), f"name {sorted(lost)} in tools/pages/contents.toml, in the order they are to be read"
        assert len(set(CONTENTS[kind])) == len(CONTENTS[kind])


def test_order_and_groups():
    assert docs.ordered(["c", "a", "b"], ["b", "x"]) == ["b", "a", "c"] and docs.page_of("nbs/devil/01_translator.ipynb") == "devil/translator" and docs.page_of("nbs/00_notes.ipynb") == "notes"
    groups = docs.grouped(["notes", "sixth/ask"], {"library": [{"title": "One", "about": "", "modules": ["notes", "gone"]}]})
    assert [g["pages"] for g in groups] == [["notes"], ["sixth/ask"]] # a method nobody named has a group of its own
    with pytest.raises(SystemExit, match="no group .* has stray"): docs.grouped(["stray"], {"library": []})


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    for k in docs.NEEDED: pytest.importorskip(k, reason="building the documentation needs the extra docs")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="is no site"): docs.main(["--out", str(tmp_path), "--work", str(tmp_path / "work")])
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# ---- results

def test_numbers_and_intervals():
    assert [results.number(v) for v in (None, True, 12345, 1234.5, .0012345, .5, [1, .5], {"a": 1}, "x")] == ["–", "yes", "12,345", "1,234", "0.001234", "0.500", "1, 0.500", "a 1", "x"]
    assert results.merged({"f1": .5, "f1_lo": .4, "f1_hi": .6, "n": 3}) == {"f1": "0.500 [0.400, 0.600]", "n": 3}
    assert results.merged({"accuracy": .5, "lo": .4, "hi": .6}) == {"accuracy": "0.500 [0.400, 0.600]"} and results.merged({"s": [.5, .4, .6]}) == {"s": "0.500 [0.400, 0.600]"}
    assert results.merged({"mean": .5, "other": 1, "lo": .4, "hi": .6}) == {"mean": .5, "other": 1, "lo": .4, "hi": .6} # not known whose bounds


def test_metrics_of_any_shape_are_tables():
    got = dict(results.tables({"loss": .5, "rows": [{"who": "a", "x": 1}, {"who": "b", "y": None}], "by": {"p": {"v": 1}, "q": {"v": 2}}}))
    assert "| loss | 0.500 |" in got[""] and "| who | x |" in got["rows"] and "y" not in got["rows"] and "| p | 1 |" in got["by"]
    many = results.records([{"k": k} for k in range(100)])
    assert many.count("\n| ") == results.MOST + 1 and "first 40 of 100 rows" in many
    wide = [{"who": w, "text": "word " * 20, "n": 7, "of": w + w, **{f"m{k}": k + len(w) for k in range(9)}} for w in ("a", "bb")]
    got = results.records(wide)
    assert got.startswith("| who | a | bb |") and "| m8 | 9 | 10 |" in got # few records of many numbers stand side by side
    assert "In every row: n 7." in got and "In the file below: text." in got and "word word" not in got
    assert results.records(wide * 5).startswith("| who | of | m0 |") # and many do not


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_presets_are_read_from_the_notebook(name):
    nb = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    said, sets = results.parameters(nb), results.presets(nb)
    assert {"preset", "out"} <= set(said) and {"tiny", "small"} <= set(sets)
    assert all(isinstance(v, dict) and set(v) <= set(said) for v in sets.values())
    table = results.parameter_table(nb)
    assert all(f"| `{k}` |" in table for k in said) and len({line.replace("\\|", "").count("|") for line in table.split("\n")}) == 1


def test_a_preset_is_reckoned_without_running_it():
    nb = {"cells": [cell("A = dict(x=1, f=g(2))\nPRESETS = {'small': A | dict(y='a|b'), 'big': {**A, 'x': 3} if fast else A}")]}
    assert results.presets(nb)["small"] == {"x": 1, "f": "g(2)", "y": "a|b"} and results.presets({"cells": []}) == {}


@pytest.mark.parametrize("path, m", KEPT, ids=[p.stem for p, _ in KEPT])
def test_every_kept_result_is_shown_with_its_origin(path, m):
    assert (ROOT / f"nbs/experiments/{m['name']}.ipynb").exists(), f"{path.name} belongs to no experiment"
    text = results.section(path, m, ("../images/a.png", "What it shows."), "../results/x.json")
    assert m["started"][:10] in text and m["git"]["commit"][:10] in text and f"torch {m['versions']['torch']}" in text and f"{{download}}`{path.name} <../results/x.json>`" in text
    assert ("not committed" in text) == m["git"]["dirty"] and text.count(":::{dropdown}") == len(re.findall(r"^:::$", text, re.M))


@pytest.mark.parametrize("path, m", [(p, m) for p, m in KEPT if m["name"] in figures.DRAWN], ids=[p.stem for p, m in KEPT if m["name"] in figures.DRAWN])
def test_pictures_are_drawn_from_the_kept_numbers(path, m):
    from vlnotes import plots
    with plots.style(): fig, about = figures.DRAWN[m["name"]](plots, m["metrics"])
    assert about.endswith(".") and all(ax.has_data() for ax in fig.axes)


def test_a_result_that_is_not_kept_is_said(site):
    nb = json.loads(NOTEBOOKS["nbs/experiments/docmnist.ipynb"].read_text(encoding="utf-8"))
    assert "No result of this experiment is kept" in results.page(nb, [], {}, str)[0]


def test_the_limits_are_those_of_the_kept_results(monkeypatch):
    page, space = ROOT / "nbs/guide/limits.ipynb", {}
    monkeypatch.chdir(page.parent)
    for c in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        if c["cell_type"] != "code": continue
        body = ast.parse("".join(c["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), str(page), "exec"), space)
        if last is None: continue
        now, stored = eval(compile(ast.Expression(last.value), str(page), "eval"), space).data, "".join(c["outputs"][0]["data"]["text/markdown"])
        assert now == stored, "a kept result has changed since nbs/guide/limits.ipynb was run: run it again, and read whether its sentences still hold"


# ---- other pages

def test_all_works_are_cited():
    bib = (ROOT / "vlnotes/references.bib").read_text(encoding="utf-8")
    page, works = extra.citing(bib, [("vlnotes", "The software"), ("devil", "DeViL")]), extra.entries(bib)
    assert len(works) == len(re.findall(r"^@", bib, re.M)) and all(page.count(e[3]) == 1 and e[2]["title"].replace("{", "").replace("}", "") in page for e in works)
    assert page.index("## The software") < page.index("## DeViL") < page.index("## Further works")


def test_every_command_and_option_is_listed():
    from vlnotes.cli import main
    page = extra.commands(main)
    for name, command in main.commands.items():
        assert command.hidden or f"## `vlnotes {name}`" in page
        for p in command.params: assert command.hidden or p.param_type_name == "argument" or f"`{p.opts[0]}" in page


def test_the_table_of_what_is_verified_is_the_front_pages():
    nb = json.loads(NOTEBOOKS["nbs/index.ipynb"].read_text(encoding="utf-8"))
    assert extra.section(nb, "What is here").startswith("| question | system |")
    with pytest.raises(ValueError, match="no section 'Nothing'"): extra.section(nb, "Nothing")


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason="formulas need the extra docs")
    from pages import sphinx_ext

    class Page:
        body: list = []
    node = type("Node", (), {"astext": lambda self: r"\frac{a}{b}"})()
    for f in (sphinx_ext.inline, sphinx_ext.block):
        with pytest.raises(sphinx_ext.nodes.SkipNode): f(Page, node)
    assert "<mfrac>" in Page.body[0] and Page.body[1].startswith('<div class="math"><math') and 'display="block"' in Page.body[1]


@pytest.mark.parametrize("text, jobs, fine", [("[b](b.md) and $x^2$", 1, True), ("[b](nowhere.md)", 1, False), ("[b](#no-such-heading)", 2, False), ("### out of order", 1, False)])
def test_a_warning_of_sphinx_is_counted(tmp_path, text, jobs, fine):
    for k in docs.NEEDED: pytest.importorskip(k, reason="building the documentation needs the extra docs")
    source = tmp_path / "source"
    source.mkdir()
    for k in "bcdefg": (source / f"{k}.md").write_text(f"# Page {k}\n")
    (source / "index.md").write_text(f"# Front\n\n{text}\n\n" + extra.toctree("bcdefg"))
    found = docs.sphinx(source, tmp_path / "out", tmp_path / "trees", docs.settings(ROOT), jobs)
    assert (found == 0) == fine and (tmp_path / "out" / "index.html").exists()
    if fine: assert "<msup>" in (tmp_path / "out" / "index.html").read_text()
