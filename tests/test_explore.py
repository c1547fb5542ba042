"The explorer without a browser: values are set, clicks are called; bad input, cancelling, callables of one's own, saved notes, the page."
import re
import sys
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("ipywidgets", reason="the explorer's widgets need the extra explore")
pytest.importorskip("anywidget", reason="the explorer's widgets need the extra explore")

from vlnotes import describe, panels, views
from vlnotes.desk import Desk, Stopped
from vlnotes.explore import Explorer
from vlnotes.gallery import Gallery
from vlnotes.notes import Note, Notes
from vlnotes.views import View
from vlnotes.voices import methods


class Stripes:
    "A describer with four layers of 3 x 3 cells and filters; it counts what it is asked, and waits where it is told to."
    layers = ["one", "two", "three", "four"]

    def __init__(self): self.asked, self.gate, self.at, self.stuck = [], threading.Event(), None, threading.Event()

    def describe(self, images, layers=None, cells=None, units=None):
        out = []
        if units: return Notes([Note(f"net/{k}/{u}", "net", k, f"filter {u} of {k}", .5, "cosine", "stripes", unit=u) for k, us in units.items() for u in us])
        for name, im in images:
            for k in layers or self.layers:
                self.asked.append((name, k, cells))
                if k == self.at: self.stuck.set(); self.gate.wait(60)
                w, h = im.size
                for r, c in [(None, None)] if cells is None else np.ndindex(3, 3) if cells == "all" else cells:
                    place = {} if r is None else dict(row=int(r), col=int(c), grid_h=3, grid_w=3, x0=w * c / 3, y0=h * r / 3, x1=w * (c + 1) / 3, y1=h * (r + 1) / 3)
                    out.append(Note(name, "net", k, f"{k} of {name}" + ("" if r is None else f" at {r},{c}"), -.1 * len(k), "cosine", "stripes", **place))
        return Notes(out)

    def maps(self, images, phrases, layers=None):
        if "zebra" in phrases[0]: raise ValueError("stripes does not know 'zebra'.")
        return {k: torch.arange(9.).view(1, 1, 3, 3).expand(len(list(images)), len(phrases), 3, 3) for k in layers}


def plain(s): return " ".join(re.sub("<[^>]+>", " ", s).split())

@pytest.fixture
def stripes(): return Stripes()

@pytest.fixture
def made(): # explorers that end with the test
    out = []
    def make(*a, **k): out.append(Explorer(*a, **k)); return out[-1]
    yield make
    for ex in out: ex.close()

@pytest.fixture
def ex(made, stripes): return made(n=3, methods={"stripes": stripes}, method="stripes").wait()

def shown(ex, *names): return " ".join(plain(ex.on[n].value) for n in names or ("status", "head", "cell", "heard", "filter", "far", "kept"))


def test_every_control_has_a_class_of_its_own(ex):
    for name, w in ex.on.items(): assert f"vln-{name}" in w._dom_classes
    assert "vln-app" in ex.app._dom_classes
    bundle = ex._repr_mimebundle_()
    assert "run the cell again" in bundle["text/html"] and "application/vnd.jupyter.widget-view+json" in bundle

def test_a_choice_is_seen_everywhere(ex):
    for choose in (lambda: setattr(ex.on["layer"], "value", "two"), lambda: setattr(ex.on["depth"], "value", "three")):
        choose()
        ex.wait()
        layer = ex.on["layer"].value
        assert ex.on["depth"].value == layer == ex.view.layer and f"{layer} of test-000000 at 1,1" in plain(ex.on["cell"].value)
    ex.on["thumbs"].value = "test-000002"
    ex.wait()
    assert ex.on["image"].value == "test-000002" == ex.view.id and "three of test-000002" in plain(ex.on["cell"].value)
    before = ex.on["picture"].src
    ex.on["image"].value = "test-000001"
    ex.wait()
    assert ex.on["thumbs"].value == "test-000001" and ex.on["picture"].src != before

