"Pooled regions, lessons, D-Adaptation, and a training run that can be killed."
import json
import math
import multiprocessing
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lavise_toys import Colours, Hues, Mixed, drawn, taught, toy
from torch import nn

from vlnotes import docmnist, store
from vlnotes.hooks import Feat
from vlnotes.lavise import explainer, lessons
from vlnotes.lavise.concepts import docmnist_regions, regions
from vlnotes.lavise.drawn import drawn_words
from vlnotes.lavise.explainer import Head, HeadConfig, margin_loss, pooled
from vlnotes.lavise.lessons import Lessons, pool_regions
from vlnotes.lavise.masks import View
from vlnotes.lavise.train import DAdaptAdam, LaviseTask, TrainConfig, check, enough, optimiser, plateau, train, validate
from vlnotes.runs import launch
from vlnotes.sources import Skipped
from vlnotes.vocabulary import published

CFG = HeadConfig("relu", 12, 40)
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])}


# ---- word vectors

def test_words_of_the_drawn_world():
    t = drawn_words()
    assert t.words[:20] == list(published().attributes) and len(set(t.words)) == len(t) and np.allclose(np.linalg.norm(t.vectors, axis=1), 1, atol=1e-6)
    assert "eight" not in drawn_words(leave_out=("eight",)) and drawn_words(noise=0).vectors.tobytes() == drawn_words(noise=0, seed=0).vectors.tobytes()


# ---- regions

@pytest.mark.parametrize("pool", ["mean", "masked", "flat"])
def test_stored_regions_are_fresh_ones(tmp_path, pool):
    e, c, cfg = toy(), drawn(9), replace(CFG, pool=pool, flat=(3, 3))
    got = pool_regions(e, c, cfg, tmp_path, dtype="float32", batch=4, shard=5)
    r = 0
    for i, a in enumerate(c):
        masks, objects = regions(a, (6, 6), View.of(e.transform))
        f = e.features(e.transform(a.image)[None], ["relu"])["relu"]
        want = pooled(Feat(f.x, f.grid, "relu"), torch.from_numpy(masks.reshape(1, len(masks), 36)), pool, (3, 3))[0]
        for o, w in zip(objects, want):
            assert np.allclose(got.x[r], w.numpy(), atol=1e-5) and got.names(r) == list(o.words) and got.owner[r] == i
            r += 1
    assert r == len(got)

def test_nothing_is_computed_twice_and_everything_that_matters_is_in_the_key(tmp_path, monkeypatch):
    made, real = [], lessons._compute
    monkeypatch.setattr(lessons, "_compute", lambda *a: made.append(1) or real(*a))
    def new(n, e=None, c=None, cfg=CFG, **kw):
        made.clear()
        pool_regions(e or toy(), c or drawn(6), cfg, tmp_path, **kw)
        return len(made) == n
    assert new(1) and new(0) and new(2, shard=3) and new(0, shard=3)
    assert new(1, cfg=replace(CFG, pool="masked")) and new(1, dtype="float32") and new(1, views=2) and new(1, views=2, seed=1) and new(1, merge=True) and new(1, legacy=True)
    assert new(1, e=toy(Mixed(seed=1))) and new(1, c=drawn(6, seed=2)) and new(1, c=drawn(7)) and new(1, cfg=replace(CFG, layer="conv"))

def test_a_killed_pass_goes_on_with_the_next_shard(tmp_path, monkeypatch):
    real, made = lessons._compute, []
    def dies(*a):
        if len(made) == 2: raise KeyboardInterrupt
        made.append(a[3]); return real(*a)
    monkeypatch.setattr(lessons, "_compute", dies)
    with pytest.raises(KeyboardInterrupt): pool_regions(toy(), drawn(12), CFG, tmp_path, shard=3)
    monkeypatch.setattr(lessons, "_compute", lambda *a: made.append(a[3]) or real(*a))
    got = pool_regions(toy(), drawn(12), CFG, tmp_path, shard=3)
    assert made == [0, 3, 6, 9]
    assert got.x[:].tobytes() == pool_regions(toy(), drawn(12), CFG, tmp_path/"other", shard=3).x[:].tobytes()

