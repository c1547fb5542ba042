"LGSSL: probes, few-shot episodes, neighbours' votes, the catalogue, and what goes wrong with them."
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from vlnotes.backbones import load
from vlnotes.lgssl import catalogue
from vlnotes.lgssl.catalogue import Features, Labelled, Part, cut
from vlnotes.lgssl.fewshot import Episodes, episodes, fewshot, knn, score
from vlnotes.lgssl.logistic import logistic, principal
from vlnotes.lgssl.probe import COARSE, accuracy, fine, probe, probe_features, sweep
from vlnotes.sources import Skipped


def clouds(classes=4, n=240, d=12, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(3 * n) % classes
    x = (rng.normal(size=(classes, d))[y] + spread * rng.normal(size=(len(y), d))).astype(np.float32)
    part = np.repeat(["train", "val", "test"], n)
    return Features("clouds", classes, {s: x[part == s] for s in ("train", "val", "test")}, {s: y[part == s] for s in ("train", "val", "test")})


# ---- logistic regression

def test_the_optimum_of_two_points_in_one_dimension():
    # x = -1, 1 with one label each: by symmetry b = 0, w = (-v, v); J(v) = log(1 + exp(-2v)) + v^2 / (C n), solved by Newton's method
    C, n, v = 3., 2, 0.
    for _ in range(60):
        p = 1 / (1 + np.exp(2 * v))
        v -= (-2 * p + 2 * v / (C * n)) / (4 * p * (1 - p) + 2 / (C * n))
    m = logistic(np.array([[-1.], [1.]]), [0, 1], C, tol=1e-7)
    assert m.weight[0, 0].numpy() == pytest.approx([-v, v], abs=1e-4) and m.bias.abs().max() < 1e-4


@pytest.mark.parametrize("classes", [2, 5])
def test_the_same_answer_as_sklearn(classes):
    f = clouds(classes)
    costs = [1e-3, 1e-1, 10.]
    m = logistic(f.x["train"], f.y["train"], costs, classes, tol=1e-6)
    for k, C in enumerate(costs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ref = LogisticRegression(C=C, max_iter=2000, tol=1e-8).fit(f.x["train"], f.y["train"])
        s = f.x["test"] @ m.weight[k].numpy() + m.bias[k].numpy()
        p = np.exp(s - s.max(1, keepdims=True))
        if classes > 2: assert np.allclose(p / p.sum(1, keepdims=True), ref.predict_proba(f.x["test"]), atol=2e-3)
        assert (m.predict(f.x["test"])[k] == ref.predict(f.x["test"])).mean() > .98


def test_many_costs_at_once_equal_each_alone_in_any_order_of_rows():
    f, costs = clouds(3), [10., 1e-3, .3, 1.]
    order = np.random.default_rng(0).permutation(len(f.y["train"]))
    many = logistic(f.x["train"], f.y["train"], costs, tol=1e-6)
    for k, C in enumerate(costs):
        one = logistic(f.x["train"][order], f.y["train"][order], C, tol=1e-6)
        assert torch.allclose(many.weight[k], one.weight[0], atol=1e-3)
    assert (many.gradient < 1e-5).all()
    part = logistic(f.x["train"], f.y["train"], costs, tol=1e-6, size=17) # rows in pieces
    assert torch.allclose(part.weight, many.weight, atol=1e-3)


def test_a_start_and_the_axes_of_other_rows_change_no_answer():
    f, few = clouds(3), clouds(3, n=6)
    both, y = np.concatenate([f.x["train"], f.x["val"]]), np.concatenate([f.y["train"], f.y["val"]])
    plain = logistic(both, y, [1e-2, 1., 1e2], tol=1e-6)
    half = logistic(f.x["train"], f.y["train"], [1e-3, .1, 10.], tol=1e-6)
    led = logistic(principal(both, like=principal(f.x["train"])), y, [1e-2, 1., 1e2], tol=1e-6, start=half)
    assert torch.allclose(plain.weight, led.weight, atol=1e-3) and led.steps.sum() < plain.steps.sum()
    short = principal(few.x["train"], like=principal(few.x["train"][:5])) # five rows do not span the space
    assert short.axes.shape == principal(few.x["train"]).axes.shape
    all_ = plain | half
    assert len(all_) == 6 and torch.equal(all_.weight[3:], half.weight) and all_.C.tolist() == [1e-2, 1., 1e2, 1e-3, .1, 10.]
    with pytest.raises(ValueError, match="start has .4, 3.* .12, 3. are right"): logistic(both, y, 1., start=logistic(both[:, :4], y, 1.))


def test_the_end_follows_the_objective_down_to_nothing():
    # two clouds that come apart: at C -> infinity the loss goes to zero, and so does the threshold
    f = clouds(2, spread=.1)
    for C in (1e2, 1e4, 1e6):
        m = logistic(f.x["train"], f.y["train"], C)
        ref = LogisticRegression(C=C, max_iter=10_000, tol=1e-12).fit(f.x["train"].astype(float), f.y["train"])
        w, b = np.concatenate([-ref.coef_, ref.coef_]).T / 2, np.array([-1, 1]) * ref.intercept_ / 2
        def J(W, b, C=C):
            s = f.x["train"] @ W + b
            return (np.logaddexp(s[:, 0], s[:, 1]) - s[np.arange(len(s)), f.y["train"]]).mean() + (W ** 2).sum() / (2 * C * len(s))
        assert m.gradient[0] < 1e-4 * m.objective[0] and J(m.weight[0].double().numpy(), m.bias[0].double().numpy()) < 1.01 * J(w, b)
        assert m.objective[0] == pytest.approx(J(m.weight[0].double().numpy(), m.bias[0].double().numpy()), rel=1e-3) # single precision tells it however small it is


def test_more_features_than_images_and_a_constant_feature():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 100)), np.arange(30) % 3
    x[:, 4] = 7
    m = logistic(x, y, 1., tol=1e-6)
    ref = LogisticRegression(C=1., max_iter=5000, tol=1e-8).fit(x, y)
    assert np.allclose(m.weight[0].numpy().T, ref.coef_, atol=2e-3) and m.weight[0, 4].abs().max() < 1e-5