def test_a_click_on_a_cell_changes_its_note(ex):
    ex.on["picture"].cell = [2, 0]
    ex.wait()
    assert "at 2,0" in plain(ex.on["cell"].value) and "row 3, column 1 of 3 × 3" in plain(ex.on["cell"].value) and "bottom left" in plain(ex.on["cell"].value)
    assert len(ex.on["picture"].texts) == 9 and all(ex.on["picture"].texts) and ex.on["picture"].grid == [3, 3] and ex.on["fill"].disabled

def test_nothing_is_asked_twice(ex, stripes):
    def tour():
        for image in ("test-000000", "test-000001"):
            for layer in ("two", "four"):
                for cell in ([0, 0], [2, 2]): ex.on["image"].value, ex.on["layer"].value, ex.on["picture"].cell = image, layer, cell; ex.wait()
    tour()
    asked = len(stripes.asked)
    places = [(i, k, rc) for i, k, cells in stripes.asked if cells is not None for rc in cells]
    tour()
    assert len(stripes.asked) == asked and len(set(places)) == len(places)

def test_depth_shows_scores_on_a_common_scale(ex):
    items = ex.on["depth"].items
    assert [i["key"] for i in items] == Stripes.layers and all("vln-dot" in i["html"] for i in items)
    assert "--at:100%" in items[0]["html"] and "--at:0%" in items[2]["html"] # "one" has the highest score, "three" the lowest
    assert "cosine" in plain(ex.on["head"].value)

def test_a_phrase_draws_its_map_and_goes_along(ex):
    ex.on["phrase"].value = "  some   words "
    ex.wait()
    assert ex.on["overlay"].value == "phrase" and ex.on["picture"].heat.startswith("data:image/png") and "some words" in plain(ex.on["heard"].value)
    ex.on["layer"].value = "one"
    ex.wait()
    assert ex.view.map is not None and "one" in plain(ex.on["heard"].value)
    ex.on["overlay"].value = "grid"
    ex.wait()
    assert ex.on["picture"].heat == ""
    ex.on["overlay"].value = "scores"
    ex.wait()
    assert ex.on["picture"].heat and "cosine of each cell" in plain(ex.on["scores"].value)

def test_a_filter_shows_its_words(ex):
    for typed, told in (("2", "four:2"), ("one:7", "one:7")):
        ex.on["unit"].value = typed
        ex.wait()
        assert told in plain(ex.on["filter"].value)
    assert ex.on["layer"].value == "one" and "filter 7 of one" in plain(ex.on["filter"].value)
    ex.on["more"].click()
    ex.wait()
    assert "filter 8 of one" in plain(ex.on["filter"].value)


BAD = {"an image that cannot be opened": ("path", "{d}/torn.png", "status", "torn.png is cut off or damaged"), "a folder that is not there": ("path", "{d}/nowhere", "status", "nowhere"),
       "a file that is no image": ("path", "{d}/notes.txt", "status", "notes.txt"), "an empty folder": ("path", "{d}/empty", "status", "empty"),
       "an empty phrase": ("draw", None, "heard", "at least one word"), "a word it does not know": ("phrase", "a zebra", "heard", "does not know 'zebra'"),
       "a method without a model": ("method", "villa", "status", "methods={'villa': {'model': FOLDER}}"), "a method that fails": ("method", "broken", "head", "broken: ZeroDivisionError"),
       "a method that gives no notes": ("method", "lists", "head", "must give Notes, not list"), "a method without cells": ("method", "whole", "cell", "whole has no notes about"),
       "a filter that is no number": ("unit", "seventeen", "filter", "'seventeen' is no filter"), "a filter of an unknown layer": ("unit", "five:1", "status", "no layer 'five'")}

