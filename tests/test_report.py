"The report: one file, nothing from outside, nothing executed that it was given, nothing lost."
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vlnotes import docmnist, report, truth
from vlnotes.notes import Note, Notes

EVIL = """<script>alert(1)</script><img src=x onerror=alert(1)>"'&</style></script><!--"""
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
SCENES = docmnist.generate(8, regions=(1, 4), split="test", order="reading", unique=False)
IMAGES = {n: SCENES.image(i) for i, n in enumerate(SCENES.ids)}
BOARD = [{"who": "all", "f1": .9, "f1_lo": .8, "f1_hi": .97}, {"who": "layer1", **dict.fromkeys(truth.FACTORS, .5), "none": None, "digit_n": 20, "f1": .4},
         {"who": "layer4", **dict.fromkeys(truth.FACTORS, .9), "none": 1., "digit_lo": .7, "digit_hi": float("nan"), "digit_n": 20, "f1": .8},
         {"who": "constant", **dict.fromkeys(truth.FACTORS, .1), "none": 0., "f1": .2}, {"who": "shuffled"}, {"who": "blind", "f1": None}]


def note(image="a", text="words", layer="layer4", **k):
    return Note(image, "zoo/convnet", layer, text, k.pop("score", -.5), "mean_logprob", k.pop("method", "devil"), **k)


def cells(image, g, text, layer="layer4", frame=(0, 0, 84, 84)):
    x, y, w, h = frame[0], frame[1], (frame[2] - frame[0]) / g, (frame[3] - frame[1]) / g
    return [note(image, text(r, c), layer, row=r, col=c, grid_h=g, grid_w=g, x0=x + c*w, y0=y + r*h, x1=x + c*w + w, y1=y + r*h + h)
            for r in range(g) for c in range(g)]


def world():
    out = []
    for i, n in enumerate(SCENES.ids):
        out += [note(n, SCENES.texts[i], l) for l in ("all", "layer1", "layer4")]
        for l, g in ("layer1", 21), ("layer4", 6):
            under = SCENES.grid(g, g)[i] - SCENES.offsets[i]
            say = lambda r, c, regions=SCENES.regions(i), u=under: "the image shows a " + regions[max(u[r, c], 0)][0] + f" at {r} {c}"
            out += cells(n, g, say, l)
    return Notes(out)


class Page(HTMLParser):
    "What a browser would see: tags, attributes, texts, JSON; unbalanced tags fail."
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.data = [], [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)
    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"
    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            if self.tags[-1][1].get("type") == "application/json": self.data.append(json.loads(data))
        elif self.open and self.open[-1] != "style": self.words.append(data)
    @property
    def text(self): return " ".join("".join(self.words).replace("\xa0", " ").split())
    def all(self, tag): return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope="module")
def full():
    maps = {n: [("a two", "layer4", np.random.default_rng(0).normal(-9, 2, (6, 6)))] for n in SCENES.ids}
    return report.html(world(), IMAGES, scenes=SCENES, scores=BOARD, maps=maps, manifest={"argv": ["vlnotes", "describe"], "seed": 0}, crop=lambda s: (0, 0, *s))


def test_the_page_asks_nothing_of_the_network(full):
    page = Page(full)
    for tag, attrs in page.tags:
        for k in ("src", "href", "action", "srcset", "data", "poster"):
            assert attrs.get(k, "#").startswith(("data:", "#")), (tag, k, attrs[k][:80])
        for address in re.findall(r"url\(([^)]{0,40})", attrs.get("style", "")): assert address.startswith("data:image/")
    assert "http" not in report.CSS + report.SCRIPT and "@import" not in full and "url(" not in report.CSS
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]


def test_the_script_is_small(): assert len(report.SCRIPT.encode()) < 2048


def test_eight_scenes_stay_small(full): assert len(full) < 1_500_000


def test_every_note_is_on_the_page(full):
    page = Page(full)
    assert all(n in page.text for n in SCENES.ids)
    bare = page.text.replace("not named", "")
    for t in SCENES.texts: assert " ".join(t.split()) in bare
    for i, d in enumerate(page.data):
        for l in d["l"]:
            under = SCENES.grid(l["h"], l["w"])[i] - SCENES.offsets[i]
            for k, t in enumerate(l["i"]):
                r, c = divmod(k, l["w"])
                said = re.sub("<[^>]+>", "", d["t"][t][0])
                assert said == f"the image shows a {SCENES.regions(i)[max(under[r, c], 0)][0]} at {r} {c}"
                assert d["t"][t][2] == ("ok" if under[r, c] >= 0 else "")


def test_pictures_are_the_images_and_have_words(full):
    for a in Page(full).all("img"): assert a["alt"].strip()
    import base64, io
    src = next(a["src"] for a in Page(full).all("img"))
    assert Image.open(io.BytesIO(base64.b64decode(src.split(",")[1]))).tobytes() == SCENES.image(0).tobytes()


def test_tables_have_captions_and_scopes(full):
    page = Page(full)
    assert len(page.all("table")) == len(page.all("caption")) and all(a.get("scope") for a in page.all("th"))


