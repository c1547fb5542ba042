"Masks in closed form against drawings, sets of named objects, COCO and Visual Genome in their real layouts, and what is left out of them."
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from vlnotes.docmnist import generate
from vlnotes.lavise.coco import coco_instances, decode, encode
from vlnotes.lavise.concepts import (Annotated, Choice, Concept, choose, docmnist_regions, frequencies, only, present, readable,
                                     regions, split, without)
from vlnotes.lavise.genome import clean, read_aliases, records, synset_word, vg_objects
from vlnotes.lavise.masks import PUBLISHED, View, box_mask, random_view, raster_mask
from vlnotes.runs import write_json
from vlnotes.sources import Skipped

PIPELINE = v2.Compose([v2.Resize(256, v2.InterpolationMode.NEAREST), v2.CenterCrop(224)])
GRIDS = st.sampled_from([(7, 7), (14, 14), (28, 28), (56, 56), (13, 13), (6, 6), (4, 9), (1, 1)])
SIDES = st.integers(8, 700)


def shrunk(raster, grid, pipeline=PIPELINE): # a drawing through the steps of the picture, nearest pixel at each
    return np.asarray(pipeline(Image.fromarray(raster.astype(np.uint8) * 255)).resize(grid[::-1], Image.Resampling.NEAREST)) > 0


def drawn(box, size):
    canvas = np.zeros(size[::-1], bool)
    x0, y0, x1, y1 = box
    canvas[max(y0, 0):max(y1, 0), max(x0, 0):max(x1, 0)] = True
    return canvas


# ---- masks

@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, GRIDS, st.lists(st.tuples(*[st.integers(-60, 760)] * 4), min_size=1, max_size=4))
def test_a_box_is_its_drawing(w, h, grid, boxes):
    got = box_mask(boxes, (w, h), grid)
    assert got.shape == (len(boxes), *grid) and got.dtype == bool
    for b, m in zip(boxes, got): assert (m == shrunk(drawn(b, (w, h)), grid)).all()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, GRIDS, st.integers(0, 2**31))
def test_a_raster_mask_is_the_pipelines(w, h, grid, seed):
    raster = np.random.default_rng(seed).random((h, w)) < .5
    assert (raster_mask(raster, grid) == shrunk(raster, grid)).all()
    assert (raster_mask(np.stack([raster, ~raster]), grid) == np.stack([shrunk(raster, grid), shrunk(~raster, grid)])).all()


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**31))
def test_image_and_mask_move_together(w, h, seed):
    rng = np.random.default_rng(seed)
    raster, view = rng.random((h, w)) < .3, random_view((w, h), rng, 64)
    moved = np.asarray(view.image(Image.fromarray(raster.astype(np.uint8) * 255), Image.Resampling.NEAREST)) > 0
    assert moved.shape == (64, 64) and (raster_mask(raster, (64, 64), view) == moved).all()
    steps = [k for k, _ in view.steps]
    assert steps in (["window", "stretch"], ["window", "stretch", "flip"])
    top, left, ch, cw = view.steps[0][1]
    assert 0 <= top <= h - ch and 0 <= left <= w - cw and ch > 0 and cw > 0


def test_random_views_are_seeded_and_spread():
    views = [random_view((400, 300), np.random.default_rng(s)) for s in range(300)]
    assert views[:50] == [random_view((400, 300), np.random.default_rng(s)) for s in range(50)] and len(set(views)) > 250
    flips = sum(v.steps[-1][0] == "flip" for v in views)
    assert 100 < flips < 200 # half of 300, four deviations
    for v in views:
        _, _, h, w = v.steps[0][1]
        assert .07 < h * w / 120_000 <= 1 and .7 < w / h < 1.4 # a pixel of rounding beside 3/4, 4/3
    assert random_view((1000, 2), np.random.default_rng(0)).steps[0][1][2:] == (2, 3) # too oblong: the middle


