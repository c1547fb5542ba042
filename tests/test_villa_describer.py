"ViLLA from the command line's side: train, import, describe; its describer's bad requests; the study's cells."
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vlnotes import cli, docmnist
from vlnotes import describe as job
from vlnotes.notes import Notes
from vlnotes.runs import read_json
from vlnotes.villa import corpora, describer, original, region_encoder, study
from vlnotes.villa.towers import modified_resnet

SMALL = dict(targets=(6, 16), image_targets=(16,), arms=("whole", "villa"), seeds=1, rates=(1e-3, 1e-2), budget=200, images=12, held_out=150, steps=2, map_epochs=2, dim=8, embedder="hash/16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("villa")
    spec = {"docmnist": dict(n=16, target=16, split="val", seed=0)}
    np.save(out/"found.npy", corpora.made(spec).truth)
    tower = dict(net=dict(study.NET, kw=dict(study.NET["kw"], channels=[4, 4, 8, 8])), layers="layer2", side=2, pool="flat")
    region_encoder.step(dict(corpus=spec, found=str(out/"found.npy"), embedder="hash/16", tower=tower, out=str(out), device="cpu", fit=dict(steps=2, bs=4), progress=False))
    return out/"model"


def test_describe_from_a_trained_folder(folder, tmp_path):
    out = job.describe(by="villa", model=folder, n=3, out=tmp_path/"run")
    notes = Notes.read(out/"notes.parquet")
    assert {n.method for n in notes} == {"villa"} and sum(n.row is None for n in notes) == 3 and sum(n.row is not None for n in notes) == 27
    words = set(read_json(folder/"config.json")["attributes"])
    assert all(set(n.extra["words"]) <= words and n.text for n in notes)
    assert all(sorted(n.extra["cosines"], reverse=True) == n.extra["cosines"] and math.isclose(n.score, n.extra["cosines"][0], abs_tol=1e-4) for n in notes)


def test_alone_or_in_a_batch_and_prepared_or_not(folder):
    f = describer.describer(folder)
    s = docmnist.generate(3, target=16, split="test", seed=0)
    together = f.describe([(s.ids[i], s.image(i)) for i in range(3)], cells="all")
    alone = Notes.concat([f.describe([(s.ids[i], s.image(i))], cells="all") for i in range(3)])
    arrays = f.describe(torch.from_numpy(s.pixels()), cells="all")
    assert [n.text for n in together] == [n.text for n in alone] == [n.text for n in arrays]
    assert np.allclose([n.score for n in together], [n.score for n in alone], atol=1e-5)
    assert f.describe([(s.ids[0], s.image(0))], cells=[(0, 2)])[0].x0 == 56


def test_words_exclude_one_another_only_inside_their_group():
    s = np.array([[.9, .8, .1, .7], [.2, .3, .25, -.5]])
    assert describer.told(s, {"a": [0, 1]}, level=.6).tolist() == [[True, False, False, True], [False, True, False, False]]
    assert describer.told(s, {}, words=2).tolist() == [[True, True, False, False], [False, True, True, False]]
    truth = describer.told(s, {"a": [0, 1]}, level=.6)
    assert (describer.told(s, {"a": [0, 1]}, describer.level_of(s, np.eye(4), truth, {"a": [0, 1]})).shape) == truth.shape


@pytest.mark.parametrize("call, told", [
    (lambda f: f.describe([], units={"regions": [0]}), "no notes about units"), (lambda f: f.describe([("a", np.zeros((3, 84, 84), np.uint8))], layers="layer4"), "layer4"),
    (lambda f: f.describe([("a", np.zeros((3, 84, 84), np.uint8))], cells=[(5, 0)]), "no cell"), (lambda f: describer.describer(), "villa_stage2"), (lambda f: describer.describer("no/such"), "no/such")])
def test_bad_requests(folder, call, told):
    with pytest.raises((ValueError, OSError), match=told) as e: call(describer.describer(folder))
    assert "\n" not in str(e.value)


def test_words_of_ones_own(folder):
    f = describer.describer(folder, words=["crimson", "azure"])
    assert f.words == ["crimson", "azure"] and set(f.describe([("a", np.zeros((3, 84, 84), np.uint8))])[0].extra["words"]) <= {"crimson", "azure"}


def test_import_then_describe(tmp_path):
    pytest.importorskip("open_clip")
    torch.save(original.export2(modified_resnet(layers=(1, 1, 1, 1), width=16, out=16, image=96)), tmp_path/"best.pkl")
    torch.save({n: np.eye(16, dtype=np.float16)[k] for k, n in enumerate(("red", "blue"))}, tmp_path/"attr_embs.pth")
    done = CliRunner().invoke(cli.main, ["import", "villa", str(tmp_path/"best.pkl"), "--out", str(tmp_path/"m"), "-o", f"attributes={tmp_path/'attr_embs.pth'}"])
    assert done.exit_code == 0 and "region encoder" in done.output, done.output
    notes = describer.describer(tmp_path/"m").describe([("a", docmnist.generate(1, target=16).image(0))], cells="all")
    assert len(notes) == 9 and {w for n in notes for w in n.extra["words"]} == {"red", "blue"}


# ---- the study

def test_a_killed_study_goes_on_to_the_same_result(tmp_path):
    cfg = study.StudyConfig(**SMALL)
    whole = study.study(cfg, tmp_path/"a")
    def stop(text):
        if "seed 0 villa" in text: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): study.study(cfg, tmp_path/"b", stop)
    told = []
    assert study.study(cfg, tmp_path/"b", told.append) == whole and len(told) == 4 # the two that were there are not done again
    with pytest.raises(FileExistsError, match="other settings"): study.study(study.StudyConfig(**SMALL | dict(steps=3)), tmp_path/"a")


