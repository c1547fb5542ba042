"The drawn world: its law, its invariants, what it depends on, its files, and what bad input gets."
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlnotes.docmnist import Scenes, Vocabulary, expected_complexity, generate, glyphs, load, published, render, write_shards
from vlnotes.vocabulary import named

ROOT = Path(__file__).resolve().parents[1]


def digest(s, pixels=True):
    h = hashlib.sha256(json.dumps([s.texts, s.ids, [s.regions(i) for i in range(len(s))], s.boxes().tolist()]).encode())
    if pixels: h.update(s.pixels().tobytes())
    return h.hexdigest()


def files(folder): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir()}


# ---- the law

TABLE = {4: 3.556, 6: 4.963, 8: 7.358, 10: 9.095, 12: 11.270, 16: 15.231, 20: 19.214, 24: 23.198, 28: 26.970, 30: 28.465, 32: 29.454, 36: 30., 40: 30.}


@pytest.mark.parametrize("target", TABLE)
def test_mean_complexity(target):
    s = generate(20000, target=target, seed=5)
    c, R = s.complexity, np.diff(s.offsets)
    assert abs(expected_complexity(target) - TABLE[target]) < 5.1e-4
    assert abs(c.mean() - expected_complexity(target)) < 3.5 * c.std() / len(c)**.5
    assert (c % 2 == 0).all() and c.max() <= target and R.max() <= 9 and R.min() >= 1
    assert ((c + 4 > target) | (R == 9)).all()  # nobody stopped early
    bare, n = (s.region["shape"] < 0).mean(), s.offsets[-1]
    if target >= 36: assert abs(bare - 1/3) < 4 * (2/9 / n)**.5
    elif target < 24: assert bare > 1/3


def test_plain_regions_become_rarer_as_the_target_grows():
    share = [(generate(20000, target=t, seed=1).region["shape"] < 0).mean() for t in (4, 8, 16, 24, 36)]
    assert share == sorted(share, reverse=True)
    assert abs(share[0] - .4) < .01  # one plain, two plain or one with a shape: 2/9, 1/9, 2/3