@pytest.mark.parametrize("crop", [(224, 224), (300, 100), (500, 600)])
def test_a_margin_is_outside(crop):
    view, size = View((("short", 240), ("crop", crop))), (400, 320)
    m = box_mask([(-9, -9, 999, 999)], size, crop, view)[0]
    rows, cols = view.cells(size, crop)
    assert (m == ((rows >= 0)[:, None] & (cols >= 0))).all()
    im = view.image(Image.new("L", size, 255), Image.Resampling.NEAREST)
    assert im.size == crop[::-1] and (m == (np.asarray(im) > 0)).all()
    by_torchvision = v2.Compose([v2.Resize(240, v2.InterpolationMode.NEAREST), v2.CenterCrop(list(crop))])(Image.new("L", size, 255))
    assert (np.asarray(by_torchvision) == np.asarray(im)).all()


def test_flip_mirrors_columns():
    box, size = [(3, 1, 5, 7)], (12, 9)
    assert (box_mask(box, size, (9, 12), View((("flip", None),)))[0] == box_mask(box, size, (9, 12), View())[0][:, ::-1]).all()


def test_the_originals_frame():
    # its canvas has the width as rows: of a box of 30 x 60 in a picture of 60 x 80, the rows from 60 on fall off it
    box, size = [(0, 20, 30, 80)], (60, 80)
    assert box_mask(box, size, (80, 60), View())[0].sum() == 1800 and box_mask(box, size, (60, 80), View(), legacy=True)[0].sum() == 1200
    canvas = np.zeros((60, 80), bool)
    canvas[20:80, 0:30] = True
    assert (box_mask(box, size, (7, 7), legacy=True)[0] == shrunk(canvas, (7, 7))).all()
    rng = np.random.default_rng(0)
    for side in 50, 256, 333:
        b = np.sort(rng.integers(0, side + 1, (9, 2, 2)), 1).reshape(9, 4)
        assert (box_mask(b, (side, side), (7, 7)) == box_mask(b, (side, side), (7, 7), legacy=True)).all()


def test_extremes_of_boxes():
    assert box_mask([(0, 0, 640, 480)], (640, 480), (7, 7)).all()
    assert not box_mask([(0, 0, 40, 200)], (400, 200), (7, 7)).any() # an image 2 : 1, its left tenth is cut away
    assert not box_mask([(700, 0, 800, 100), (-50, -50, 0, 0), (5, 5, 5, 9), (9, 9, 5, 5)], (640, 480), (7, 7)).any()
    assert box_mask([], (640, 480), (7, 7)).shape == (0, 7, 7)
    with pytest.raises(ValueError, match="box 1 has a corner that is no number"): box_mask([(0, 0, 1, 1), (0, float("nan"), 1, 1)], (9, 9), (3, 3))


def test_bad_views():
    with pytest.raises(ValueError, match="no step 'shear'"): View((("shear", 3),)).cells((9, 9), (3, 3))
    with pytest.raises(ValueError, match="0 x 5 has no pixels"): PUBLISHED.cells((0, 5), (3, 3))
    with pytest.raises(ValueError, match="nothing is left"): View((("short", 1), ("window", (0, 0, 0, 1)))).cells((900, 3), (3, 3))


# ---- sets

@pytest.fixture(scope="module")
def c(): return docmnist_regions(generate(120, regions=(1, 4), seed=5))


def test_columns_and_parts(c):
    assert len(c) == 120 and c.offsets[-1] == len(c.rows) == len(c.boxes) == len(c.word_offsets) - 1 and c.word_offsets[-1] == len(c.words)
    order = np.random.default_rng(0).permutation(120)
    part = c[order]
    for k in 0, 7, 119:
        a, b = part[k], c[int(order[k])]
        assert a.id == b.id and a.objects == b.objects and a.image.tobytes() == b.image.tobytes() and a.size == (84, 84)
    assert c[:0].ids == [] and len(c[c.owner[:0]]) == 0 and [a.id for a in c[5:8]] == c.ids[5:8]
    with pytest.raises(IndexError, match="image 120 is asked for; there are 120"): c[120]
    assert pickle.loads(pickle.dumps(c[:3]))[1].image.tobytes() == c[1].image.tobytes() # workers take a copy


