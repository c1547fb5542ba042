"Units in words: masked pooling, features that are computed once, pairs whose notes follow a key, a note for every unit."
import json
import multiprocessing
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from devil_toys import CHANNELS, SIDE, config, encoder, lm
from hypothesis import given, settings, strategies as st
from timm.models.vision_transformer import VisionTransformer

from vlnotes import store
from vlnotes.backbones import Backbone, freeze
from vlnotes.checkpoints import seeded
from vlnotes.devil import milan, neurons, translator
from vlnotes.devil.explain import Devil
from vlnotes.devil.neurons import Pooled, UnitPairs, among, check, describe_units, describer, drawn_units, features, held_out, masked, opened, pairs, unit_mean
from vlnotes.devil.pairs import prepared
from vlnotes.devil.train import DevilTask, step
from vlnotes.devil.translator import DevilConfig, Translator
from vlnotes.draws import keys
from vlnotes.hooks import Feat
from vlnotes.train import FitConfig, fit
from vlnotes.vocabulary import named

COLOURS = {"red": 0, "green": 1, "blue": 2}
LAYERS = ["low", "mid", "high"]


@dataclass
class Toy:
    "Units with the columns of `milan.Units`, held in memory."
    dataset: list
    layer: list
    unit: list
    notes: list
    images: list
    masks: list
    def __len__(self): return len(self.unit)
    def __getitem__(self, at): return Toy(*([v[i] for i in np.arange(len(self))[at]] for v in vars(self).values()))
    @property
    def ids(self): return [f"{d}/{l}/{u}" for d, l, u in zip(self.dataset, self.layer, self.unit)]
    def read(self, i): return self.images[i], self.masks[i]

