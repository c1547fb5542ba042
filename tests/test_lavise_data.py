"COCO, Visual Genome and GloVe from a publisher on this machine, in their real layouts: fetched, resumed, verified, merged, cleaned; and any source by name."
import hashlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from server import publisher

from vlnotes import fetch
from vlnotes.docmnist import generate
from vlnotes.fetch import check, get, problems, status
from vlnotes.lavise.concepts import docmnist_regions
from vlnotes.lavise.sets import COCO, GLOVE, VG, make_vg, open_source
from vlnotes.sources import Skipped
from vlnotes.words import space

pytest.importorskip("pooch")
QUIET = dict(say=lambda text: None, wait=.01, timeout=10)


def picture(i, size=(40, 30)):
    out = io.BytesIO()
    Image.new("RGB", size, (i % 256, 50, 90)).save(out, "JPEG")
    return out.getvalue()


def archive(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in members.items(): z.writestr(name, data)
    return out.getvalue()


def instances(ids): return json.dumps(dict(images=[dict(id=i, file_name=f"{i:012d}.jpg", width=40, height=30) for i in ids], categories=[dict(id=1, name="dog"), dict(id=2, name="stop sign")],
                                           annotations=[dict(id=10 + i, image_id=i, category_id=1 + i % 2, iscrowd=0, bbox=[5, 5, 20, 20], segmentation=[[5, 5, 25, 5, 25, 25, 5, 25]]) for i in ids]))


def glove(words=("the", "dog", "sign", "tree")):
    rng = np.random.default_rng(0)
    return {f"glove.6B.{d}d.txt": "".join(f"{w} {' '.join(f'{v:.4f}' for v in rng.normal(size=d))}\n" for w in words) for d in (50, 100, 200, 300)}


def objects(ids): return [dict(image_id=i, objects=[dict(object_id=10 * i + j, x=2, y=3, w=20, h=20, names=[n], synsets=[f"{n.replace(' ', '_')}.n.01"]) for j, n in enumerate(("dog", "stop sign"))]) for i in ids]


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(fetch, "DATASETS", dict(fetch.DATASETS))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    train, val, seen = range(1, 5), range(5, 8), range(1, 7)
    files = {"annotations/annotations_trainval2017.zip": archive(**{f"annotations/instances_{p}2017.json": instances(ids) for p, ids in (("train", train), ("val", val))}),
             "zips/train2017.zip": archive(**{f"train2017/{i:012d}.jpg": picture(i) for i in train}), "zips/val2017.zip": archive(**{f"val2017/{i:012d}.jpg": picture(i) for i in val}),
             "images.zip": archive(**{f"VG_100K/{i}.jpg": picture(i) for i in seen if i % 2}), "images2.zip": archive(**{f"VG_100K_2/{i}.jpg": picture(i) for i in seen if not i % 2}),
             "objects.json.zip": archive(**{"objects.json": json.dumps(objects(seen))}), "object_alias.txt": b"puppy,dog\n", "glove.6B.zip": archive(**glove())}
    with publisher(files) as s:
        def known(d, **kw):
            new = tuple(replace(f, size=len(files[f.url]) if f.size else None, hash=f.hash and f"{f.hash.partition(':')[0]}:{hashlib.new(f.hash.partition(':')[0], files[f.url]).hexdigest()}") for f in d.files)
            fetch.register(replace(d, files=new, **kw))
        known(COCO, disk=10**6); known(GLOVE, disk=10**6); fetch.register(replace(VG, disk=10**6))
        yield s


# ---- what the registry says

def test_they_are_found_by_name_with_what_one_should_know(tmp_path):
    table = {r.split()[0]: r for r in status(tmp_path).splitlines()[2:]}
    assert "42.3 GB" in table["coco"] and "34 GB" in table["vg"] and "3.2 GB" in table["glove"] and all(n in fetch.DATASETS for n in ("coco", "vg", "glove"))
    assert COCO.disk(dict(parts=["val"])) < COCO.disk(dict(parts=["train"])) < COCO.disk(dict(parts=["train", "val"]))
    assert all(f.hash.startswith("md5:") and len(f.hash) == 36 for f in COCO.files) and GLOVE.files[0].hash[:7] == "sha256:" and len(GLOVE.files[0].hash) == 71
    assert [f.url for f in VG.files][:2] == [f"https://cs.stanford.edu/people/rak248/VG_100K_2/images{k}.zip" for k in ("", "2")]


# ---- COCO

def test_coco_whole(site, tmp_path):
    said = []
    folder = get("coco", tmp_path, base=site.where, **QUIET | dict(say=said.append))
    assert sorted(p.name for p in folder.iterdir()) == ["annotations", "dataset.json", "train2017", "val2017"] and "CC BY 4.0" in said[0] and "Flickr" in said[0]
    assert check("coco", tmp_path) and problems("coco", tmp_path) == [] and [p.name for p in tmp_path.iterdir()] == ["coco"]
    c = open_source(dict(kind="coco", part="train", root=str(folder)))
    assert len(c) == 4 and c.vocab == ["dog", "sign", "stop"] and c[0].image.size == (40, 30) and c[0].objects[0].mask().sum() == 400


def test_coco_in_part_and_damaged(site, tmp_path):
    folder = get("coco", tmp_path, base=site.where, parts="val", **QUIET)
    assert not (folder / "train2017").exists() and check("coco", tmp_path) and [n for n, _ in site.asked] == ["annotations/annotations_trainval2017.zip", "zips/val2017.zip"]
    (folder / "val2017/000000000006.jpg").unlink()
    with pytest.raises(ValueError, match="val2017 lacks 1 of 3 images, the first 000000000006.jpg"): check("coco", tmp_path)
    (folder / "annotations/instances_val2017.json").write_text("{}")
    with pytest.raises(ValueError, match="instances_val2017.json is no instance file of COCO"): check("coco", tmp_path)


def test_coco_resumes_and_refuses_another_file(site, tmp_path):
    site.moods = {"zips/train2017.zip": ["truncate", "404"]}
    with pytest.raises(OSError, match="train2017.zip could not be fetched .404.*are kept"): get("coco", tmp_path, base=site.where, **QUIET)
    site.asked.clear()
    site.files["zips/val2017.zip"] += b"x"
    with pytest.raises(ValueError, match="val2017.zip has not the checksum it should .md5"): get("coco", tmp_path, base=site.where, **QUIET)
    assert [n for n, _ in site.asked] == ["zips/train2017.zip", "zips/val2017.zip"] and site.asked[0][1] and not (tmp_path / "coco").exists()


# ---- Visual Genome

def test_vg_is_merged_and_cleaned(site, tmp_path):
    said = []
    folder = get("vg", tmp_path, base=site.where, at_least=6, **QUIET | dict(say=said.append))
    assert sorted(p.name for p in (folder / "VG_100K").iterdir()) == [f"{i}.jpg" for i in range(1, 7)] and not list(folder.rglob("VG_100K_2"))
    assert check("vg", tmp_path) and "2 words of 2" in said[-1] and "CC BY 4.0" in said[0] and not (folder / ".unpacked").exists()
    assert json.loads((folder / "vg_objects_preprocessed.json").read_text())[0] == dict(image_id=1, objects=dict(dog=[dict(x=2, y=3, w=20, h=20)], stop=[dict(x=2, y=3, w=20, h=20)]))
    assert [o["names"] for o in json.loads((folder / "vg_objects_clean.json").read_text())[0]["objects"]] == [["puppy"], ["stop sign"]]
    by = {k: open_source(dict(kind="vg", root=str(folder), layout=k)) for k in ("preprocessed", "clean", "raw")}
    assert by["preprocessed"].vocab == by["raw"].vocab == ["dog", "stop"] and by["clean"].vocab == ["puppy", "stop sign"] and all(c[5].image.size == (40, 30) for c in by.values())
    assert open_source(dict(kind="vg", root=str(folder), layout="raw", rule="name")).vocab == ["puppy", "stop sign"]
    with pytest.raises(FileExistsError, match="made with at_least=6"): get("vg", tmp_path, base=site.where, at_least=7, **QUIET)
    (folder / "VG_100K/3.jpg").unlink()
    with pytest.raises(ValueError, match="VG_100K lacks 1 of 6 images, the first 3.jpg"): check("vg", tmp_path)


def test_vg_that_cannot_be(site, tmp_path):
    site.files["images2.zip"] = archive(**{"VG_100K_2/1.jpg": picture(1)})
    with pytest.raises(ValueError, match="images2.zip holds 1.jpg, which the other archive has brought"): get("vg", tmp_path, base=site.where, at_least=1, **QUIET)
    site.files["images2.zip"] = archive(**{"a/2.jpg": b"x", "b/2.jpg": b"x"})
    with pytest.raises(ValueError, match="hold 2.jpg twice"): get("vg", tmp_path / "b", base=site.where, at_least=1, **QUIET)
    site.files["images2.zip"] = archive(**{"VG_100K_2/2.jpg": picture(2)})
    with pytest.raises(ValueError, match="vg is not what it should be: .*lacks 2 of 6 images, the first 4.jpg; nothing was kept"): get("vg", tmp_path / "c", base=site.where, at_least=1, **QUIET)
    with pytest.raises(ValueError, match="no word in 100 objects or more; the most frequent of 2 is in 6"): get("vg", tmp_path / "d", base=site.where, **QUIET)
    site.files["objects.json.zip"] = archive(**{"other.json": "[]"})
    with pytest.raises(ValueError, match="objects.json.zip holds 0 files objects.json"): get("vg", tmp_path / "e", base=site.where, **QUIET)
    site.files["images.zip"] = archive(**{"../evil.jpg": b"x"})
    with pytest.raises(ValueError, match="leaves its folder"): get("vg", tmp_path / "f", base=site.where, **QUIET)
    assert not any((tmp_path / k / "vg").exists() for k in ".bcdef") and not list(tmp_path.rglob("evil*"))


def test_a_merge_moves_and_loses_nothing(tmp_path):
    files = {"images.zip": archive(**{f"VG_100K/{i}.jpg": picture(i) for i in (1, 3)}, **{"__MACOSX/VG_100K/1.jpg": b"x", "VG_100K/readme.txt": b"x"}), "images2.zip": archive(**{"VG_100K_2/2.jpg": picture(2)}),
             "objects.json.zip": archive(**{"objects.json": json.dumps(objects((1, 2, 3)))}), "object_alias.txt": b""}
    for n, data in files.items(): (tmp_path / n).write_bytes(data)
    (tmp_path / "vg").mkdir()
    make_vg(tmp_path / "vg", [tmp_path / n for n in files], at_least=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "vg/VG_100K").iterdir()} == {f"{i}.jpg": picture(i) for i in (1, 2, 3)}