def test_arms_start_alike_and_see_the_same_scenes():
    cfg = study.StudyConfig(**SMALL)
    a, b = study.fresh(cfg, 1), study.fresh(cfg, 1)
    assert all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items()) and not next(iter(study.fresh(cfg, 2).parameters())).equal(next(iter(a.parameters())))
    (c, _, t), (d, _, _) = study.worlds(cfg, "pairs", 6, 0), study.worlds(cfg, "pairs", 6, 0)
    assert c.texts == d.texts and not set(c.ids) & set(t.ids) and c.truth.sum() <= 200 and len(study.worlds(cfg, "images", 6, 0)[0]) == 12
    assert study.per_step(study.StudyConfig(), "pairs", corpora.drawn(docmnist.generate(100, target=32))) < study.per_step(study.StudyConfig(), "pairs", corpora.drawn(docmnist.generate(100, target=6)))


def test_random_links_are_as_many_as_the_mappings():
    cfg = study.StudyConfig(**SMALL)
    c = study.worlds(cfg, "pairs", 16, 0)
    found, scores = study.links(cfg, *c, 0)
    assert found["random"].sum() == found["villa"].sum() and scores["everything"]["recall"] == 100 and set(found) == {"true", "everything", "villa", "random"}
    assert (found["true"] == c[0].truth).all()


def test_mapping_falls_with_complexity(): # spec: F1 over 6, 16, 32
    cfg = study.StudyConfig(budget=2000, held_out=1000, arms=("villa",), map_epochs=12)
    f1 = [study.links(cfg, *study.worlds(cfg, "pairs", t, 0), 0)[1]["villa"]["f1"] for t in (6, 16, 32)]
    assert f1[0] > f1[1] > f1[2]


def test_intervals_and_gains():
    assert study.interval([.5])[0] == .5 and math.isnan(study.interval([.5])[1])
    mean, lo, hi = study.interval([.4, .5, .6])
    assert math.isclose(mean, .5) and math.isclose(hi - lo, 2 * 4.303 * .1 / 3 ** .5, rel_tol=1e-6)
    rows = [dict(regime="pairs", target=6, complexity=5, arm=a, seed=s, t2r_r_precision=v + s / 10, r2t_r_precision=.1) for a, v in (("villa", .4), ("whole", .1)) for s in range(3)]
    g, = study.gain(rows, "villa", "whole")
    assert math.isclose(g["diff"], .3) and math.isclose(g["lo"], .3) # seed by seed the difference is the same
    assert "above whole at 6" in study.reading(rows, [])


def test_bad_studies():
    with pytest.raises(ValueError, match="villa"): study.StudyConfig(arms="vila")
    with pytest.raises(ValueError, match="room for one region"): study.StudyConfig(targets="2,6")
    with pytest.raises(ValueError, match="at least one seed"): study.StudyConfig(seeds=0)
    with pytest.raises(ValueError, match="pairs or images"): study.worlds(study.StudyConfig(), "both", 6, 0)
    with pytest.raises(ValueError, match="scene 0 alone"): study.worlds(study.StudyConfig(budget=3), "pairs", 16, 0)
    assert study.StudyConfig(targets="6,16", rates="0.1").targets == (6, 16)
