"MILANNOTATIONS: the same records from every form, nothing read that does not fit, nobody tested on what they were taught."
import csv
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from milan_toys import COLOURS, SETS, write_imagenet, write_layer, write_milan, write_notes
from PIL import Image

from vlnotes import fetch
from vlnotes.devil import milan
from vlnotes.devil.milan import GROUPS, MERGED, MILAN, PARTNERS, canonical, check_milan, import_split, members, merge, open_parts, open_units, parts, split
from vlnotes.runs import write_json
from vlnotes.sources import Skipped

SET = "alexnet/places365"
ALL = {s: ["layer0"] for s in milan.SETS}


def same(u, v):
    assert (u.layer, u.unit, u.notes, u.k) == (v.layer, v.unit, v.notes, v.k)
    for i in range(len(u)):
        for a, b in zip(u.read(i), v.read(i)): assert a.dtype == b.dtype == np.uint8 and np.array_equal(a, b)


def table(root, name=SET):
    with open(Path(root) / name / "annotations.csv", newline="") as f: return list(csv.DictReader(f))


def add(root, *rows, name=SET):
    with open(Path(root) / name / "annotations.csv", "a", newline="") as f: csv.writer(f).writerows(("train", *r) for r in rows)


# ---- records

@pytest.mark.parametrize("numbers", [False, True])
def test_layer_arrays_and_files_per_unit_give_the_same_records(tmp_path, numbers):
    whole, each = (write_milan(tmp_path / f, form=f, numbers=numbers) for f in ("layers", "units"))
    assert not list(each.rglob("masks.npy")) and not list(whole.rglob("masks_*.npy"))
    u = open_units(whole, SETS)
    same(u, open_units(each, SETS))
    assert len(u) == 4 * 5 and (max(u.unit) == 6) == numbers


def test_order_is_layers_as_strings_then_first_mention(tmp_path):
    u = open_units(write_milan(tmp_path, units=6), SET)
    want = {}
    for layer in sorted(SETS[SET]):
        for r in table(tmp_path):
            if r["layer"] == layer: want.setdefault((layer, int(r["unit"])), []).append(r["summary"])
    assert [(l, n) for l, n in zip(u.layer, u.unit)] == list(want) and u.notes == list(want.values())
    assert list(dict.fromkeys(u.layer)) == ["conv1", "conv10", "conv2"] and u.unit != sorted(u.unit)
    assert u.ids[0] == f"{SET}/conv1/{u.unit[0]}" and len(set(u.ids)) == len(u)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5), st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)), min_size=1))
def test_index_equals_the_slow_one_whatever_the_notes_hold(tmp_path, rows):
    home = tmp_path / "net"
    if not home.exists():
        for layer in "ab": write_layer(home / layer, np.zeros((4, 1, 3, 2, 2), np.uint8), np.zeros((4, 1, 1, 2, 2), np.uint8))
    write_notes(home / "annotations.csv", rows, ("layer", "unit", "summary"))
    want = [(l, u, ns) for l in "ab" for u in dict.fromkeys(n for m, n, _ in rows if m == l) if u < 4
            if (ns := [t.strip() for m, n, t in rows if (m, n) == (l, u) and t.strip()])]
    told = Skipped()
    if not want:
        with pytest.raises(ValueError, match="no unit of"): open_units(home, skipped=told)
        return
    u = open_units(home, skipped=told)
    assert list(zip(u.layer, u.unit, u.notes)) == want and len(told) + sum(map(len, u.notes)) == len(rows)


def test_colours_lie_under_the_masks(tmp_path):
    u = open_units(write_milan(tmp_path), SET)
    for i in range(len(u)):
        x, m = u.read(i)
        colour = list(COLOURS)[u.unit[i] % 4]
        assert all(colour in t for t in u.notes[i]) and (x.transpose(0, 2, 3, 1)[m[:, 0] > 0] == COLOURS[colour]).all()