# ---- GloVe

def test_glove(site, tmp_path, monkeypatch):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    folder = get("glove", base=site.where, **QUIET)
    assert check("glove") and space("glove.6B.300d").words == ["the", "dog", "sign", "tree"] and space("glove.6B.50d", ["dog"]).dim == 50
    known = open_source(dict(kind="vg", root=str(vg(tmp_path)), layout="raw", known=dict(source="glove.6B.50d")), skipped=(told := Skipped()))
    assert known.vocab == ["dog"] and any("'stop', which is not known here" in r for _, r in told)
    path = folder / "glove.6B.200d.txt"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="glove.6B.200d.txt has a line of 1[0-9]+ numbers where 200 are right"): check("glove")
    path.unlink()
    with pytest.raises(ValueError, match="has no glove.6B.200d.txt"): check("glove")


def vg(root):
    (folder := root / "genome").mkdir()
    (folder / "objects.json").write_text(json.dumps(objects((1, 2))))
    return folder


# ---- any of them by name

def test_open_source(tmp_path):
    spec = dict(kind="docmnist", n=20, regions=[1, 3], seed=2, split="val")
    c = open_source(spec)
    assert c.key == docmnist_regions(generate(20, regions=(1, 3), seed=2, split="val")).key and spec["kind"] == "docmnist"
    generate(20, regions=(1, 3), seed=2, split="val").save(tmp_path / "scenes")
    assert open_source(dict(kind="docmnist", path=str(tmp_path / "scenes")))[3].image.tobytes() == c[3].image.tobytes()
    (tmp_path / "words.txt").write_text("red\nzebra\n")
    for known in ["red", "zebra"], str(tmp_path / "words.txt"): assert open_source(spec | dict(known=known)).vocab == ["red"]
    assert open_source(spec | dict(known=["blue"]), known=["red"]).vocab == ["red"]
    json.dumps(c.key)


@pytest.mark.parametrize("spec, said", [
    (dict(kind="cocoa"), "no source of the kind 'cocoa'; the nearest is 'coco'"), ({}, "no source of the kind None"), (dict(kind="docmnist", n=3, m=4), "kind 'docmnist' has no option 'm'"),
    (dict(kind="vg", root=".", layout="row"), "no layout 'row'; the nearest is 'raw'"), (dict(kind="docmnist", path="x", n=3), "drawn already; n= is for new ones")])
def test_bad_sources(spec, said):
    with pytest.raises(ValueError, match=said): open_source(spec)


def test_sources_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    for kind in "coco", "vg":
        with pytest.raises(FileNotFoundError, match=f"`vlnotes data {kind}` gets it"): open_source(dict(kind=kind))