@pytest.mark.parametrize("target", range(4, 41))
def test_closed_form(target):
    h = target // 2
    closed = 2*h - 4/3 * (3/5 + 2/5 * (-2/3)**(h - 1))
    if h <= 9: assert abs(expected_complexity(target) - closed) < 1e-12
    elif target <= 24: assert abs(expected_complexity(target) / closed - 1) < 4e-4
    else: assert expected_complexity(target) <= min(closed, 30) + 1e-9
    assert expected_complexity(target) == expected_complexity(target // 2 * 2)


@pytest.mark.parametrize("target", [5, 9, 17, 35])
def test_an_odd_target_is_the_even_one_below(target):
    assert digest(generate(50, target=target)) == digest(generate(50, target=target - 1))


def test_fields_are_uniform():
    s = generate(20000, target=40, seed=9)
    f, n = s.region, s.offsets[-1]
    for v, k in (f["colour"], 5), (f["shape"] + 1, 3), (f["size"][f["size"] >= 0], 3), (f["row"] - 5, 15), (f["col"] - 5, 15), (f["cell"], 9):
        count, expected = np.bincount(v, minlength=k), len(v) / k
        assert len(count) == k and ((count - expected)**2 / expected).sum() < k + 6 * (2 * k)**.5
    pool = s.glyphs.labels
    assert abs(np.bincount(f["digit"]) / n - np.bincount(pool) / len(pool)).max() < .003
    assert ((f["shape"] < 0) == (f["size"] < 0)).all()
    pairs = np.corrcoef(np.stack([f[k] for k in ("glyph", "colour", "shape", "row", "col")]))
    assert abs(pairs - np.eye(5)).max() < .02


def test_cells_are_a_uniform_subset():
    s = generate(20000, regions=2)
    at = s.region["cell"].reshape(-1, 2)
    counts = np.bincount(at[:, 0] * 9 + at[:, 1], minlength=81)
    assert (at[:, 0] < at[:, 1]).all() and (counts > 0).sum() == 36
    assert abs(counts[counts > 0] - 20000 / 36).max() < 5 * (20000 / 36)**.5


def test_number_of_regions():
    assert set(np.diff(generate(500, regions=(2, 4)).offsets)) == {2, 3, 4}
    assert set(np.diff(generate(50, regions=9).offsets)) == {9} == set(np.diff(generate(50, regions=[9, 9]).offsets))
    n = np.bincount(np.diff(generate(30000, regions=(1, 3)).offsets))[1:]
    assert abs(n - 10000).max() < 500
    bare = (generate(20000, regions=(1, 3)).region["shape"] < 0).mean()
    assert abs(bare - 1/3) < .01


@given(budget=st.integers(40, 3000), target=st.integers(4, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_budget(budget, target, seed):
    s = generate(budget=budget, target=target, seed=seed)
    more = generate(len(s) + 1, target=target, seed=seed)
    assert s.complexity.sum() <= budget < more.complexity.sum()
    assert digest(s, False) == digest(more[:-1], False)


# ---- every scene

KNOBS = st.fixed_dictionaries(dict(seed=st.integers(0, 2**40), start=st.integers(0, 2**30), split=st.sampled_from(("train", "val", "test")),
    order=st.sampled_from(("shuffled", "reading")), unique=st.booleans(), templates=st.sampled_from(("random", "first", 0, 2))))


@given(kw=KNOBS, target=st.integers(4, 40))
@settings(max_examples=30, deadline=None)
def test_invariants(kw, target):
    s = generate(6, target=target, **kw)
    px, v = s.pixels(), s.vocab
    rgb = np.array(list(v.colours.values()))
    for i in range(len(s)):
        boxes, regions, said = s.boxes(i), s.regions(i), [v.attributes[a] for a in s.sentence_attr(i)]
        assert [tuple(b) for b in boxes] == sorted({tuple(b) for b in boxes}, key=lambda b: (b[1], b[0])) and (boxes % 28 == 0).all()
        outside = np.ones((84, 84), bool)
        for j, ((x0, y0, x1, y1), r) in enumerate(zip(boxes, regions)):
            assert x1 - x0 == y1 - y0 == 28
            outside[y0:y1, x0:x1] = False
            k = s.offsets[i] + j
            tile = px[i, :, y0:y1, x0:x1].transpose(1, 2, 0)
            colour, shape, size = (s.region[f][k] for f in ("colour", "shape", "size"))
            assert r[:2] == [v.digits[s.region["digit"][k]], list(v.colours)[colour]] and len(r) == (2 if shape < 0 else 4)
            assert (tile == rgb[colour]).all(-1).any()
            grey = s.glyphs.images[s.region["glyph"][k]]
            halo = (tile == tile[..., :1]).all(-1)  # grey or white
            if shape < 0: assert not (tile == 255).all(-1).any() and (halo == (grey < 120)).all() and (tile[halo][:, 0] == grey[halo]).all()
            else: assert (tile == 255).all(-1).sum() == len(v.stencils[r[2], r[3]]) == {"rectangle": (12, 24, 36), "circle": (4, 16, 28)}[r[2]][size]
        assert px[i, :, outside].max(initial=0) == 0
        sentences = s.texts[i].split(" . ")
        assert len(sentences) == len(said) and not s.sentence["false"].any()
        assert all([w for ws in named(t).values() for w in ws] == [a] for t, a in zip(sentences, said))
        assert set(said) == {a for r in regions for a in r}
        if kw["unique"]: assert len(set(sentences)) == len(sentences)
        else: assert sorted(said) == sorted(a for r in regions for a in r)
        if kw["order"] == "reading" and not kw["unique"]: assert said == [a for r in regions for a in r]
        if kw["templates"] in ("first", 0): assert all(v.sentences.index(t) in v.first_sentence for t in sentences)
        assert np.asarray(s.image(i)).transpose(2, 0, 1).tobytes() == px[i].tobytes()
    assert len(s.boxes()) == s.offsets[-1] and s.ids[0] == f"{kw['split']}-{kw['start']:06d}"


def test_reading_order_says_the_first_of_a_repeated_sentence():
    s = generate(400, regions=(4, 9), order="reading", templates="first")
    all_of_them = generate(400, regions=(4, 9), order="reading", templates="first", unique=False)
    assert s.texts == [" . ".join(dict.fromkeys(t.split(" . "))) for t in all_of_them.texts] != all_of_them.texts


def test_shuffling_is_uniform_and_keeps_the_sentences():
    kw = dict(regions=1, vocab=published().subset("rectangle", "circle"))
    a, b = generate(4000, **kw), generate(4000, order="reading", **kw)
    assert [sorted(t.split(" . ")) for t in a.texts] == [sorted(t.split(" . ")) for t in b.texts]
    assert abs(np.mean([t == u for t, u in zip(a.texts, b.texts)]) - .5) < .04
    assert (generate(500, regions=3).pixels() == generate(500, regions=3, order="reading", templates=1).pixels()).all()


def test_grid_points_at_the_region_under_each_centre():
    s = generate(6, regions=(1, 9))
    for h, w in (1, 1), (3, 3), (7, 7), (5, 12), (28, 14):
        g = s.grid(h, w)
        for i in range(len(s)):
            for r, c in np.ndindex(h, w):
                y, x = (r + .5) * 84 / h, (c + .5) * 84 / w
                inside = [k for k in range(*s.offsets[i:i + 2]) for x0, y0, x1, y1 in s.boxes()[[k]] if x0 <= x < x1 and y0 <= y < y1]
                assert g[i, r, c] == (inside[0] if inside else -1)
    assert (s[2:5].grid(7, 7).max((1, 2)) < s[2:5].offsets[1:]).all()  # a slice numbers its own regions


# ---- knobs

def test_knobs_change_the_sentences_only():
    kw = dict(seed=3, regions=(1, 6), unique=False, order="reading")
    plain = generate(3000, **kw)
    for knob in dict(drop=.3), dict(swap=.3), dict(invent=.3), dict(drop=.2, swap=.2, invent=.2):
        s = generate(3000, **kw, **knob)
        assert (s.pixels(slice(99)) == plain.pixels(slice(99))).all() and (s.attributes == plain.attributes).all()
        own = np.repeat(np.arange(len(s)), np.diff(s.text_offsets))
        there = np.zeros((len(s), 20), bool)
        there[np.repeat(np.arange(len(s)), np.diff(s.offsets))[:, None], np.where(s.attributes < 0, s.attributes[:, :1], s.attributes)] = True
        assert (s.sentence["false"] == ~there[own, s.vocab.sentence_attribute[s.sentence["id"]]]).all()
        assert (s.sentence["region"] < np.diff(s.offsets)[own]).all()


def test_knob_rates():
    kw = dict(seed=3, regions=(1, 2), unique=False, order="reading")
    n = len(generate(4000, **kw).sentence["id"])
    near = lambda count, p: abs(count - p * n) < 5 * (n * p * (1 - p))**.5
    drop, swap, invent = (generate(4000, **kw, **{k: .3}).sentence for k in ("drop", "swap", "invent"))
    assert near(n - len(drop["id"]), .3) and not drop["false"].any()
    assert len(swap["id"]) == n and n * .28 < swap["false"].sum() < n * .31  # now and then both shapes are there
    assert near(len(invent["id"]) - n, .3) and near(invent["false"].sum(), .3)
    assert generate(5, drop=1.).texts == [""] * 5 and generate(50, regions=1, swap=1.).sentence["false"].all()


def test_a_swapped_word_keeps_its_factor_and_place():
    kw = dict(seed=4, regions=1, unique=False, order="reading", templates="first")
    a, b, f = generate(500, **kw), generate(500, **kw, swap=.5), published().factor
    attr = a.vocab.sentence_attribute
    x, y = attr[a.sentence["id"]], attr[b.sentence["id"]]
    assert (f[x] == f[y]).all() and ((x != y) == b.sentence["false"]).all() and 0 < b.sentence["false"].mean() < 1


def test_invented_sentences_follow_and_are_about_anything():
    a = generate(2000, regions=1, order="reading", unique=False)
    s = generate(2000, regions=1, order="reading", unique=False, invent=.5)
    kept = ~s.sentence["false"]
    assert (s.sentence["id"][kept] == a.sentence["id"]).all() and not s.sentence["false"][s.text_offsets[:-1]].any()
    assert set(s.vocab.sentence_attribute[s.sentence["id"][~kept]]) == set(range(20))


def test_no_absent_word_means_no_lie():
    v = published().subset(*"zero one two three four five six seven eight red yellow green blue rectangle circle".split())
    s = generate(20, vocab=v, swap=1., invent=1., templates="first")
    assert set(s.texts) == {"the image shows a nine . the color is purple", "the color is purple . the image shows a nine"}


# ---- what a scene depends on

def test_scene_depends_on_seed_split_and_number_alone():
    big = generate(300, seed=7)
    for a, b in (0, 1), (17, 40), (299, 300): assert digest(generate(b - a, seed=7, start=a)) == digest(big[a:b])
    assert digest(generate(budget=500, seed=7)) == digest(big[:len(generate(budget=500, seed=7))])
    assert len({digest(generate(20, seed=s, split=p)) for s in (0, 1) for p in ("train", "val", "test")}) == 6
    assert digest(big[[5, 3]][1:]) == digest(big[3:4]) and digest(big[np.arange(300) == 9]) == digest(big[9])


def test_splits_draw_from_their_own_glyphs():
    used = [set(s.glyphs.index[s.region["glyph"]]) for s in (generate(2000, split=p) for p in ("train", "val", "test"))]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    assert [len(u) for u in used] == [len(glyphs().split(p)) for p in ("train", "val", "test")]


def test_no_global_random_state_is_read_or_written():
    np.random.seed(0)
    a, before = digest(generate(20)), np.random.get_state()[1].copy()
    np.random.seed(1)
    assert digest(generate(20)) == a
    np.random.seed(0)
    assert (np.random.get_state()[1] == before).all()


def test_hash_seed_does_not_matter(tmp_path):
    code = ("import sys; from vlnotes.docmnist import generate; s = generate(40, seed=2, swap=.1, invent=.1); "
            "s.save(sys.argv[1] + '/a'); s.write_shards(sys.argv[1] + '/b', n_per_shard=25)")
    runs = [tmp_path / h for h in ("0", "12345")]
    for r in runs:
        r.mkdir()
        subprocess.run([sys.executable, "-c", code, str(r)], check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": r.name})
    assert len({json.dumps([files(r / "a"), files(r / "b")], sort_keys=True) for r in runs}) == 1
    here = generate(40, seed=2, swap=.1, invent=.1)
    assert digest(load(runs[0] / "a")) == digest(here)


def test_a_known_scene():
    "Bytes that must not change from version to version or machine to machine: everything is whole numbers."
    assert digest(generate(64, seed=23)) == "c0e905e5e52262318c0f2c8bdafb3afc58a2601ad142ea0469ce19ee4179d1ca"


# ---- words

def test_other_vocabulary_draws_and_says_its_own():
    v = Vocabulary.from_json({"digits": ["three", "seven"], "leave_out": ["red", "circle"], "add": {"colours": {"orange": [255, 128, 0]},
        "shapes": ["dot"], "stencils": {"dot": {"small": [[0, 0]], "medium": [[0, 0], [0, 1]], "large": [[0, 0], [0, 1], [1, 0]]}}}})
    s = generate(3000, target=12, vocab=v, seed=1)
    assert set(s.glyphs.labels) == {3, 7} and {a for i in range(500) for r in s.regions(i) for a in r} == set(v.attributes)
    assert abs(s.complexity.mean() - expected_complexity(12, v)) < 4 * s.complexity.std() / 3000**.5
    assert digest(generate(20, vocab=v.to_json())) == digest(generate(20, vocab=v))
    i = next(i for i in range(3000) for r in s.regions(i) if r[2:] == ["dot", "small"])
    j = [r[2:] for r in s.regions(i)].index(["dot", "small"])
    x, y = s.boxes(i)[j][:2]
    assert (s.pixels([i])[0, :, y:y + 28, x:x + 28] == 255).all(0).sum() == 1
    f = s.region
    assert (s.vocab.digits[f["digit"][0]] == "three") == (s.glyphs.labels[f["glyph"][0]] == 3)


def test_expected_complexity_follows_the_shapes():
    bare = published().subset("rectangle", "circle")
    assert expected_complexity(7, bare) == 6 and expected_complexity(100, bare) == 18
    assert (generate(50, target=7, vocab=bare).complexity == 6).all()
    one = published().subset("circle")
    assert abs(expected_complexity(40, one) - 27) < 1e-9


def test_render_from_given_fields():
    g = glyphs().images[:3]
    px = render(g, [0, 1, 1, 3], *np.array([[0, 3, 4], [-1, 0, 1], [-1, 0, 2], [0, 5, 19], [0, 19, 5], [8, 0, 1]]))
    assert px.shape == (3, 3, 84, 84) and px[1].max() == 0 and px[0, :, :56].max() == 0
    by_hand = np.where((g[0] >= 120)[None], np.array([255, 0, 0])[:, None, None], g[0][None])
    assert (px[0, :, 56:, 56:] == by_hand).all()
    white = np.argwhere((px[2, :, :28, :28] == 255).all(0))
    assert white.tolist() == [[r, c] for r in range(4, 8) for c in range(18, 22) if r in (4, 7) or c in (18, 21)]


# ---- files

def test_round_trip(tmp_path):
    for k, kw in enumerate((dict(), dict(split="test", target=30, start=12, unique=False), dict(regions=(1, 2), drop=.5, swap=.1, invent=.1),
                            dict(vocab=published().subset("three", "circle")))):
        s = generate(40, **kw)
        s.save(tmp_path / f"{k}")
        back = Scenes.load(tmp_path / f"{k}")
        assert digest(back) == digest(s) and back.options == json.loads(json.dumps(s.options)) and back.vocab == s.vocab
        assert [back.record(i) for i in range(40)] == [s.record(i) for i in range(40)]
        assert digest(back[3:9]) == digest(s[3:9]) and (back.grid(5, 5) == s.grid(5, 5)).all()
        back.save(tmp_path / f"{k}again")
        assert files(tmp_path / f"{k}") == files(tmp_path / f"{k}again")
        assert set(back.glyphs.index) == set(s.glyphs.index[s.region["glyph"]])


def test_saved_folder_can_be_moved_and_names_no_place(tmp_path):
    s = generate(10)
    s.save(tmp_path / "a", pixels=True)
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(load(tmp_path / "b")) == digest(s) and str(tmp_path) not in (tmp_path / "b" / "scenes.json").read_text()
    from safetensors.numpy import load_file
    assert (load_file(tmp_path / "b" / "scenes.safetensors")["pixels"] == s.pixels()).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_nothing_is_overwritten_unasked(tmp_path):
    s, other = generate(5), generate(5, seed=1)
    for write in s.save, s.write_shards:
        (folder := tmp_path / write.__name__).mkdir()
        with pytest.raises(FileExistsError, match="exists already; give another folder"): write(folder)
        (folder / "mine.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="left alone"): write(folder, overwrite=True)
        assert (folder / "mine.txt").read_text() == "precious"
    with pytest.raises(FileExistsError): s.save(tmp_path / "save" / "mine.txt", overwrite=True)
    s.save(tmp_path / "a")
    other.save(tmp_path / "a", overwrite=True)
    assert digest(load(tmp_path / "a")) == digest(other) and sorted(p.name for p in tmp_path.iterdir()) == ["a", "save", "write_shards"]


def test_a_failed_write_leaves_the_old_folder(tmp_path, monkeypatch):
    s = generate(5)
    s.save(tmp_path / "a")
    before = files(tmp_path / "a")
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="disk is full"): generate(5, seed=1).save(tmp_path / "a", overwrite=True)
    assert files(tmp_path / "a") == before and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scenes.json"): load(tmp_path)
    good = tmp_path / "good"
    generate(10).save(good)
    raw, about = (good / "scenes.safetensors").read_bytes(), json.loads((good / "scenes.json").read_text())
    for bad in raw[:-1], raw[:9], b"", b"x" * 99:
        (good / "scenes.safetensors").write_bytes(bad)
        with pytest.raises(ValueError, match="damaged"): load(good)
    (good / "scenes.safetensors").write_bytes(raw)
    for text, said in ("{", "not JSON"), ("[]", "format None"), (json.dumps(about | dict(format="other")), "format 'other'"), (json.dumps(about | dict(n=9)), "damaged"):
        (good / "scenes.json").write_text(text)
        with pytest.raises(ValueError, match=said): load(good)
    (good / "scenes.json").write_text(json.dumps(about))
    load(good)
    (good / "scenes.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no scenes.safetensors"): load(good)


def test_shards(tmp_path):
    s = generate(25, split="val", swap=.2, invent=.2, start=1000)
    paths = write_shards(s, tmp_path / "a", n_per_shard=10)
    assert [p.name for p in paths] == ["000000.tar", "000001.tar", "000002.tar"]
    s.write_shards(tmp_path / "b", n_per_shard=10)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    at = 0
    for p in paths:
        with tarfile.open(p) as tar:
            names = tar.getnames()
            assert names == [f"{i}.{e}" for i in s.ids[at:at + 10] for e in ("png", "txt", "json")]
            for k in range(0, len(names), 3):
                png, txt, record = (tar.extractfile(n).read() for n in names[k:k + 3])
                assert (np.asarray(Image.open(io.BytesIO(png))) == np.asarray(s.image(at))).all() and txt.decode() == s.texts[at]
                record = json.loads(record)
                assert record == s.record(at) and record["id"] == s.ids[at]
                assert [r["box"] for r in record["regions"]] == s.boxes(at).tolist()
                assert " . ".join(t["text"] for t in record["sentences"]) == s.texts[at]
                for t in record["sentences"]:
                    assert t["true"] == any(t["attribute"] in r["attributes"] for r in record["regions"])
                at += 1
    assert at == 25


def test_webdataset_reads_the_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    s = generate(12)
    s.write_shards(tmp_path / "a", n_per_shard=5)
    got = list(wds.WebDataset(str(tmp_path / "a" / "{000000..000002}.tar"), shardshuffle=False).decode("pil"))
    assert [g["__key__"] for g in got] == s.ids and [g["txt"] for g in got] == s.texts
    assert all((np.asarray(g["png"]) == np.asarray(s.image(i))).all() for i, g in enumerate(got))
    assert [g["json"]["regions"] for g in got] == [s.record(i)["regions"] for i in range(12)]


# ---- bad input

@pytest.mark.parametrize("kw, said", [
    (dict(), "n= scenes or budget= pairs"), (dict(n=1, budget=9), "one of the two"), (dict(n=0), "n=0"), (dict(n=2.5), "n=2.5"),
    (dict(n=-1), "from 1 up"), (dict(n=3, start=-1), "start=-1"), (dict(budget=1), "alone has"), (dict(budget=0), "budget=0"),
    (dict(n=3, target=3), "from 4 up"), (dict(n=3, target=4.5), "target=4.5"), (dict(n=3, target=0), "room for one region"),
    (dict(n=3, regions=(0, 3)), "from 1 to 9"), (dict(n=3, regions=(3, 10)), "from 1 to 9"), (dict(n=3, regions=(4, 2)), "lowest, highest"),
    (dict(n=3, regions=(1, 2, 3)), "lowest, highest"), (dict(n=3, regions="12"), "lowest, highest"), (dict(n=3, regions=(1., 2)), "whole numbers"),
    (dict(n=3, regions=0), "from 1 to 9"), (dict(n=3, order="shufled"), "nearest is 'shuffled'"), (dict(n=3, split="tset"), "nearest is 'test'"),
    (dict(n=3, templates="all"), "templates='all'"), (dict(n=3, templates=3), "0 to 2"), (dict(n=3, templates=-1), "0 to 2"),
    (dict(n=3, drop=1.1), "drop=1.1"), (dict(n=3, swap=-.1), "swap=-0.1"), (dict(n=3, invent=float("nan")), "invent=nan"),
    (dict(n=3, glyphs="digit"), "nearest is 'digits'"), (dict(n=3, vocab={"digit": []}), "nearest is 'digits'"),
])
def test_bad_arguments_get_one_sentence(kw, said):
    with pytest.raises(ValueError) as e: generate(**kw)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_bad_places():
    s = generate(4)
    with pytest.raises(ValueError, match="n_per_shard=0"): s.write_shards("nowhere", n_per_shard=0)
    with pytest.raises(IndexError): s[7]
    few = glyphs().take(np.flatnonzero(glyphs().labels < 3))
    with pytest.raises(ValueError, match="none of the digits nine"): generate(3, glyphs=few, vocab={"digits": ["nine"]})


def test_nothing_is_not_too_little():
    "No slices, no scenes, no words."
    s = generate(4)
    assert len(s[:0]) == 0 and s[:0].texts == [] and s[:0].pixels().shape == (0, 3, 84, 84) and s[:0].boxes().shape == (0, 4)
    assert generate(3, drop=1.)[1:].record(0)["sentences"] == []