def test_milans_own_rule_and_units_without_notes(tmp_path):
    write_milan(tmp_path, notes=2)
    add(tmp_path, ("conv1", 1, "a third"), ("conv1", 1, "a fourth"), ("conv2", 0, "a third"))
    u = open_units(tmp_path, SET, min_notes=3, most_notes=3)
    assert u.ids == [f"{SET}/conv1/1", f"{SET}/conv2/0"] and [len(n) for n in u.notes] == [3, 3]
    write_notes(tmp_path / SET / "annotations.csv", [("conv2", 3, "one")], ("layer", "unit", "summary"))
    assert open_units(tmp_path, SET).ids == [f"{SET}/conv2/3"]
    every = open_units(tmp_path, SET, min_notes=0)
    assert len(every) == 12 and every.unit[8:] == [3, 0, 1, 2] and every.notes[8:] == [["one"], [], [], []]


def test_a_network_of_ones_own_needs_no_notes(tmp_path):
    home = write_milan(tmp_path, numbers=True) / SET
    (home / "annotations.csv").unlink()
    for u in open_units(home), open_units(tmp_path / "alexnet", "places365"), open_units(tmp_path, SET):
        assert len(u) == 12 and u.notes == [[]] * 12 and u.unit[:4] == [0, 2, 4, 6]
    assert open_units(home).dataset[0] == "places365" and open_units(home, layers=["conv2"]).layer == ["conv2"] * 4


def test_only_some_layers_need_not_have_the_others(tmp_path):
    home = write_milan(tmp_path) / SET
    shutil.rmtree(home / "conv10")
    with pytest.raises(FileNotFoundError, match="conv10.*no folder.*layers="): open_units(tmp_path, SET)
    assert set(open_units(tmp_path, SET, layers=["conv2", "conv1"]).layer) == {"conv1", "conv2"}


def test_one_record_per_image(tmp_path):
    u = open_units(write_milan(tmp_path, images=15, size=4), SETS)
    e = u.expand()
    assert len(e) == 15 * len(u) and e[14:17].tolist() == [[0, 14], [1, 0], [1, 1]] and len(np.unique(e, axis=0)) == len(e)
    assert u[[]].expand().shape == (0, 2)


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    u = open_units(write_milan(tmp_path), SET)
    x, m = u.read(2)
    assert isinstance(x, np.memmap) and not x.flags.writeable and x.shape == (3, 3, 16, 16) and m.shape == (3, 1, 16, 16)
    assert np.shares_memory(u.read(2)[0], x) and np.shares_memory(u[[2]].read(0)[0], x) # opened once
    assert len(pickle.dumps(u)) < 4000 and pickle.loads(pickle.dumps(u)) == u
    same(pickle.loads(pickle.dumps(u)), u)


def test_parts_of_units(tmp_path):
    u = open_units(write_milan(tmp_path), SETS)
    at = np.array([5, 0, -1])
    for v in u[at], u[list(at)]: assert v.ids == [u.ids[i] for i in at] and v.notes == [u.notes[i] for i in at]
    assert len(u[[]]) == 0 and u[3].ids == [u.ids[3]] and u[:2].ids == u.ids[:2]
    assert u[np.array(u.unit) == 1].unit == [1] * 5 and u[torch.tensor([1, 2])].ids == u.ids[1:3]
    with pytest.raises(IndexError): u[[99]]


def test_blank_masks_are_listed(tmp_path):
    write_milan(tmp_path)
    masks = np.load(tmp_path / SET / "conv10/masks.npy")
    masks[1, 2] = masks[3] = 0
    np.save(tmp_path / SET / "conv10/masks.npy", masks)
    u = open_units(tmp_path, SET)
    assert {(u.ids[i], j) for i, j in u.blank()} == {(f"{SET}/conv10/1", 2), *((f"{SET}/conv10/3", j) for j in range(3))}
    assert u[[0]].blank().shape == (0, 2)


def test_index_of_4000_units_takes_under_a_tenth_of_a_second(tmp_path):
    write_layer(tmp_path / "net/layer1", np.zeros((4000, 1, 3, 1, 1), np.uint8), np.zeros((4000, 1, 1, 1, 1), np.uint8))
    rng = np.random.default_rng(0)
    write_notes(tmp_path / "net/annotations.csv", [("layer1", i % 4000, "a note of some length") for i in rng.permutation(12_000)], ("layer", "unit", "summary"))
    took = []
    for _ in range(5):
        start = time.process_time() # of this process: the machine may be busy
        u = open_units(tmp_path, "net")
        took.append(time.process_time() - start)
    assert len(u) == 4000 and sum(map(len, u.notes)) == 12_000 and min(took) < .1