def test_keys_name_content(c):
    assert c.key == docmnist_regions(generate(120, regions=(1, 4), seed=5)).key and json.loads(json.dumps(c.key)) == c.key
    others = [c[1:], c[::-1], docmnist_regions(generate(120, regions=(1, 4), seed=6)), docmnist_regions(generate(120, regions=(1, 4), seed=5, split="val"))]
    assert len({json.dumps(o.key, sort_keys=True) for o in [c, *others]}) == 5
    assert only(c, c.vocab).key == c.key != only(c, c.vocab[:-5] + ["small", "medium", "large"]).key and only(c, c.vocab[::-1], order=True).key != c.key


def test_words_and_counts(c):
    by_object = Counter(w for a in c for o in a.objects for w in o.words)
    by_image = Counter(w for a in c for w in a.words)
    assert dict(zip(c.vocab, frequencies(c, "objects").tolist())) == by_object and dict(zip(c.vocab, frequencies(c).tolist())) == by_image
    with pytest.raises(ValueError, match="not by 'pixels'"): frequencies(c, "pixels")


def test_only_some_words_and_nothing_lost(c):
    told = Skipped()
    kept = only(c, ["seven", "circle", "no such word"], told)
    assert kept.vocab == ["seven", "circle"] and all(o.words for a in kept for o in a.objects)
    objects, images = [r for w, r in told if "region" in w], [r for w, r in told if "region" not in w]
    assert len(objects) == len(c.rows) - len(kept.rows) and len(images) == len(c) - len(kept)
    assert set(objects) == {"it has no word that is known here"} and set(images) == {"no object of it is left"}
    assert len(only(c, ["seven"], empty=True)) == len(c)
    assert only(c, ["purple", "zebra", "red"], order=True).vocab == ["purple", "zebra", "red"]
    with pytest.raises(ValueError, match="nothing in docmnist train is left"): only(c, ["zebra"])
    with pytest.raises(ValueError, match="because no reason"): without(c, np.ones(len(c.rows), bool), "no reason")


def test_regions_leave_out_what_shows_nothing(c):
    a, told = c[0], Skipped()
    masks, objects = regions(a, (6, 6), View(), told)
    assert len(masks) == len(objects) == len(a.objects) and masks.any((1, 2)).all() and not len(told)
    extra = [Concept(("red",), (500, 0, 600, 50), id="out"), Concept(("red",), (0, 0, 1, 1), id="small"), Concept(("red",), id="bare"),
             Concept(("red",), (0, 0, 84, 84), lambda: np.zeros((84, 84), bool), "empty"), Concept(("red",), None, lambda: np.ones((84, 84), bool), "all")]
    b = Annotated("b", [*extra, *a.objects], a.read)
    more, found = regions(b, (6, 6), View(), told)
    assert [o.id for o in found] == ["all", *(o.id for o in a.objects)] and more[0].all() and (more[1:] == masks).all()
    assert [w for w, _ in told] == ["b: out", "b: small", "b: bare", "b: empty"] and "outside the image of 84 x 84" in list(told)[0][1] and "neither" in list(told)[2][1]
    assert regions(Annotated("c", [], a.read), (6, 6))[0].shape == (0, 6, 6)
    with pytest.raises(ValueError, match="the mask of odd is 5 x 4, the image 84 x 84"):
        regions(Annotated("d", [Concept((), None, lambda: np.ones((4, 5), bool), "odd")], a.read), (6, 6))


def test_merged_regions(c):
    a = c[0]
    two = Annotated("two", [Concept(("red",), (0, 0, 28, 28)), Concept(("blue",), (28, 0, 56, 28)), Concept(("red",), (56, 56, 84, 84))], a.read)
    masks, objects = regions(two, (3, 3), View(), merge=True)
    assert [o.words for o in objects] == [("red",), ("blue",)] and masks[0].tolist() == [[True, False, False], [False] * 3, [False, False, True]]


def test_images_that_cannot_be_opened(c):
    def fails(): raise ValueError("it is cut off")
    told = Skipped()
    assert [a.id for a in readable([c[0], Annotated("bad", [], fails), c[1]], told)] == c.ids[:2] and list(told) == [("bad", "it is cut off")]
    with pytest.raises(ValueError, match="cut off"): list(readable([Annotated("bad", [], fails)]))