@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_sentence_and_the_app_goes_on(name, made, stripes, tmp_path):
    control, value, where, told = BAD[name]
    Gallery(n=1).open("test-000000").save(tmp_path/"whole.png")
    (tmp_path/"torn.png").write_bytes((tmp_path/"whole.png").read_bytes()[:200])
    (tmp_path/"notes.txt").write_text("no image")
    (tmp_path/"empty").mkdir()
    own = {"stripes": stripes, "broken": lambda images: 1 / 0, "lists": lambda images: ["a"], "whole": lambda images: stripes.describe(images)}
    ex = made(n=2, methods=own, method="stripes").wait()
    if control == "draw": ex.on["draw"].click()
    else: ex.on[control].value = value.format(d=tmp_path)
    ex.wait()
    said = [plain(s) for s in re.findall(r'<p class="vln-said"[^>]*>(.*?)</p>', ex.on[where].value)]
    assert len(said) == 1 and "Traceback" not in said[0], shown(ex)
    assert told in said[0].replace("&#x27;", "'"), said
    assert ex.view.id == "test-000000" if control == "path" else True
    ex.on["method"].value = "stripes"
    ex.wait()
    ex.on["layer"].value = "two"
    ex.wait()
    assert "two of test-000000 at 1,1" in plain(ex.on["cell"].value) and "vln-said" not in ex.on["status"].value

def test_a_method_without_filters_says_so(made, stripes):
    ex = made(n=2, methods={"whole": lambda images, layers=None, cells=None: stripes.describe(images, layers, cells)}, method="whole").wait()
    ex.on["unit"].value = "3"
    ex.wait()
    assert "whole has no notes about units" in plain(ex.on["filter"].value) and ex.view.layers == Stripes.layers

def test_a_broken_image_in_a_folder_is_listed_and_passed_over(made, stripes, tmp_path):
    for k in "ac": Gallery(n=1).open("test-000000").save(tmp_path/f"{k}.png")
    (tmp_path/"b.png").write_bytes(b"\x89PNG\r\n")
    ex = made(tmp_path, {"stripes": stripes}, method="stripes").wait()
    assert ex.on["image"].options == ("a.png", "b.png", "c.png") and "vln-torn" in ex.on["thumbs"].items[1]["html"]
    ex.on["image"].value = "b.png"
    ex.wait()
    assert ex.on["image"].value == "a.png" and "b.png is " in shown(ex, "status") # the old one stays, in the list too
    ex.on["image"].value = "c.png"
    ex.wait()
    assert "of c.png" in plain(ex.on["cell"].value) and "vln-said" not in ex.on["status"].value

def test_no_text_becomes_markup(made):
    evil = "<img src=x onerror=alert(1)>"
    def f(images, layers=None, cells=None): return Notes([Note(i, "net", evil, evil, 0., "cosine", "m", **({} if cells is None else dict(row=0, col=0, grid_h=1, grid_w=1))) for i, _ in images])
    ex = made({evil: np.zeros((8, 8))}, {"m": f}, method="m").wait()
    ex.on["phrase"].value = evil
    ex.on["unit"].value = evil
    ex.wait()
    every = "".join(w.value for n, w in ex.on.items() if type(w).__name__ == "HTML") + "".join(i["html"] for n in ("depth", "thumbs") for i in ex.on[n].items) + ex.view.page()
    assert "&lt;img src=x" in every and "<img src=x" not in every


@pytest.mark.parametrize("source", [torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.rand(3, 3, 8, 8), [Image.new("RGB", (9, 9))] * 3, {"a": np.zeros((8, 8, 3), np.uint8), "b": b"torn", "c": np.ones((8, 8))}])
def test_images_come_in_many_kinds(source, made, stripes):
    ex = made(source, {"stripes": stripes}, method="stripes").wait()
    assert len(ex.view.gallery) == 3 and ex.view.image.mode == "RGB" and "at 1,1" in plain(ex.on["cell"].value)

def test_uploads_join_the_list(ex, tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path/"red.png")
    ex._upload([{"name": "red.png", "content": memoryview((tmp_path/"red.png").read_bytes())}])
    ex.wait()
    assert ex.view.id == "red.png" and ex.on["picture"].size == [20, 10] and len(ex.view.gallery) == 4