def toy(n=9, k=3, seed=0, layers=("conv1", "conv2")):
    "Unit i likes the colour i % 3: a square of it on noise, and the square is the mask."
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        x, m = rng.integers(0, 60, (k, 3, SIDE, SIDE), np.uint8), np.zeros((k, 1, SIDE, SIDE), np.uint8)
        for j in range(k):
            r, c = rng.integers(0, SIDE - 8, 2)
            x[j, i % 3, r:r + 8, c:c + 8], m[j, 0, r:r + 8, c:c + 8] = 230, 1
        word = list(COLOURS)[i % 3]
        rows.append(("net/data", layers[i * len(layers) // n], i, [word, f"a {word} square"], x, m))
    return Toy(*map(list, zip(*rows)))

def emptied(u, i, images=slice(None)): # without anything under these masks
    u.masks[i] = u.masks[i].copy(); u.masks[i][images] = 0
    return u

def pooled_of(u, tmp_path, **kw): return features(u, encoder(), root=tmp_path/"store", **kw)


# ---- pooling under a mask

maps = st.integers(0, 2**31).map(lambda s: torch.Generator().manual_seed(s))

@settings(max_examples=40, deadline=None)
@given(maps, st.sampled_from([(1, 1), (2, 3), (7, 7), (14, 14), (24, 24)]), st.sampled_from(["area", "bilinear"]), st.sampled_from([.5, 2., 37., 255.]))
def test_the_scale_of_a_mask_does_not_matter(g, grid, how, scale):
    f = Feat(torch.randn(3, grid[0] * grid[1], 4, generator=g), grid, "x")
    m = (torch.rand(3, 1, 24, 24, generator=g) < .2).float()
    (a, pa), (b, pb) = masked(f, m, how), masked(f, scale * m, how)
    assert torch.allclose(a, b, atol=1e-5) and pa.equal(pb)

@pytest.mark.parametrize("how", ["area", "bilinear"])
def test_constants_whole_masks_and_empty_ones(how):
    g = torch.Generator().manual_seed(0)
    f, m = Feat(torch.randn(4, 36, 5, generator=g), (6, 6), "x"), (torch.rand(4, 1, 48, 48, generator=g) < .4)
    c = torch.randn(5, generator=g)
    assert torch.allclose(masked(Feat(c.expand(4, 36, 5), (6, 6), "x"), m, how)[0], c.expand(4, 5), atol=1e-5)
    assert torch.allclose(masked(f, torch.ones(4, 1, 48, 48), how)[0], f.mean(), atol=1e-6)
    x, here = masked(f, torch.cat([m[:3], m[:1] & False]), how)
    assert here.tolist() == [True] * 3 + [False] and not x[3].any() and torch.isfinite(x).all()

def test_a_single_pixel_vanishes_when_it_is_sampled_and_stays_when_areas_count():
    f, m = Feat(torch.arange(9.).view(1, 9, 1), (3, 3), "x"), torch.zeros(1, 1, 24, 24)
    m[..., 1, 22] = 1
    assert masked(f, m, "bilinear")[1].tolist() == [False] and masked(f, m) [0].item() == 2 and masked(f, m)[1].tolist() == [True]
    for i in range(24): # wherever it is
        dot = torch.zeros(1, 1, 24, 24); dot[..., i, 23 - i] = 1
        assert all(masked(Feat(torch.ones(1, h * w, 1), (h, w), "x"), dot)[1].all() for h, w in ((1, 1), (3, 5), (7, 7)))

def test_bilinear_samples_at_the_cell_centres_without_antialiasing():
    g = torch.Generator().manual_seed(1)
    m, f = (torch.rand(2, 1, 12, 12, generator=g) < .5).float(), Feat(torch.randn(2, 9, 3, generator=g), (3, 3), "x")
    at = [1, 5, 9] # centre of a cell of 4 pixels lies between pixels 4i+1 and 4i+2
    w = sum(m[:, 0][:, [a + r for a in at]][:, :, [a + c for a in at]] for r in (0, 1) for c in (0, 1)).flatten(1) / 4
    assert torch.allclose(masked(f, m, "bilinear")[0], torch.einsum("bnc,bn->bc", f.x, w / w.sum(1, keepdim=True)), atol=1e-6)

def test_what_does_not_fit_is_refused():
    f = Feat(torch.ones(2, 4, 3), (2, 2), "x")
    for m in (torch.ones(2, 4, 4), torch.ones(3, 1, 4, 4), torch.ones(2, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"): masked(f, m)
    with pytest.raises(ValueError, match="cubic"): masked(f, torch.ones(2, 1, 4, 4), "cubic")

def test_half_precision_features_are_pooled_in_full():
    f = Feat(torch.randn(1, 4, 3).bfloat16(), (2, 2), "x")
    assert masked(f, torch.ones(1, 1, 4, 4))[0].dtype == torch.float32


# ---- units

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.integers(0, 2**31))
def test_a_unit_is_the_mean_of_the_images_that_show_something(counts, seed):
    rng, widths = np.random.default_rng(seed), [2, 3]
    here = rng.random((sum(counts), 2)) < .6
    x = rng.normal(size=(sum(counts), 5)).astype(np.float32) * np.repeat(here, widths, 1)
    got, there = unit_mean(x, here, counts, widths)
    first = np.cumsum([0, *counts])
    for u in range(len(counts)):
        own = slice(first[u], first[u + 1])
        for s, cols in enumerate((slice(0, 2), slice(2, 5))):
            seen = x[own][here[own][:, s]][:, cols]
            assert there[u, s] == bool(len(seen)) and np.allclose(got[u, cols], seen.mean(0) if len(seen) else 0, atol=1e-6)

def test_the_order_of_the_exemplars_changes_nothing(tmp_path):
    u = emptied(toy(6, 5), 2, 1)
    v, perm = toy(6, 5), [3, 1, 4, 0, 2]
    v.images, v.masks = [x[perm] for x in u.images], [m[perm] for m in u.masks]
    (a, absent), (b, hidden) = (pooled_of(w, tmp_path).batch(range(6), config().slots) for w in (u, v))
    assert absent.equal(hidden) and all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b))


# ---- computed once

def fresh(u, i, enc, layers=LAYERS, how="area"):
    images, masks = u.read(i)
    feats = enc.features(prepared(enc, np.array(images)), layers)
    return {l: masked(feats[l], torch.from_numpy(np.array(masks)), how) for l in layers}

@pytest.mark.parametrize("how", ["area", "bilinear"])
def test_stored_features_equal_fresh_ones(tmp_path, how):
    u, enc = emptied(toy(7), 3), encoder()
    got = features(u, enc, LAYERS, how, tmp_path, shard=2, bs=4)
    assert len(got) == 7 and got.slots == [(l, "cells") for l in LAYERS] and got.widths == [CHANNELS[l] for l in LAYERS]
    for i in range(7):
        want = fresh(u, i, enc, how=how)
        for k in range(3):
            x, absent = got.batch([i], [("high", "cells"), ("low", "cells")], [k])
            for v, a, l in zip(x, absent[0], ("high", "low")): assert torch.allclose(v[0], want[l][0][k], atol=1e-5) and bool(a) != bool(want[l][1][k])
        x, absent = got.batch([i], [("mid", "cells")])
        n = want["mid"][1].sum()
        assert bool(absent) == (n == 0) and torch.allclose(x[0][0], want["mid"][0].sum(0) / max(n, 1), atol=1e-5)

def test_the_second_time_nothing_is_read_but_a_sample(tmp_path, monkeypatch):
    u = toy(6)
    pooled_of(u, tmp_path)
    monkeypatch.setattr(neurons, "_pooled", lambda *a: pytest.fail("computed again"))
    again = pooled_of(u, tmp_path)
    assert isinstance(again, Pooled) and again.batch([4], config().slots)[0][0].shape == (1, CHANNELS["high"])

def test_a_batch_does_not_depend_on_its_order(tmp_path):
    got = pooled_of(emptied(toy(9), 4), tmp_path, shard=4)
    ids = np.random.default_rng(0).permutation(9)
    for images in (None, ids % 3):
        a, absent = got.batch(np.arange(9), config().slots, None if images is None else np.arange(9) % 3)
        b, hidden = got.batch(ids, config().slots, images)
        assert hidden.equal(absent[ids]) and all(y.equal(x[ids]) for x, y in zip(a, b))
    part = got[[7, 2]]
    assert part.batch([1], config().slots)[0][1].equal(got.batch([2], config().slots)[0][1]) and len(part.present(config().slots)) == 2

def test_killed_and_resumed_equals_whole(tmp_path):
    u, reads = toy(8), []
    class Dies(Toy):
        def read(self, i):
            reads.append(i)
            if len(reads) > 20: raise KeyboardInterrupt
            return super().read(i)
    frail = Dies(**vars(u))
    with pytest.raises(KeyboardInterrupt): features(frail, encoder(), root=tmp_path/"a", shard=1)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path/"a").rglob("features.npy")}
    assert 0 < len(done) < 8 and not list((tmp_path/"a").rglob("index.json"))
    a, b = features(u, encoder(), root=tmp_path/"a", shard=1), features(u, encoder(), root=tmp_path/"b", shard=1)
    assert all(p.stat().st_mtime_ns == t for p, t in done.items()) # what was there was kept
    files = sorted(p.relative_to(tmp_path/"b") for p in (tmp_path/"b").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path/"a") for p in (tmp_path/"a").rglob("*") if p.is_file() and p.name[0] != ".")
    assert all((tmp_path/"a"/f).read_bytes() == (tmp_path/"b"/f).read_bytes() for f in files)
    assert a.rows(np.arange(8))[0].tobytes() == b.rows(np.arange(8))[0].tobytes()

