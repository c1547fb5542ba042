import math

import numpy as np
import pytest
import torch
from devil_toys import CHANNELS, GRIDS, SIDE, WORDS, config, devil, encoder, feats, images, lm, logits
from PIL import Image
from torch.nn import functional as F

from vlnotes import docmnist
from vlnotes.backbones import Backbone
from vlnotes.decode import PrefixDecoder, score
from vlnotes.devil import scores
from vlnotes.devil.explain import Devil, captions, cell_prompts, describer, per_cell, saliency, smooth, whole
from vlnotes.devil.pairs import batch
from vlnotes.devil.train import DevilTask
from vlnotes.devil.translator import save
from vlnotes.hooks import Feat
from vlnotes.notes import Notes
from vlnotes.text import collate
from vlnotes.train import FitConfig, fit

LAYERS = ["low", "mid", "high"]

def rows(notes, *names): return [tuple(getattr(n, k) for k in names) for n in notes]

def picture(w, h, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), np.uint8))


# ---- prompts

def test_a_cells_prompt_is_that_of_its_features_alone():
    d, f = devil(), feats()
    for l, (h, w) in GRIDS.items():
        p = per_cell(d.net, f[l])
        slot = d.net.cfg.layers.index(l)
        assert p.shape == (4, h * w, 3, 32)
        for b, n in ((0, 0), (3, h * w - 1), (1, w)):
            assert torch.allclose(p[b, n], d.net([f[l].x[b:b + 1, n]], slots=[slot])[0], atol=1e-5)
            full = [torch.full((1, CHANNELS[k]), 1e3) for k in d.net.cfg.layers]
            full[slot] = f[l].x[b:b + 1, n]
            hidden = torch.ones(1, 3, dtype=torch.bool); hidden[0, slot] = False
            assert torch.allclose(p[b, n], d.net(full, hidden)[0], atol=1e-5), "as if the other layers were hidden"

def test_whole_images_are_read_from_means():
    d, f = devil(), feats()
    want = d.net([f[l].mean() for l in ("high", "mid", "low")])
    assert torch.allclose(whole(d.net, f, LAYERS), want, atol=1e-6) and torch.allclose(whole(d.net, f, LAYERS[::-1]), want, atol=1e-6)
    two = d.net([f["high"].mean(), f["low"].mean()], slots=[0, 2])
    assert torch.allclose(whole(d.net, f, ["low", "high"]), two, atol=1e-6)

def test_a_constant_map_says_the_same_everywhere():
    d = devil()
    for l, (h, w) in GRIDS.items():
        c = torch.randn(1, CHANNELS[l], generator=torch.Generator().manual_seed(3))
        f = Feat(c[:, None].expand(1, h * w, -1), (h, w), l)
        for k in (1, 3, 7):
            p = per_cell(d.net, f, k)
            assert torch.allclose(p, whole(d.net, {l: f}, [l])[:, None].expand_as(p), atol=1e-4)

def test_smoothing_is_an_average_without_padding():
    f = feats()["low"]
    got = smooth(f, 3).map()
    m = f.map()
    for r, c in ((0, 0), (0, 4), (3, 3), (7, 7)):
        assert torch.allclose(got[:, :, r, c], m[:, :, max(r - 1, 0):r + 2, max(c - 1, 0):c + 2].mean((2, 3)), atol=1e-6)
    assert smooth(f, 1) is f and smooth(f, 3).grid == f.grid and smooth(f, 3).layer == "low"

@pytest.mark.parametrize("kernel", [0, 2, -1, 4])
def test_kernels_are_odd(kernel):
    d = devil()
    for call in (lambda: smooth(feats()["low"], kernel), lambda: d.describe(images(1), 1, cells="all", kernel=kernel), lambda: d.maps(images(1), ["red"], kernel=kernel)):
        with pytest.raises(ValueError, match=f"kernel is {kernel}; it must be odd"): call()


# ---- captions