# ---- keys

def test_group_sizes_and_partners(tmp_path):
    write_milan(tmp_path, ALL, units=2, images=1, size=2)
    size = {k: len(open_units(tmp_path, k)) // 2 for k in GROUPS}
    assert size == {"base": 6, "cls": 4, "gen": 2, "imagenet": 3, "places365": 3, "alexnet": 2, "resnet152": 2, "biggan": 2,
                    **{f"not-{s.replace('/', '-')}": 5 for s in milan.BASE}}
    assert set(GROUPS) - set(PARTNERS) == {"biggan"}
    assert members(PARTNERS["base"]) == ("dino_vits8/imagenet",) and all(PARTNERS[PARTNERS[k]] == k for k in ("cls", "gen", "imagenet", "alexnet"))
    for k, p in PARTNERS.items():
        assert set(members(k)).isdisjoint(members(p)) and (not k.startswith("not-") or (p not in members(k) and "not-" + p.replace("/", "-") == k))
    assert len(open_units(tmp_path, ["alexnet", SET])) == 4 # a set named twice comes once
    assert open_units(tmp_path, "base").dataset[::2] == list(milan.BASE)


@pytest.mark.parametrize("key, want", [("ALEXNET_IMAGENET", "alexnet/imagenet"), ("alexnet-imagenet", "alexnet/imagenet"), ("CLASSIFIERS", "cls"), ("generators", "gen"),
                                       ("NOT_BIGGAN_IMAGENET", "not-biggan-imagenet"), ("DINO_VITS8_IMAGENET", "dino_vits8/imagenet"), ("Base", "base"), ("PLACES365", "places365")])
def test_spellings(key, want): assert canonical(key) == want


@pytest.mark.parametrize("key, near", [("alexnet/imagenett", "alexnet/imagenet"), ("NOT_BIGAN_IMAGENET", "not-biggan-imagenet"), ("resnet", "resnet152")])
def test_unknown_keys_are_told_the_nearest(tmp_path, key, near):
    for ask in canonical, members, lambda k: open_units(tmp_path, k), lambda k: open_parts(tmp_path, k):
        with pytest.raises(ValueError, match=f"no '{key}'; the nearest is '{near}'"): ask(key)


# ---- bad input

def rewrite(path, f): # .npy
    a = f(np.load(path))
    path.unlink()
    np.save(path, a)


def cut(path): path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "no masks": (lambda h: (h / "conv1/masks.npy").unlink(), FileNotFoundError, "conv1 has no masks.npy and no masks_<unit>.npy"),
    "no images": (lambda h: (h / "conv1/images.npy").unlink(), FileNotFoundError, "conv1 has no images.npy.*milan.merge"),
    "no layer": (lambda h: shutil.rmtree(h / "conv1"), FileNotFoundError, "speaks of layer 'conv1', and there is no folder"),
    "no set": (shutil.rmtree, FileNotFoundError, "no folder .*vlnotes data milan"),
    "fewer masks": (lambda h: rewrite(h / "conv1/masks.npy", lambda a: a[:-1]), ValueError, "images.npy is .4, 3, 3, 16, 16. and masks.npy is .3, 3, 1, 16, 16.; they must agree"),
    "other size": (lambda h: rewrite(h / "conv1/images.npy", lambda a: a[..., 1:]), ValueError, "they must agree"),
    "float masks": (lambda h: rewrite(h / "conv1/masks.npy", lambda a: a.astype("f4")), ValueError, "masks.npy holds float32 .* where uint8"),
    "channels last": (lambda h: rewrite(h / "conv1/images.npy", lambda a: a.transpose(0, 1, 3, 4, 2)), ValueError, "images.npy holds uint8 .* where uint8 .units, images, 3, H, W. is right"),
    "flat masks": (lambda h: rewrite(h / "conv1/masks.npy", lambda a: a[:, :, 0]), ValueError, "masks.npy holds uint8 .4, 3, 16, 16. where"),
    "truncated": (lambda h: cut(h / "conv1/images.npy"), ValueError, "images.npy is cut off or not a plain .npy"),
    "empty": (lambda h: (h / "conv1/images.npy").write_bytes(b""), ValueError, "images.npy is cut off or not a plain .npy"),
    "no array": (lambda h: (h / "conv1/images.npy").write_bytes(b"hello there, no array"), ValueError, "not a plain .npy"),
    "units twice": (lambda h: np.save(h / "conv1/units.npy", [1, 2, 1, 3]), ValueError, "units.npy names a unit twice"),
    "fewer units": (lambda h: np.save(h / "conv1/units.npy", [1, 2]), ValueError, "units.npy holds int64 .2,. where 4 whole numbers"),
    "units of floats": (lambda h: np.save(h / "conv1/units.npy", np.arange(4.)), ValueError, "units.npy holds float64"),
    "no column": (lambda h: write_notes(h / "annotations.csv", [], ("layer", "unit", "text")), ValueError, "no column 'summary'; it has 'layer', 'unit', 'text'"),
    "empty csv": (lambda h: (h / "annotations.csv").write_bytes(b""), ValueError, "no column 'layer'; it has none"),
    "no notes": (lambda h: write_notes(h / "annotations.csv", []), ValueError, "no unit of alexnet/places365 has 1 notes or more"),
    "latin csv": (lambda h: (h / "annotations.csv").write_bytes(b"layer,unit,summary\nconv1,0,caf\xe9\n"), ValueError, "annotations.csv is damaged or not CSV in UTF-8"),
    "cut csv": (lambda h: (h / "annotations.csv").write_text('layer,unit,summary\nconv1,0,"a not'), ValueError, "annotations.csv is damaged"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_sentence_says_what_does_not_fit(tmp_path, what):
    spoil, kind, match = BAD[what]
    spoil(write_milan(tmp_path) / SET)
    with pytest.raises(kind, match=match) as e: open_units(tmp_path, SET)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value) or what == "no notes"
    assert what in ("no set", "no masks") or any(check_milan(tmp_path)) # masks may also come unit by unit


BAD_UNITS = {
    "half": (lambda h: (h / "masks_2.npy").unlink(), FileNotFoundError, "has images_2.npy but no masks_2.npy"),
    "other size": (lambda h: rewrite(h / "masks_2.npy", lambda a: a[1:]), ValueError, "images_2.npy is .* and masks_2.npy is"),
    "truncated": (lambda h: cut(h / "images_2.npy"), ValueError, "images_2.npy is cut off"),
    "dtype": (lambda h: rewrite(h / "images_2.npy", lambda a: a / 255), ValueError, "images_2.npy holds float64 .3, 3, 16, 16. where uint8 .images, 3, H, W. is right"),
}


@pytest.mark.parametrize("what", BAD_UNITS)
def test_one_sentence_for_files_per_unit(tmp_path, what):
    spoil, kind, match = BAD_UNITS[what]
    spoil(write_milan(tmp_path, form="units") / SET / "conv1")
    with pytest.raises(kind, match=match) as e:
        u = open_units(tmp_path, SET)
        for i in range(len(u)): u.read(i)
    assert "\n" not in str(e.value)


class Bomb:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "units.npy"])
def test_objects_in_arrays_are_never_unpickled(tmp_path, name):
    write_milan(tmp_path)
    np.save(tmp_path / SET / "conv1" / name, np.array([Bomb(tmp_path / "hit")] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=f"{name} is .*not a plain .npy array"): open_units(tmp_path, SET)
    assert not (tmp_path / "hit").exists()


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    whole = open_units(write_milan(tmp_path, units=12), SET)
    add(tmp_path, ("conv1", 99, "nobody"), ("conv1", "one", "no number"), ("conv2", 0, "  "), ("conv2", 0, ""), ("conv2",), ("conv1", -1, "x"), ("conv1", "²", "x"))
    told = Skipped()
    same(open_units(tmp_path, SET, skipped=told), whole)
    reasons = [r for _, r in told]
    assert len(told) == 7 and reasons.count("the note is empty") == 2 and "layer conv1 has no unit 99" in reasons and "it has 2 fields, the header 4" in reasons
    assert all("annotations.csv: row " in i for i, _ in told)
    with pytest.warns(UserWarning, match="7 entries were left out; the first: .*row 109"): same(open_units(tmp_path, SET), whole)
    with pytest.warns(UserWarning, match="left out"): open_parts(tmp_path, SET)
    assert not list(check_milan(tmp_path)) # few against many


# ---- merging

@pytest.fixture
def apart(tmp_path): # sets without images, and the pictures
    write_milan(tmp_path, units=5, merged=False)
    write_imagenet(tmp_path / "val")
    return tmp_path


def reference(val, ids, size): # the documented steps, one at a time
    from torchvision import datasets, transforms
    data = datasets.ImageFolder(val, transforms.Compose([transforms.Resize(size), transforms.ToTensor()]))
    return np.stack([[(data[i][0] * 255).round().byte().numpy() for i in row] for row in ids])


def do(root, **k): return merge(root, "alexnet/imagenet", root / "val", **{"pictures": 12, "progress": False, **k})


def test_merge_reproduces_the_images(apart):
    home = apart / "alexnet/imagenet"
    with pytest.raises(FileNotFoundError, match="no images.npy.*milan.merge"): open_units(apart, "alexnet/imagenet")
    assert len(open_units(apart, "alexnet/imagenet", images=False)) == 10 and not list(check_milan(apart))
    assert do(apart) == [home / l / "images.npy" for l in ("conv1", "conv2")]
    for layer in ("conv1", "conv2"):
        ids = np.loadtxt(home / layer / "ids.csv", int, delimiter=",")
        assert np.array_equal(np.load(home / layer / "images.npy"), reference(apart / "val", ids, (16, 16)))
    assert len(open_units(apart, "alexnet/imagenet")) == 10 and not list(check_milan(apart))
    assert sorted(p.name for p in (home / "conv1").iterdir()) == ["ids.csv", "images.npy", "masks.npy"]


def test_pictures_are_not_turned_by_their_tags(apart):
    path = sorted((apart / "val").rglob("*.JPEG"))[0]
    im, exif = Image.open(path), Image.Exif()
    exif[0x0112] = 6
    im.save(path, "JPEG", exif=exif)
    (apart / "alexnet/imagenet/conv1/ids.csv").write_text("0,0,0\n" * 5)
    do(apart)
    assert np.array_equal(np.load(apart / "alexnet/imagenet/conv1/images.npy")[0, :1], reference(apart / "val", [[0]], (16, 16))[0])


def test_merge_is_the_same_on_any_number_of_threads(apart):
    first = [p.read_bytes() for p in do(apart, threads=1)]
    for p in apart.rglob("images.npy"):
        if "imagenet" in str(p.relative_to(apart)): p.unlink()
    assert [p.read_bytes() for p in do(apart, threads=7)] == first


def test_merge_goes_on_where_it_ended(apart):
    home = apart / "alexnet/imagenet"
    files = sorted((apart / "val").rglob("*.JPEG"))
    (home / "conv1/ids.csv").write_text("0,1,2\n" * 5)
    (home / "conv2/ids.csv").write_text("0,1,7\n" * 5)
    good = files[7].read_bytes()
    files[7].write_bytes(good[:200])
    with pytest.raises(ValueError, match=f"{files[7].name} cannot be read as an image") as e: do(apart)
    assert "\n" not in str(e.value)
    assert (home / "conv1/images.npy").exists() and sorted(p.name for p in (home / "conv2").iterdir()) == ["ids.csv", "masks.npy"]
    files[7].write_bytes(good)
    before = (home / "conv1/images.npy").stat().st_mtime_ns
    do(apart)
    assert (home / "conv1/images.npy").stat().st_mtime_ns == before and np.load(home / "conv2/images.npy").any((2, 3, 4)).all()


def test_an_interrupted_merge_leaves_nothing_half_done(apart, monkeypatch):
    seen = []
    def picture(path, size, real=milan._picture):
        seen.append(path)
        if len(seen) == 5: raise KeyboardInterrupt
        return real(path, size)
    with monkeypatch.context() as m:
        m.setattr(milan, "_picture", picture)
        with pytest.raises(KeyboardInterrupt): do(apart, threads=1)
    assert len(seen) < 12 and not [p for p in (apart / "alexnet/imagenet").rglob("*images*")]
    do(apart)


BAD_MERGE = {
    "beyond": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").write_text("0,1,12\n" * 5), {}, ValueError, "conv2/ids.csv asks for picture 12; .*val has 0 to 11"),
    "below": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").write_text("0,1,-2\n" * 5), {}, ValueError, "asks for picture -2"),
    "short ids": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").write_text("0,1,2\n" * 4), {}, ValueError, "ids.csv is not 5 rows of 3 numbers"),
    "ragged ids": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").write_text("0,1,2\n" * 4 + "1\n"), {}, ValueError, "ids.csv is not 5 rows of 3 numbers"),
    "words": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").write_text("a,b,c\n" * 5), {}, ValueError, "other than whole numbers"),
    "no ids": (lambda r: (r / "alexnet/imagenet/conv2/ids.csv").unlink(), {}, FileNotFoundError, "there is no .*conv2/ids.csv"),
    "other folder": (lambda r: None, {"pictures": 50_000}, ValueError, "val has 12 images where 50000 are right"),
    "flat folder": (lambda r: [p.rename(r / "val" / f"{i}.JPEG") or None for i, p in enumerate(list(r.rglob("*.JPEG")))]
                    and [p.rmdir() for p in (r / "val").iterdir() if p.is_dir()], {}, FileNotFoundError, "val is no folder of class folders"),
    "no folder": (lambda r: shutil.rmtree(r / "val"), {}, FileNotFoundError, "val is no folder of class folders"),
    "bad images": (lambda r: np.save(r / "alexnet/imagenet/conv2/images.npy", np.zeros((5, 3, 3, 2, 2), np.uint8)), {}, ValueError, "they must agree"),
}


@pytest.mark.parametrize("what", BAD_MERGE)
def test_merge_finds_what_is_wrong_before_it_begins(apart, what):
    spoil, options, kind, match = BAD_MERGE[what]
    spoil(apart)
    with pytest.raises(kind, match=match) as e: do(apart, **options)
    assert "\n" not in str(e.value) and not (apart / "alexnet/imagenet/conv1/images.npy").exists()


def test_merge_refuses_sets_that_bring_their_images_and_a_full_disk(apart, monkeypatch):
    for name in "biggan/imagenet", "ALEXNET_PLACES365":
        with pytest.raises(ValueError, match="brings its images"): merge(apart, name, apart / "val", pictures=12)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="the images take 23 kB, .* has 1 bytes free"): do(apart)


