"The pass, the levels, the five inputs, the vote, recall: closed forms, invariants, and planted filters that must get their names."
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lavise_toys import drawn, gammas, taught, toy
from matplotlib.figure import Figure
from PIL import Image

from vlnotes import backbones
from vlnotes.hooks import Feat
from vlnotes.lavise import cards, explainer
from vlnotes.lavise.concepts import regions
from vlnotes.lavise.explainer import Explainer, Head, HeadConfig
from vlnotes.lavise.filters import METHODS, describe_filters, notes, selected, spoken, vote
from vlnotes.lavise.masks import View
from vlnotes.lavise.planted import COMPOUNDS, Planted, named_right, planted
from vlnotes.lavise.recall import Truth, elsewhere, iou, listed, most_frequent, novel, recall, recall_by_image, shown, table, truth
from vlnotes.lavise.survey import Highest, cost, survey
from vlnotes.sources import Skipped
from vlnotes.vocabulary import published


def rng(seed=0): return torch.Generator().manual_seed(seed)


# ---- levels

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 5), st.floats(.5, .999), st.integers(1, 13), st.integers(0, 10**6))
def test_levels_are_exact_quantiles(B, N, U, q, step, seed):
    act = gammas((B, N, U), seed)
    h = Highest(U, B * N, q)
    for i in np.random.default_rng(seed).permutation(range(0, B, step)): h.add(act[i:i + step]) # in any order, in any parts
    want = np.quantile(act.reshape(-1, U).double().numpy(), q, axis=0)
    assert np.allclose(h.levels(), want, rtol=1e-6) and h.seen == B * N

def test_many_cuts_and_negative_values():
    act = torch.randn(3000, 49, 8, generator=rng())
    h = Highest(8, 3000 * 49, .995)
    for part in act.split(32): h.add(part)
    assert (h.limit > 0).all() and np.allclose(h.levels(), np.quantile(act.reshape(-1, 8).double().numpy(), .995, axis=0), rtol=1e-5)
    above = (act.reshape(-1, 8).numpy() > h.levels()).mean()
    assert .0049 <= above <= .0051

def test_fewer_cells_than_announced_are_exact_and_more_are_refused():
    act = gammas((50, 20, 2))
    h = Highest(2, 5000, .9)
    h.add(act)
    assert np.allclose(h.levels(), np.quantile(act.reshape(-1, 2).double().numpy(), .9, axis=0), rtol=1e-6)
    h = Highest(2, 100, .9)
    h.add(act)
    with pytest.raises(ValueError, match="more than were announced"): h.levels()
    with pytest.raises(ValueError, match="between 0 and 1"): Highest(2, 100, 1.)
    with pytest.raises(ValueError, match="no activation"): Highest(2, 100).levels()

def test_the_memory_is_bounded():
    tracemalloc.start()
    h = Highest(512, 400_000, .995, memory=20)
    for i in range(12): h.add(torch.rand(32, 49, 512, generator=rng(i)))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert h.rows.nbytes / 2**20 < 20 and peak < 40 # of it, one batch and the numbers of its entries
    with pytest.raises(ValueError, match="memory=1 MB is too little.*of 512 units: it takes"): Highest(512, 400_000, .995, memory=1)
    assert cost(toy(), "relu", 1000)["level_mb"] < 1


# ---- the pass

@pytest.fixture(scope="module")
def images(): return drawn(70, "test", 5)