@pytest.mark.parametrize("x, y, C, kw, told", [
    ([[np.nan], [1.]], [0, 1], 1., {}, "1 of 2 feature rows hold NaN"), ([[0.], [1.]], [0, 0], 1., {}, "one-class"), ([[0.], [1.]], [0, 5], 1., {"classes": 3}, "0 to 2 are right"),
    ([[0.], [1.]], [0, 1], -1., {}, "positive"), ([[0.], [1.]], [0], 1., {}, "do not fit"), ([[0.], [1.]], [0, 1], 1., {"penalty": "l1"}, "l1")])
def test_bad_features(x, y, C, kw, told):
    with pytest.raises(ValueError, match=told): logistic(np.array(x), y, C, **kw)


# ---- the sweep

def test_the_sweep_visits_what_it_says():
    seen = []
    def curve(costs):
        seen.extend(costs)
        return [1 - abs(np.log10(c) - 1) / 10 for c in costs]
    best, acc = sweep(curve)
    assert tuple(seen[:7]) == COARSE and len(seen) == len(set(seen)) and 33 <= len(seen) <= 35 and abs(np.log10(best) - 1) < .08 # 0.01, 1 and 100 are known already
    best, acc = sweep(lambda c: [.5] * len(c), "halving")
    assert best == 1e-6 and len(acc) <= 13 # a flat curve: the strongest penalty
    assert len(fine(1e-6)) == 15 and len(fine(1e6)) == 15 and len(fine(1.)) == 29
    with pytest.raises(ValueError, match="bisect"): sweep(curve, "bisect")


def test_the_halving_of_a_known_curve():
    # peak at the right end of 29: indices 7, 14, 21 -> right half of 15 from 14 on; then 3, 7, 11 of those; and so on to one
    grid, asked = fine(1.), []
    def curve(costs):
        asked.append([int(np.abs(grid - c).argmin()) if 1e-2 * .99 <= c <= 1e2 * 1.01 else None for c in costs])
        return [1. if c == 1. else np.log10(c) / 100 if .01 * .99 <= c <= 1.01e2 else -1. for c in costs]
    sweep(curve, "halving")
    assert asked[1] == [7, 21] and all(len(a) <= 3 for a in asked[1:]) # 14, the coarse best, is known


# ---- accuracy and the probe

def test_mean_per_class():
    y = np.array([0, 0, 1, 1])
    assert accuracy([0, 1, 1, 1], y, 2, True) == accuracy([0, 1, 1, 1], y, 2) == .75 # balanced: the same
    assert accuracy([0, 1, 1, 1], y, 3, True, "zero") == pytest.approx(.5)


