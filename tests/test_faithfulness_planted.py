"The ladder: planted numbers are found again, planted channels are what they say, probes decode."
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vlnotes import agreement as ag
from vlnotes import claims
from vlnotes import planted as pl
from vlnotes import trials
from vlnotes.backbones import load
from vlnotes.docmnist import generate

SCENES = generate(1200, regions=(4, 6), split="val", seed=1)


@pytest.fixture(scope="module")
def candidates(): return pl.candidates(SCENES)


@pytest.mark.parametrize("noise, s", [("gauss", .3), ("gauss", 1.), ("t2", 1.), ("lognormal", 1.)])
def test_correlation_finds_what_was_planted(candidates, noise, s):
    names, vectors = candidates
    units = pl.plant(SCENES, 45, s=s, noise=noise, seed=3)
    found = {m: v["all"][0] / v["all"][1] for m, v in pl.recovery(units, vectors, ("pearson", "spearman", "auc", "iou1%", "top20", "mad")).items()}
    assert found["spearman"] >= .95 and found["pearson"] >= (.95 if noise == "gauss" else .8)
    assert max(found["iou1%"], found["top20"]) < .6 # rules that look at a few samples lose
    if noise == "t2": assert found["spearman"] > max(found[m] for m in ("auc", "mad", "iou1%", "top20"))


def test_where_concepts_are_rare_the_unsound_rules_lose_in_their_order():
    pages = generate(667, regions=(1, 4), split="val", seed=1)
    vectors = pl.on_cells(pl.candidates(pages)[1], pages, (3, 3))
    assert vectors.shape[1] == 9 * 667 and abs(vectors.shape[1] - 6000) < 10
    rules = ("pearson", "spearman", "auprc", "auc", "iou1%", "mad", "top20")
    little, much = ({m: v["all"][0] / 60 for m, v in pl.recovery(pl.plant(pages, 60, s=s, seed=0, grid=(3, 3)), vectors, rules).items()} for s in (.3, 1.))
    assert min(little[m] for m in ("pearson", "spearman", "auprc")) >= .95 and min(much[m] for m in ("pearson", "spearman")) >= .95
    assert little["auc"] >= .9 > little["iou1%"] > .55 > little["mad"] > little["top20"] # with little noise
    assert .55 < much["iou1%"] < .8 and all(.1 < much[m] < .4 for m in ("auc", "mad", "top20")) # with much: AUC falls to the others


def test_of_equal_best_candidates_the_truth_counts_by_its_share():
    truth = np.repeat(np.eye(3), 8, 1)
    units = pl.Units(truth.copy(), truth, ["single"] * 3, ["a", "b", "c"])
    wider = np.r_[truth, np.maximum(truth, np.roll(truth, 1, 0))] # every truth, and two others that hold all of its samples too
    assert pl.recovery(units, truth, ("iou1%", "pearson"))["pearson"]["all"] == (3, 3)
    assert ag.top(truth, wider, 8).max() == 1
    got = pl.recovery(pl.Units(np.repeat(truth, 4, 1), np.repeat(truth, 4, 1), units.kinds, units.said), np.repeat(wider, 4, 1), ("top20",))["top20"]
    assert got["all"] == (1, 3) # three candidates share the first place of each unit


def test_every_kind_is_what_it_says(candidates):
    units = pl.plant(SCENES, 21, pl.KINDS, seed=4)
    for kind, t, a in zip(units.kinds, units.truth, units.acts):
        assert (a == 0).any() and a.min() >= 0 # exact ties after the rectifier
        if kind == "rare": assert 10 <= t.sum() < .005 * len(t)
        if kind == "graded": assert len(np.unique(t)) == 4 and ag.pearson(a[None], t[None])[0, 0] > .8
        if kind == "outside": assert not (candidates[1] == t).all(1).any()
    assert (pl.plant(SCENES, 6, rectify=False, seed=4).acts < 0).any()
    again = pl.plant(SCENES, 21, pl.KINDS, seed=4)
    assert (again.acts == units.acts).all() and again.said == units.said # the same seed, the same bytes
    found = pl.recovery(units, candidates[1], ("pearson",))["pearson"]
    assert found["outside"][0] == 0 and found["not"][0] < found["not"][1] and found["graded"][0] == found["graded"][1] # what no candidate says is not found (no circle is a rectangle or no shape)
    names, vectors = pl.candidates(SCENES, negated=True)
    assert pl.recovery(pl.plant(SCENES, 8, ("not",), seed=1), vectors, ("pearson",))["pearson"]["all"] == (8, 8)