# ---- splits

def test_a_split_divides_all_units_whatever_their_order(tmp_path):
    u = open_units(write_milan(tmp_path, units=13), SETS)
    s = split(u.ids, seed=4)
    n = int(.1 * len(u))
    assert [len(s[p]) for p in ("test", "val", "train")] == [n, int(.1 * (len(u) - n)), len(u) - n - int(.1 * (len(u) - n))]
    assert sorted(sum(s.values(), [])) == sorted(u.ids)
    assert split(u.ids[::-1], seed=4) == s != split(u.ids, seed=5) and split(u.ids, val=.5, seed=4)["test"] == s["test"]
    got = parts(u, s)
    assert {p: sorted(v.ids) for p, v in got.items()} == s and got["train"].ids == [i for i in u.ids if i in set(s["train"])]
    write_json(tmp_path / "s.json", s)
    assert parts(u, tmp_path / "s.json") == got == open_parts(tmp_path, SETS, tmp_path / "s.json")
    with pytest.raises(ValueError, match="share of 1.5"): split(u.ids, 1.5)


def test_a_split_survives_a_missing_layer_and_tells(tmp_path):
    u = open_units(write_milan(tmp_path, units=8), SET)
    s, told = split(u.ids), Skipped()
    got = parts(open_units(tmp_path, SET, layers=["conv1"]), s, told)
    assert sum(map(len, got.values())) == 8 and len(told) == 16
    with pytest.warns(UserWarning, match="16 entries were left out"): parts(open_units(tmp_path, SET, layers=["conv1"]), s)