def test_batches_do_not_matter_and_features_are_fresh(images):
    e = toy()
    one, many = survey(e, images, "relu", p=4, batch=1), survey(e, images, "relu", p=4, batch=64)
    assert (one.places == many.places).all() and np.allclose(one.values, many.values) and np.allclose(one.levels, many.levels) and np.allclose(one.maps, many.maps)
    x = torch.cat([e.features(e.transform(a.image)[None], ["relu"])["relu"].x for a in images])
    top = x.amax(1).T.numpy()
    for u in range(12):
        order = np.lexsort((np.arange(70), -top[u]))[:4]
        assert (one.places[u] == order).all() and np.allclose(one.values[u], top[u][order])
        for j, i in enumerate(order):
            assert np.allclose(one.cells(int(i)), x[i].numpy(), atol=1e-5) and np.allclose(one.maps[u, j], x[i, :, u].numpy(), atol=1e-5)
            assert (one.pixels(int(i)) == np.asarray(images[int(i)].image).transpose(2, 0, 1)).all() and one.ids[int(i)] == images.ids[i]

def test_images_that_dropped_out_leave_no_trace():
    e = toy()
    rising = [(f"{i}", Image.fromarray(np.full((84, 84, 3), i, np.uint8))) for i in range(200)] # each one displaces the one before
    f = survey(e, rising, "relu", p=2, batch=3)
    up = np.flatnonzero(e.net.conv.weight.sum((1, 2, 3)).numpy() > 0) # brighter is more
    assert len(up) > 2 and all(f.places[u].tolist() == [199, 198] for u in up)
    want = e.features(e.transform(rising[199][1])[None], ["relu"])["relu"].x[0].numpy()
    assert np.allclose(f.cells(199), want, atol=1e-5) and set(f.ids) <= set(range(200)) and len(f.ids) <= 2 * 12

def test_equal_images_come_in_order():
    same = [(str(i), Image.new("RGB", (84, 84), (200, 90, 30))) for i in range(9)]
    f = survey(toy(), same, "relu", p=3, batch=4)
    assert (f.places[f.live.any(1)] == [0, 1, 2]).all()

def test_fewer_images_than_places():
    f = survey(toy(), drawn(3), "relu", p=8)
    assert f.live.sum(1).max() == 3 and not f.live[:, 3:].any()

def test_bad_images_are_counted_and_bad_numbers_named(images):
    class Torn:
        def __init__(self): self.n = 6
        def __len__(self): return 6
        def __iter__(self):
            for i in range(6): yield images[i] if i != 2 else replace(images[2], read=lambda: (_ for _ in ()).throw(OSError("it is cut off")))
    skipped = Skipped()
    f = survey(toy(), Torn(), "relu", p=6, skipped=skipped)
    assert list(skipped) == [(images.ids[2], "it is cut off")] and f.images == 5 and 2 not in f.ids
    with pytest.raises(ValueError, match="none of the images could be read; the first: x: no"): survey(toy(), Empty(), "relu")
    loud = toy()
    with torch.no_grad(): loud.net.conv.weight[3] = math.nan
    with pytest.raises(ValueError, match=rf"image '{images.ids[0]}' gives layer 'relu' a value that is not finite \(unit 3\)"): survey(loud, images, "relu")
    with pytest.raises(ValueError, match="'pool' of toy/mixed gives one vector per image"): survey(toy(), images, "pool")

class Empty:
    def __len__(self): return 1
    def __iter__(self): yield type("A", (), {"id": "x", "objects": [], "image": property(lambda s: (_ for _ in ()).throw(OSError("no")))})()

def test_tokens_and_directions():
    vit = backbones.load("zoo/vit")
    layer = vit.layer_names[-1]
    f = survey(vit, drawn(20), layer, p=3)
    assert f.grid == (6, 6) and len(f.units) == vit.info(layer).channels and np.isfinite(f.levels).all()
    W = torch.randn(vit.info(layer).channels, 4, generator=rng())
    g = survey(vit, drawn(20), layer, unit=lambda f: f.x @ W, units=[3, 1], p=3)
    assert g.units == [3, 1] and g.maps.shape == (2, 3, 36)


# ---- inputs

def feat(B=2, N=12, C=5, seed=0): return Feat(torch.rand(B, N, C, generator=rng(seed)), (3, 4), "relu")