def test_split_by_image(c):
    parts = split(c, .2, .1, seed=3)
    assert {p: len(v) for p, v in parts.items()} == dict(train=84, val=24, test=12)
    assert sorted(i for p in parts.values() for i in p.ids) == sorted(c.ids)
    shuffled = split(c[np.random.default_rng(0).permutation(120)], .2, .1, seed=3)
    assert all(set(shuffled[p].ids) == set(parts[p].ids) for p in parts) and split(c, .2, .1, seed=4)["val"].ids != parts["val"].ids
    leaking = split(c, .2, .1, by="objects")
    assert set(leaking["val"].ids) & set(leaking["train"].ids) and sorted(np.concatenate([p.rows for p in leaking.values()])) == sorted(c.rows)
    with pytest.raises(ValueError, match="not by 'words'"): split(c, by="words")
    for val, test in (.5, .5), (-.1, 0): # nothing to train on; no share
        with pytest.raises(ValueError, match="leave nothing to train on"): split(c, val, test)


# ---- seen and unseen words

def test_the_draws_of_the_originals():
    words = [str(i) for i in range(1208)]
    assert [len(choose(words, r, replace=True).seen) for r in (.1, 1.)] == [114, 762] and len(choose(words, .7).seen) == 845
    assert len(choose(words, 1.).seen) == 1208


