"LGSSL: corpora, neighbours, pairs, and what goes wrong with them."
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlnotes import docmnist
from vlnotes.lgssl import corpus as corpora
from vlnotes.lgssl.neighbours import nearest, twins
from vlnotes.lgssl.pairs import Pairs, agreement, embed, look, pair, read_list, write_list
from vlnotes.sources import Skipped
from vlnotes.text import Embedder


def brute(x, k=1, mask=None):
    u = np.asarray(x, np.float64)
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    s = u @ u.T
    np.fill_diagonal(s, -np.inf)
    if mask is not None: s = np.where(mask, s, -np.inf)
    at = np.argsort(-np.round(s, 9), 1, kind="stable")[:, :k]
    return at, np.take_along_axis(s, at, 1)


# ---- neighbours

@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 10**6), st.integers(1, 3), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_equal_rows_and_tiles_never_change_the_answer(n, d, seed, k, tile):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)[rng.integers(0, n, n)] # many equal rows
    found = nearest(x, k, tile=tile)
    assert (found.index != np.arange(n)[:, None]).all() and (found.similarity[found.index >= 0] <= 1).all()
    whole = nearest(x, k)
    assert np.array_equal(found.index, whole.index)
    _, s = brute(x, min(k, n - 1))
    assert np.allclose(whole.similarity[:, :n - 1], s, atol=2e-6)
    first, place = twins(x)
    for i in range(n): # among its equals, the lowest other row comes first
        equal = [j for j in range(n) if j != i and place[j] == place[i]]
        assert whole.index[i, :len(equal[:k])].tolist() == equal[:k]


def test_a_neighbour_is_symmetric_where_both_are_each_others_nearest():
    x = np.random.default_rng(3).normal(size=(300, 8))
    n = nearest(x)
    for i, j in enumerate(n.index[:, 0]):
        if n.index[j, 0] == i: assert n.similarity[i, 0] == pytest.approx(n.similarity[j, 0], abs=1e-6)


def test_groups_rows_and_limits_agree_with_brute_force():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(200, 12)), rng.integers(0, 9, 200)
    at, _ = brute(x, 2, g[:, None] == g)
    assert np.array_equal(nearest(x, 2, groups=g).index, at)
    rows = np.array([7, 3, 150])
    assert np.array_equal(nearest(x, 2, rows).index, brute(x, 2)[0][rows]) and np.array_equal(nearest(x, 2, rows, g).index, at[rows])
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    at, s = brute(x, 1, u @ u.T <= .5)
    found = nearest(x, limit=.5)
    assert np.array_equal(found.index, at) and found.similarity.max() <= .5


def test_zero_rows_take_no_part():
    x = np.random.default_rng(0).normal(size=(20, 5))
    x[[4, 9]] = 0
    n = nearest(x, 2)
    rest = np.setdiff1d(np.arange(20), [4, 9])
    assert (n.index[[4, 9]] == -1).all() and n.lonely == 2 and np.isnan(n.similarity[4]).all()
    assert np.array_equal(n.index[rest], rest[nearest(x[rest], 2).index])


def test_mixed_precision_agrees_almost_everywhere():
    x = torch.randn(6000, 64, generator=torch.Generator().manual_seed(0))
    full, half = nearest(x, rows=np.arange(1500)), nearest(x, rows=np.arange(1500), precision="bf16")
    same = full.index == half.index
    assert same.mean() > .995 and np.allclose(half.similarity[same], full.similarity[same], atol=1e-6) # scores are float32 in both
    assert (nearest(x[:800], 5, precision="bf16").index == nearest(x[:800], 5).index).mean() > .995


@pytest.mark.parametrize("x, kw, told", [
    (np.array([[1., np.nan], [0, 1]]), {}, "1 of 2 vectors hold NaN.*row 0"), (np.ones((1, 3)), {}, "two rows"), (np.ones((4, 3)), {"k": 0}, "k=0"),
    (np.ones((4, 3)), {"precision": "int8"}, "int8"), (np.ones((4, 3)), {"groups": [1, 2]}, "2 group labels for 4 rows")])