def share(rank, root, barrier):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    barrier.wait(60)
    np.save(root/f"rows-{rank}.npy", pool_regions(toy(), drawn(12), CFG, root/"store", shard=1).x[:])

def test_two_processes_leave_one_whole_store(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    jobs = [fork.Process(target=share, args=(r, tmp_path, barrier)) for r in (0, 1)]
    for j in jobs: j.start()
    for j in jobs: j.join(120)
    assert [j.exitcode for j in jobs] == [0, 0]
    want = pool_regions(toy(), drawn(12), CFG, tmp_path/"one", shard=1).x[:]
    assert all(np.load(tmp_path/f"rows-{r}.npy").tobytes() == want.tobytes() for r in (0, 1))
    assert store.FeatureStore(tmp_path/"store").entries()[0]["complete"]

def test_what_cannot_be_used_is_counted(tmp_path):
    c = drawn(5)
    real = c.source
    class Torn:
        key = {"torn": 1}
        def image(self, k):
            if k == 2: raise OSError("image 2 is cut off")
            return real.image(k)
        def __getattr__(self, n): return getattr(real, n)
    boxes = c.boxes.copy()
    boxes[0] = [200, 200, 220, 220]
    skipped = Skipped()
    got = pool_regions(toy(), replace(c, source=Torn(), boxes=boxes), CFG, tmp_path, skipped=skipped)
    told = dict(skipped)
    assert told[c.ids[2]] == "image 2 is cut off" and any("outside the image" in w for w in told.values())
    assert len(got) == len(c.rows) - 1 - int((c.owner == 2).sum()) and 2 not in got.owner
    again = Skipped()
    pool_regions(toy(), replace(c, source=Torn(), boxes=boxes), CFG, tmp_path, skipped=again)
    assert list(again) == list(skipped) # the shard remembers
    with pytest.raises(ValueError, match="no region of .* is left.*outside the image"): pool_regions(toy(), replace(c, boxes=np.full_like(boxes, 200.)), CFG, tmp_path)

def test_bad_layers_and_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'pool' of toy/mixed gives one vector"): pool_regions(toy(), drawn(2), replace(CFG, layer="pool"), tmp_path)
    with pytest.raises(ValueError, match="int8"): pool_regions(toy(), drawn(2), CFG, tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="no images"): pool_regions(toy(), drawn(2)[[]], CFG, tmp_path)
    loud = toy()
    with torch.no_grad(): loud.net.conv.weight.mul_(1e7)
    with pytest.raises(ValueError, match="store them as float32"): pool_regions(loud, drawn(2), CFG, tmp_path)

def test_random_crops_move_image_and_mask_together(tmp_path):
    e, c = toy(Colours()), docmnist_regions(docmnist.generate(30, regions=(1, 1), split="train", seed=1))
    cfg = HeadConfig("map", 3, 40)
    plain, seen = pool_regions(e, c, cfg, tmp_path, dtype="float32"), pool_regions(e, c, cfg, tmp_path, dtype="float32", views=6)
    assert len(seen) > 2 * len(plain)
    rgb = {w: np.array(v, float) for w, v in published().colours.items()}
    def own(r, x): # does the pooled colour look like the region's own colour more than like the others?
        v = x / np.linalg.norm(x)
        return max(rgb, key=lambda w: v @ rgb[w] / np.linalg.norm(rgb[w])) in r
    lit = [r for r in range(len(seen)) if np.linalg.norm(seen.x[r]) > .002]
    assert np.mean([own(seen.names(r), np.asarray(seen.x[r], float)) for r in lit]) > .8 # a mask left behind would pool black or a neighbour


# ---- lessons

@pytest.fixture(scope="module")
def pool(tmp_path_factory): return pool_regions(toy(), drawn(60), CFG, tmp_path_factory.mktemp("pool"), dtype="float32")

def test_lessons_say_what_is_true(pool):
    labels = list(published().attributes)
    l = Lessons(pool, labels)
    b = l.batch(range(len(l)))
    assert [{labels[i] for i in row if i >= 0} for row in b["y"].tolist()] == [set(pool.names(r)) for r in range(len(pool))] and b["x"].numpy().tobytes() == np.asarray(pool.x[:]).tobytes()
    odd = Lessons(pool, ["nine", "green"], seen=["green"])
    assert all("green" in pool.names(r) for r in odd.rows) and len(odd) + odd.silent == len(pool)
    assert {i for row in odd.batch(range(len(odd)))["y"].tolist() for i in row} <= {-1, 0, 1}
    without = Lessons(pool, labels, without=["red", "two"])
    assert not any({"red", "two"} & set(pool.names(r)) for r in without.rows) and len(without) > 20
    with pytest.raises(ValueError, match="has a word that is taught"): Lessons(pool, ["zebra"])

def test_shuffled_lessons_keep_every_label_set(pool):
    labels = list(published().attributes)
    a, b = Lessons(pool, labels), Lessons(pool, labels, shuffled=True)
    sets = lambda l: sorted(tuple(r) for r in l.batch(range(len(l)))["y"].tolist())
    assert sets(a) == sets(b) and a.batch(range(len(a)))["x"].equal(b.batch(range(len(b)))["x"])
    assert (a.batch(range(len(a)))["y"] != b.batch(range(len(b)))["y"]).any(1).float().mean() > .8

def test_the_task_is_the_loss_and_only_the_head_learns(pool):
    labels = list(published().attributes)
    l, E = Lessons(pool, labels), torch.from_numpy(drawn_words().lookup(labels))
    seen = torch.arange(20) < 14
    task = LaviseTask(CFG, E, seen).eval()
    b = l.batch(range(16))
    total, n = task(b)
    true = torch.zeros(16, 20, dtype=torch.bool)
    for r, row in enumerate(b["y"].tolist()): true[r, [i for i in row if i >= 0]] = True
    loss, counts = margin_loss(task.head(b["x"]), E, true, seen=seen)
    assert total.item() == pytest.approx(loss.sum().item(), rel=1e-5) and n == counts.sum()
    total.backward()
    assert {k for k, _ in task.named_parameters()} == {f"head.{k}" for k, _ in Head(CFG).named_parameters()} and all(p.grad is not None for p in task.parameters())
    assert set(task.state_dict()) == {f"head.{k}" for k in Head(CFG).state_dict()} # word vectors stand still and are not saved with it
    none = task({"x": b["x"], "y": torch.full_like(b["y"], -1)})
    assert none[0] == 0 and none[1] == 0
    with pytest.raises(ValueError, match="none of the labels is seen"): LaviseTask(CFG, E, torch.zeros(20, dtype=torch.bool))

def test_accuracy_counts_each_region_once(pool):
    labels = list(published().attributes)
    l, E = Lessons(pool, labels), torch.from_numpy(drawn_words().lookup(labels))
    seen = torch.arange(20) < 14
    task = LaviseTask(CFG, E, seen)
    got = validate(task, l, bs=7)
    task.eval()
    with torch.no_grad(): v = task.head(l.batch(range(len(l)))["x"])
    order = (explainer.unit(v) @ explainer.unit(E).T).argsort(1, descending=True)
    hits = {k: np.mean([bool({labels[i] for i in order[r, :k].tolist()} & set(pool.names(r))) for r in range(len(l))]) for k in (1, 5, 10, 20)}
    assert all(got[f"accuracy@{k}"] == pytest.approx(h) for k, h in hits.items()) and got["accuracy@20"] == 1 and got["n"] == len(l) # never above one
    assert got["loss"] == pytest.approx(validate(task, l, bs=1000)["loss"]) and got["unseen@20"] == 1
    halves = [validate(task, l, bs=7, rank=r, world=1)["n"] for r in (0,)]
    assert halves == [len(l)]


# ---- D-Adaptation, plateau

def literal(p, grads, lr=1., b1=.9, b2=.999, eps=1e-8, d=1e-6): # the formulas for one vector, in double precision
    m, q, s, r = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), 0.
    for grad in grads:
        g, step = grad(p), d * lr
        m, q, s = b1*m + (1-b1)*step*g, b2*q + (1-b2)*g*g, b2*s + (1-b2)*step*g
        D = np.sqrt(q) + eps
        r = b2*r + (1-b2)*step**2*(g*g/D).sum()
        d = max(d, ((s*s/D).sum()/(1-b2) - r)/np.abs(s).sum())
        p = p - m/D
    return p, d