def test_bad_splits(tmp_path):
    u = open_units(write_milan(tmp_path), SET)
    a = u.ids[0]
    for s, match in (({"train": [a], "val": [], "test": [a]}, f"has {a} in train and again in test"), ({"train": [a], "test": []}, "no split"),
                     ({"train": [1], "val": [], "test": []}, "no split"), ([a], "no split"), ({"train": ["x/y/0"], "val": [], "test": []}, f"no unit of {SET}")):
        (tmp_path / "s.json").write_text(json.dumps(s))
        for given_ in s, tmp_path / "s.json":
            with pytest.raises(ValueError, match=match): parts(u, given_)
    with pytest.raises(FileNotFoundError, match="nothing.json"): parts(u, tmp_path / "nothing.json")


def test_milans_own_split_counts_units_as_the_notes_mention_them(tmp_path):
    write_milan(tmp_path, units=6)
    add(tmp_path, ("conv2", 5, "more"), ("conv1", 77, "nobody"))
    home = tmp_path / SET
    rows = [r for r in table(tmp_path)[1:] if int(r["unit"]) < 7] # one unit has two notes now
    write_notes(home / "annotations.csv", [r.values() for r in rows])
    listed = list(dict.fromkeys((r["layer"], int(r["unit"])) for r in rows))
    listed = [k for k in listed if sum((r["layer"], int(r["unit"])) == k for r in rows) >= 3]
    assert len(listed) in (17, 18) and listed != sorted(listed)
    test = [3, 0, 11]
    for kind in list, torch.tensor:
        torch.save({"train": kind([i for i in range(len(listed)) if i not in test]), "test": kind(test)}, tmp_path / "s.pth")
        s = import_split(tmp_path / "s.pth", tmp_path, "ALEXNET_PLACES365", val=.2)
        assert s["test"] == [f"{SET}/{listed[i][0]}/{listed[i][1]}" for i in test] and len(s["val"]) == int(.2 * (len(listed) - 3))
        assert sorted(sum(s.values(), [])) == sorted(f"{SET}/{l}/{u}" for l, u in listed)
    assert len(open_parts(tmp_path, SET, s)["test"]) == 3
    for train, match in ([len(listed)], f"has {len(listed)} where a number below {len(listed)}"), ([0, 1], f"divides 3 units, but {len(listed)} .* have three notes"), ([-1], "has -1"):
        torch.save({"train": train, "test": [2]}, tmp_path / "s.pth")
        with pytest.raises(ValueError, match=match): import_split(tmp_path / "s.pth", tmp_path, SET)