def test_one_product_is_the_loop():
    f = feat()
    z, cos = selected(f), selected(f, method="attention")
    for b in range(2):
        for u in range(5):
            a = f.x[b, :, u]
            assert z[b, u].allclose((f.x[b] * a[:, None]).mean(0) / a.norm(), atol=1e-6)
            assert cos[b, u].allclose(torch.nn.functional.cosine_similarity(f.x[b], a[:, None], dim=0) * f.x[b].mean(0), atol=1e-6)
    assert cos.allclose(z * (f.x.mean(1) * 12 / f.x.norm(dim=1))[:, None], atol=1e-6)
    assert selected(Feat(4 * f.x, f.grid, "relu")).allclose(4 * z, atol=1e-5)
    few = f.x[..., [4, 1]]
    assert selected(f, few).allclose(z[:, [4, 1]], atol=1e-6)

def test_extreme_levels():
    f, inf = feat(), torch.full((5,), torch.inf)
    assert selected(f, method="activation", levels=-inf).allclose(selected(f, method="original"), atol=1e-6)
    nothing = selected(f, method="activation", levels=inf)
    head = Head(HeadConfig("relu", 5, 3)).eval()
    assert not nothing.any() and head(nothing).allclose(head(torch.zeros(5)), atol=1e-6) # a constant

def test_a_channel_alone_and_a_dead_one():
    x = torch.zeros(1, 12, 5); x[0, :, 3] = torch.arange(12.)
    for m, want in (("projection", x[0, :, 3].norm() / 12), ("attention", x[0, :, 3].mean())):
        z = selected(Feat(x, (3, 4), "l"), method=m)
        assert z.isfinite().all() and z[0, 3, 3].allclose(want) and z.count_nonzero() == 1
    with pytest.raises(ValueError, match="projection"): selected(feat(), method="projectoin")

def test_flat_heads_read_flat_inputs():
    e = toy()
    cfg = HeadConfig("relu", 12, 4, "flat", (3, 3))
    made = Explainer(e, Head(cfg).eval(), ["a", "b"], torch.rand(2, 4, generator=rng()), ["a"], [])
    f = survey(e, drawn(12), "relu", p=2)
    for m in METHODS: assert np.isfinite(describe_filters(f, made, m).cos).all()
    x = Feat(torch.rand(1, 36, 12, generator=rng()), (6, 6), "relu")
    z = selected(x, method="attention", pool=made.pool)
    one = selected(x, method="attention") / selected(x, method="original")
    assert z.shape == (1, 12, 108) and z[0, 2].allclose(made.pool(x, torch.ones(1, 1, 36))[0, 0] * one[0, 2].repeat_interleave(9), atol=1e-6)

def random_explainer(e, dim=6, words=9):
    return Explainer(e, Head(HeadConfig("relu", e.info("relu").channels, dim), 1).eval(), [f"w{i}" for i in range(words)], torch.randn(words, dim, generator=rng(7)), ["w0"], ["w1"])

def test_covering_nothing_is_the_original_and_activation_with_the_lowest_level_too(images):
    e = toy()
    f, made = survey(e, images, "relu", p=3), random_explainer(e)
    low = replace(f, levels=np.full_like(f.levels, -1))
    want = spoken(f, made, "original")[0]
    for m in ("image", "activation"): assert spoken(low, made, m)[0][torch.from_numpy(f.live)].allclose(want[torch.from_numpy(f.live)], atol=1e-3)
    high = replace(f, levels=np.full_like(f.levels, np.inf))
    d = describe_filters(high, made, "activation")
    assert not d.some.any() and (d.words == -1).all() and "exceeds its level" in d.silent(int(np.flatnonzero(f.live.any(1))[0]))

def test_a_survey_of_another_layer_is_refused(images):
    f = survey(toy(), images[:4], "conv", p=2)
    with pytest.raises(ValueError, match="'conv' of toy/mixed.*'relu' of toy/mixed"): describe_filters(f, random_explainer(toy()))