@pytest.mark.parametrize("lr", [1., .1])
def test_dadaptation_is_its_formulas(lr):
    A = np.random.default_rng(0).normal(size=(6, 6)); A = A @ A.T + np.eye(6)
    start = np.random.default_rng(1).normal(size=6)
    want, d = literal(start, [lambda p: A @ p] * 60, lr)
    ps = [nn.Parameter(torch.from_numpy(start[a:b].copy())) for a, b in ((0, 4), (4, 6))] # two parameters, one estimate
    opt, T = DAdaptAdam([{"params": ps[:1]}, {"params": ps[1:]}], lr=lr), torch.from_numpy(A)
    for _ in range(60):
        opt.zero_grad()
        x = torch.cat(list(ps))
        (x @ T @ x / 2).backward(); opt.step()
    assert np.allclose(torch.cat(list(ps)).detach().numpy(), want, rtol=1e-6) and float(opt.state[ps[0]]["d"]) == pytest.approx(d, rel=1e-5) == float(opt.state[ps[1]]["d"])

def test_dadaptation_state_is_tensors_and_goes_on():
    def run(n, state=None, p=None):
        p = nn.Parameter(torch.tensor([1., -2.]) if p is None else p.clone())
        opt = DAdaptAdam([p])
        if state: opt.load_state_dict(state)
        for _ in range(n): opt.zero_grad(); (p**4).sum().backward(); opt.step()
        return p.detach(), opt.state_dict()
    half, state = run(20)
    assert all(isinstance(v, torch.Tensor) for s in state["state"].values() for v in s.values())
    assert run(20, state, half)[0].equal(run(40)[0])
    still = nn.Parameter(torch.ones(2)); still.grad = torch.zeros(2)
    DAdaptAdam([still]).step()
    assert still.equal(torch.ones(2)) # no gradient: no step, no 0/0
    assert optimiser("adam") is None and optimiser("dadapt") is not None
    with pytest.raises(ValueError, match="'dadap'; the nearest is 'dadapt'"): optimiser("dadap")