def greedy(d, prompt, limit): # by full recompute
    ids = []
    while len(ids) + 1 < limit:
        ids.append(int(logits(d.lm, prompt, ids)[-1].argmax()))
        if ids[-1] == d.lm.eos: return ids[:-1], True
    return ids, False

def test_greedy_with_a_cache_is_greedy_by_recompute():
    d = devil()
    prompts = per_cell(d.net, feats()["low"])[:2, ::8].flatten(0, 1)
    got = captions(d.lm, prompts, 12)
    assert len({c.ids for c in got}) > 3, "the toy is worth the test"
    for c, p in zip(got, prompts):
        ids, over = greedy(d, p, 12)
        assert (list(c.ids), c.finished) == (ids, over) and c.text == d.lm.decode(ids)
        logp = logits(d.lm, p, ids)
        told = [logp[k, w].item() for k, w in enumerate(ids + [d.lm.eos] * over)]
        bits = -(logp.exp() * logp).sum(-1)[:len(told)].mean().item() / math.log(2)
        assert c.logprob == pytest.approx(np.mean(told), abs=1e-4) and c.entropy == pytest.approx(bits, abs=1e-4)

def test_rows_do_not_depend_on_their_batch():
    d = devil()
    prompts = per_cell(d.net, feats()["low"]).flatten(0, 1)[:24]
    together = captions(d.lm, prompts, 12)
    assert [c.ids for c in captions(d.lm, prompts, 12, budget=5)] == [c.ids for c in together]
    assert [captions(d.lm, p[None], 12)[0].ids for p in prompts[:8]] == [c.ids for c in together[:8]]
    assert [c.ids for c in captions(d.lm, prompts.flip(0), 12)][::-1] == [c.ids for c in together]
    for n in (2, 5, 12):
        short = captions(d.lm, prompts, n)
        assert all(len(c.ids) + 1 <= n and d.lm.eos not in c.ids for c in short)
        assert all(c.ids == t.ids[:n - 1] for c, t in zip(short, together))
    assert captions(d.lm, prompts[:0], 12) == []

def test_length_stays_within_the_language_model():
    d = devil(max_length=500)
    assert all(len(c.ids) < d.lm.max_length for c in captions(d.lm, per_cell(d.net, feats()["high"]).flatten(0, 1), 500))
    assert len(d.describe(images(1), cells="all"))

def test_other_ways_of_decoding():
    d, x = devil(), images(2)
    plain = rows(d.describe(x), "text")
    assert rows(d.describe(x, method="beam", beams=1), "text") == plain
    beam = d.describe(x, method="beam", beams=3)
    assert sum(n.score for n in beam) != sum(n.score for n in d.describe(x))
    a, b = (rows(d.describe(x, method="sample", temperature=2., seed=s), "text") for s in (0, 1))
    assert a == rows(d.describe(x, method="sample", temperature=2., seed=0), "text") and a != b
    with pytest.raises(ValueError, match="none of greedy, sample, beam"): d.describe(x, method="bream")


# ---- notes

def test_notes_of_whole_images():
    d, x = devil(), images(3)
    n = d.describe(x)
    assert isinstance(n, Notes) and len(n) == 3 * 4 and n.unique("layer") == ["all", *LAYERS]
    f = d.encoder.features(x)
    for l, use in [("all", LAYERS), *((l, [l]) for l in LAYERS)]:
        part = n.filter(layer=l)
        assert part.column("image_id") == ["0", "1", "2"] and part.column("text") == d.say(whole(d.net, f, use))
        assert set(rows(part, "row", "col", "grid_h", "grid_w", "unit")) == {(None,) * 5}
    one = n[0]
    assert (one.encoder, one.method, one.run, one.score_kind) == ("toy/stages", "devil", "toy", "mean_logprob") and one.score < 0
    assert set(one.extra) == {"entropy", "ids", "finished"} and d.lm.decode(one.extra["ids"]) == one.text
    assert (one.x0, one.y0, one.x1, one.y1) == (0, 0, SIDE, SIDE)
    assert rows(d.describe(x, "low,high"), "layer") == [(l,) for l in ("low", "high") for _ in range(3)], "chosen layers one by one"
    single = devil(("mid",))
    assert rows(single.describe(x), "layer") == [("mid",)] * 3, "one layer is all there is"