@pytest.mark.parametrize("wrong, told", [(dict(images=7), "not int"), (dict(images=[("a", 1), ("a", 2)]), "two images are called 'a'"), (dict(methods={"x": 7}), "not int"),
    (dict(methods={"devli": {"model": "x"}}), "devil"), (dict(method="devli"), "devil"), (dict(images="no/such/folder"), "no/such/folder"), (dict(notes="no/such/run"), "no notes")])
def test_an_explorer_that_cannot_be_made_says_why(wrong, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told) as e: Explorer(**wrong)
    assert "\n" not in str(e.value)


def test_the_newest_wish_wins_and_wishes_of_different_kinds_add_up(ex, stripes):
    stripes.at = "one"
    ex.on["layer"].value = "one" # a cell of it: the desk is busy now
    assert stripes.stuck.wait(30)
    for layer in ("two", "three", "four", "two"): ex.look(layer=layer)
    ex.look(image="test-000001")
    stripes.at = None
    stripes.gate.set()
    ex.wait()
    assert (ex.view.id, ex.view.layer) == ("test-000001", "two") and ex.on["layer"].value == "two"
    assert not any(k == "three" and cells is not None for _, k, cells in stripes.asked)

def test_slow_captions_show_progress_are_cancelled_and_go_on(ex, stripes, monkeypatch):
    monkeypatch.setattr(views, "QUICK", 0) # layer by layer
    monkeypatch.setattr("vlnotes.explore.PATIENCE", 0)
    stripes.at, bars = "two", []
    ex.on["progress"].observe(lambda c: bars.append(c["new"]), "value")
    ex.on["image"].value = "test-000001"
    assert stripes.stuck.wait(30)
    ex.on["cancel"].click() # the kernel answers while the method works
    stripes.gate.set()
    ex.wait()
    assert "cancelled" in shown(ex, "status") and ex.view.whole is None and bars
    done = {k for i, k, cells in stripes.asked if i == "test-000001" and cells is None}
    assert done == {"one", "two"}
    stripes.at = None
    ex.look(image="test-000001")
    ex.wait()
    assert ex.view.whole is not None and len(ex.view.whole) == 4 and [i["key"] for i in ex.on["depth"].items] == Stripes.layers
    asked = [k for i, k, cells in stripes.asked if i == "test-000001" and cells is None]
    assert sorted(asked) == sorted(Stripes.layers) # what was finished was not asked again

class Slow(Gallery):
    "Images that come one by one."
    def __init__(self, n): super().__init__(n=n); self.gate, self.stuck, self.at = threading.Event(), threading.Event(), 40
    def open(self, name):
        if name == self.ids[self.at]: self.stuck.set(); self.gate.wait(60)
        return super().open(name)

def test_the_first_look_at_filters_shows_progress_lets_clicks_pass_and_is_cancelled(made, monkeypatch, tmp_path):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    monkeypatch.setattr("vlnotes.explore.PATIENCE", 0)
    probe = Slow(80)
    ex = made(n=2, probe=probe).wait()
    ex.on["unit"].value = "17"
    assert probe.stuck.wait(60)
    assert ex.on["progress"].max == 80 and ex.on["progress"].value > 20 and "vln-quiet" not in ex.on["cancel"]._dom_classes
    ex.on["picture"].cell = [0, 0] # waits until an image is through
    ex.on["cancel"].click()
    probe.gate.set()
    ex.wait()
    assert "cancelled" in shown(ex, "status") and "vln-regions" not in ex.on["filter"].value and "vln-quiet" in ex.on["cancel"]._dom_classes
    ex.on["pick"].click()
    ex.wait()
    assert "vln-regions" in ex.on["filter"].value and "layer4:17" in plain(ex.on["filter"].value) and "vln-said" not in ex.on["filter"].value
    monkeypatch.setattr(Gallery, "open", lambda *a: pytest.fail("the probe was looked through again"))
    ex.on["unit"].value = "3"
    ex.wait()
    assert "layer4:3" in plain(ex.on["filter"].value) and ex.on["filter"].value.count("<img") == views.TOP