def test_bad_vectors(x, kw, told):
    with pytest.raises(ValueError, match=told): nearest(x, **kw)


def test_approximate_search_needs_an_extra():
    try: import faiss # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"vlnotes\[data\]"): nearest(np.random.default_rng(0).normal(size=(50, 4)), precision="faiss")
    else:
        x = np.random.default_rng(0).normal(size=(3000, 16))
        assert (nearest(x, precision="faiss").index == nearest(x).index).mean() > .5


# ---- corpora

def redcaps(root, n=9):
    scenes = docmnist.generate(n, regions=(1, 1), seed=1)
    for i in range(n):
        shard = root/f"{'crochet' if i % 2 else 'birds'}_{2017 + i // 5}_000001"
        shard.mkdir(parents=True, exist_ok=True)
        scenes.image(i).save(shard/f"x.{i}.png")
        (shard/f"x.{i}.json").write_text(json.dumps({"caption": scenes.text(i), "author": "a"}))
    return scenes


def test_a_redcaps_folder(tmp_path):
    scenes = redcaps(tmp_path/"r")
    some = sorted((tmp_path/"r").rglob("*.png"))
    (tmp_path/"r/empty_2018_000001").mkdir()
    (some[0].parent/"orphan.json").write_text('{"caption": "nobody"}')
    (some[0].parent/"alone.png").write_bytes(some[0].read_bytes())
    (some[1].with_suffix(".json")).write_text("[1]")
    skipped = Skipped()
    c = corpora.build(tmp_path/"r", tmp_path/"r.arrow", skipped)
    assert len(c) == 8 and len(skipped) == 3 and c.texts("group") == sorted(c.texts("group"))
    i = c.texts("id").index("x.4")
    assert c.captions[i] == scenes.text(4) and np.array_equal(np.asarray(c.image(i)), np.asarray(scenes.image(4)))
    assert {y for y in corpora.scope(c.texts("group"), "year")} == {"2017", "2018"}
    assert len(corpora.build(tmp_path/"r", tmp_path/"y.arrow", year=2018)) == 4
    dots = corpora.build(tmp_path/"r", tmp_path/"d.arrow", first_dot=True)
    assert set(dots.texts("id")) == {"x"} # the original's names: one is left of each shard
    assert len(pickle.dumps(c)) < 300 and pickle.loads(pickle.dumps(c)).texts("id") == c.texts("id")
    with pytest.raises(ValueError, match="not named <subreddit>_<year>"): corpora.scope(["birds"], "year")
    with pytest.raises(ValueError, match="of 1999"): corpora.build(tmp_path/"r", tmp_path/"z.arrow", year=1999)


def test_tars_and_parquet_give_the_same_corpus(tmp_path):
    scenes = docmnist.generate(7, regions=(1, 1), seed=2)
    scenes.write_shards(tmp_path/"t", n_per_shard=3)
    tars = corpora.build(str(tmp_path/"t/{000000..000002}.tar"), tmp_path/"t.arrow")
    raw = [corpora.read_bytes(p, s, n) for p, s, n in zip(tars.texts("path"), tars.column("start"), tars.column("length"))]
    pq.write_table(pa.table({"image": [{"bytes": b} for b in raw], "caption": [*scenes.texts[:6], None]}), tmp_path/"p.parquet", row_group_size=2)
    skipped = Skipped()
    rows = corpora.build(tmp_path/"p.parquet", tmp_path/"p.arrow", skipped)
    assert len(tars) == 7 and len(rows) == 6 and len(skipped) == 1 and tars.captions[:6] == rows.captions
    for i in range(6): assert np.array_equal(np.asarray(tars.image(i)), np.asarray(scenes.image(i))) and np.array_equal(np.asarray(rows.image(i)), np.asarray(scenes.image(i)))