def test_notes_do_not_depend_on_batches_or_order():
    d = devil()
    pairs = [(f"im{i}", t) for i, t in enumerate(images(7))]
    key = lambda notes: {(n.image_id, n.layer, n.row, n.col): (n.text, round(n.score, 3), n.x0, n.y0, n.x1, n.y1) for n in notes}
    for options in (dict(), dict(cells="all", layers=[-1]), dict(cells=[(0, 1), (1, 1)])):
        whole_batch = key(d.describe(pairs, **options))
        assert key(d.describe(pairs[::-1], batch=3, **options)) == whole_batch
        assert key(d.describe(iter(pairs[:2]), batch=1, **options)) == {k: v for k, v in whole_batch.items() if k[0] in ("im0", "im1")}
    assert len(d.describe([])) == 0

def test_cells_are_where_they_are():
    d, x = devil(), images(2)
    n = d.describe(x, cells="all")
    assert len(n) == 2 * sum(h * w for h, w in GRIDS.values())
    f = d.encoder.features(x)
    for l, (h, w) in GRIDS.items():
        texts = d.say(per_cell(d.net, f[l]).flatten(0, 1))
        part = n.filter(layer=l, image_id="1")
        assert rows(part, "row", "col") == [(r, c) for r in range(h) for c in range(w)] and part.column("text") == texts[h * w:]
        assert set(rows(part, "grid_h", "grid_w")) == {(h, w)}
        for k in part: assert (k.x0, k.y0, k.x1, k.y1) == (k.col * SIDE / w, k.row * SIDE / h, (k.col + 1) * SIDE / w, (k.row + 1) * SIDE / h)
    some = d.describe(x, ["low"], cells=[(7, 0), (0, 7)])
    assert rows(some, "image_id", "row", "col") == [("0", 7, 0), ("0", 0, 7), ("1", 7, 0), ("1", 0, 7)]
    assert some[0].text == n.filter(layer="low", image_id="0", row=7, col=0)[0].text
    assert rows(d.describe(x, ["low"], cells=[(1, 1)], kernel=3), "text") == [(t,) for t in d.say(per_cell(d.net, f["low"], 3)[:, 9])]

@pytest.mark.parametrize("cell", [(2, 0), (0, 2), (-1, 0), (8, 8)])
def test_cells_outside_the_grid_are_refused(cell):
    with pytest.raises(ValueError, match=rf"cell \({cell[0]}, {cell[1]}\) is outside the 2 x 2 grid of high"): devil().describe(images(1), ["high"], cells=[cell])

@pytest.mark.parametrize("size", [(64, 20), (20, 64), (33, 31), (1, 1), (16, 16)])
def test_boxes_lie_in_the_original_where_the_model_looked(size):
    d = devil()
    w, h = size
    n = d.describe([("a", picture(w, h))], ["high"], cells="all")
    short = min(w, h)
    left, top = (w - short) / 2, (h - short) / 2
    for k in n:
        assert 0 <= k.x0 < k.x1 <= w and 0 <= k.y0 < k.y1 <= h
        assert [k.x0, k.y0, k.x1, k.y1] == pytest.approx([left + k.col * short / 2, top + k.row * short / 2, left + (k.col + 1) * short / 2,
                                                          top + (k.row + 1) * short / 2], abs=max(1, short / SIDE))
    whole_image = d.describe([("a", picture(w, h))], ["high"])[0]
    assert (whole_image.x0, whole_image.y1) == pytest.approx((n[0].x0, n[3].y1))

def test_units_need_exemplars():
    with pytest.raises(ValueError, match="give it exemplars of them when it is made"): devil().describe(images(1), units=[3])