def test_processes_share_the_work_and_none_waits_for_a_dead_one(tmp_path, monkeypatch):
    u, made = toy(8, layers=("conv1",)), []
    real = neurons._write
    def write(target, *a): made.append(int(target.name)); real(target, *a)
    monkeypatch.setattr(neurons, "_write", write)
    monkeypatch.setenv("WORLD_SIZE", "2"); monkeypatch.setenv("RANK", "1")
    alone = features(u, encoder(), root=tmp_path/"a", shard=1) # process 0 never came
    assert made == [1, 3, 5, 7, 6, 4, 2, 0] # its own first, then the other's from the end
    monkeypatch.setenv("RANK", "0")
    features(u, encoder(), root=tmp_path/"a", shard=1)
    assert len(made) == 8
    monkeypatch.delenv("WORLD_SIZE"); monkeypatch.delenv("RANK")
    assert alone.rows(np.arange(8))[0].tobytes() == features(u, encoder(), root=tmp_path/"b", shard=1).rows(np.arange(8))[0].tobytes()

def share(rank, root, barrier):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    barrier.wait(60)
    np.save(root/f"rows-{rank}.npy", features(toy(12), encoder(), root=root/"store", shard=1).rows(np.arange(12))[0])

def test_two_processes_at_once_leave_one_whole_store(tmp_path):
    fork = multiprocessing.get_context("fork") # no second import of everything
    barrier = fork.Barrier(2)
    jobs = [fork.Process(target=share, args=(r, tmp_path, barrier)) for r in (0, 1)]
    for j in jobs: j.start()
    for j in jobs: j.join(120)
    assert [j.exitcode for j in jobs] == [0, 0]
    assert np.load(tmp_path/"rows-0.npy").tobytes() == np.load(tmp_path/"rows-1.npy").tobytes() == features(toy(12), encoder(), root=tmp_path/"one", shard=1).rows(np.arange(12))[0].tobytes()
    assert len(list((tmp_path/"store").rglob("features.npy"))) == 12 and all(e["complete"] for e in store.FeatureStore(tmp_path/"store").entries())
    assert len(store.FeatureStore(tmp_path/"store").entries()) == 2