def test_given_text_is_never_markup():
    notes = Notes([note(EVIL, EVIL, EVIL, method=EVIL), *cells(EVIL, 2, lambda r, c: EVIL), note("", EVIL, unit=3)])
    manifest = {"argv": [EVIL], "params": {EVIL: EVIL}, "cite": [EVIL], "skipped": {"count": 1, "items": [[EVIL, EVIL]]}, "seed": EVIL}
    text = report.html(notes, {EVIL: Image.new("RGB", (9, 9))}, title=EVIL, intro=EVIL, warning=EVIL, manifest=manifest,
                       maps={EVIL: [(EVIL, EVIL, np.eye(2))]}, scores=[{"who": EVIL, "digit": .5}])
    page = Page(text)
    assert len([a for a in page.all("script") if a.get("type") != "application/json"]) == 1
    assert not [k for _, a in page.tags for k in a if k.startswith("on")] and not [a for a in page.all("img") if a.get("src") == "x"]
    said = page.data[0]["t"][0][0]
    assert Page(f"<p>{said}</p>").tags == [("p", {})] and Page(f"<p>{said}</p>").text == " ".join(EVIL.split())


def test_right_and_wrong_words_are_marked():
    v = SCENES.vocab
    assert report.marked("a TWO, someone is red", v, {"two"}) == 'a <b class="ok">TWO</b>, someone is <s class="no">red</s>'
    assert report.marked("a two", v, None) == report.marked("a two") == "a two"


def test_the_best_layer_is_marked_and_no_baseline(full):
    assert report.best_layer(BOARD) == "layer4" and report.best_layer([{"who": "blind", "digit": 1.}]) is None and report.best_layer(None) is None
    table = re.search(r'<table class="scores">.*?</table>', full, re.S)[0]
    assert table.count("best cells") == 1 and table.index("layer4") < table.index("Baselines") < table.index(">constant<")
    assert "nan" not in table.lower().replace("nance", "") and "None" not in table


def test_without_truth_nothing_is_judged():
    page = report.html(world(), IMAGES)
    assert 'class="ok"' not in page and 'class="no"' not in page and "What is there" not in page and "What was right" not in page


def test_truth_is_used_for_its_own_images_only():
    notes = Notes([note(SCENES.ids[0], "a two"), note("other", "a two")])
    cards = report.html(notes, {**dict(list(IMAGES.items())[:1]), "other": Image.new("L", (9, 9))}, scenes=SCENES).split("<article")[1:]
    assert "What is there" in cards[0] and "What is there" not in cards[1]


@pytest.mark.parametrize("notes, images", [
    (Notes(), None), (Notes(), {"a": Image.new("RGB", (1, 1))}), (Notes([note()]), None), (Notes([note()]), {}),
    (Notes([note("a", row=0, col=1)]), None), (Notes(cells("a", 2, lambda r, c: f"{r}")[1:3]), {"a": Image.new("RGBA", (84, 84))}),
    (Notes([note("", "fur", unit=4)]), None), (Notes([note("a", x0=1, y0=2, x1=3, y1=4)]), {"a": Image.new("CMYK", (700, 20))})])
def test_any_notes_make_a_page(notes, images):
    page = Page(report.html(notes, images))
    assert all(n.text in page.text + json.dumps(page.data) for n in notes)


def test_a_map_without_a_finite_value_and_a_tensor_like_one():
    text = report.html(Notes([note()]), {"a": Image.new("RGB", (8, 8))}, maps={"a": [("p", "l", np.full((3, 3), np.nan)), ("q", "l", np.zeros((2, 2)))]})
    assert "no finite value" in text and text.count("<figure>") == 2


def test_first_images_only_and_says_so():
    notes = Notes([note(f"i{k:03d}") for k in range(300)])
    images = {f"i{k:03d}": Image.new("RGB", (4, 4)) for k in range(100)}
    page = report.html(notes, images, limit=7)
    assert page.count("<article") == 7 and "293 are not shown" in page
    assert report.html(notes, images).count("<article") == 60
    with pytest.raises(ValueError, match="limit=-1"): report.html(notes, limit=-1)


def test_large_pictures_shrink():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8))
    size = noise.size
    assert len(report.picture(noise)) < 800_000 and noise.size == size


def test_the_grid_lies_where_the_encoder_looked():
    frame = (50, 0, 150, 100)
    notes, images = Notes(cells("a", 4, lambda r, c: "x", frame=frame)), {"a": Image.new("RGB", (200, 100))}
    for crop in None, lambda size: frame:
        assert 'style="left:25%;top:0%;width:50%;height:100%"' in report.html(notes, images, crop=crop)


def test_far_images_are_flagged():
    page = report.html(Notes([note(extra={"out_of_domain": True}), note("b")]))
    assert page.count("unlike what") == 1


def test_same_input_same_page(full): assert report.html(world(), IMAGES) == report.html(world(), IMAGES)


def test_write_is_atomic(tmp_path, monkeypatch):
    path = report.write(tmp_path/"deep"/"report.html", Notes([note()]), title="one")
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "write_text", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="full"): report.write(path, Notes(), title="two")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_imports_no_torch_and_no_method():
    code = "import sys, vlnotes.report; print([m for m in sys.modules if m == 'torch' or m.startswith(('vlnotes.devil', 'vlnotes.coca'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