# ---- votes

def ballots(seed=0, U=3, p=8, s=3, V=6):
    g = np.random.default_rng(seed)
    rows = np.stack([[g.permutation(V)[:s] for _ in range(p)] for _ in range(U)])
    return rows, np.sort(g.random((U, p, s)).astype(np.float32))[..., ::-1].copy(), g.random((U, p)).astype(np.float32) * 9, g.random((U, p)) < .8, g.permutation(100)[:p][None].repeat(U, 0)

@pytest.mark.parametrize("seed", range(5))
def test_the_vote_by_brute_force(seed):
    rows, cos, values, some, places = ballots(seed)
    for weigh, f in (("float", None), ("int", math.trunc), ("ceil", math.ceil), ("one", lambda v: 1)):
        words, votes, close = vote(rows, cos, values, some, places, 6, weigh)
        for u in range(3):
            w = [(f(float(values[u, j])) if f else float(values[u, j])) if some[u, j] else 0 for j in range(8)]
            total = sum(w) if not f else 1
            want = {int(x): (sum(w[j] / total for j in range(8) if some[u, j] and x in rows[u, j]), sum(float(c) for j in range(8) if some[u, j] for y, c in zip(rows[u, j], cos[u, j]) if y == x)) for x in np.unique(rows[u][some[u]])}
            order = [x for x in sorted(want, key=lambda x: (-round(want[x][0], 9), -round(want[x][1], 6), x)) if want[x][0] > 0]
            assert words[u][:len(order)].tolist() == order and (words[u][len(order):] == -1).all()
            assert np.allclose(votes[u][:len(order)], [want[x][0] for x in order])

@pytest.mark.parametrize("seed", range(5))
def test_scale_order_and_numbering_do_not_matter(seed):
    rows, cos, values, some, places = ballots(seed)
    words, votes, close = vote(rows, cos, values, some, places)
    again = vote(rows, cos, 2 * values, some, places)
    assert (again[0] == words).all() and (again[1] == votes).all()
    order = np.random.default_rng(seed).permutation(8)
    mixed = vote(rows[:, order], cos[:, order], values[:, order], some[:, order], places[:, order])
    assert all((a == b).all() for a, b in zip(mixed, (words, votes, close))) # to the last bit
    new = np.random.default_rng(seed + 1).permutation(6)
    renamed = vote(new[rows], cos, values, some, places)
    for u in range(3):
        untied = [k for k in range(6) if words[u, k] >= 0 and (np.isclose(votes[u], votes[u, k]) & np.isclose(close[u], close[u, k])).sum() == 1]
        assert all(renamed[0][u, k] == new[words[u, k]] for k in untied) and np.allclose(renamed[1], votes)

def test_ties_go_by_cosine_and_then_by_number():
    rows, cos = np.array([[[4, 2, 3]], [[4, 2, 3]]]), np.array([[[.5, .5, .4]], [[.5, .6, .5]]], np.float32)
    words, *_ = vote(rows, cos, np.ones((2, 1)), np.ones((2, 1), bool), np.zeros((2, 1), int), 3)
    assert words.tolist() == [[2, 4, 3], [2, 3, 4]]
    with pytest.raises(ValueError, match="'flaot'; the nearest is 'float'"): vote(rows, cos, np.ones((2, 1)), np.ones((2, 1), bool), np.zeros((2, 1), int), weigh="flaot")


# ---- words, notes, dead filters

@pytest.fixture(scope="module")
def described(images):
    e = toy()
    f = survey(e, images, "relu", unit=lambda f: torch.cat([f.x, 0 * f.x[..., :1], -1 - f.x[..., :1]], -1), p=5)
    return describe_filters(f, random_explainer(e), s=3)