def test_everything_that_decides_the_numbers_is_in_the_key(tmp_path):
    folders = lambda: {p.parent.name for p in tmp_path.rglob("index.json")}
    def grown(n, **kw): # makes so many new folders
        before = len(folders())
        features(**{"units": toy(6), "encoder": encoder(), "root": tmp_path, **kw})
        return len(folders()) - before == n
    assert grown(2) and grown(0) # a folder per layer
    assert grown(2, how="bilinear") and grown(2, layers=["mid"]) and grown(2, dtype="float16") and grown(2, units=toy(6, seed=1))
    other = encoder(); other.mean = (.1, .1, .1)
    assert grown(2, encoder=other)
    weights = encoder()
    with torch.no_grad(): next(weights.net.parameters()).add_(.1)
    assert grown(2, encoder=weights) and grown(1, units=toy(6)[:4]) # conv1 is whole, of conv2 there is a part
    assert grown(1, units=emptied(toy(6), 1)) # one mask of conv1

def test_half_precision_on_disk(tmp_path):
    full, half = (pooled_of(toy(4), tmp_path, dtype=d).batch(range(4), config().slots)[0][0] for d in ("float32", "float16"))
    assert half.dtype == torch.float32 and torch.allclose(full, half, rtol=2e-3, atol=1e-3) and not full.equal(half)
    loud = encoder()
    with torch.no_grad(): [p.mul_(1e5) for p in loud.net.low.parameters()]; loud.net.low[2] = torch.nn.Identity().eval()
    loud = Backbone(loud.net, "toy/loud", input_size=(SIDE, SIDE), mean=(0.,) * 3, std=(1.,) * 3)
    with pytest.raises(ValueError, match="float32"): features(toy(2), loud, ["low"], root=tmp_path, dtype="float16")

