import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vlnotes import docmnist, pretrain, zoo
from vlnotes.glyphs import glyphs
from vlnotes.pretrain import BLOCK, CAPTIONS, CLASSES, PREFIX, Scenes, Seer, Sentences, Writer, captioned, normalise, targets, usual, varied, words
from vlnotes.text import word_tokenizer
from vlnotes.train import FitConfig, fit, rng_for
from vlnotes.vocabulary import published

TOKENS = word_tokenizer(words())

@pytest.fixture(scope="module", autouse=True)
def fewer():
    "Two copies of each glyph are enough here."
    with pytest.MonkeyPatch.context() as m:
        real = varied
        m.setattr(pretrain, "varied", lambda copies=2, seed=0, split="train": real(copies, seed, split))
        yield


# ---- what encoders learn

@pytest.mark.parametrize("grid", [(3, 3), (6, 6), (11, 11), (21, 21)])
def test_targets_are_the_truth_of_the_region_under_each_cell(grid):
    s = docmnist.generate(12, regions=(1, 9), seed=4)
    t = targets(s, grid).view(len(s), *grid, 4)
    v = s.vocab
    lists = [list(w) for w in v.factors.values()]
    none = 0
    for i in range(len(s)):
        boxes, regions = s.boxes(i), s.regions(i)
        for r in range(grid[0]):
            for c in range(grid[1]):
                y, x = (r + .5) * 84 / grid[0], (c + .5) * 84 / grid[1]
                here = [k for k, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x < x1 and y0 <= y < y1]
                got = t[i, r, c].tolist()
                if not here: assert got == [n - 1 for n in CLASSES.values()]; none += 1; continue
                words_ = regions[here[0]]
                assert [lists[0][got[0]], lists[1][got[1]]] == words_[:2]
                if len(words_) == 4: assert [lists[2][got[2]], lists[3][got[3]]] == words_[2:]
                else: assert got[2:] == [CLASSES["shape"] - 2, CLASSES["size"] - 2]
    assert none
    assert [len(w) + (k > 1) + 1 for k, w in enumerate(v.factors.values())] == list(CLASSES.values()), "no shape and nothing at all are classes of their own"

def test_normalise_is_what_the_zoo_encoders_say_of_themselves():
    from vlnotes import backbones
    px = docmnist.generate(3, regions=(1, 4)).pixels()
    for name in ("convnet", "vit"): assert torch.allclose(normalise(px), backbones.load(f"zoo/{name}").normalise(px), atol=1e-6)

