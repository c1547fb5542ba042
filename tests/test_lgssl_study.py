"LGSSL: the study's world, its arms, its table; and what the experiments leave behind."
import numpy as np
import pytest
import torch

from vlnotes.lgssl import study


@pytest.fixture(scope="module")
def world(): return study.world(300, 60, 1)


def test_the_world_keeps_its_promises(world):
    assert set(np.unique(world.digit)) <= set(range(8)) and set(np.unique(world.absent["test"][1])) == {0, 1}
    assert world.train.shape == (300, 3, 28, 28) and world.train.dtype == torch.uint8
    names = study.published().digits
    said = [set(c.split()) & set(names) for c in world.captions["full"]]
    assert all(s == {names[d]} for s, d in zip(said, world.digit)) # the full caption names the digit, and no other
    assert not any(set(c.split()) & set(names) for c in world.captions["without"]) and all(world.captions["without"])
    wrong = np.mean([names[d] not in c.split() for c, d in zip(world.captions["wrong"], world.digit)])
    assert .2 < wrong < .4
    assert torch.equal(study.world(300, 60, 1).train, world.train) and not torch.equal(study.world(300, 60, 2).train, world.train)


def test_handwriting_is_disjoint():
    from vlnotes import docmnist
    parts = [{bytes(g) for g in docmnist.glyphs().split(s).images.reshape(-1, 784)} for s in ("train", "val", "test")]
    assert not parts[0] & parts[2] and not parts[1] & parts[2]


def test_arms(world):
    looks = world.train.flatten(1).float().numpy()
    for arm in study.ARMS:
        p = study.partners(arm, world, 0, looks=looks, k=2)
        if arm in ("simclr", "crop"): assert p is None
        else: assert p.shape == (300, 2) and (p != np.arange(300)[:, None]).all() and p.min() >= 0 and p.max() < 300
    assert (world.digit[study.partners("label", world, 0)[:, 0]] == world.digit).all()
    agree = {a: study.agreement(study.partners(a, world, 0), world.digit)["agreement"] for a in ("captions", "without", "random")}
    assert agree["captions"] > 2 * agree["random"] and agree["without"] < .25
    with pytest.raises(ValueError, match="no arm 'caption'"): study.partners("caption", world, 0)
    with pytest.raises(ValueError, match="captions are 'half'"): study.captions(None, "half")


def test_partners_are_drawn_among_equal_captions():
    group = np.array([0, 1, 0, 0, 1, 2, 0])
    nearest = np.array([[2], [4], [0], [0], [1], [0], [0]]) # the lowest of equals; row 5 has none and is nearest to the first group
    seen = {i: set() for i in range(7)}
    for s in range(200):
        for i, j in enumerate(study.drawn(nearest, group, np.random.default_rng(s))[:, 0]): seen[i].add(int(j))
    assert seen == {0: {2, 3, 6}, 1: {4}, 2: {0, 3, 6}, 3: {0, 2, 6}, 4: {1}, 5: {0, 2, 3, 6}, 6: {0, 2, 3}}
    w = study.world(1500, 20, 0)
    p, texts = study.partners("without", w, 0)[:, 0], w.captions["without"]
    z = study.embed(texts)
    first = study.nearest(z).index[:, 0]
    assert np.bincount(first).max() > 3 * np.bincount(p).max() # no image is everybody's partner
    assert np.array_equal(z[p], z[first]) # and none is less near