def test_class_tokens_are_grids_of_one_cell(tmp_path):
    with seeded(0): net = VisionTransformer(img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    vit = Backbone(freeze(net), "toy/vit", input_size=(16, 16), mean=(0.,) * 3, std=(1.,) * 3)
    u = emptied(toy(4), 1)
    u.masks[2] = np.zeros_like(u.masks[2]); u.masks[2][..., 0, 0] = 1 # a corner
    slots = DevilConfig(("blocks.1", "blocks.0"), (12, 12), 8, tokens="both", hidden=8, heads=2).slots
    area, sampled = (features(u, vit, how=h, root=tmp_path) for h in ("area", "bilinear"))
    want = vit.features(prepared(vit, u.images[0]), ["blocks.0"])["blocks.0"].cls
    x, absent = area.batch([0, 1, 2], slots)
    assert torch.allclose(x[3][0], want.mean(0), atol=1e-5) and absent.tolist() == [[False] * 4, [True] * 4, [False] * 4]
    assert sampled.batch([2], slots)[1].tolist() == [[True] * 4] # as published: where the centre of the mask is empty there is no class token
    with pytest.raises(ValueError, match="blocks.9"): area.batch([0], [("blocks.9", "cls")])

def test_images_of_another_size_are_resized_and_it_is_said(tmp_path):
    u = toy(3)
    u.images, u.masks = ([np.repeat(np.repeat(x, 2, 2), 2, 3) for x in v] for v in (u.images, u.masks))
    with pytest.warns(UserWarning, match="32x32 pixels and toy/stages reads 16x16"): got = pooled_of(u, tmp_path)
    assert got.batch([0], config().slots)[0][0].shape == (1, CHANNELS["high"])

def test_bad_units_are_named(tmp_path):
    u = toy(3)
    u.masks[1] = u.masks[1][:2]
    with pytest.raises(ValueError, match="net/data/conv1/1 has 3 images and 2 masks"): pooled_of(u, tmp_path)
    with pytest.raises(ValueError, match="no units"): pooled_of(toy(3)[[]], tmp_path)
    with pytest.raises(ValueError, match="int8"): pooled_of(toy(3), tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="layer 'hgih'"): pooled_of(toy(3), tmp_path, layers=["hgih"])


# ---- pairs

def of(u, tmp_path, **kw): return UnitPairs(u, pooled_of(u, tmp_path), lm(), config(), **kw)

def test_a_record_is_a_unit_or_one_of_its_images(tmp_path):
    u = emptied(emptied(toy(6), 4), 1, [0])
    u.notes[2] = [" ", ""]
    whole, single = of(u, tmp_path), of(u, tmp_path, by_unit=False)
    assert whole.names == [u.ids[i] for i in (0, 1, 3, 5)] and len(single) == 3 * 4 - 1 and single.names[3:5] == [f"{u.ids[1]}/1", f"{u.ids[1]}/2"]
    assert dict(whole.skipped) == {u.ids[2]: "it has no note", u.ids[4]: neurons.EMPTY}
    assert sorted(n for n, why in single.skipped if why == neurons.EMPTY) == [f"{u.ids[1]}/0", *(f"{u.ids[4]}/{k}" for k in range(3))]
    b = whole.batch([1, 0])
    assert [f.shape for f in b["feats"]] == [(2, CHANNELS[l]) for l in config().layers] and b["absent"].dtype == torch.bool and b["keys"].dtype == torch.int64
    one = single.batch([3])["feats"][0] # the mean of a unit is over the images that show something
    assert torch.allclose(whole.batch([1])["feats"][0], (one + single.batch([4])["feats"][0]) / 2, atol=1e-6)

def test_the_note_depends_on_seed_epoch_and_record_alone(tmp_path):
    p, other = of(toy(9), tmp_path), of(toy(9), tmp_path, seed=1)
    text = lambda pairs, ids, e: {pairs.names[i]: tuple(t[m].tolist()) for b in [pairs.batch(ids, epochs=[e] * len(ids))] for i, t, m in zip(ids, b["ids"], b["mask"])}
    for e in (0, 5):
        whole = text(p, range(9), e)
        assert text(p, [7, 3], e) == {k: whole[k] for k in (p.names[7], p.names[3])}
        assert p.batch([7, 3], epochs=[e, e])["keys"].equal(keys(0, e, [p.names[7], p.names[3]]))
    seen = [text(p, range(9), e) for e in range(40)]
    share = np.mean([len(s[n]) > 3 for s in seen for n in p.names]) # the longer of the two notes
    assert .4 < share < .6 and len({str(s) for s in seen}) > 30 and any(text(p, range(9), e) != text(other, range(9), e) for e in range(5))
    mixed = p.batch([2, 2], epochs=[0, 1])
    assert mixed["keys"][0] != mixed["keys"][1] and mixed["feats"][0][0].equal(mixed["feats"][0][1])

def test_units_without_anything_to_learn_are_refused_with_the_first_reason(tmp_path):
    u = toy(2)
    u.notes = [[], []]
    with pytest.raises(ValueError, match="net/data/conv1/0: it has no note"): of(u, tmp_path)

@pytest.mark.parametrize("by_unit", [True, False])
def test_training_lowers_the_loss_and_new_units_are_named(tmp_path, by_unit):
    enc, speaker, cfg = encoder(plain=True), lm(), config(token_dropout=0., hidden=32, ff=64)
    u = toy(24, layers=("conv1",))
    learn = UnitPairs(u, features(u, enc, root=tmp_path), speaker, cfg, by_unit)
    task = DevilTask(enc, speaker, cfg, seed=0)
    log = fit(task, learn, FitConfig(steps=100, bs=8, lr=5e-3, clip=1., log_every=10, schedule="cosine"), tmp_path/"fit", "cpu", progress=False)
    losses = [json.loads(s)["loss"] for s in (tmp_path/"fit/log.jsonl").read_text().splitlines()]
    assert log["loss"] == losses[-1] < .6 * losses[0]
    new = toy(9, seed=7)
    said = describe_units(Devil(enc, task.net.eval(), speaker), new, by_unit=by_unit, root=tmp_path).column("text")
    want = [i % 3 for i in range(9) for _ in range(1 if by_unit else 3)]
    assert np.mean([list(COLOURS)[c] in t for c, t in zip(want, said)]) > .8


# ---- a note for every unit

def teller(seed=1, **kw):
    return Devil(encoder(), Translator(config(**kw), seed).requires_grad_(False).eval(), lm(), "toy/run")

def test_every_unit_has_its_note_and_those_without_words_say_why(tmp_path):
    u = emptied(toy(7), 3)
    notes = describe_units(teller(), u, root=tmp_path, batch=2)
    assert notes.column("image_id") == u.ids and notes.column("unit") == u.unit and notes.column("layer") == u.layer
    assert set(notes.column("encoder")) == {"toy/stages"} and set(notes.column("run")) == {"toy/run"}
    mute, rest = notes[3], [n for i, n in enumerate(notes) if i != 3]
    assert mute.text == "" and mute.extra == {"dataset": "net/data", "images": 0, "read": [], "undescribed": neurons.EMPTY}
    assert all("undescribed" not in n.extra and n.score > mute.score and n.extra["images"] == 3 and n.extra["read"] for n in rest)
    assert mute.score == pytest.approx(-np.log(lm().model.get_input_embeddings().weight.shape[0]), abs=1e-4)

def test_exemplar_by_exemplar(tmp_path):
    u = emptied(toy(3), 1, [2])
    notes = describe_units(teller(), u, by_unit=False, root=tmp_path)
    assert notes.column("image_id") == [f"{i}/{k}" for i in u.ids for k in range(3)]
    assert [i for i, n in enumerate(notes) if "undescribed" in n.extra] == [5]

def test_a_unit_alone_is_the_unit_in_a_set_in_any_order(tmp_path):
    u, d = toy(6), teller()
    whole = describe_units(d, u, root=tmp_path)
    back = describe_units(d, u[[4, 1]], root=tmp_path, batch=1)
    assert [n.text for n in back] == [whole[4].text, whole[1].text] and np.allclose(back.column("score"), [whole[4].score, whole[1].score], atol=1e-3)

def test_an_absent_layer_is_as_good_as_one_that_was_not_asked_for(tmp_path):
    u = toy(3)
    for m in u.masks: m[:] = 0; m[..., 0, 0] = 1 # sampled bilinearly a corner pixel is seen by no layer but the finest
    d = teller()
    here = features(u, d.encoder, LAYERS, "bilinear", tmp_path).present(d.net.cfg.slots)[0]
    seen = [l for (l, _), on in zip(d.net.cfg.slots, here.any(0)) if on]
    assert 0 < len(seen) < 3
    a, b = (describe_units(d, u, layers=l, how="bilinear", root=tmp_path) for l in (None, seen))
    assert a.column("text") == b.column("text") and np.allclose(a.column("score"), b.column("score"), atol=1e-4)
    assert a[0].extra["read"] == seen
    gone = [l for l in LAYERS if l not in seen]
    assert all(n.text == "" for n in describe_units(d, u, layers=gone, how="bilinear", root=tmp_path))


# ---- configuration, command line, the drawn set

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("units")
    return root, drawn_units(root/"drawn", layers="layer4", units=range(12), n=40, k=4)

def test_the_drawn_set_has_the_published_layout_and_true_notes(world, tmp_path):
    root, u = world
    assert np.load(root/"drawn/layer4/images.npy", mmap_mode="r").shape == (12, 4, 3, 84, 84) and 0 < len(u) <= 12
    assert all(len(ns) == 3 and len({str(named(n)) for n in ns}) <= 2 for ns in u.notes)
    again = drawn_units(root/"drawn", layers="layer4", units=range(12), n=40, k=4)
    assert again.notes == u.notes and again.ids == u.ids
    scenes = neurons.docmnist.generate(40, regions=(1, 4), split="test", seed=0)
    ids, under = np.loadtxt(root/"drawn/layer4/ids.csv", int, delimiter=","), scenes.grid(84, 84)
    for i in range(len(u)): # the word is true of more of the masked regions than of all regions
        word = next(w for v in named(u.notes[i][0]).values() for w in v)
        facts = [word in r for k in range(len(scenes)) for r in scenes.regions(k)]
        at = under[ids[u.unit[i]]][u.read(i)[1][:, 0] > 0]
        assert np.mean([facts[r] for r in at[at >= 0]]) > np.mean(facts)

def test_a_word_that_stands_out_beats_one_that_is_common():
    scenes = neurons.docmnist.generate(60, regions=(1, 3), seed=2)
    under, digit = scenes.grid(84, 84), scenes.region["digit"]
    own = np.repeat(np.arange(60), np.diff(scenes.offsets))
    at = [r for r in range(len(digit)) if scenes.vocab.digits[digit[r]] == "three"][:5]
    masks = (under[own[at]] == np.array(at)[:, None, None])[:, None].astype(np.uint8)
    assert scenes.vocab.attributes[neurons._telling(scenes, under, own[at], masks)] == "three"
    assert neurons._telling(scenes, under, own[at], 0 * masks) is None

def small(world, **kw):
    root, _ = world
    return {"root": str(root), "names": "drawn", "val": .3, "cache": str(root/"cache"), **kw}

def test_settings_are_known_by_name(world):
    parts, u = opened(small(world))
    assert set(parts) == {"train", "val", "test"} and u["how"] == "area" and u["by_unit"] is True
    with pytest.raises(ValueError, match="'by_untis'.*by_unit"): opened(small(world, by_untis=True))
    with pytest.raises(ValueError, match="names"): opened({"root": "x"})
    assert "train" in check(small(world))[0] and "missing" in check({"names": "alexnet/imagenet", "root": "nowhere"})[0]
    assert check({"names": "alexnet/imagenet", "root": "nowhere"})[0].count("vlnotes data milan") == 1 and "missing" in check({"names": "no-such-set", "root": "nowhere"})[0]
    n = sum(k for v in parts.values() for k in v.k)
    assert f"{n} exemplars" in check(small(world), 10**6)[1] and f"{n * 4e6 / 1e9:.2f} GB" in check(small(world), 10**6)[1]

def test_training_from_a_configuration_never_opens_the_test_units(world, tmp_path, monkeypatch):
    opened_ids, real = set(), milan.Units.read
    monkeypatch.setattr(milan.Units, "read", lambda self, i: opened_ids.add(self.ids[i]) or real(self, i))
    sizes = dict(layers=1, prompt=2, hidden=16, depth=1, heads=2, ff=16, max_length=10, init=.1)
    cfg = dict(encoder="zoo/convnet", lm="zoo/lm", devil=sizes, fit=dict(steps=2, bs=4, lr=1e-3), units=small(world), val={"every": 2}, out=str(tmp_path/"run"), device="cpu",
               progress=False)
    result = step(cfg)
    parts = opened(small(world))[0]
    assert opened_ids == {*parts["train"].ids, *parts["val"].ids} and result["val"]["n"] == len(parts["val"]) and result["steps"] == 2
    net, about = translator.load(tmp_path/"run")
    assert set(net.means) == {("layer4", "cells")} and about["encoder"] == "zoo/convnet"
    found = describer(str(tmp_path/"run"), probe=world[0]/"drawn").tell({"layer4": [opened(small(world))[0]["test"].unit[0]]}, root=tmp_path)
    assert len(found) == 1 and found[0].layer == "layer4" and found[0].extra["dataset"] == "drawn"

def test_a_describer_with_exemplars_describes_units_and_one_without_says_what_it_needs(world, tmp_path):
    unit = world[1].unit[:2]
    notes = describer(probe=world[0]/"drawn").describe((), units={"layer4": unit}, root=tmp_path)
    assert notes.column("unit") == unit and set(notes.column("layer")) == {"layer4"} and all(notes.column("text"))
    with pytest.raises(ValueError, match="exemplars"): describer().describe((), units={"layer4": unit})

def test_held_out_units_come_once_whatever_the_processes(world):
    d = Devil.load("zoo/devil-convnet")
    cfg = {"units": small(world), "device": "cpu", "progress": False, "val": {"bs": 1}}
    flow = held_out(cfg, d.encoder, d.lm, d.net.cfg)
    alone = [n for b in flow(0, 1) for n in b["names"]]
    assert sorted(alone) == sorted(opened(small(world))[0]["val"].ids)
    assert sorted(n for r in (0, 1) for b in flow(r, 2) for n in b["names"]) == sorted(alone)
    with pytest.raises(ValueError, match="set aside for val"): held_out({**cfg, "units": small(world, val=0)}, d.encoder, d.lm, d.net.cfg)
    learn = pairs(cfg, d.encoder, d.lm, d.net.cfg)
    assert not set(learn.names) & set(alone) and d.encoder.device.type == "cpu"

def test_units_that_have_no_exemplars_are_named():
    u = toy(6)
    assert among(u, {"conv2": [4, 3], "conv1": [0]}) == [4, 3, 0]
    with pytest.raises(ValueError, match="unit 9 of conv1"): among(u, {"conv1": [0, 9]})
    with pytest.raises(ValueError, match="'conv3'.*conv"): among(u, {"conv3": [0]})