@pytest.mark.parametrize("seed", range(6))
def test_the_plateau_is_torchs(seed):
    rng, patience = np.random.default_rng(seed), seed % 4
    losses = (rng.random(40) * .2 + np.linspace(1, .9, 40)).tolist()
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.)
    rule = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=patience)
    for n, l in enumerate(losses):
        rule.step(l)
        if opt.param_groups[0]["lr"] > 1e-7: assert plateau(losses[:n + 1], 3., patience=patience) == pytest.approx(opt.param_groups[0]["lr"])

def test_enough_is_epochs_without_a_new_best():
    assert [enough([3, 2, 2.5, 2.4][:n], 2) for n in range(5)] == [False, False, False, False, True] and not enough([1, 2, 3, 4], None)


# ---- a run

def test_training_leaves_the_encoder_alone_and_lowers_the_loss(tmp_path):
    e = toy()
    before = {k: v.clone() for k, v in e.net.state_dict().items()}
    cfg, result = taught(tmp_path, e, drawn(120), epochs=8)
    assert all(v.equal(before[k]) for k, v in e.net.state_dict().items()) and not any(p.requires_grad for p in e.net.parameters())
    history = json.loads((tmp_path/"run/epochs.json").read_text())
    assert history[-1]["loss"] < .95 * history[0]["loss"] and result["best"]["loss"] == min(h["loss"] for h in history) and result["world"] == 1
    made = explainer.load(tmp_path/"run", encoder=e)
    assert all(b.equal(torch.zeros_like(b)) for k, b in made.head.named_buffers() if k.endswith("mean")) and made.mean.shape == (12,)

def test_an_explainer_says_what_taught_it(tmp_path):
    def about(**kw): return json.loads((Path(train_here(tmp_path/str(len(kw)), **kw))/"config.json").read_text())["taught_by"]
    def train_here(out, source=None, **kw):
        cfg = TrainConfig(layer="layer4", source={"kind": "docmnist", "n": 30, "regions": [1, 2], "split": "val", "seed": 3}, epochs=1, cache=str(out/"cache"), out=str(out/"run"), progress=False, device="cpu", **kw)
        train(cfg, source=source)
        return cfg.out
    drawn_here = about()
    assert drawn_here == {"images": 27, "supervision": "labels of regions", "handwriting": "digits", "split": "val"}
    given = json.loads((Path(train_here(tmp_path/"given", source=drawn(40)))/"config.json").read_text())["taught_by"]
    assert "handwriting" not in given # images that were handed in are nobody's handwriting