def test_devils_split_lists_layers_and_units(tmp_path):
    u = open_units(write_milan(tmp_path), SET)
    where = [{"layer": l, "unit": n} for l, n in zip(u.layer, u.unit)]
    torch.save({"train": where[2:], "test": where[:2]}, tmp_path / "alexnet_places365-splits.pth")
    s = import_split(tmp_path / "alexnet_places365-splits.pth", tmp_path, SET, val=0)
    assert s == {"train": sorted(u.ids[2:]), "val": [], "test": u.ids[:2]}
    torch.save({"train": where, "test": where[:2]}, tmp_path / "s.pth")
    with pytest.raises(ValueError, match="in train and again in test"): import_split(tmp_path / "s.pth", tmp_path, SET, val=0)
    for bad in {"layer": "conv1"}, {"layer": "conv1", "unit": "one"}, "conv1":
        torch.save({"train": [bad], "test": where[:2]}, tmp_path / "s.pth")
        with pytest.raises(ValueError, match="or a layer and unit are right"): import_split(tmp_path / "s.pth", tmp_path, SET)


def test_split_files_are_never_unpickled(tmp_path):
    write_milan(tmp_path)
    path = tmp_path / "s.pth"
    with pytest.raises(FileNotFoundError, match="no split file .*s.pth"): import_split(path, tmp_path, SET)
    torch.save({"train": Bomb(tmp_path / "hit"), "test": []}, path)
    with pytest.raises(ValueError, match="plain values alone"): import_split(path, tmp_path, SET)
    assert not (tmp_path / "hit").exists()
    for bad in b"", b"no torch file", path.read_bytes()[:80]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="plain values alone") as e: import_split(path, tmp_path, SET)
        assert "\n" not in str(e.value)
    for bad in {"train": [0]}, {"train": 3, "test": [0]}, [1, 2]:
        torch.save(bad, path)
        with pytest.raises(ValueError, match="needs lists under 'train' and 'test'"): import_split(path, tmp_path, SET)