def test_dead_filters_are_reported_and_nothing_is_undefined(described):
    d = described
    told = notes(d)
    assert len(told) == 14 and {12, 13} <= set(d.found.dead) and np.isfinite(d.cos).all() and np.isfinite(d.votes).all() and np.isfinite(told.column("score")).all()
    silent = {n.unit: n for n in told if "undescribed" in n.extra}
    assert {12, 13} <= set(silent) and all(n.text == "" and n.score == 0 for n in silent.values()) and "in every cell" in silent[12].extra["undescribed"] and "never above zero" in silent[13].extra["undescribed"]

def test_notes_have_unit_layer_words_and_images(described):
    for n in notes(described, 2):
        assert n.layer == "relu" and n.method == "lavise" and n.encoder == "toy/mixed" and n.score_kind == "vote_share" and n.image_id == f"toy/mixed/relu/{n.unit}" and 0 <= n.score <= 1 + 1e-9
        if n.text:
            assert n.text == ", ".join(w for w, *_ in n.extra["words"]) and len(n.extra["words"]) == 2 and len(n.extra["images"]) == described.some[n.unit].sum()
            assert all(kind == {"w0": "seen", "w1": "unseen"}.get(w, "unannotated") for w, _, _, kind in n.extra["words"])

def test_a_filter_alone_has_the_words_it_has_among_others(images):
    e = toy()
    made = random_explainer(e)
    whole, alone = (describe_filters(survey(e, images, "relu", units=u, p=5), made) for u in (None, [7]))
    assert [w for w, _ in alone.of(0, 9)] == [w for w, _ in whole.of(7, 9)]

def test_a_limited_vocabulary_is_a_list_of_what_may_be_said(images):
    e = toy()
    made, f = random_explainer(e), survey(toy(), images, "relu", p=5)
    d = describe_filters(f, made.limited(["w2", "w5", "w8"]), s=2)
    assert {w for u in range(12) for w, _ in d.of(u)} <= {"w2", "w5", "w8"}


# ---- recall

def test_intersection_over_union():
    g = np.random.default_rng(0)
    a, b = g.random((5, 30)) < .4, g.random((7, 30)) < .4
    a[0] = b[0] = False
    got = iou(a, b)
    assert all(got[i, j] == pytest.approx((a[i] & b[j]).sum() / max((a[i] | b[j]).sum(), 1)) for i in range(5) for j in range(7)) and (got.T == iou(b, a)).all()
    assert np.allclose(np.diag(iou(b, b))[1:], 1) and got[0, 0] == 0

def test_the_truth_of_a_region(images):
    e = toy()
    f = survey(e, images, "relu", p=4)
    t = truth(f, images, least=.1)
    for u in (1, 5):
        for j in range(4):
            if not f.live[u, j]: continue
            masks, objects = regions(images[int(f.places[u, j])], (6, 6), View.of(e.transform))
            r = f.maps[u, j] > f.levels[u]
            want = {w for m, o in zip(masks.reshape(len(masks), -1), objects) if (m & r).sum() / (m | r).sum() > .1 for w in o.words}
            assert t.words[u][j] == want
    with pytest.raises(ValueError, match="give the images of the survey in its order"): truth(f, images[1:])
    with pytest.raises(ValueError, match="'grid' or 'pixels'"): truth(f, images, at="cells")
    every, fine = (truth(replace(f, levels=np.full_like(f.levels, -1)), images, least=0, at=at) for at in ("grid", "pixels"))
    assert every.words == fine.words and all(every.words[u][0] == frozenset(images[int(f.places[u, 0])].words) for u in np.flatnonzero(f.live[:, 0])) # everything is inside

def some_truth(seed=0, U=6, p=5):
    g, names = np.random.default_rng(seed), [f"w{i}" for i in range(9)]
    words = [[frozenset(g.choice(names, g.integers(0, 4), replace=False).tolist()) for _ in range(p)] for _ in range(U)]
    return Truth(words, frozenset(names)), [g.permutation(names).tolist() for _ in range(U)]