def test_a_planted_channel_is_a_channel_like_any_other():
    words = pl.pairs_to_plant(14, seed=1)
    bb, layer, scenes = pl.planted(words, "layer2", seed=3), "net.layer2", generate(40, regions=(3, 6), split="val", seed=7)
    acts, grid = pl.activations(bb, scenes, layer)
    truth = pl.on_cells(np.stack([claims.regions(claims.both(*w), scenes) for w in words]), scenes, grid)
    assert acts.shape[0] == 48 and (acts[:14].astype(bool) == truth).all() and not set(np.unique(acts[20])) <= {0, 1}
    names, vectors = pl.candidates(scenes, least=1)
    best = ag.grid(acts[:14], pl.on_cells(vectors, scenes, grid), ("pearson",))[0]["pearson"].argmax(1)
    found = [(pl.on_cells(vectors[k][None], scenes, grid)[0] == truth[u]).all() for u, k in enumerate(best) if truth[u].any()]
    assert len(found) >= 10 and np.mean(found) >= .95
    bb.model.force = {0: 1.}
    assert (pl.activations(bb, scenes, layer)[0][0] == 1).all()


def test_probes_decode_and_directions_are_units():
    bb, train, test = load("zoo/convnet"), generate(200, regions=(2, 4), split="train", seed=1), generate(60, regions=(2, 4), split="test", seed=2)
    first, last = (pl.probe(bb, n, train, test) for n in ("layer1", "layer4"))
    assert last.accuracy["digit"] > first.accuracy["digit"] + .1 and last.accuracy["digit"] > last.chance["digit"] + .5
    acts, grid = pl.activations(bb, test, "layer4", last.units)
    red = test.vocab.attributes.index("red")
    truth = pl.on_cells(claims.regions(claims.word("red"), test)[None], test, grid)
    assert ag.pearson(acts[red][None], truth)[0, 0] > .6 and last.error[red] < .05
    with pytest.raises(ValueError, match="both scenes are of split 'test'"): pl.probe(bb, "layer4", test, test)


def test_what_cannot_be_planted_is_told():
    with pytest.raises(ValueError, match="no kind 'xor'"): pl.plant(SCENES, 2, ("xor",))
    with pytest.raises(ValueError, match="no noise 'cauchy'"): pl.plant(SCENES, 2, noise="cauchy")
    with pytest.raises(ValueError, match="'three' cannot be read off pixels"): pl.planted([("three",)])
    with pytest.raises(ValueError, match="things to plant, not 999"): pl.pairs_to_plant(999)
    with pytest.raises(ValueError, match="give more scenes"): pl.plant(generate(20, split="val"), 1, ("rare",))
    assert torch.isfinite(pl.seen(torch.zeros(1, 3, 84, 84))["red"]).all()


def test_turning_a_planted_unit_turns_its_word():
    words, scenes = ["red", "blue", "circle", "large"], generate(40, regions=(1, 3), split="test", seed=9)
    bb = pl.planted([(w,) for w in words], "layer3", seed=1)

    @contextmanager
    def force(v):
        bb.model.force = v
        try: yield
        finally: bb.model.force = {}

    def reads(scenes): # a describer that says which planted channels are on
        acts, grid = pl.activations(bb, scenes, "net.layer3", range(4))
        on = acts.reshape(4, len(scenes), -1).max(2) > .5
        return [" . ".join(w for w, o in zip(words, row) if o) for row in on.T]

    fixed = reads(scenes)
    for k, w in enumerate(words):
        got = trials.causal(reads, scenes, w, lambda k=k: force({k: 0.}), lambda k=k: force({k: 1.}))
        assert got["gone"] == got["came"] == 1 and got["spill"] == 0 and got["had"] + got["lacked"] == 40
        other = trials.causal(reads, scenes, w, lambda k=k: force({(k + 1) % 4: 0.}), lambda k=k: force({(k + 1) % 4: 1.}))
        assert other["gone"] == other["came"] == 0 and other["spill"] > .5 # the wrong unit
    deaf = trials.causal(lambda s: fixed, scenes, "red", lambda: force({0: 0.}), lambda: force({0: 1.}))
    assert deaf["gone"] == deaf["came"] == 0