def test_arms_start_alike_and_differ_by_their_pairs_alone(world):
    opts = dict(steps=2, bs=16, size=28)
    a, _ = study.train(world, "random", 0, study.partners("random", world, 0), **opts)
    b, _ = study.train(world, "label", 0, study.partners("label", world, 0), **opts)
    again, _ = study.train(world, "random", 0, study.partners("random", world, 0), **opts)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), again.parameters()))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_looking_changes_nothing(world):
    net = study.trunk("zoo/convnet", 0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    z = study.look(net, world.train[:7], 28)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert np.allclose(study.look(net, world.train[3:4], 28)[0], z[3], atol=1e-5) # a row alone


def test_judgement_of_perfect_and_of_blind_features(world):
    known = {x.numpy().tobytes(): y for x, y in [(x, int(y)) for part in (*world.probe.values(), *world.absent.values()) for x, y in zip(*part)]}
    perfect = study.judge(lambda x: np.eye(8)[[known[i.numpy().tobytes()] for i in x]] + 1e-3 * np.random.default_rng(0).normal(size=(len(x), 8)), world, 50)
    blind = study.judge(lambda x: np.random.default_rng(0).normal(size=(len(x), 8)), world, 50)
    assert perfect["probe"] == 1 and perfect["fewshot"] == 1 and blind["probe"] < .35 and blind["probe"] >= blind["probe_lo"]


def test_intervals_cover_and_gains_are_paired():
    rng, hit = np.random.default_rng(0), 0
    for _ in range(400): _, lo, hi = study.interval(rng.normal(3, 1, 5)); hit += lo <= 3 <= hi
    assert .92 < hit / 400 < .98
    noise = rng.normal(0, .1, 5)
    rows = [{"arm": a, "seed": s, "agreement": .2, "probe": .5 + noise[s] + g, "knn": .5, "fewshot": .5} for s in range(5) for a, g in (("crop", 0), ("without", .02))]
    t = {r["arm"]: r for r in study.table(rows)}
    assert t["without"]["probe_gain"] == pytest.approx(.02) and t["without"]["probe_gain_lo"] > .019 and t["crop"]["probe_hi"] - t["crop"]["probe_lo"] > .05
    assert "better than" in study.reading(list(t.values())) and np.isnan(study.interval([.5])[1])
    assert "better than random pairs" in study.reading(study.table([r | {"arm": "random"} if r["arm"] == "crop" else r for r in rows], "random"), "random pairs", ["without"])
    worse = study.table([r | {"probe": r["probe"] - .1 * (r["arm"] == "without")} for r in rows])
    assert "worse than" in study.reading(worse)


# ---- experiments

@pytest.mark.parametrize("name, given, told", [
    ("lgssl_pretrain", ["encoder=timm/resnet10t", "size=32", "bs=4", "steps=1000"], ("missing", "vlnotes run lgssl_pairs", "vlnotes data redcaps", "memory", "hours", "GB")),
    ("lgssl_pairs", [], ("data", "missing", "vlnotes data redcaps", "embedder")),
    ("lgssl_probe", ["encoder=zoo/convnet"], ("encoder", "cifar10: missing; -p download=true", "imagenet: missing; put a copy", "digits: there")),
    ("lgssl_study", [], ("always there", "10 seeds"))])
def test_paper_presets_can_be_rehearsed(name, given, told, tmp_path, monkeypatch):
    pytest.importorskip("papermill")
    from vlnotes import launcher
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path/"data"))
    text = launcher.check(name, ["preset=paper", *given])
    for word in told: assert word in text, text


def test_the_study_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("papermill")
    from vlnotes import launcher, runs
    (tmp_path/"run/arms").mkdir(parents=True)
    kept = {"arm": "crop", "seed": 0, "agreement": 1., "probe": .111, "knn": .1, "fewshot": .5, "loss": 1., "seconds": 0.}
    runs.write_json(tmp_path/"run/arms/crop-0.json", kept)
    launcher.run_notebook("lgssl_study", {"preset": "tiny", "seeds": 1, "arms": "crop,label"}, out=tmp_path/"run", progress=False, resume=True)
    found = {(r["arm"], r["seed"]): r for r in runs.read_json(tmp_path/"run/metrics.json")["trials"]}
    assert found["crop", 0]["probe"] == .111 and ("label", 0) in found and ("untrained", 0) in found


def test_one_table_over_the_whole_catalogue(tmp_path, monkeypatch):
    pytest.importorskip("papermill")
    from vlnotes import launcher, runs
    from vlnotes.lgssl import catalogue
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path/"data"))
    launcher.run_notebook("lgssl_probe", {"preset": "tiny", "data": "all", "limit": 60, "episodes": 20, "shot": 7}, out=tmp_path/"run", progress=False)
    made = runs.read_json(tmp_path/"run/metrics.json")
    rest = [k for k in catalogue.CATALOGUE if k not in catalogue.NO_METRIC]
    few = [f"{r['data']}, few-shot" for r in made["table"] if "fewshot" not in r]
    assert "docmnist/digit, few-shot" in few and "digits, few-shot" not in few and "fewer than the 7 shots" in made["missing"][few[0]] # six images a class: no episodes there, and the table goes on
    assert [r["data"] for r in made["table"]] == list(catalogue.OFFLINE) and sorted(made["missing"]) == sorted([*rest, *few]) and list(made["splits"]) == [*catalogue.OFFLINE, *rest]
    assert all(w in made["missing"][k] for k, w in (("cifar10", "download=True"), ("imagenet", "put train and val there")))
    for r in made["table"]: assert r["lo"] <= r["accuracy"] <= r["hi"] and 0 < r["majority"] < 1 and 0 <= r.get("fewshot", 0) <= 1