@given(st.integers(1, 60), st.floats(.1, 1), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_choice_divides_the_words(n, rate, seed):
    words = [f"w{i}" for i in range(n)]
    if int(n * rate + 1e-9) == 0:
        with pytest.raises(ValueError, match="teaches none"): choose(words, rate, seed)
        return
    c = choose(words, rate, seed)
    assert sorted(c.seen + c.unseen, key=words.index) == words and len(c.seen) == int(n * rate + 1e-9) and c == choose(words, rate, seed)


def test_choices_are_saved(tmp_path):
    c = choose(["a", "b", "c", "d"], .5, 1, hold_out=["a"])
    c.save(tmp_path / "c.json")
    assert Choice.load(tmp_path / "c.json") == c and "a" in c.unseen
    write_json(tmp_path / "c.json", dict(seen=["a"], unseen=["a"], rate=1, seed=0))
    with pytest.raises(ValueError, match="'a' among the seen and among the unseen"): Choice.load(tmp_path / "c.json")
    write_json(tmp_path / "c.json", [1])
    with pytest.raises(ValueError, match="c.json is no choice of words"): Choice.load(tmp_path / "c.json")


@pytest.mark.parametrize("kw, said", [(dict(rate=0), "teaches none of 3 words"), (dict(rate=1.5), "annotation rate is 1.5"), (dict(words=["a", "a"]), "'a' is listed twice"),
                                      (dict(hold_out=["z"]), "'z' is to be held out"), (dict(rate=1., hold_out=["a", "b", "c"]), "teaches none"), (dict(words=[]), "teaches none of 0 words")])
def test_bad_choices(kw, said):
    with pytest.raises(ValueError, match=said): choose(**dict(words=["a", "b", "c"]) | kw)


# ---- COCO, in the layout of its files

def coco(folder, annotations, n=3, size=(64, 48), names=("person", "traffic light", "hot dog")):
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for i in range(1, n + 1): Image.new("RGB", size, (i, 0, 0)).save(folder / f"val2017/{i:012d}.jpg")
    for k, a in enumerate(annotations, 1): a |= dict(id=a.get("id", k), image_id=a.get("image_id", 1), category_id=a.get("category_id", 1), iscrowd=a.get("iscrowd", 0))
    d = dict(info={}, licenses=[], images=[dict(id=i, file_name=f"{i:012d}.jpg", width=size[0], height=size[1]) for i in range(1, n + 1)],
             annotations=annotations, categories=[dict(id=k, name=s, supercategory="x") for k, s in enumerate(names, 1)])
    write_json(folder / "annotations/instances_val2017.json", d)
    return folder / "annotations/instances_val2017.json"


SQUARE = [[10, 10, 30, 10, 30, 40, 10, 40]]


def test_coco_masks_are_pycocotools(tmp_path):
    mask = pytest.importorskip("pycocotools.mask")
    runs = mask.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
    path = coco(tmp_path, [dict(segmentation=SQUARE, bbox=[10, 10, 20, 30]), dict(segmentation=[*SQUARE, [0, 0, 5, 0, 5, 5]], bbox=[0, 0, 30, 40]),
                           dict(segmentation=dict(size=[48, 64], counts=runs["counts"].decode()), bbox=[0, 0, 48, 48], image_id=3)])
    c = coco_instances(path)
    want = mask.decode(mask.merge(mask.frPyObjects([*SQUARE, [0, 0, 5, 0, 5, 5]], 48, 64))).astype(bool)
    a = c[0]
    assert c.ids == ["000000000001.jpg", "000000000003.jpg"] and a.size == (64, 48) == a.image.size and a.objects[0].id == "annotation 1"
    assert a.objects[0].mask().dtype == bool and a.objects[0].mask()[10:40, 10:30].all() and a.objects[0].mask().sum() == 600
    assert (a.objects[1].mask() == want).all() and (c[1].objects[0].mask() == np.eye(48, 64, dtype=bool)).all()
    assert (regions(a, (7, 7))[0][1] == shrunk(want, (7, 7))).all()
    assert pickle.loads(pickle.dumps(c))[0].objects[1].mask().sum() == want.sum()


def test_coco_words(tmp_path):
    path = coco(tmp_path, [dict(segmentation=SQUARE, bbox=[10, 10, 20, 30], category_id=k) for k in (2, 3, 1)])
    assert coco_instances(path).vocab == ["dog", "hot", "light", "person", "traffic"] # in alphabetical order
    told = Skipped()
    c = coco_instances(path, known={"light", "dog", "hot"}, skipped=told)
    assert [o.words for o in c[0].objects] == [("light",), ("hot", "dog")] and "it is called 'person', and no word of that is known" in [r for _, r in told]
    assert coco_instances(path, phrases=True).vocab == ["hot dog", "person", "traffic light"]


def test_coco_leaves_out_and_counts(tmp_path):
    good = dict(segmentation=SQUARE, bbox=[10, 10, 20, 30])
    bad = {"crowd": dict(iscrowd=1, segmentation=dict(size=[48, 64], counts=[0, 64 * 48]), bbox=[0, 0, 64, 48]), "its mask is empty": good | dict(segmentation=[[5, 5] * 4]),
           "outside the image of 64 x 48": dict(bbox=[70, 0, 9, 9]), "is empty or lies outside": dict(bbox=[5, 5, 0, 9]), "category 9 is not listed": good | dict(category_id=9),
           "image 77 is not listed": good | dict(image_id=77), "not three points or more": good | dict(segmentation=[[1, 2, 3, 4]]), "pairs of numbers near": good | dict(segmentation=[[1e300, 0, 5, 5, 0, 5]]),
           "do not add up": good | dict(segmentation=dict(size=[48, 64], counts=[5, 5])), "do not add up to": good | dict(segmentation=dict(size=[48, 64], counts=[-5, 64 * 48 + 5])),
           "none of theirs": good | dict(segmentation=dict(size=[48, 64], counts="\u20ac\x01")), "cut off": good | dict(segmentation=dict(size=[48, 64], counts="Q")),
           "made for [64, 48]": good | dict(segmentation=dict(size=[64, 48], counts=[1])), "neither an outline nor a bbox": dict(bbox=[1, 2])}
    told = Skipped()
    c = coco_instances(coco(tmp_path, [good.copy(), *bad.values()], 4), skipped=told)
    assert len(c) == 1 and len(c.rows) == 1 and [w for w, _ in told][-3:] == [f"{i:012d}.jpg" for i in (2, 3, 4)]
    reasons = [r for w, r in told if "annotation" in w]
    assert len(reasons) == len(bad) and all(any(k in r for r in reasons) for k in bad), reasons


def test_coco_crowds_may_be_kept(tmp_path):
    c = coco_instances(coco(tmp_path, [dict(iscrowd=1, segmentation=dict(size=[48, 64], counts=[0, 64 * 48]), bbox=[0, 0, 64, 48])]), crowd=True)
    assert c[0].objects[0].mask().all()


def test_a_bbox_alone_or_an_outline_alone(tmp_path):
    c = coco_instances(coco(tmp_path, [dict(bbox=[10, 10, 20, 30]), dict(segmentation=SQUARE)]))
    box, outline = c[0].objects
    assert box.mask is None and box.box == outline.box == (10, 10, 30, 40)
    assert (regions(c[0], (7, 7))[0][0] == regions(c[0], (7, 7))[0][1]).all()


def test_coco_pictures(tmp_path):
    path = coco(tmp_path, [dict(segmentation=SQUARE, bbox=[10, 10, 20, 30], image_id=i) for i in (1, 2, 3)])
    (tmp_path / "val2017/000000000002.jpg").unlink()
    Image.new("RGB", (48, 64)).save(tmp_path / "val2017/000000000003.jpg")
    told = Skipped()
    here = present(coco_instances(path), told)
    assert here.ids == ["000000000001.jpg", "000000000003.jpg"] and "there is no file" in list(told)[0][1]
    assert [a.id for a in readable(here, told)] == ["000000000001.jpg"] and "is 48 x 64; its annotations are made for 64 x 48" in list(told)[1][1]
    with pytest.raises(FileNotFoundError, match="none of the 3 images .* the first should be .*000000000001.jpg"): present(coco_instances(path, tmp_path / "nowhere"))


def test_bad_coco_files(tmp_path):
    path = coco(tmp_path, [dict(bbox=[0, 0, 1, 1])])
    d = json.loads(path.read_text())
    def wrong(change, said):
        path.write_text(change if isinstance(change, str) else json.dumps(d | change))
        with pytest.raises(ValueError, match=said): coco_instances(path)
    wrong('{"a', "not JSON or is cut off")
    wrong("[]", "it needs the lists 'images', 'annotations' and 'categories'")
    wrong(dict(categories=None), "it needs the lists")
    wrong(dict(images=[{"id": 1}]), "lacks or garbles 'file_name'")
    wrong(dict(images=[dict(id=1, file_name="../../x.jpg", width=1, height=1)]), "leads out of its folder")
    wrong(dict(annotations=[3]), "entry 0 of its annotations has no number")
    wrong(dict(annotations=[]), "no object that can be used")
    wrong(dict(annotations=[dict(id=1, image_id=1, category_id=1, iscrowd=1)]), "of 1 annotations the first is left out because it marks a crowd")
    with pytest.raises(FileNotFoundError, match="no file"): coco_instances(tmp_path / "no.json")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_run_lengths_round_trip(w, h, seed):
    mask = pytest.importorskip("pycocotools.mask")
    m = np.random.default_rng(seed).random((h, w)) < .5
    text = mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"]
    again = encode(dict(size=[h, w], counts=text.decode()), (w, h))
    assert again == text and (decode(again, (w, h)) == m).all()


def test_no_pycocotools(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"pip install 'vlnotes\[data\]'"): encode(SQUARE, (64, 48))


# ---- Visual Genome

def obj(i, names=("tree",), synsets=("tree.n.01",), box=(1, 2, 30, 40)):
    return dict(object_id=i, names=list(names), synsets=list(synsets), **dict(zip("xywh", box)), merged_object_ids=[])


def vg(folder, *images):
    folder.mkdir(exist_ok=True)
    write_json(folder / "objects.json", [dict(image_id=k, image_url=f"https://host/VG_100K/{k}.jpg", objects=list(os)) for k, os in enumerate(images, 1)])
    return folder / "objects.json"


@pytest.mark.parametrize("synset, word", [("tree.n.01", "tree"), ("street_sign.n.01", "street"), ("t-shirt.n.01", "t-shirt"), ("dog", "dog"), ("_x.n.01", ""), ("", "")])
def test_synset_words(synset, word): assert synset_word(synset) == word


def test_aliases(tmp_path):
    (tmp_path / "a").write_text("man,men,guy\nguy,guys , dude\nboy,men\n\nlone\n")
    a = read_aliases(tmp_path / "a")
    assert a == {"men": "man", "guy": "man", "guys": "guy", "dude": "guy"} # `men` is in two groups: the first; `guys` is not sent on to `man`
    (tmp_path / "b").write_bytes("caf\u00e9,x".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"): read_aliases(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no list of aliases"): read_aliases(tmp_path / "c")


def test_records_at_any_piece(tmp_path):
    path = vg(tmp_path / "vg", *[[obj(k, names=[f"n\u00e4me {k}"])] for k in range(7)])
    whole = json.loads(path.read_text())
    for piece in 1, 7, 100, 10**6: assert list(records(path, piece)) == whole
    text = path.read_text()
    for cut in len(text) // 2, len(text) - 2: # the end mark alone is missing in the last
        path.write_text(text[:cut])
        with pytest.raises(ValueError, match="is not JSON or is cut off after [0-9]+ images"): list(records(path))
    for bad, said in (('{"a": 1}', "no JSON list of images"), ("", "no JSON list"), ("[1]", "entry 0 is no image"), ('[{"image_id": 1}]', "entry 0 is no image")):
        path.write_text(bad)
        with pytest.raises(ValueError, match=said): list(records(path))
    path.write_bytes(b'[{"image_id": 1, "objects": [], "x": "\xff"}]')
    with pytest.raises(ValueError, match="not UTF-8"): list(records(path))
    with pytest.raises(FileNotFoundError): list(records(tmp_path / "no"))


def test_every_synset_counts_and_the_threshold(tmp_path):
    two = obj(0, synsets=["tree.n.01", "street_sign.n.01", "tree.n.02"])
    path = vg(tmp_path / "vg", [two] * 99, [obj(1)], [])
    n = clean(path, tmp_path / "o.json") # by objects: tree is on 100, street on 99
    assert n == dict(images=2, objects=100, words=1, of=2)
    assert json.loads((tmp_path / "o.json").read_text())[1] == dict(image_id=2, objects=dict(tree=[dict(x=1, y=2, w=30, h=40)]))
    assert clean(path, tmp_path / "o.json", at_least=99)["words"] == 2
    with pytest.raises(ValueError, match="no word in 100 images or more; the most frequent of 2 is in 2"): clean(path, tmp_path / "p.json", by="images")
    assert not (tmp_path / "p.json").exists() and clean(path, tmp_path / "o.json", at_least=100, known={"tree"})["of"] == 1
    with pytest.raises(ValueError, match="not by 'pixels'"): clean(path, tmp_path / "p.json", by="pixels")
    with pytest.raises(ValueError, match="no rule 'lemma'"): clean(path, tmp_path / "p.json", rule="lemma")


def test_by_name_per_image(tmp_path):
    images = [[obj(2 * k, ["guy", "person"]), obj(2 * k + 1, ["rare" if k else "guys"])] for k in range(3)] + [[]] + [[obj(9, ["other"])]]
    path = vg(tmp_path / "vg", *images)
    n = clean(path, tmp_path / "n.json", "name", {"guys": "guy"}, at_least=3)
    found = json.loads((tmp_path / "n.json").read_text())
    assert n == dict(images=4, objects=4, words=1, of=3) # the image without objects is gone, the one that was left empty stays
    assert [r["image_id"] for r in found] == [1, 2, 3, 5] and found[3]["objects"] == [] and [o["names"] for o in found[0]["objects"]] == [["guy"], ["guy"]]
    assert found[0]["objects"][0]["object_id"] == 0 and found[0]["objects"][0]["synsets"] == ["tree.n.01"] # the raw layout
    assert clean(path, tmp_path / "n.json", "name", {"guys": "guy"}, at_least=3, empty=False)["images"] == 3


def test_cleaning_twice_is_cleaning_once(tmp_path):
    rng = np.random.default_rng(0)
    images = [[obj(j, [f"n{rng.integers(6)}"], [f"s{rng.integers(5)}_x.n.01"]) for j in range(rng.integers(1, 5))] for _ in range(60)]
    path = vg(tmp_path / "vg", *images)
    for rule in "synset", "name":
        kw = dict(at_least=30, aliases={"n1": "n0"}, empty=False)
        once = clean(path, tmp_path / "1.json", rule, **kw)
        twice = clean(tmp_path / "1.json", tmp_path / "2.json", rule, **kw)
        assert 0 < once["words"] < once["of"] and twice == once | dict(of=once["words"])
        assert json.loads((tmp_path / "1.json").read_text()) == json.loads((tmp_path / "2.json").read_text())


def test_three_layouts_are_one(tmp_path):
    rng = np.random.default_rng(1)
    images = [[obj(10 * k + j, [w := f"w{rng.integers(3)}"], [f"{w}.n.01"], (j, 2, 30, 40)) for j in range(3)] for k in range(8)]
    path = vg(tmp_path / "vg", *images)
    for rule in "synset", "name": clean(path, tmp_path / f"vg/{rule}.json", rule, at_least=1)
    raw, by_name, by_synset = vg_objects(path), vg_objects(tmp_path / "vg/name.json", rule="name"), vg_objects(tmp_path / "vg/synset.json")
    plain = lambda c: [sorted((o.words, o.box) for o in c[i].objects) for i in range(len(c))]
    assert raw.vocab == by_name.vocab == by_synset.vocab == ["w0", "w1", "w2"] and plain(raw) == plain(by_name) == plain(by_synset)
    assert raw[0].objects[0].box == (0, 2, 30, 42) and raw[0].objects[0].id == "object 0" and raw.ids[0] == "1.jpg"


def test_vg_leaves_out_and_counts(tmp_path):
    bad = [obj(1, box=(1, 2, 0, 4)), obj(2, box=(1, 2, "3", 4)), obj(3, synsets=[]), dict(object_id=4), 5, obj(6, synsets=["unknown.n.01"])]
    told = Skipped()
    c = vg_objects(vg(tmp_path / "vg", [obj(0), *bad], [obj(7, synsets=[])]), known={"tree"}, skipped=told)
    assert len(c) == 1 and len(c.rows) == 1 and len(told) == 8 and ("image 2", "no object of it is left") in list(told)
    reasons = dict(told)
    assert "not four numbers" in reasons["image 1: object 1"] and "it has no synset" == reasons["image 1: object 3"] and "'unknown', which is not known here" in reasons["image 1: object 6"]
    with pytest.raises(ValueError, match="no object that can be used; the first is left out because"): vg_objects(tmp_path / "vg/objects.json", known={"zebra"})


def test_vg_pictures_in_one_folder_or_two(tmp_path):
    path = vg(tmp_path / "vg", [obj(0)], [obj(1)], [obj(2)])
    for name, k in ("VG_100K", 1), ("VG_100K_2", 2):
        (tmp_path / "vg" / name).mkdir()
        Image.new("RGB", (50, 30 + k)).save(tmp_path / f"vg/{name}/{k}.jpg")
    told = Skipped()
    c = present(vg_objects(path, tmp_path / "vg"), told)
    assert c.ids == ["1.jpg", "2.jpg"] and [a.size for a in c] == [(50, 31), (50, 32)] == [a.image.size for a in c] and len(told) == 1
    assert present(vg_objects(path), Skipped()).ids == ["1.jpg"]
    exif = Image.Exif()
    exif[274] = 6 # turned by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "vg/VG_100K/3.jpg", exif=exif)
    a = vg_objects(path)[2]
    assert a.size == (10, 20) == a.image.size
    with pytest.raises(FileNotFoundError, match="no image .*2.jpg"): _ = vg_objects(path)[1].size


def test_boxes_outside_the_image_are_told(tmp_path):
    path = vg(tmp_path / "vg", [obj(0, box=(60, 0, 10, 10)), obj(1, box=(-5, -5, 100, 100))])
    (tmp_path / "vg/VG_100K").mkdir()
    Image.new("RGB", (50, 30)).save(tmp_path / "vg/VG_100K/1.jpg")
    told = Skipped()
    masks, objects = regions(vg_objects(path)[0], (7, 7), PUBLISHED, told)
    assert [o.id for o in objects] == ["object 1"] and masks.all() and "lies outside the image of 50 x 30" in list(told)[0][1]