def test_written_notes_come_back(tmp_path):
    n = devil().describe(images(2), cells="all")
    for suffix in ("parquet", "jsonl"):
        n.write(tmp_path/f"n.{suffix}")
        assert list(Notes.read(tmp_path/f"n.{suffix}")) == list(n)


# ---- layers

def test_layers_need_not_be_contiguous():
    d = devil(("high", "low"))
    x = images(2)
    assert d.layers == ["low", "high"]
    by = [rows(d.describe(x, k), "text") for k in ("low", ["low"], [-2], [0], -2)]
    assert all(b == by[0] for b in by) and rows(d.describe(x, ["low"]), "layer") == [("low",)] * 2
    assert set(d.maps(x, ["red"])) == {"low", "high"}
    for bad, says in (("mid", "no layer 'mid'"), ("hihg", "nearest is 'high'"), ([-3], "index -3"), (3, "only 2")):
        with pytest.raises(ValueError, match=says): d.describe(x, bad)
        with pytest.raises(ValueError, match=says): d.maps(x, ["red"], bad)

def test_a_translator_of_modules_outside_the_table():
    enc = Backbone(encoder().model, "toy", input_size=(SIDE, SIDE), layers=["mid", "high"])
    d = Devil(enc, devil(("high", "low")).net, lm())
    assert set(d.layers) == {"low", "high"} and len(d.describe(images(1))) == 3


# ---- saliency

def test_one_word_phrases_over_the_whole_vocabulary_sum_to_one():
    d, f = devil(), feats(2)
    named = saliency(d, f, WORDS, ["mid"])["mid"]
    assert named.shape == (2, len(WORDS), 4, 4) and (named < 0).all()
    ids = [[i] for i in range(len(d.lm.tokenizer))]
    every = score(PrefixDecoder(d.lm.model), per_cell(d.net, f["mid"]).flatten(0, 1), ids, bos=d.lm.bos)
    total = torch.stack([e.sum(1) for e in every]).double().exp().sum(0)
    assert torch.allclose(total, torch.ones(32).double(), atol=1e-5)
    for k, w in enumerate(WORDS):
        i, = d.lm.tokenizer(w, add_special_tokens=False).input_ids
        assert torch.allclose(named[:, k].flatten(), every[i][:, 0], atol=1e-5)

def test_a_phrase_is_the_chain_of_its_words():
    d, f = devil(), feats(2)
    s = saliency(d, f, ["red", "red square", "red square .", "square"], ["high"])["high"]
    p = per_cell(d.net, f["high"]).flatten(0, 1)
    red, square, stop = (d.lm.tokenizer(w, add_special_tokens=False).input_ids[0] for w in ("red", "square", "."))
    for k in range(8):
        logp = logits(d.lm, p[k], [red, square])
        flat = s.flatten(2).mT.flatten(0, 1)[k]
        want = [logp[0, red], logp[0, red] + logp[1, square], logp[0, red] + logp[1, square] + logp[2, stop], logp[0, square]]
        assert torch.allclose(flat, torch.stack(want), atol=1e-4)

def test_saliency_of_a_batch_is_that_of_each_cell():
    d, f = devil(), feats(3)
    phrases = ["a red square", "blue", "green and blue", "a blue square"]
    for l, m in saliency(d, f, phrases).items():
        h, w = GRIDS[l]
        assert m.shape == (3, 4, h, w)
        for b, r, c in ((0, 0, 0), (2, h - 1, w - 1), (1, h - 1, 0)):
            one = Feat(f[l].x[b:b + 1, r * w + c][:, None], (1, 1), l)
            for k, p in enumerate(phrases): assert saliency(d, {l: one}, [p], [l])[l].item() == pytest.approx(m[b, k, r, c].item(), abs=1e-4)
    again = saliency(d, f, phrases[::-1], ["low"])["low"]
    assert torch.allclose(again.flip(1), saliency(d, f, phrases)["low"], atol=1e-5)