def test_nobody_is_tested_on_what_they_were_taught(tmp_path):
    write_milan(tmp_path, ALL, units=20, images=1, size=2)
    for key in (*GROUPS, *milan.SETS):
        got = open_parts(tmp_path, key, own=key == "biggan", seed=1)
        ids = {p: set(u.ids) for p, u in got.items()}
        assert ids["val"] and ids["test"] and not (ids["train"] & ids["val"] or (ids["train"] | ids["val"]) & ids["test"])
        if key in PARTNERS:
            assert set(got["test"].dataset) == set(members(PARTNERS[key])) and len(got["test"]) == 20 * len(members(PARTNERS[key]))
            assert len(open_parts(tmp_path, key, val=0)["train"]) == 20 * len(members(key)) # all of them, as published
        else: assert len(got["test"]) == 2 * len(members(key))
    with pytest.raises(ValueError, match="BIGGAN has no partner to be tested on; own=True"): open_parts(tmp_path, "BIGGAN")
    assert set(open_parts(tmp_path, "cls", own=True)["test"].dataset) <= set(members("cls"))


# ---- vlnotes data milan

def archive(root, name, inside): # a set as a zip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for p in sorted((root / name).rglob("*")):
            if p.is_file(): z.writestr(f"{inside}{p.relative_to(root / name)}", p.read_bytes())
    return out.getvalue()