@pytest.mark.parametrize("seed", range(4))
def test_recall_by_brute_force_and_its_parts(seed):
    facts, said = some_truth(seed)
    ks = (1, 3, 9)
    got = recall(said, facts, ks)
    for u, w in enumerate(said):
        G = [g for g in facts.words[u] if g]
        for i, k in enumerate(ks): assert got[u, i] == pytest.approx(np.mean([len(g & set(w[:k])) / len(g) for g in G])) if G else np.isnan(got[u, i])
    live = ~np.isnan(got[:, 0])
    assert (np.diff(got[live], axis=1) >= 0).all() and np.allclose(got[live, -1], 1)
    seen = frozenset(f"w{i}" for i in range(5))
    one = Truth([[g] for ws in facts.words for g in ws], facts.known) # image by image the parts make the whole
    many = [w for w in said for _ in range(5)]
    n = np.array([len(w[0]) for w in one.words])
    parts = [np.nan_to_num(recall(many, one, (3,), s)[:, 0]) * np.array([len(w[0] & s) for w in one.words]) for s in (seen, facts.known - seen)]
    assert np.allclose(np.nan_to_num(recall(many, one, (3,))[:, 0]) * n, sum(parts))

def test_the_table_has_every_row_with_its_interval():
    facts, said = some_truth(1)
    rows = table({"a": (said, facts), "b": (elsewhere(said), facts), "none": ([[]] * 6, facts)}, {"all": None, "few": frozenset({"w1"}), "nobody": frozenset({"zebra"})}, (1, 5))
    assert [(r["who"], r["words"]) for r in rows] == [(w, g) for w in ("a", "b", "none") for g in ("all", "few", "nobody")]
    for r in rows:
        if r["words"] == "nobody": assert r["filters"] == 0 and math.isnan(r["recall@1"])
        else: assert r["recall@1_lo"] <= r["recall@1"] <= r["recall@1_hi"] and 0 <= r["recall@5"] <= 1
    assert "–" in shown(rows) and shown(rows).count("\n") == 10

def test_words_of_other_filters_are_never_ones_own():
    for n in (2, 3, 40): assert all(w != [i] for i, w in enumerate(elsewhere([[i] for i in range(n)], seed=n)))
    with pytest.raises(ValueError, match="two filters"): elsewhere([["a"]])

def test_the_most_frequent_words_recall_their_share(images):
    words = most_frequent(images, 20)
    count = {w: sum(w in o.words for a in images for o in a.objects) for w in images.vocab}
    assert [count[w] for w in words] == sorted(count.values(), reverse=True)
    facts = Truth([[frozenset([w]) for a in images for o in a.objects for w in o.words]], frozenset(images.vocab))
    assert recall([words], facts, (5,))[0, 0] == pytest.approx(sum(count[w] for w in words[:5]) / sum(count.values()))

def test_words_that_were_not_taught():
    facts = Truth([[frozenset({"b"})], [frozenset({"c"})]], frozenset("abc"))
    got = novel([["a", "b", "x"], ["b", "y"]], facts, seen=["a"], unseen=["b", "c"], k=2)
    assert got["found"] == ["b"] and got["true"] == ["b"] and got["discovered"] == .5 and got["seen_share"] == .25 and got["unseen_share"] == .5 and got["unannotated_share"] == .25

def test_words_of_single_images(described, images):
    facts = truth(described.found, images)
    facts = Truth([[frozenset({described.explainer.words[described.rows[u, j, 0]]}) for j in range(5)] for u in range(14)], frozenset())
    got = recall_by_image(described, facts, (1, 3))
    assert (got[described.some.any(1)] == 1).all() and np.isnan(got[~described.some.any(1)]).all()


# ---- planted filters