def test_saliency_is_what_the_caption_loss_says():
    from vlnotes.devil.train import caption_loss
    d, f = devil(), feats(1)
    ids, mask = collate(d.lm.tokenizer, ["a red square"] * 4)
    with torch.no_grad(): loss, _ = caption_loss(d.lm, per_cell(d.net, f["high"])[0], ids[:, :-1], mask[:, :-1])
    assert torch.allclose(saliency(d, f, ["a red square"], ["high"])["high"].flatten(), -loss, atol=1e-4)

def test_finer_and_joint_maps():
    d, f = devil(), feats(2)
    fine = saliency(d, f, ["red"], hres=True)
    assert {l: m.shape[-2:] for l, m in fine.items()} == dict.fromkeys(LAYERS, (8, 8))
    assert torch.allclose(fine["low"], saliency(d, f, ["red"])["low"], atol=1e-5)
    up = F.interpolate(f["high"].map(), (8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(fine["high"], saliency(d, {"high": Feat(up.flatten(2).mT, (8, 8), "high")}, ["red"], ["high"])["high"], atol=1e-5)
    joint = saliency(d, f, ["red"], joint=True)
    assert set(joint) == {"all"} and joint["all"].shape == (2, 1, 8, 8)
    maps = {l: F.interpolate(f[l].map(), (8, 8), mode="bilinear", align_corners=False).flatten(2).mT for l in LAYERS}
    p = d.net([maps[l][:, 5] for l in ("high", "mid", "low")])
    red, = d.lm.tokenizer("red", add_special_tokens=False).input_ids
    assert torch.allclose(joint["all"][:, 0, 0, 5], torch.stack([logits(d.lm, q, [])[0, red] for q in p]), atol=1e-4)
    assert torch.allclose(saliency(d, f, ["red"], ["low"], joint=True)["all"], saliency(d, f, ["red"], ["low"])["low"], atol=1e-5)
    assert cell_prompts(d.net, f, ["high"], hres=True)["high"][1] == (2, 2), "the finest of the layers asked for"
    k3 = saliency(d, f, ["red"], ["low"], kernel=3)["low"]
    assert torch.allclose(k3, saliency(d, {"low": smooth(f["low"], 3)}, ["red"], ["low"])["low"], atol=1e-5)

def test_maps_of_pictures_are_saliency_of_their_features():
    d, x = devil(), images(5)
    want = saliency(d, d.encoder.features(x), ["red", "blue square"], ["mid"])["mid"]
    assert torch.allclose(d.maps(x, ["red", "blue square"], ["mid"], batch=2)["mid"], want, atol=1e-5)
    assert torch.allclose(d.maps(((str(i), t) for i, t in enumerate(x)), ["red", "blue square"], "mid")["mid"], want, atol=1e-5)

def test_phrases_must_be_known_words():
    d = devil()
    for bad, says in (("a purple square", "does not know 'purple' of the phrase 'a purple square'"), ("", "empty phrase"), ("  ", "empty phrase"),
                      ("huge purple thing", "'huge', 'purple', 'thing'")):
        with pytest.raises(ValueError, match=says) as e: d.maps(images(1), ["red", bad])
        assert "\n" not in str(e.value)


# ---- loading

def test_another_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layer") as e: Devil.load("zoo/devil-convnet", encoder="zoo/vit")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="reads 128 channels from 'layer4', timm/resnet10t has 512"): Devil.load("zoo/devil-convnet", encoder="timm/resnet10t@random")
    other = save(tmp_path, devil().net, "zoo/convnet", "zoo/lm")
    with pytest.raises(ValueError, match="layer 'high'"): Devil.load(other)

def test_the_describer_of_the_command_line(tmp_path):
    assert describer().encoder.name == "zoo/convnet" and describer(encoder="zoo/vit").run == "zoo/devil-vit"
    with pytest.raises(ValueError, match="no ready translator for timm/resnet50; train one with .*--model"): describer(encoder="timm/resnet50")
    with pytest.raises(FileNotFoundError, match="is not a trained translator"): describer(tmp_path/"none")
    assert describer("zoo/devil-vit").encoder.name == "zoo/vit"

def test_blind_needs_its_features():
    d = devil()
    with pytest.raises(ValueError, match="without its mean training features"): d.blind()
    d.net.means = {s: torch.randn(CHANNELS[s[0]], generator=torch.Generator().manual_seed(1)) for s in d.net.cfg.slots}
    want = d.net([d.net.means[s][None] for s in d.net.cfg.slots])
    assert d.blind() == d.say(want)[0] and d.blind("low") == d.say(d.net([d.net.means["low", "cells"][None]], slots=[2]))[0]

def test_all_is_frozen_while_it_describes():
    d = Devil.load("zoo/devil-vit")
    assert not any(m.training for part in (d.net, d.lm.model, d.encoder.model) for m in part.modules())
    assert not any(p.requires_grad for part in (d.net, d.lm.model, d.encoder.model) for p in part.parameters())
    before = torch.get_rng_state()
    d.describe(torch.zeros(1, 3, 84, 84)), d.maps(torch.zeros(1, 3, 84, 84), ["red"])
    assert torch.get_rng_state().equal(before)


# ---- the location toy: trained on squares of one colour, asked about pictures of two

COLOURS = {"red": (1., 0., 0.), "green": (0., 1., 0.), "blue": (0., 0., 1.)}

class Squares:
    "One colour over the whole picture; the caption is its name."
    def __init__(self, speaker): self.speaker = speaker
    def __len__(self): return 3
    def batch(self, ids, rng, epochs=None):
        names = [list(COLOURS)[int(i) % 3] for i in ids]
        return batch(torch.stack([paint([n] * 4) for n in names]), ids, [[n] for n in names], self.speaker, config(), epochs=epochs)

def paint(names): # of the four quadrants
    c = torch.tensor([COLOURS[n] for n in names]).T.reshape(3, 2, 2)
    return c.repeat_interleave(SIDE // 2, 1).repeat_interleave(SIDE // 2, 2)

@pytest.fixture(scope="module")
def located():
    t = DevilTask(encoder(plain=True), lm(list(COLOURS)), config(("high", "mid"), hidden=32, heads=4, ff=64), seed=0)
    fit(t, Squares(t.frozen[1]), FitConfig(steps=150, bs=6, lr=1e-2, clip=1., shuffle=False), device="cpu", progress=False)
    return Devil(t.frozen[0], t.net.requires_grad_(False).eval(), t.frozen[1], "squares")

def test_cell_captions_name_the_colour_of_their_place(located):
    for names in (["red", "green", "blue", "red"], ["blue", "blue", "green", "red"], ["green", "red", "red", "blue"]):
        assert located.describe(paint(names)[None], ["high"], cells="all").column("text") == names
        fine = located.describe(paint(names)[None], ["mid"], cells="all")
        assert [n.text for n in fine] == [names[n.row // 2 * 2 + n.col // 2] for n in fine]

def test_saliency_peaks_in_the_right_quadrant(located):
    names = ["blue", "red", "green", "green"]
    for l, m in located.maps(paint(names)[None], list(COLOURS)).items():
        h, w = m.shape[-2:]
        for k, colour in enumerate(COLOURS):
            r, c = divmod(int(m[0, k].argmax()), w)
            assert names[r * 2 // h * 2 + c * 2 // w] == colour, (l, colour)

def test_whole_pictures_of_one_colour(located):
    for name in COLOURS: assert {n.text for n in located.describe(paint([name] * 4)[None])} == {name}


# ---- these stand on the trained weights of the zoo

@pytest.fixture(scope="module")
def held_out(): return docmnist.generate(30, regions=(1, 4), split="test", seed=77)

@pytest.mark.parametrize("name", ["convnet", "vit"])
def test_held_out_scenes_are_described_rightly(held_out, name):
    d = Devil.load(f"zoo/devil-{name}")
    table = {r["who"]: r for r in scores.cell_table(d, held_out)}
    best = max((table[l] for l in d.layers), key=lambda r: r["digit"] + r["colour"])
    assert best["colour"] >= .9 and best["digit"] >= (.8 if name == "convnet" else .6), best
    for k in ("constant", "shuffled", "blind"): assert table[k]["colour"] < .6 and table[k]["digit"] < .5, (k, table[k])

def test_photographs_are_flagged_and_held_out_scenes_are_not(held_out):
    from sklearn.datasets import load_sample_image
    for name in ("convnet", "vit"):
        d = Devil.load(f"zoo/devil-{name}")
        last = d.layers[-1]
        pairs = [("china", Image.fromarray(load_sample_image("china.jpg"))), *((i, held_out.image(k)) for k, i in enumerate(held_out.ids[:12]))]
        n = d.describe(pairs, [last])
        flagged = {k.image_id for k in n if k.extra.get("out_of_domain")}
        assert flagged == {"china"}, name

def test_phrases_point_at_their_digits(held_out):
    d = Devil.load("zoo/devil-convnet")
    table = {r["factor"]: r for r in scores.pointing(d, held_out[:15], ["layer4"])}
    assert all(r["inside"] > max(r["chance"], r["shuffled_phrase"]) + .2 for r in table.values()), table
    assert all(table[k]["inside"] >= .85 for k in ("colour", "shape", "size")), table


# ---- saliency, every option

def test_reduced_grids_are_the_coarsest_and_pooled_as_their_neighbourhood():
    d, f = devil(), feats()
    maps = cell_prompts(d.net, f, ["low", "mid", "high"], kernel=3, reduce=True)
    assert {g for _, g in maps.values()} == {GRIDS["high"]}
    wide = cell_prompts(d.net, f, ["low"], kernel=3)["low"][0].unflatten(1, GRIDS["low"])
    assert torch.allclose(maps["low"][0].unflatten(1, GRIDS["high"]), wide[:, ::4, ::4], atol=1e-4), "the kernel sits on every fourth cell"
    assert cell_prompts(d.net, f, ["low", "mid", "high"], joint=True, kernel=3, reduce=True)["all"][1] == GRIDS["high"]
    with pytest.raises(ValueError, match="choose one"): cell_prompts(d.net, f, ["low"], hres=True, reduce=True)
    odd = {**f, "low": Feat(torch.randn(4, 25, CHANNELS["low"]), (5, 5), "low")}
    with pytest.raises(ValueError, match="5 x 5 grid of low is no multiple of the coarsest, 2 x 2"): cell_prompts(d.net, odd, ["low"], kernel=3, reduce=True)

def test_a_lead_opens_the_sentence_and_is_not_scored():
    d, f = devil(), feats(1)
    led, both, first = (saliency(d, f, p, "high", lead=l)["high"] for p, l in ((["red square"], "a"), (["a red square"], ""), (["a"], "")))
    assert torch.allclose(led, both - first, atol=1e-4)
    with pytest.raises(ValueError, match="does not know 'xylophone'"): saliency(d, f, ["red"], lead="xylophone")

def test_raw_sums_are_aligned_with_their_tokens():
    d, f = devil(), feats(1)
    raw = saliency(d, f, ["red square"], "high", raw=True)["high"]
    prompts, grid = cell_prompts(d.net, f, ["high"])["high"]
    ids = d.lm.tokenizer("red square", add_special_tokens=False).input_ids
    e = d.lm.model.get_input_embeddings()
    x = torch.cat([e(torch.tensor([[d.lm.bos]])), prompts[0, :1], e(torch.tensor([ids]))], 1)
    with torch.no_grad(): z = d.lm.model(inputs_embeds=x, use_cache=False).logits[0, prompts.shape[2]:]
    assert raw[0, 0, 0, 0].item() == pytest.approx((z[0, ids[0]] + z[1, ids[1]]).item(), abs=1e-3)