def test_what_is_registered():
    assert MILAN.name == "milan" and MILAN.base == "https://milan.csail.mit.edu/data" and len(MILAN.files) == 7
    assert {f.url for f in MILAN.files} >= {"alexnet-imagenet.zip", "dino_vits8-imagenet.zip"} and not any(f.hash or f.size for f in MILAN.files)
    assert [canonical(f.url[:-4]) for f in MILAN.files] == list(milan.SETS)
    assert MILAN.disk({"sets": ["alexnet/imagenet"]}) == 1000 * 15 * 224 * 224 * 4 * 2


def test_getting_it(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    from server import publisher
    monkeypatch.setattr(fetch, "DATASETS", {})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    sets = {"alexnet/imagenet": ["conv1"], SET: ["conv1", "conv2"], "biggan/imagenet": ["layer0"]}
    write_milan(tmp_path / "site", sets, merged=False)
    zips = {f"{n.replace('/', '-')}.zip": archive(tmp_path / "site", n, inside) for n, inside in zip(sets, ("", f"{SET}/", "data/biggan/imagenet/"))}
    fetch.register(replace(MILAN, disk=10**6))
    quiet = dict(sets=list(sets), say=lambda t: None, wait=.01, timeout=10)
    with publisher(zips) as site:
        folder = fetch.get("milan", tmp_path / "data", base=site.where, **quiet)
        same(open_units(folder, [SET, "biggan/imagenet"]), open_units(tmp_path / "site", [SET, "biggan/imagenet"]))
        assert sorted(p.name for p in folder.iterdir()) == ["alexnet", "biggan", "dataset.json"] and "whole" in fetch.check("milan", tmp_path / "data")
        assert [n for n, _ in site.asked] == list(zips) # and no other
        with pytest.raises(ValueError, match="alexnet/places36"): fetch.get("milan", tmp_path / "no", base=site.where, **quiet | dict(sets="alexnet/places36"))
        site.files["biggan-imagenet.zip"] = archive(tmp_path / "site", "biggan", "")[:-30]
        with pytest.raises(ValueError, match="biggan-imagenet.zip is damaged"): fetch.get("milan", tmp_path / "again", base=site.where, **quiet)
        site.files["biggan-imagenet.zip"] = archive(tmp_path / "site", "alexnet", "")
        with pytest.raises(ValueError, match="has 2 files annotations.csv"): fetch.get("milan", tmp_path / "more", base=site.where, **quiet)
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path / "data"))
    assert len(open_units(None, SET)) == 8
    cut(folder / SET / "conv2/masks.npy")
    (folder / "alexnet/imagenet/conv1/ids.csv").write_text("1,2,3\n")
    assert [("ids.csv is not" in p, "masks.npy is cut off" in p) for p in fetch.problems("milan", tmp_path / "data")] == [(True, False), (False, True)]


def test_check_finds_notes_of_other_arrays(tmp_path):
    write_milan(tmp_path)
    write_notes(tmp_path / SET / "annotations.csv", [("conv1", 0, "one"), *(("conv1", u, "x") for u in range(50, 60))], ("layer", "unit", "summary"))
    assert [s for s in check_milan(tmp_path) if "10 rows speak of units that are not there" in s]
    assert MERGED[0] in SETS