def test_the_best_epoch_is_kept_and_training_ends(tmp_path):
    cfg, result = taught(tmp_path, toy(), drawn(60), epochs=200, lr=.05, stop=2)
    history = json.loads((tmp_path/"run/epochs.json").read_text())
    best = min(history, key=lambda h: h["loss"])
    assert len(history) < 200 and len(history) - best["epoch"] == 2 and json.loads((tmp_path/"run/config.json").read_text())["epoch"] == best
    files = {p: p.stat().st_mtime_ns for p in (tmp_path/"run").rglob("*.safetensors")}
    again = train(cfg, encoder=toy(), source=drawn(60)) # nothing is left to do
    assert again["epochs"] == len(history) and files == {p: p.stat().st_mtime_ns for p in files}

def test_without_held_out_images_the_last_epoch_is_kept(tmp_path):
    cfg, result = taught(tmp_path, toy(), drawn(40), epochs=2, val=0.)
    assert result["held_out"] == 0 and result["best"]["epoch"] == 2 and result["best"]["loss"] is None
    again = train(replace(cfg, epochs=4), encoder=toy(), source=drawn(40))
    whole, _ = taught(tmp_path/"whole", toy(), drawn(40), epochs=4, val=0.)
    a, b = explainer.read(tmp_path/"run")[1], explainer.read(tmp_path/"whole/run")[1]
    assert again["epochs"] == 4 and all(a[k].equal(b[k]) for k in a)

def test_a_lower_rate_after_a_plateau(tmp_path):
    taught(tmp_path, toy(), drawn(60), epochs=12, lr=.2, patience=1)
    rates = [h["lr"] for h in json.loads((tmp_path/"run/epochs.json").read_text())]
    assert rates[0] == .2 and rates[-1] < .2 and sorted(rates, reverse=True) == rates

KILLED = """
import os, signal, sys
from pathlib import Path
from lavise_toys import drawn, taught, toy
from vlnotes import train
real, n = train.save_checkpoint, [0]
def save(*a, **k):
    n[0] += 1
    if n[0] == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    return real(*a, **k)
train.save_checkpoint = save
taught(Path(sys.argv[1]), toy(), drawn(60), epochs=6, optimiser="dadapt", lr=1.)
"""

@pytest.mark.parametrize("at", [2, 5])
def test_killed_and_resumed_equals_never_killed(tmp_path, at):
    r = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path/"cut"), str(at)], capture_output=True, text=True, timeout=300, env=ENV)
    assert r.returncode == -9, r.stderr
    how = dict(epochs=6, optimiser="dadapt", lr=1.)
    taught(tmp_path/"cut", toy(), drawn(60), **how)
    taught(tmp_path/"whole", toy(), drawn(60), **how)
    cut, whole = (explainer.read(tmp_path/n/"run")[1] for n in ("cut", "whole"))
    assert all(cut[k].equal(whole[k]) for k in whole)
    h = [[{k: v for k, v in e.items()} for e in json.loads((tmp_path/n/"run/epochs.json").read_text())] for n in ("cut", "whole")]
    assert h[0] == h[1] and len(h[0]) == 6

def test_two_processes_teach_what_one_does(tmp_path):
    common = dict(encoder="zoo/convnet", layer="layer4", source={"kind": "docmnist", "n": 60, "regions": [1, 3], "split": "train", "seed": 1}, epochs=3, lr=1e-3, dropout=0., stop=None, progress=False, device="cpu")
    results = {}
    for nproc, bs in ((1, 32), (2, 16)):
        out = tmp_path/str(nproc)
        out.mkdir()
        results[nproc] = launch("lavise.train", asdict(TrainConfig(**common, bs=bs, cache=str(out/"cache"), out=str(out))), nproc, out)
        assert results[nproc]["world"] == nproc
    one, two = (explainer.read(tmp_path/str(n))[1] for n in (1, 2))
    assert results[1]["best"]["n"] == results[2]["best"]["n"] and results[1]["best"]["loss"] == pytest.approx(results[2]["best"]["loss"], rel=1e-4)
    assert all(torch.allclose(one[k].float(), two[k].float(), atol=1e-4) for k in one)