def test_a_damaged_tar_is_told_and_the_rest_is_used(tmp_path):
    docmnist.generate(6, regions=(1, 1)).write_shards(tmp_path/"t", n_per_shard=3)
    cut = tmp_path/"t/000001.tar"
    cut.write_bytes(cut.read_bytes()[:700])
    skipped = Skipped()
    c = corpora.build(str(tmp_path/"t/*.tar"), tmp_path/"c.arrow", skipped)
    assert len(c) >= 3 and any("000001.tar" in k for k, _ in skipped)


@pytest.mark.parametrize("make, told", [
    (lambda p: p.write_bytes(b"x" * 3000), "more than 2000"), (lambda p: Image.new("RGB", (100, 2)).save(p), "strip"), (lambda p: p.write_bytes(b"no image"), "not an image"),
    (lambda p: None, "No such file")])
def test_images_that_are_refused(make, told, tmp_path):
    make(p := tmp_path/"x.png")
    with pytest.raises((OSError, ValueError), match=told): corpora.read_image(p, most=2000)


def test_the_original_dictionary(tmp_path):
    redcaps(tmp_path/"r")
    c = corpora.build(tmp_path/"r", tmp_path/"c.arrow")
    corpora.write_dictionary(c, tmp_path/"d.json")
    assert json.loads((tmp_path/"d.json").read_text())["birds_2017_000001"]["x.0"][0] == "birds_2017_000001/x.0.png"
    assert corpora.read_dictionary(tmp_path/"d.json", tmp_path/"r", tmp_path/"e.arrow").batch.equals(c.batch)
    (tmp_path/"bad.json").write_text('{"a": 3}')
    with pytest.raises(ValueError, match="no dictionary"): corpora.read_dictionary(tmp_path/"bad.json", tmp_path, tmp_path/"x.arrow")
    (tmp_path/"x.arrow").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no Arrow file"): corpora.Corpus(tmp_path/"x.arrow")


# ---- pairs

def tiny_corpus(tmp_path, captions):
    for i, c in enumerate(captions):
        folder = tmp_path/"c"/f"s{i % 2}_2018_1"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(folder/f"{i}.png")
        (folder/f"{i}.txt").write_text(c)
    return corpora.build(tmp_path/"c", tmp_path/"c.arrow")


def test_embedding_is_resumed_where_it_stopped(tmp_path):
    asked = []
    def encode(texts):
        asked.extend(texts)
        if len(asked) > 4 and not done: raise KeyboardInterrupt
        return torch.tensor([[float(len(t)), 1.] for t in texts])
    done, texts = [], [f"caption {'x' * i}" for i in range(7)] + ["caption "]
    model = Embedder("toy", 2, encode)
    with pytest.raises(KeyboardInterrupt): embed(texts, model, tmp_path, size=2)
    asked.clear(); done.append(1)
    z = embed(texts, model, tmp_path, size=2)
    assert len(asked) == 3 and np.array_equal(z, embed(texts, model)) and np.array_equal(z[0], z[7]) # 4 of 7 were there; equal captions are asked once