def test_varied_glyphs_belong_to_one_split():
    base = glyphs()
    owners = {k: set(base.split(k).index.tolist()) for k in ("train", "val", "test")}
    assert not owners["train"] & owners["test"] and not owners["train"] & owners["val"]
    for split in ("train", "test"):
        g = varied(2, split=split)
        assert set(g.index.tolist()) == owners[split] and len(g) == 2 * len(base.split(split)) and g.split("whatever") is g
        assert g.images.dtype == np.uint8 and g.images.shape[1:] == (28, 28)
        same = {int(i): int(l) for i, l in zip(base.split(split).index, base.split(split).labels)}
        assert all(same[int(i)] == l for i, l in zip(g.index, g.labels)), "turning a glyph does not change its digit"
    a, b = varied(2), varied(2, seed=1)
    assert not np.array_equal(a.images, b.images) and a.images.std() > 20
    assert not np.array_equal(a.images[:len(a) // 2], a.images[len(a) // 2:]), "copies differ"

def test_no_test_glyph_is_in_training_scenes():
    held = {i.tobytes() for i in glyphs().split("test").images} | {i.tobytes() for i in glyphs().split("val").images}
    s = Scenes(split="train").draw(range(64))
    assert not any(s.glyphs.images[g].tobytes() in held for g in s.region["glyph"])
    assert s.split == "train" and captioned(range(6), CAPTIONS["mix"], vary=True).split == "train"

def test_a_scene_does_not_depend_on_its_batch():
    data = Scenes(seed=3)
    whole, part = data.draw(range(8)), data.draw(range(4, 8))
    assert np.array_equal(whole.pixels()[4:], part.pixels()) and whole.texts[4:] == part.texts
    assert not np.array_equal(Scenes(seed=4).draw(range(8)).pixels(), whole.pixels())
    assert len(data) == 10**9

def test_shift_keeps_what_is_on_the_canvas():
    data = Scenes(jitter=2)
    x = normalise(docmnist.generate(16, regions=(3, 3)).pixels())
    y = data.shift(x, rng_for(0))
    assert y.shape == x.shape and not y.equal(x) and data.shift(x, rng_for(0)).equal(y)
    black = float(x.min())
    big, moves = F.pad(x, (2,) * 4, value=black), set()
    for i in range(len(x)):
        found = [(r, c) for r in range(5) for c in range(5) if big[i, :, r:r + 84, c:c + 84].equal(y[i])]
        assert found, i
        moves.add(found[0])
    assert len(moves) > 4, "each image has an offset of its own"
    assert Scenes(jitter=0).shift(x, rng_for(0)) is x

@pytest.mark.parametrize("name", ["convnet", "vit"])
def test_a_seer_learns(name):
    class Few(Scenes): # the same sixteen scenes again and again
        def __len__(self): return 16
    seer = Seer(zoo.ENCODERS[name])
    losses = []
    class Watch(Seer):
        def forward(self, batch, rng):
            loss, count = super().forward(batch, rng)
            losses.append(float(loss.detach() / count))
            return loss, count
    seer = Watch(zoo.ENCODERS[name])
    result = fit(seer, Few(), FitConfig(steps=30, bs=16, lr=3e-3, shuffle=False), device="cpu", progress=False)
    start = sum(np.log(n) for n in CLASSES.values())
    assert losses[0] == pytest.approx(start, rel=.35), "an untrained reader guesses"
    assert np.mean(losses[-3:]) < .7 * losses[0] and np.isfinite(result["loss"])
    score = seer.score(docmnist.generate(20, regions=(2, 4), seed=9))
    assert set(score) == set(CLASSES) and all(0 <= v <= 1 for v in score.values())

def test_a_perfect_seer_scores_one():
    s = docmnist.generate(40, regions=(1, 9), seed=2)
    class Oracle(Seer):
        def cells(self, x):
            part = s[self.at:self.at + len(x)]; self.at += len(x)
            t = targets(part, (6, 6))
            return torch.cat([F.one_hot(t[..., k].clamp_min(0), n) for k, n in enumerate(CLASSES.values())], -1).float(), (6, 6)
    oracle, at = Oracle(zoo.ENCODERS["convnet"]), 0
    oracle.at = 0
    for k, n in CLASSES.items():
        oracle.heads[k] = torch.nn.Linear(sum(CLASSES.values()), n, bias=False)
        oracle.heads[k].weight.data = F.one_hot(torch.arange(at, at + n), sum(CLASSES.values())).float() * 9
        at += n
    assert oracle.score(s, bs=16) == dict.fromkeys(CLASSES, 1.)

def test_usual_features_are_those_of_training_scenes():
    u = usual(Seer(zoo.ENCODERS["convnet"]).eval(), 48, 0, batch=16)
    assert u["domain.mean"].shape == (128,) and u["domain.white"].shape == (128, 128) and u["domain.limit"].shape == (1,) and u["domain.limit"] > 0


# ---- what the language model learns

def test_the_words_are_those_of_all_captions():
    assert len(words()) == len(set(words())) and "." in words() and len(TOKENS) == len(words()) + 4
    for text in captioned(range(30), **CAPTIONS, seed=5).texts:
        assert TOKENS.unk_token_id not in TOKENS(text).input_ids
    assert words(published().subset("red")) == [w for w in words() if w != "red"]

def test_the_mix_is_taken_in_turn():
    counts = [np.diff(captioned(range(a * BLOCK, a * BLOCK + 32), **CAPTIONS).offsets) for a in range(3)]
    assert counts[0].max() == 1 and counts[1].max() == 4 and counts[2].max() == 3
    full, dropped = captioned(range(BLOCK, BLOCK + 32), **CAPTIONS), captioned(range(2 * BLOCK, 2 * BLOCK + 32), **CAPTIONS)
    whole, half = captioned(range(BLOCK, 2 * BLOCK), **CAPTIONS), captioned(range(BLOCK + 32, 2 * BLOCK), **CAPTIONS)
    assert whole.texts[32:] == half.texts, "a scene is the same in a batch of any size: two processes see what one would"
    assert np.diff(full.text_offsets).sum() == full.complexity.sum()
    assert .3 < np.diff(dropped.text_offsets).sum() / dropped.complexity.sum() < .7
    assert captioned(range(4), [{"regions": (2, 2)}], split="test").split == "test"

def test_captions_list_regions_in_reading_order():
    s = captioned(range(BLOCK, BLOCK + 32), **CAPTIONS)
    for i in range(len(s)):
        want = [a for r in s.regions(i) for a in r]
        assert [s.vocab.attributes[a] for a in s.sentence_attr(i)] == want

def test_keys_are_the_attributes_of_the_regions():
    data, seen = Sentences(TOKENS, seed=3), set()
    for b in range(16):
        ids = range(b * BLOCK, b * BLOCK + 8)
        rows, mask, keys = data.batch(ids, rng_for(0))
        s = captioned(ids, **CAPTIONS, seed=3)
        assert [TOKENS.decode(r[m], skip_special_tokens=True) for r, m in zip(rows, mask)] == s.texts
        assert (rows[:, 0] == 2).all() and all(r[m][-1] == TOKENS.eos_token_id for r, m in zip(rows, mask))
        seen.add(keys is None)
        if keys is None: continue
        assert keys.shape == (8, PREFIX, 4)
        for i, bag in enumerate(keys):
            got = [[w for w in TOKENS.convert_ids_to_tokens(k.tolist()) if w != TOKENS.pad_token] for k in bag]
            assert [g for g in got if g] == s.regions(i) and not any(got[len(s.regions(i)):])
    assert seen == {True, False}, "one update in four has no prefix"

def test_a_writer_learns():
    losses = []
    class Watch(Writer):
        def forward(self, batch, rng):
            loss, count = super().forward(batch, rng)
            losses.append(float(loss.detach() / count))
            return loss, count
    fit(Watch(TOKENS), Sentences(TOKENS), FitConfig(steps=30, bs=16, lr=5e-3, shuffle=False), device="cpu", progress=False)
    assert np.mean(losses[:2]) > 3 and np.mean(losses[-4:]) < 2

def test_a_writers_loss_is_the_likelihood_of_its_tokens():
    w = Writer(TOKENS, seed=1).eval()
    rows, mask, _ = Sentences(TOKENS).batch(range(24, 32), rng_for(0))
    loss, count = w((rows, mask, None), rng_for(1))
    with torch.no_grad(): logp = w.model(input_ids=rows, attention_mask=mask.long()).logits.log_softmax(-1)
    want = -sum(logp[i, t, rows[i, t + 1]] for i in range(8) for t in range(rows.shape[1] - 1) if mask[i, t + 1])
    assert count == mask[:, 1:].sum() and torch.allclose(loss, want, rtol=1e-4)
    grown = torch.cat([rows, rows.new_full((8, 5), TOKENS.pad_token_id)], 1), F.pad(mask, (0, 5))
    assert torch.allclose(w((*grown, None), rng_for(1))[0], loss, rtol=1e-5), "padding says nothing"

def test_the_prefix_is_read():
    w, g = Writer(TOKENS, seed=1).eval(), Sentences(TOKENS)
    rows, mask, keys = g.batch(range(8), rng_for(0))
    with torch.no_grad(): a, b, c = (w((rows, mask, k), rng_for(1))[0] for k in (keys, keys.flip(0), None))
    assert len({round(float(v), 2) for v in (a, b, c)}) == 3