def test_an_unseen_colour_between_seen_ones_is_found_when_the_features_are_colours(tmp_path):
    "The word vector of the colour lies between those of seen colours, and so do its features; chance is its place among the words."
    e = toy(Hues())
    cfg, _ = taught(tmp_path, e, drawn(500, regions=(1, 2)), layer="map", epochs=40, lr=5e-3, hold_out=("yellow",))
    made = explainer.load(tmp_path/"run", encoder=e)
    assert made.unseen == ["yellow"] and "yellow" not in made.seen
    new = pool_regions(e, drawn(200, "test", 3, (1, 2)), made.head.cfg, tmp_path)
    rows, _ = made.read(torch.from_numpy(np.asarray(new.x[:], np.float32)), 5)
    said = np.array([[made.words[i] == "yellow" for i in row] for row in rows.tolist()]).any(1)
    has = np.array(["yellow" in new.names(r) for r in range(len(new))])
    assert said[has].mean() > .8 and said[has].mean() > said[~has].mean() + .3 and said[has].mean() > 3 * 5 / len(made.words)
    lost = Lessons(pool_regions(e, drawn(500, regions=(1, 2)), made.head.cfg, tmp_path), list(published().attributes), without=["yellow"])
    assert not any("yellow" in lost.pool.names(r) for r in lost.rows)

def test_controls_say_so_in_their_folder(tmp_path):
    cfg = TrainConfig(random=True, source={"kind": "docmnist", "n": 30, "regions": [1, 3], "split": "train", "seed": 1}, epochs=1, cache=str(tmp_path/"cache"), out=str(tmp_path/"r"), progress=False, device="cpu", seed=3)
    train(cfg)
    made, twin = explainer.load(tmp_path/"r"), explainer.frozen("zoo/convnet", True, 3)
    x = torch.rand(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    assert made.features(x).x.equal(twin.features(x, ["layer4"])["layer4"].x) and made.encoder_note == {"random": True, "seed": 3}


@pytest.mark.parametrize("bad, told", [
    (dict(layer="layer9"), "layer4"), (dict(layer="global_pool.pool"), "not a map|no layer"), (dict(rate=0.), "none of 20 words"), (dict(hold_out=("zebra",)), "'zebra'"), (dict(optimiser="adan"), "adam"),
    (dict(source={"kind": "docmnst"}), "docmnist"), (dict(space={"source": "no/such.txt"}), "no/such.txt"), (dict(space={"drawn": {"leave_out": [*published().attributes]}}), "none of the 20 words"), (dict(margn=2), "margin")])
def test_bad_settings_get_one_sentence(tmp_path, bad, told):
    given = {**dict(source={"kind": "docmnist", "n": 20, "regions": [1, 2], "split": "train", "seed": 1}, out=str(tmp_path), cache=str(tmp_path/"c"), progress=False, device="cpu", epochs=1), **bad}
    with pytest.raises((ValueError, OSError), match=told) as e: train(TrainConfig.from_dict(given))
    assert "\n" not in str(e.value).strip()

def test_words_without_a_vector_are_counted(tmp_path):
    given = dict(source={"kind": "docmnist", "n": 30, "regions": [1, 2], "split": "train", "seed": 1}, space={"drawn": {"leave_out": ["red", "nine"]}}, out=str(tmp_path), cache=str(tmp_path/"c"), progress=False, device="cpu", epochs=1)
    result = train(TrainConfig.from_dict(given))
    assert result["seen"] == 18 and {i for i, why in result["skipped"]["items"] if "no vector" in why} == {"red", "nine"}

def test_a_rehearsal_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    text = check(TrainConfig.paper(encoder="torchvision/resnet18@random"), images=500)
    for word in ("encoder", "vlnotes data glove", "vlnotes data vg", "512 channels, 7x7 cells", "GB", "hours"): assert word in text, text
    assert "there" in check(TrainConfig(source={"kind": "docmnist", "n": 30, "regions": [1, 2], "split": "train", "seed": 1}))
    assert math.isclose(TrainConfig.paper().rate, .7) and TrainConfig.paper().bs == 512