def test_pairs_of_a_corpus(tmp_path):
    c = tiny_corpus(tmp_path, ["a red bird", "a blue fish", "red bird", "blue fish swims", "a red bird", "green"])
    z = embed(c.captions)
    p = pair(c, z, tmp_path/"p.arrow", k=2)
    by = dict(zip(c.captions, p.index[:, 0]))
    assert c.captions[by["red bird"]] == "a red bird" and c.captions[by["a blue fish"]] == "blue fish swims"
    assert p.similarity.dtype == np.float32 and p.index.dtype == np.int32 and p.about["k"] == 2
    far = pair(c, z, tmp_path/"q.arrow", limit=.999)
    first = [i for i, t in enumerate(c.captions) if t == "a red bird"]
    assert p.index[first[0], 0] == first[1] and c.captions[far.index[first[0], 0]] == "red bird" # a repost is passed over
    within = pair(c, z, tmp_path/"w.arrow", by="shard")
    g = c.texts("group")
    assert all(g[i] == g[j] for i, j in enumerate(within.index[:, 0]))
    part = pair(c, z, tmp_path/"s.arrow", subset=[0, 1, 3])
    assert (part.index[[2, 4, 5]] == -1).all() and set(part.index[[0, 1, 3], 0]) <= {0, 1, 3} and part.usable().tolist() == [0, 1, 3]
    write_list(p, c, tmp_path/"l.json")
    skipped = Skipped()
    rows = json.loads((tmp_path/"l.json").read_text()) + [[["no", "one"], ["no", "two"], .5]]
    rows[0].append(.2) # a ratio
    (tmp_path/"l.json").write_text(json.dumps(rows))
    back = read_list(tmp_path/"l.json", c, tmp_path/"b.arrow", skipped, ratio=.5)
    assert len(skipped) == 1 and back.index[0, 0] == -1 and np.array_equal(back.index[1:, 0], p.index[1:, 0])
    strict = read_list(tmp_path/"l.json", c, tmp_path/"b2.arrow", Skipped(), least=.9)
    assert np.array_equal(strict.usable(), np.flatnonzero(p.similarity[:, 0] >= .9))
    (tmp_path/"bad.json").write_text("[[1, 2]]")
    with pytest.raises(ValueError, match="no list of neighbours"): read_list(tmp_path/"bad.json", c, tmp_path/"x.arrow", Skipped())


def test_identical_and_empty_captions(tmp_path):
    c = tiny_corpus(tmp_path, ["same words"] * 4 + [" "])
    assert len(c) == 4 # an empty caption takes no part
    p = pair(c, embed(c.captions), tmp_path/"p.arrow")
    assert (p.index[:, 0] >= 0).all() and np.allclose(p.similarity, 1)
    with pytest.raises(ValueError, match="all captions are identical.*same words"): pair(c, embed(c.captions), tmp_path/"q.arrow", limit=.99)
    with pytest.raises(ValueError, match="3 vectors for a corpus of 4"): pair(c, np.ones((3, 2)), tmp_path/"q.arrow")


def test_images_gone_since_are_counted(tmp_path):
    from vlnotes.backbones import load
    c = tiny_corpus(tmp_path, [f"picture {i}" for i in range(6)])
    (tmp_path/"c/s0_2018_1/2.png").unlink()
    skipped = Skipped()
    z = look(c, load("zoo/convnet"), skipped)
    lost = c.texts("id").index("2")
    assert [k for k, _ in skipped] == ["2"] and not z[lost].any() and np.abs(z).sum(1).astype(bool).sum() == 5
    p = pair(c, z, tmp_path/"p.arrow")
    assert p.index[lost, 0] == -1 and lost not in p.index


def test_agreement_has_the_right_chance():
    labels = np.array([0, 0, 0, 1])
    a = agreement(np.array([1, 2, 3, -1]), labels)
    assert a["agreement"] == pytest.approx(2 / 3, abs=1e-4) and a["n"] == 3 and a["chance"] == 1.0 # the three sources share one label
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 3000)
    a = agreement(rng.integers(0, 3000, 3000), labels)
    assert a["lo"] < a["chance"] < a["hi"]


def test_the_file_is_read_by_mapping(tmp_path):
    from vlnotes.lgssl.pairs import save
    n = 200_000
    p = save(np.arange(n)[:, None] % 77, np.ones((n, 1)), tmp_path/"p.arrow")
    import tracemalloc
    tracemalloc.start()
    q = Pairs(p.path)
    assert int(q.index[n - 1, 0]) == (n - 1) % 77 and not q.index.flags.owndata
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200_000 # bytes; as Python tuples it is some hundred bytes a pair