def test_a_click_is_answered_during_a_long_pass(made, monkeypatch, tmp_path):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    probe, told = Slow(60), []
    ex = made(n=2, probe=probe).wait()
    ex.on["unit"].value = "5"
    assert probe.stuck.wait(60)
    ex.on["cell"].observe(lambda c: told.append([j.kind for j in ex.desk.running]), "value")
    ex.on["picture"].cell = [0, 1]
    probe.gate.set()
    ex.wait()
    assert told[0] == ["unit", "look"] and "row 1, column 2" in plain(ex.on["cell"].value) and "vln-regions" in ex.on["filter"].value

def test_broken_images_of_the_probe_are_counted(made, monkeypatch, tmp_path):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path/"data"))
    good = dict(Gallery(n=20, seed=3))
    ex = made(n=1, probe=Gallery({**good, "torn": b"torn", "gone": "no/such.png"})).wait()
    ex.on["unit"].value = "layer3:2"
    ex.wait()
    assert "2 of the images looked through could not be opened" in plain(ex.on["filter"].value)

def test_every_registered_method_is_there_and_reads_what_it_gives(made):
    ex = made(n=1).wait()
    assert set(ex.on["method"].options) == set(describe.describers())
    own = describe.make("devil")
    item = [("test-000000", ex.view.image)]
    texts = lambda notes: [(n.layer, n.text, n.row, n.col) for n in notes]
    assert texts(ex.view.whole) == texts(own.describe(item))
    assert texts(ex.view.found[3, 3]) == texts(own.describe(item, layers=["layer4"], cells=[(3, 3)]))
    ex.on["phrase"].value = "the color is red"
    ex.wait()
    assert np.allclose(ex.view.map, own.maps(item, ["the color is red"], ["layer4"])["layer4"][0, 0].numpy(), atol=1e-4)
    ex.on["method"].value = "lavise"
    ex.wait()
    assert "no maps of phrases" in plain(ex.on["heard"].value) and ex.view.found
    ex.on["method"].value = "devil"
    ex.wait()
    assert ex.view.map is not None and "vln-said" not in ex.on["heard"].value # the phrase was not forgotten

def test_features_of_an_image_are_computed_once(made):
    ex = made(n=2).wait()
    for layer in ("layer1", "layer3", "layer4"):
        ex.on["layer"].value = layer
        ex.on["phrase"].value = f"the color is {'red' if layer == 'layer1' else 'blue'}"
        ex.wait()
    assert ex.view.encoder.passes == 1

def test_truth_is_marked_where_it_is_known(made):
    ex = made(n=3).wait()
    boxes, facts = ex.view.gallery.truth("test-000000")
    html = "".join(i["html"] for i in ex.on["depth"].items)
    assert {w for w in re.findall(r'<b class="ok">(\w+)</b>', html)} <= {w for f in facts for w in f}
    assert not {w for w in re.findall(r'<s class="no">(\w+)</s>', html)} & {w for f in facts for w in f}
    assert "no image" in plain(html)

def test_a_photograph_is_said_to_be_strange(made):
    from sklearn.datasets import load_sample_image
    ex = made({"china": load_sample_image("china.jpg")}).wait()
    assert "do not trust these words" in plain(ex.on["far"].value) and not ex.on["picture"].crisp
    left, top, w, h = ex.on["picture"].frame
    assert left > 0 and w < 100 and (top, h) == (0, 100) # the square in the middle is what the encoder saw


@pytest.fixture(scope="module")
def run(tmp_path_factory): return describe.describe(n=2, layers=["layer3", "layer4"], out=tmp_path_factory.mktemp("explore")/"run")

