"The same drawn scenes as COCO, as Visual Genome and as they are: one code trains on all three, to the same bits, and describes filters with what it learnt."
import io
import zipfile

import numpy as np
import pytest
from lavise_toys import toy

from vlnotes.docmnist import generate
from vlnotes.lavise.concepts import docmnist_regions, only
from vlnotes.lavise.drawn import drawn_words
from vlnotes.lavise.explainer import HeadConfig, load
from vlnotes.lavise.filters import describe_filters
from vlnotes.lavise.lessons import pool_regions
from vlnotes.lavise.recall import truth
from vlnotes.lavise.sets import make_vg, open_source
from vlnotes.lavise.survey import survey
from vlnotes.lavise.train import TrainConfig, train
from vlnotes.runs import read_json, write_json
from vlnotes.sources import Skipped

N, FIRST = 120, 1000 # numbers of one length sort as their file names do


@pytest.fixture(scope="module")
def scenes(): return generate(N, regions=(1, 4), seed=4)


def png(scenes, i): # lossless, whatever the name says
    out = io.BytesIO()
    scenes.image(i).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def world(scenes, tmp_path_factory):
    "COCO with an outline for each region, a crowd and an empty mask; Visual Genome's four files, merged and cleaned; GloVe's form of the drawn words."
    root, v, t = tmp_path_factory.mktemp("world"), scenes.vocab, drawn_words()
    (root / "coco/annotations").mkdir(parents=True); (root / "coco/val2017").mkdir()
    names, annotations, objects = [f"{d} {c}" for d in v.digits for c in v.colours], [], []
    for i in range(N):
        (root / f"coco/val2017/{FIRST + i:012d}.jpg").write_bytes(png(scenes, i))
        objects.append(dict(image_id=FIRST + i, objects=[]))
        for (x0, y0, x1, y1), (digit, colour, *_) in zip(scenes.boxes(i).tolist(), scenes.regions(i)):
            k = len(annotations) + 1
            annotations.append(dict(id=k, image_id=FIRST + i, category_id=names.index(f"{digit} {colour}") + 1, iscrowd=0, bbox=[x0, y0, 28, 28], segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]]))
            objects[-1]["objects"].append(dict(object_id=k, x=x0, y=y0, w=28, h=28, names=[colour], synsets=[f"{digit}.n.01", f"{colour}.a.01"]))
    more = [dict(id=10**6, image_id=FIRST, category_id=1, iscrowd=1, segmentation=dict(counts=[0, 84 * 84], size=[84, 84]), bbox=[0, 0, 84, 84]),
            dict(id=10**6 + 1, image_id=FIRST, category_id=1, iscrowd=0, segmentation=[[3, 3, 3, 3, 3, 3]], bbox=[3, 3, 1, 1])]
    write_json(root / "coco/annotations/instances_val2017.json", dict(images=[dict(id=FIRST + i, file_name=f"{FIRST + i:012d}.jpg", width=84, height=84) for i in range(N)],
               categories=[dict(id=k, name=n) for k, n in enumerate(names, 1)], annotations=annotations + more))
    for k, name in enumerate(("images.zip", "images2.zip")):
        with zipfile.ZipFile(root / name, "w") as z:
            for i in range(k, N, 2): z.writestr(f"VG_100K{'_2' * k}/{FIRST + i}.jpg", png(scenes, i))
    write_json(root / "objects.json", objects)
    with zipfile.ZipFile(root / "objects.json.zip", "w") as z: z.write(root / "objects.json", "objects.json")
    (root / "object_alias.txt").write_text("")
    (root / "vg").mkdir()
    make_vg(root / "vg", [root / n for n in ("images.zip", "images2.zip", "objects.json.zip", "object_alias.txt")], at_least=5)
    (root / "drawn.txt").write_text("".join(f"{w} {' '.join(map(repr, r))}\n" for w, r in zip(t.words, np.asarray(t.vectors, np.float64).tolist())))
    return root


def spec(world, kind): return dict(kind="coco", root=str(world / "coco")) if kind == "coco" else dict(kind="vg", root=str(world / "vg"), layout=kind)