@pytest.fixture(scope="module")
def garden(tmp_path_factory):
    out, net = tmp_path_factory.mktemp("garden"), planted()
    taught(out, net, drawn(1000), layer="map", epochs=25, bs=128)
    taught(out/"shuffled", net, drawn(1000), layer="map", epochs=6, bs=128, shuffled=True, cache=str(out/"cache"))
    probe = drawn(500, "test", 7)
    return net, explainer.load(out/"run", encoder=net), explainer.load(out/"shuffled/run", encoder=net), probe, survey(net, probe, "map", p=25)

def test_planted_filters_get_their_names(garden):
    net, made, shuffled, probe, found = garden
    right = {m: named_right(listed(describe_filters(found, made, m)), net.net.concepts) for m in ("projection", "activation", "original")}
    assert right["projection"]["right"] == 1 and right["projection"]["n"] == 24 and right["activation"]["right"] > .9 # recall@1 of words, recall@2 of pairs
    one = [u for u, c in enumerate(net.net.concepts) if len(c) == 1]
    facts = Truth([[frozenset(c)] for c in net.net.concepts], frozenset(published().attributes))
    assert (recall(listed(describe_filters(found, made)), facts, (1,))[one] == 1).all()
    assert right["original"]["right"] < 1

def test_what_knows_no_filter_names_none(garden):
    net, made, shuffled, probe, found = garden
    words = listed(describe_filters(found, made))
    for other in (elsewhere(words[:24]) + [[]], [most_frequent(probe)] * 25, listed(describe_filters(found, shuffled))):
        assert named_right(other, net.net.concepts)["hi"] < .5

def test_words_are_true_of_the_regions_of_planted_filters(garden):
    net, made, shuffled, probe, found = garden
    facts = truth(found, probe)
    words = listed(describe_filters(found, made))
    rows = {r["who"]: r for r in table({"explainer": (words, facts), "shuffled": (listed(describe_filters(found, shuffled)), facts), "frequent": ([most_frequent(probe)] * 25, facts), "others": (elsewhere(words), facts)}, {"all": None}, (1, 5))}
    assert all(rows["explainer"]["recall@1_lo"] > rows[w]["recall@1_hi"] for w in ("shuffled", "frequent", "others"))

def test_the_planted_network_is_what_it_says():
    net = planted([("red",), ("large", "circle"), ()])
    assert net.info("map").grid == (3, 3) and net.net.concepts[2] == () and not any(p.requires_grad for p in net.net.parameters())
    x = net.normalise(drawn(40, "val", 3).source.scenes.pixels())
    f = net.features(x, ["map"])["map"].x
    assert not f[..., 2].any() and ((f[..., :2] == 0) | ((f[..., :2] >= .5) & (f[..., :2] < 1))).all() and (f[..., 0] > 0).any()
    with pytest.raises(ValueError, match="'magenta' is no word"): Planted([("magenta",)])
    assert named_right([["a"], ["b", "c"], []], [("a",), ("c", "b"), ()])["right"] == 1 and len(COMPOUNDS) == 4


# ---- cards

def test_a_card_and_a_page(garden, tmp_path):
    net, made, _, probe, found = garden
    d, facts = describe_filters(found, made), truth(found, probe)
    fig = cards.card(Figure(figsize=(8, 2)), d, 3, facts, images=4)
    assert len(fig.axes) == 5 and "agreement" in fig._suptitle.get_text() and "recall@5" in fig._suptitle.get_text()
    assert "no words" in cards.card(Figure(), d, 24)._suptitle.get_text()
    h = cards.heat(found, 3, 0)
    assert h.shape == (84, 84) and h.min() >= 0 and h.max() == 1
    page = cards.write(tmp_path/"cards.html", d, facts, units=[3, 24], title="A & B").read_text()
    assert page.count("<article") == 2 and page.count("<img") == 1 and "A &amp; B" in page and "src=\"data:image/png" in page and not any(s in page for s in ("http://", "https://", "<script", "url("))
    made.words[0], old = "<i>zero</i>", made.words[0]
    try: assert "<i>" not in cards.html(d, units=[0], pictures=0)
    finally: made.words[0] = old