def test_a_saved_run_is_explored_without_a_model(run, made, monkeypatch):
    monkeypatch.setattr(describe, "make", lambda *a, **k: pytest.fail("a model was made"))
    ex = made(notes=run).wait()
    notes = Notes.read(run/"notes.parquet")
    assert ex.on["method"].options == ("devil, saved",) and ex.on["image"].options == tuple(notes.unique("image_id")) and ex.on["layer"].options == ("layer3", "layer4")
    ex.on["picture"].cell = [2, 4]
    ex.wait()
    want, = notes.filter(image_id="test-000000", layer="layer4", row=2, col=4)
    assert plain(ex.on["cell"].value.replace("&nbsp;", " ")).count(want.text.split(" . ")[0]) and ex.on["picture"].src and len(ex.view.found) == 36
    assert [len(ns) for ns in ex.view.found.values()] == [1] * 36
    for name, value, where in (("phrase", "the color is red", "heard"), ("unit", "3", "filter")):
        ex.on[name].value = value
        ex.wait()
        assert "vln-said" in ex.on[where].value

def test_notes_without_pictures(run, made, tmp_path):
    path = Notes.read(run/"notes.parquet").write(tmp_path/"notes.jsonl")
    ex = made(notes=path).wait()
    assert ex.on["picture"].src == "" and "no picture" in ex.on["picture"].gone and ex.on["picture"].size == [84, 84] and ex.on["picture"].grid == [6, 6]
    assert "test-000000" in ex.save(tmp_path/"view.html").read_text()
    mixed = made(notes=path, methods={"devil": {}}).wait()
    assert mixed.on["method"].options == ("devil, saved", "devil")
    mixed.on["method"].value = "devil"
    mixed.wait()
    assert "there is no picture of test-000000" in shown(mixed, "head")

def test_saved_filters_show_their_regions(made, tmp_path, monkeypatch):
    out = describe.describe(units={"layer4": [3, 5]}, n=40, out=tmp_path/"run")
    monkeypatch.setattr(describe, "make", lambda *a, **k: pytest.fail("a model was made"))
    ex = made(notes=out).wait()
    ex.on["unit"].value = "layer4:5"
    ex.wait()
    text = Notes.read(out/"notes.parquet").filter(unit=5)[0].text
    assert text[:30] in plain(ex.on["filter"].value) and ex.on["filter"].value.count("<img") == views.TOP
    ex.on["unit"].value = "layer4:4"
    ex.wait()
    assert "filter" in shown(ex, "filter") and "vln-said" in ex.on["filter"].value