def as_drawn(scenes): # the words that the other layouts have, in their order
    return only(docmnist_regions(scenes), sorted([*scenes.vocab.digits, *scenes.vocab.colours]), order=True)


@pytest.fixture(scope="module")
def runs(world, scenes, tmp_path_factory):
    out, made = tmp_path_factory.mktemp("runs"), {}
    for kind in "coco", "raw", "drawn":
        cfg = TrainConfig(encoder="toy/mixed", layer="relu", source={} if kind == "drawn" else spec(world, kind), space=dict(source=str(world / "drawn.txt"), cache=str(out)), val=.2, rate=.8,
                          epochs=2, bs=32, lr=2e-3, cache=str(out / f"{kind}-cache"), out=str(out / kind), progress=False, device="cpu")
        made[kind] = train(cfg, encoder=toy(), source=as_drawn(scenes) if kind == "drawn" else None), out / kind
    return made


def test_three_layouts_pool_the_same_features(world, scenes, tmp_path):
    enc = toy()
    cfg = HeadConfig("relu", enc.info("relu").channels, 40)
    pools = {k: pool_regions(enc, open_source(spec(world, k)), cfg, tmp_path / k) for k in ("coco", "raw")} | {"drawn": pool_regions(enc, as_drawn(scenes), cfg, tmp_path / "d")}
    x = {k: np.asarray(p.x) for k, p in pools.items()}
    assert len(x["drawn"]) == len(scenes.boxes()) and (x["coco"] == x["drawn"]).all() and (x["raw"] == x["drawn"]).all() and x["drawn"].std() > 0


def test_they_train_to_the_same_bits(runs):
    (a, at), (b, bt), (c, ct) = (runs[k] for k in ("coco", "raw", "drawn"))
    assert a["best"] == b["best"] == c["best"] and a["regions"] == b["regions"] == c["regions"] > 50
    heads = [load(t, encoder=toy()).head.state_dict() for t in (at, bt, ct)]
    for k, v in heads[2].items(): assert (heads[0][k] == v).all() and (heads[1][k] == v).all()
    config = read_json(at / "config.json")
    assert config["seen"] == read_json(ct / "config.json")["seen"] and len(config["seen"]) == 12 and len(config["unseen"]) == 3 and config["source"]["kind"] == "coco"


def test_what_was_left_out_is_told(runs):
    told = [tuple(i) for i in runs["coco"][0]["skipped"]["items"]]
    assert ("instances_val2017.json: annotation 1000000", "it marks a crowd, not one object") in told and ("instances_val2017.json: annotation 1000001", "its mask is empty") in told


def test_cleaned_files_train_as_well(world, tmp_path):
    told = Skipped()
    for layout, words in ("preprocessed", 15), ("clean", 5):
        c = open_source(spec(world, layout) | dict(known=dict(source=str(world / "drawn.txt"), cache=str(tmp_path))), skipped=told)
        cfg = TrainConfig(encoder="toy/mixed", layer="relu", source=spec(world, layout), space=dict(source=str(world / "drawn.txt"), cache=str(tmp_path)), epochs=1, bs=64, cache=str(tmp_path / layout),
                          out=str(tmp_path / layout / "run"), progress=False, device="cpu", merge=layout == "preprocessed")
        assert len(c.vocab) == words and train(cfg, encoder=toy(), source=c)["regions"] > 50


def test_filters_are_described_with_what_coco_taught(runs, world):
    e = load(runs["coco"][1], encoder=toy())
    c = open_source(spec(world, "coco"))
    found = survey(e.encoder, c[:40], "relu", p=5)
    d, facts = describe_filters(found, e), truth(found, c[:40])
    assert len(d) == 12 and len(found.dead) < 6
    for u in range(12):
        words = [w for w, _ in d.of(u)]
        assert set(words) <= set(e.words) and len(words) == len(set(words)) and bool(words) == (u not in found.dead) == (not d.silent(u))
    annotated = {w for f in facts.words for ws in f for w in ws}
    assert annotated and annotated <= set(c.vocab)