def test_a_probe_of_features_and_its_alternatives():
    f = clouds()
    a, b = probe_features(f), probe_features(f, solver="sklearn")
    assert abs(a.accuracy - b.accuracy) < .02 and a.lo < a.accuracy < a.hi and a.accuracy > a.majority + .3
    assert a.C in a.curve and a.val == max(a.curve.values()) and a.C == min(c for c, v in a.curve.items() if v == a.val)
    guess = (f.x["test"] @ a.weight.numpy() + a.bias.numpy()).argmax(1)
    assert np.array_equal(guess, a.guess)
    assert probe_features(f, combine=False).n == {"train": 240, "val": 240, "test": 240}
    per = probe_features(Features(**{**vars(f), "per_class": True}))
    assert per.lo < per.accuracy < per.hi
    with pytest.raises(ValueError, match="squared penalty alone"): probe_features(f, solver="sklearn", penalty="norm")
    with pytest.raises(ValueError, match="newton"): probe_features(f, solver="newton")


def test_test_labels_never_choose():
    f = clouds()
    other = Features(**{**vars(f), "y": {**f.y, "test": np.roll(f.y["test"], 1)}})
    a, b = probe_features(f), probe_features(other)
    assert a.C == b.C and a.curve == b.curve and torch.equal(a.weight, b.weight) and a.accuracy != b.accuracy


def test_classes_that_are_missing():
    f = clouds(4)
    keep = f.y["test"] != 2
    part = Features("part", 4, {**f.x, "test": f.x["test"][keep]}, {**f.y, "test": f.y["test"][keep]}, per_class=True)
    assert probe_features(part).absent == [2] and probe_features(part).accuracy > probe_features(part, absent="zero").accuracy
    keep = f.y["train"] != 2
    gap = Features("gap", 4, {**f.x, "train": f.x["train"][keep]}, {**f.y, "train": f.y["train"][keep]})
    with pytest.raises(ValueError, match="gap: the split train has no image of class 2"): probe_features(gap)
    bad = {**f.x, "test": np.where(np.arange(240)[:, None] == 5, np.nan, f.x["test"])}
    with pytest.raises(ValueError, match="NaN.*row 5"): probe_features(Features("nan", 4, bad, f.y))


def test_two_lines(tmp_path):
    found = probe(load("zoo/convnet"), catalogue.scenes("colour", 200, 60), root=tmp_path)
    assert found.accuracy > .9 and found.data == "docmnist/colour"


# ---- few-shot

def test_separated_clouds_and_chance():
    f = clouds(8, spread=.01)
    assert fewshot(f, n=50)["mean"] == 1.
    rng, f = np.random.default_rng(0), clouds(8, n=4000)
    noise = Features("n", 8, f.x, {s: rng.permutation(v) for s, v in f.y.items()})
    r = fewshot(noise, n=600)
    assert abs(r["mean"] - .2) < 3 * r["std"] / 600 ** .5 and r["chance"] == .2 # three standard errors
    f = clouds(8, spread=.01)
    assert np.allclose(score(np.ones((240, 3)), np.ones((240, 3)), episodes(f.y["train"], f.y["test"], n=20), prototypes=False), .2)