def test_the_saved_page_stands_alone(made, tmp_path):
    ex = made(n=2).wait()
    ex.on["phrase"].value = "the color is blue"
    ex.on["unit"].value = "layer4:17"
    ex.wait()
    page = ex.save(tmp_path/"new/folder/view").read_text()
    assert (tmp_path/"new/folder/view.html").exists()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)|url\((?!data:)|@import|<link(?! rel="icon" href="data:)""", page)
    assert "default-src 'none'" in page and "prefers-color-scheme:dark" in page and "the color is blue" in page and 'class="strip"' in page
    words = re.sub("<[^>]+>", "", page).replace("&nbsp;", " ")
    assert "Without any image it says of layer4" in words and all(n.text in words for n in ex.view.whole) and ex.view.units["devil", "layer4", 17][0][0].text in words
    assert ex.save(tmp_path) == tmp_path/"view.html"
    (tmp_path/"file").touch()
    with pytest.raises(OSError, match="file"): ex.save(tmp_path/"file/view.html")
    ex.on["file"].value = str(tmp_path/"by button.html")
    ex.on["save"].click()
    ex.wait()
    assert "by button.html" in plain(ex.on["kept"].value) and (tmp_path/"by button.html").read_text() == page
    ex.on["file"].value = str(tmp_path/"file/view.html")
    ex.on["save"].click()
    ex.wait()
    assert "vln-said" in ex.on["kept"].value

def test_a_closed_explorer_does_no_harm(ex):
    ex.close()
    ex.look(layer="two")
    ex.on["draw"].click()
    ex.wait()
    assert not ex.desk.waiting
    ex.desk.thread.join(10)
    assert not ex.desk.thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"): ex.save("view.html")

def test_without_images_there_is_nothing_to_see_and_no_error(made, stripes):
    ex = made([], {"stripes": stripes}, method="stripes").wait()
    assert ex.on["picture"].gone and "vln-said" not in ex.on["status"].value
    with pytest.raises(ValueError, match="nothing to save"): ex.save("view.html")


def test_work_that_raises_anything_leaves_the_desk_alive():
    desk, got = Desk(), []
    desk.ask("a", lambda: {}["x"], got.append)
    desk.wait()
    desk.ask("b", lambda: desk.breathe(), got.append)
    desk.wait()
    desk.ask("c", lambda: None, lambda why: 1 / 0)
    with pytest.raises(ZeroDivisionError): desk.wait()
    desk.ask("d", lambda: got.append("on"))
    desk.wait()
    desk.close()
    assert isinstance(got[0], KeyError) and got[1:] == [None, "on"]

def test_breathing_outside_the_desk_is_harmless():
    desk = Desk()
    desk.breathe(1, 2)
    view = View(Gallery(n=1), methods({"stripes": Stripes()}), breathe=desk.breathe)
    view.look("test-000000", "stripes")
    desk.close()
    assert len(view.whole) == 4

def test_a_stop_keeps_the_cells_that_are_there(monkeypatch):
    monkeypatch.setattr(views, "SHARE", 1)
    view, n = View(Gallery(n=1), methods({"stripes": Stripes()})), []
    view.look("test-000000", "stripes")
    def breathe(done=0, total=0):
        n.append(done)
        if len(n) > 1: raise Stopped
    view.breathe = breathe
    with pytest.raises(Stopped): view.fill()
    part = set(view.found)
    assert 2 < len(part) < 9
    view.breathe = lambda *a: None
    view.fill()
    assert part < set(view.found) == set(np.ndindex(3, 3))


@pytest.mark.parametrize("absent", ["ipywidgets", "anywidget"])
def test_a_missing_package_is_named_with_its_extra(absent, monkeypatch):
    panels.widgets.cache_clear()
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r"pip install 'vlnotes\[explore\]'"): Explorer(n=1)
    panels.widgets.cache_clear()


@pytest.fixture
def lab(monkeypatch): # JupyterLab, which only says how it was called
    pytest.importorskip("jupyterlab", reason="the command needs the extra explore")
    from jupyterlab import labapp
    calls = []
    monkeypatch.setattr(labapp, "main", calls.append)
    monkeypatch.setattr(sys, "argv", ["vlnotes"])
    return calls

def command(*args):
    from vlnotes.cli import main
    return CliRunner().invoke(main, ["explore", *map(str, args)])

def test_the_command_opens_the_explorers_notebook(lab, tmp_path):
    r = command(tmp_path/"new", "--no-browser", "--port", 8899, "--", "--allow-root")
    assert r.exit_code == 0, r.output
    assert (tmp_path/"new/explore.ipynb").exists() and "wrote" in r.output
    assert lab == [[f"--ServerApp.root_dir={tmp_path/'new'}", "--LabApp.default_url=/lab/tree/explore.ipynb", "--no-browser", "--port=8899", "--allow-root"]]

def test_a_notebook_that_is_there_is_kept(lab, tmp_path):
    (tmp_path/"explore.ipynb").write_text("mine")
    r = command(tmp_path)
    assert r.exit_code == 0 and "kept" in r.output and (tmp_path/"explore.ipynb").read_text() == "mine" and len(lab) == 1 and "--no-browser" not in lab[0]

def test_the_command_refuses_politely(lab, tmp_path, monkeypatch):
    (tmp_path/"file").touch()
    r = command(tmp_path/"file")
    assert r.exit_code == 2 and "is a file" in r.output
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    r = command(tmp_path)
    assert r.exit_code == 2 and "pip install 'vlnotes[explore]'" in r.output and not (tmp_path/"explore.ipynb").exists()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    r = command(tmp_path)
    assert r.exit_code == 2 and "widgets are not installed" in r.output and len(lab) == 0
