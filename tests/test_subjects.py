"What describers say of their training, and that images of it are refused."
import json

import numpy as np
import pytest

from vlnotes import describe, faithfulness as fa, subjects as su, zoo
from vlnotes.docmnist import generate
from vlnotes.pretrain import varied

TEST = generate(30, regions=(1, 4), split="test", seed=3)
TRAIN = generate(30, regions=(1, 4), split="train", seed=3)
MADE = [("devil", "zoo/convnet"), ("devil", "zoo/vit"), ("coca", "zoo/coca"), ("lavise", "zoo/convnet"), ("concepts", "zoo/vit")]


@pytest.mark.parametrize("name, encoder", MADE)
def test_a_describer_of_the_package_refuses_its_training(name, encoder):
    pytest.importorskip("open_clip") if name in ("coca", "concepts") else None
    s = su.of_describer(name, describe.make(name, encoder=encoder), encoder=encoder)
    assert s.trained > 1000 and s.supervision.split(";")[0] in ("captions", "labels of regions") and s.net is not None
    su.unseen(TEST, s.seen) # other handwriting
    su.unseen(generate(10, split="val", seed=1), s.seen)
    with pytest.raises(su.Failed, match="refused: 30 of the 30 images hold handwriting that zoo/[a-z]+.* was trained on; draw scenes of another split"): su.unseen(TRAIN, s.seen)
    rows = fa.judge([s], TRAIN, repeats=20)
    row = next(r for r in rows if r["kind"] == "describer")
    assert row["reason"].startswith("refused: 30 of the 30") and row["trained"] == s.trained and row["supervision"] == s.supervision
    assert f"{s.trained:,}" in fa.scoreboard(rows).markdown()


def test_one_digit_of_the_training_is_enough_and_is_counted():
    record = [{"part": "zoo/devil-convnet", "handwriting": "digits", "split": "train"}]
    pool, region = TEST.glyphs, {k: v.copy() for k, v in TEST.region.items()}
    from dataclasses import replace
    both = replace(pool, images=np.concatenate([pool.images, TRAIN.glyphs.images[:1]]), labels=np.r_[pool.labels, TRAIN.glyphs.labels[:1]], index=np.r_[pool.index, TRAIN.glyphs.index[:1]])
    for i in (4, 9): region["glyph"][TEST.offsets[i + 1] - 1] = len(pool) # the last region of two scenes
    mixed = replace(TEST, glyphs=both, region=region)
    assert np.flatnonzero(su.handwriting(mixed, record[0])).tolist() == [4, 9]
    with pytest.raises(su.Failed, match="refused: 2 of the 30 images"): su.unseen(mixed, record)


def test_turned_copies_of_a_digit_are_that_digit():
    known = {"handwriting": "digits", "split": "train"}
    assert su.handwriting(generate(10, split="train", seed=1, glyphs=varied(copies=2)), known).all()
    assert not su.handwriting(generate(10, split="test", seed=1, glyphs=varied(copies=2, split="test")), known).any()
    assert not su.handwriting(TRAIN, {"handwriting": "mnist", "split": "train"}).any() # another source is other handwriting
    assert not su.handwriting(TRAIN, {}).any() # nothing is known


def test_ids_fingerprints_and_scenes_are_counted():
    for seen in (TEST[:7], set(TEST.ids[:7]), set(su.fingerprints(TEST[:7]))):
        with pytest.raises(su.Failed, match="refused: 7 of the 30 images were in its training"): su.unseen(TEST, seen)
    su.unseen(TEST, None); su.unseen(TEST, []); su.unseen(TEST, TRAIN)


def test_every_trained_part_of_the_package_says_what_taught_it():
    for name, row in zoo.table().items():
        t = row["taught_by"]
        assert set(t) <= {"images", "supervision", "handwriting", "split"} and t["supervision"] in ("captions", "labels of regions")
        assert t["images"] == 0 if name == "lm" else t["images"] > 1000 and (t["handwriting"], t["split"]) == ("digits", "train")


def test_a_folder_says_it_and_nothing_is_guessed(tmp_path):
    (tmp_path/"config.json").write_text(json.dumps({"taught_by": {"images": 5, "supervision": "captions", "handwriting": "digits", "split": "val"}}))
    assert su.taught_by(str(tmp_path))["images"] == su.taught_by(f"run/{tmp_path}")["images"] == 5
    for odd in ("", "timm/resnet50", str(tmp_path/"gone"), "zoo/nothing"): assert su.taught_by(odd) == {}
    (tmp_path/"config.json").write_text(json.dumps({"taught_by": "docmnist"})) # not what it should be
    assert su.taught_by(str(tmp_path)) == {}

    class Mine: run, parts = "x", {"head": "mine", "encoder": "zoo/convnet"}
    s = su.of_describer("mine", Mine())
    assert s.supervision == "unknown; encoder: labels of regions" and s.trained is None
    with pytest.raises(su.Failed, match="zoo/convnet was trained on"): su.unseen(TRAIN, s.seen) # its encoder has seen them

    class Bare: pass
    assert su.of_describer("bare", Bare()).seen is None and su.training(Bare()) == []


def test_one_that_cannot_be_asked_is_a_row_with_its_reason():
    rows = fa.judge([su.Subject("villa", refuses="it was not asked: it has no model in the package")], TEST, repeats=20)
    row = next(r for r in rows if r["kind"] == "describer")
    assert row["reason"].startswith("it was not asked") and "no score: it was not asked" in fa.scoreboard(rows).markdown()
    with pytest.raises(su.Failed, match="not asked"): su.collect(su.Subject("x", refuses="it was not asked"), su.items(TEST[:1]))