@pytest.mark.parametrize("prototypes", [True, False])
@pytest.mark.parametrize("centre, unit", [(True, True), (True, False), (False, True), (False, False)])
def test_products_gathers_and_the_definition_agree(centre, unit, prototypes):
    f = clouds(7)
    e = episodes(f.y["train"], f.y["test"], n=60, seed=2)
    want = []
    for s, t in zip(e.support, e.query):
        a, b = (torch.tensor(f.x[k][r.ravel()]).double() for k, r in (("train", s), ("test", t)))
        if centre: m = a.mean(0); a, b = a - m, b - m
        if unit: a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        at = torch.cdist(b, a.view(5, 5, -1).mean(1) if prototypes else a).argmin(1)
        want.append(((at if prototypes else at // 5) == torch.arange(5).repeat_interleave(6)).double().mean())
    for products in (True, False):
        got = score(f.x["train"], f.x["test"], e, centre, unit, prototypes, products=products)
        assert np.abs(got - np.array(want)).max() < 1 / 30 and np.abs(got - np.array(want)).mean() < 5e-4 # two distances within 1e-6 are a tie


def test_an_episode_has_distinct_classes_and_images():
    f = clouds(9)
    e = episodes(f.y["train"], f.y["test"], n=300)
    for c, s, q in zip(e.classes, e.support, e.query):
        assert len(set(c)) == 5 and len(set(s.ravel())) == 25 and len(set(q.ravel())) == 30
        assert (f.y["train"][s] == c[:, None]).all() and (f.y["test"][q] == c[:, None]).all()


def test_centring_forgets_the_place_and_unit_length_the_scale():
    f = clouds(7)
    e = episodes(f.y["train"], f.y["test"], n=200)
    a, b = f.x["train"].astype(float), f.x["test"].astype(float)
    close = lambda u, v: np.abs(u - v).max() <= 1 / 30 + 1e-9 and np.abs(u - v).mean() < 1e-3 # a tie may fall the other way
    assert close(score(a, b, e), score(a + 3, b + 3, e)) and close(score(a, b, e), score(7 * a, 7 * b, e))
    assert not close(score(a, b, e, centre=False), score(a + 3, b + 3, e, centre=False)) # without centring the place counts


def test_episodes_are_shared_stored_and_uniform(tmp_path):
    f = clouds(10)
    e = episodes(f.y["train"], f.y["test"], n=3000)
    e.save(tmp_path/"e.safetensors")
    assert np.array_equal(Episodes.load(tmp_path/"e.safetensors").query, e.query)
    assert fewshot(f, e)["mean"] == fewshot(f, n=3000)["mean"]
    counts = np.bincount(e.support.ravel(), minlength=240)
    assert counts.std() / counts.mean() < .1 and np.bincount(e.classes.ravel()).std() < 60
    (tmp_path/"bad").write_text("x")
    with pytest.raises(ValueError, match="holds no episodes"): Episodes.load(tmp_path/"bad")


def test_few_images():
    y = np.repeat(np.arange(5), [9, 9, 9, 9, 3])
    with pytest.raises(ValueError, match="class 4 has 3 training images, fewer than the 5 shots"): episodes(y, y)
    with pytest.raises(ValueError, match="5 classes an episode.*3 have"): episodes(y[y < 3], y)
    test = np.repeat(np.arange(5), [2, 8, 8, 8, 8])
    e = episodes(np.repeat(np.arange(5), 9), test, n=30)
    first = e.query[e.classes == 0]
    assert (first[:, 2:] == -1).all() and (np.sort(first[:, :2], 1) == [0, 1]).all() # all two of them
    x = np.eye(5, dtype=np.float32)
    assert (score(x[np.repeat(np.arange(5), 9)], x[test], e) == 1).all()


def test_neighbours_vote():
    f = clouds(4, spread=.3)
    assert knn(f, 5)["accuracy"] > .95 and knn(f, 10**6)["k"] == 240
    one = knn(f, 1)["accuracy"]
    u = {s: v / np.linalg.norm(v, axis=1, keepdims=True) for s, v in f.x.items()}
    assert one == pytest.approx((f.y["train"][(u["test"] @ u["train"].T).argmax(1)] == f.y["test"]).mean())


# ---- the catalogue

def test_cuts_share_nothing():
    labels = np.random.default_rng(0).integers(0, 6, 500)
    a, b, c = (set(cut(t, labels)) for t in ("train[:10%]", "train[10%:20%]", "train[20%:]"))
    assert not a & b and not b & c and len(a | b | c) == 500
    assert cut("test", labels).tolist() == list(range(500)) and cut("train[80%:]", labels, tail=True).tolist() == list(range(400, 500))
    with pytest.raises(ValueError, match="train.:80"): cut("train[:80", labels)


def test_so_many_of_every_class():
    labels = np.random.default_rng(0).integers(0, 6, 500)
    parts = [cut(t, labels) for t in ("all[:4 each]", "all[4:6 each]", "all[6: each]")]
    assert np.bincount(labels[parts[0]]).tolist() == [4] * 6 and np.bincount(labels[parts[1]]).tolist() == [2] * 6
    assert sorted(np.concatenate(parts)) == list(range(500)) and not np.array_equal(parts[0], cut("all[:4 each]", labels, seed=1))
    assert cut("all[:1 each]", labels, tail=True).tolist() == sorted(int(np.flatnonzero(labels == c)[0]) for c in range(6))
    with pytest.raises(ValueError, match="40 each"): cut("all[:10% each]", labels)


@pytest.mark.parametrize("name", [k for k in catalogue.CATALOGUE if k not in catalogue.NO_METRIC])
def test_every_set_is_cut_in_three_and_says_what_is_ours(name):
    e = catalogue.CATALOGUE[name]
    labels = np.random.default_rng(0).permutation(max(16_000, 120 * e.classes)) % e.classes
    used = {}
    for text in e.cuts:
        rows, split = cut(text, labels), text.partition("[")[0]
        assert len(np.unique(labels[rows])) == e.classes and not used.setdefault(split, set()) & set(rows) # every class in each, nothing twice
        used[split] |= set(rows)
    told = catalogue.rule(name)
    assert all(t in told for t in e.cuts) and e.ours in told and ("validation: drawn" in told) == (e.cuts[1] not in ("val", "test"))
    assert "last rows" in catalogue.rule("cifar10", tail=True) and "handwriting" in catalogue.rule("digits")


class Rows:
    "What the catalogue asks of a data set of Hugging Face."
    column_names = ("image", "label")
    def __init__(self, labels): self.labels = labels
    def __getitem__(self, k): return self.labels if k == "label" else {"image": Image.new("RGB", (6, 6), (int(self.labels[k]), 0, 0))}


def test_a_set_through_the_hub(monkeypatch, tmp_path):
    import sys
    import types
    hub = {"train": Rows([k % 45 for k in range(900)]), "validation": Rows([k % 45 for k in range(450)]), "test": Rows([k % 45 for k in range(450)])}
    fake = types.SimpleNamespace(load_dataset=lambda name: hub, concatenate_datasets=lambda parts: Rows([v for p in parts for v in p.labels]))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    d = catalogue.load("resisc45", tmp_path, download=True)
    assert [len(p) for p in d.parts().values()] == [180, 180, 1440] # tenths of all three together, 40 of every class
    assert np.bincount(d.train.labels).tolist() == [4] * 45 and d.test.image(7).getpixel((0, 0))[0] == d.test.labels[7]
    del hub["test"]
    with pytest.raises(FileNotFoundError, match="cub2011 has no split test"): catalogue.load("cub2011", tmp_path, download=True)


def folder(root, counts):
    for split, per in counts.items():
        for c, n in per.items():
            (root/split/c).mkdir(parents=True, exist_ok=True)
            for i in range(n): Image.new("RGB", (20, 20), (60 * "abc".index(c), 10 * i, 0)).save(root/split/c/f"{i}.png")


def test_a_folder_of_ones_own(tmp_path):
    folder(tmp_path/"mine", {"train": {"a": 6, "b": 6}, "val": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}})
    bad = tmp_path/"mine/train/a/x.png"
    bad.write_bytes(b"junk")
    skipped = Skipped()
    f = catalogue.features(load("zoo/convnet"), f"folder:{tmp_path}/mine", root=tmp_path/"store", skipped=skipped)
    assert len(f.y["train"]) == 12 and len(skipped) == 1 and f.classes == 2 # the picture that does not decode is counted
    assert probe_features(f).accuracy == 1
    folder(tmp_path/"gap", {"train": {"a": 6, "b": 6}, "val": {"a": 3}, "test": {"a": 3, "c": 3}})
    with pytest.raises(ValueError, match="train has no image of class 2"): catalogue.load(f"folder:{tmp_path}/gap")
    folder(tmp_path/"one", {s: {"a": 3} for s in ("train", "val", "test")})
    with pytest.raises(ValueError, match="one-class"): catalogue.load(f"folder:{tmp_path}/one")


def test_a_set_through_torchvision(tmp_path):
    for c in range(10):
        (tmp_path/f"eurosat/eurosat/2750/c{c}").mkdir(parents=True)
        for i in range(3): Image.new("RGB", (8, 8), (25 * c, 0, 0)).save(tmp_path/f"eurosat/eurosat/2750/c{c}/{i}.jpg")
    e = catalogue.CATALOGUE["eurosat"]
    whole = catalogue._torchvision(e, "eurosat", tmp_path/"eurosat", False)
    image, labels = whole("all")
    assert len(labels) == 30 and np.asarray(image(29))[0, 0, 0] == pytest.approx(225, abs=3) and labels[29] == 9


@pytest.mark.parametrize("name, error, told", [
    ("digitz", ValueError, "nearest is 'digits'"), ("cifar10", FileNotFoundError, "cifar10 is not in .*download=True"), ("imagenet", FileNotFoundError, "imagenet"),
    ("imagenet_a", ValueError, "test images alone"), ("docmnist/hue", ValueError, "hue"), ("cub2011", (ImportError, FileNotFoundError), r"vlnotes.data|cub2011")])
def test_sets_that_are_not_here(name, error, told, tmp_path):
    with pytest.raises(error, match=told): catalogue.load(name, tmp_path)


def test_every_offline_set_is_whole():
    for name in catalogue.OFFLINE:
        d = catalogue.load(name)
        assert d.classes == len(np.unique(d.train.labels)) and d.train.image(0).mode == "RGB"


def test_an_encoder_that_is_not_frozen(tmp_path):
    enc = load("zoo/convnet")
    d = Labelled("d", 2, *[Part(lambda i: Image.new("RGB", (9, 9)), np.array([0, 1]))] * 3, key="k")
    enc.model.train()
    with pytest.raises(RuntimeError, match="training mode"): catalogue.features(enc, d, root=tmp_path)
    with pytest.raises(ValueError, match="token is 'max'"): catalogue.features(load("zoo/convnet"), d, token="max")
