"Stored features equal fresh ones; killed, full and shared stores lose nothing."
import errno
import json
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from vlnotes import store
from vlnotes.backbones import Backbone, load
from vlnotes.store import Appender, FeatureStore, Rows, Stored, cached, key_of

class Net(nn.Module):
    def __init__(self, scale=1.):
        super().__init__()
        self.a, self.b, self.scale = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 5, 2, stride=2), scale
    def forward(self, x): return self.b(self.a(x) * self.scale)

def encoder(name="net", scale=1., seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Backbone(Net(scale).eval().requires_grad_(False), name, input_size=(8, 16))

PIXELS = torch.randn(23, 3, 8, 16, generator=torch.Generator().manual_seed(5))
def samples(n=23, start=0): return ((f"i{k}", PIXELS[k]) for k in range(start, n))

@pytest.mark.parametrize("dtype,pool", [("float16", None), ("float32", None), ("float32", "mean")])
def test_a_stored_feature_equals_a_fresh_one(tmp_path, dtype, pool):
    bb = encoder()
    got = cached(bb, samples(), root=tmp_path, data_key="d", dtype=dtype, pool=pool, bs=4, shard=8)
    fresh = [bb.features(PIXELS[k:k + 4]) for k in range(0, 23, 4)]
    for n in bb.layer_names:
        x = torch.cat([f[n].x for f in fresh]).to(getattr(torch, dtype)) if pool is None else torch.cat([f[n].mean()[:, None] for f in fresh])
        f = got.feat(n, slice(None))
        assert f.x.equal(x) and f.grid == ((1, 1) if pool else fresh[0][n].grid) == got.grid(n) and f.layer == n and f.cls is None
    assert got.ids == [f"i{k}" for k in range(23)] and len(got) == 23 and got.complete
    assert list(got.features([3, 1], ["b"])) == ["b"] and got.features([3, 1])["b"].x.equal(got.feat("b", slice(None)).x[[3, 1]])

def test_class_tokens_are_stored(tmp_path):
    bb = load("timm/vit_tiny_patch16_224@random", img_size=32, depth=2)
    x = torch.randn(5, 3, 32, 32)
    got = cached(bb, [(["a", "b"], x[:2]), ("c", x[2]), (["d", "e"], x[3:])], layers=[-1], root=tmp_path, data_key="d", dtype="float32", bs=5)
    fresh = bb.features(x, [-1])["blocks.1"]
    assert got.ids == list("abcde") and got.feat("blocks.1", [4, 0]).cls.equal(fresh.cls[[4, 0]]) and got.layer("blocks.1", cls=True).shape == (5, 192)

def test_the_second_time_nothing_is_computed(tmp_path):
    bb = encoder()
    cached(bb, samples(), root=tmp_path, data_key="d")
    def none(): raise AssertionError("a sample was drawn"); yield
    assert len(cached(bb, none(), root=tmp_path, data_key="d")) == 23

def test_every_part_of_the_key_makes_another_folder():
    bb, s = encoder(), FeatureStore("root")
    key = lambda bb=bb, layers=("a",), data="d", **k: s.folder(key_of(bb, layers, data, **k))
    half = encoder().to(dtype=torch.bfloat16)
    other = encoder(); other.transform = "another"
    keys = [key(), key(encoder(seed=1)), key(encoder("net2")), key(layers=("a", "b")), key(data="e"), key(dtype="float32"), key(pool="mean"), key(half), key(other)]
    assert len(set(keys)) == len(keys) and key() == key(encoder())

def test_keys_hold_no_addresses(tmp_path):
    "The transforms of all sources have a representation that another process gives too."
    bb = load("timm/resnet10t@random")
    assert " at 0x" not in json.dumps(key_of(bb, ["layer1"], "d"))

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_rows_read_like_one_array(tmp_path_factory, counts, data):
    d = tmp_path_factory.mktemp("rows")
    whole = np.arange(sum(counts) * 6, dtype=np.float32).reshape(-1, 2, 3)
    start = 0
    for k, c in enumerate(counts):
        a = Appender(d / f"{k}.npy")
        for row in whole[start:start + c]: a.add(row[None])
        a.close(); start += c
    r, n = Rows([d / f"{k}.npy" for k in range(len(counts))], counts), len(whole)
    at = data.draw(st.lists(st.integers(-n, n - 1), max_size=6))
    assert np.array_equal(r[at], whole[at] if at else whole[:0]) and np.array_equal(r[:], whole) and np.array_equal(r[::2], whole[::2])
    assert np.array_equal(np.asarray(r), whole) and np.array_equal(r[n - 1], whole[-1]) and np.array_equal(r[whole[:, 0, 0] > 6], whole[whole[:, 0, 0] > 6])
    assert r.shape == whole.shape and len(r) == n and np.load(d / "0.npy", allow_pickle=False).shape == (counts[0], 2, 3)
    with pytest.raises(IndexError): r[n]

KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[3])
from test_store import encoder, samples, cached
def some():
    for k, s in enumerate(samples()):
        if k == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
        yield s
cached(encoder(), some(), root=sys.argv[1], data_key="d", bs=2, shard=4)
"""

def test_killed_and_resumed_equals_never_killed(tmp_path):
    whole = cached(encoder(), samples(), root=tmp_path / "whole", data_key="d", bs=2, shard=4)
    for at in (3, 11): # in the first shard, then in the third
        p = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut", str(at), os.path.dirname(__file__)], capture_output=True, text=True)
        assert p.returncode == -signal.SIGKILL, p.stderr
    folder = next((tmp_path / "cut").glob("net-*"))
    finished = sorted(f.name for f in folder.glob("0*"))
    assert finished == ["00000", "00001"] and any(folder.glob(".*-00002")) # the third was under way
    assert not Stored(folder).complete and len(Stored(folder)) == 8
    before = (folder / "00001/a.npy").stat().st_mtime_ns
    drawn = []
    def rest(skip): drawn.append(skip); return samples(start=skip)
    got = cached(encoder(), rest, root=tmp_path / "cut", data_key="d", bs=2, shard=4)
    assert drawn == [8] and got.complete and (folder / "00001/a.npy").stat().st_mtime_ns == before
    for f in sorted(whole.folder.glob("0*/*")): assert f.read_bytes() == (folder / f.parent.name / f.name).read_bytes()
    assert (whole.folder / "index.json").read_bytes() == (folder / "index.json").read_bytes()

def test_old_leftovers_are_swept(tmp_path):
    folder = FeatureStore(tmp_path).folder(key_of(encoder(), ["a", "b"], "d"))
    for name, age in ((".old-00000", 2 * 86400), (".new-00000", 0)):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    cached(encoder(), samples(), root=tmp_path, data_key="d")
    assert not (folder / ".old-00000").exists() and (folder / ".new-00000").exists()

def test_disk_full_is_one_sentence_and_keeps_finished_shards(tmp_path, monkeypatch):
    bb, add, n = encoder(), Appender.add, []
    def full(self, rows):
        n.append(1)
        if len(n) > 5: raise OSError(errno.ENOSPC, "No space left on device")
        add(self, rows)
    monkeypatch.setattr(Appender, "add", full)
    with pytest.raises(OSError, match="the disk is full: .*00001") as e: cached(bb, samples(), root=tmp_path, data_key="d", bs=4, shard=8)
    assert "\n" not in str(e.value)
    folder = next(tmp_path.iterdir())
    assert sorted(f.name for f in folder.iterdir()) == ["00000", "index.json"] and len(Stored(folder)) == 8
    monkeypatch.undo()
    assert len(cached(bb, samples(), root=tmp_path, data_key="d", bs=4, shard=8)) == 23

def test_ctrl_c_leaves_finished_shards_only(tmp_path):
    def some():
        for k, s in enumerate(samples()):
            if k == 13: raise KeyboardInterrupt
            yield s
    with pytest.raises(KeyboardInterrupt): cached(encoder(), some(), root=tmp_path, data_key="d", bs=4, shard=8)
    assert sorted(f.name for f in next(tmp_path.iterdir()).iterdir()) == ["00000", "index.json"]

def test_a_shard_of_another_process_is_taken_over(tmp_path):
    bb, ours = encoder(), []
    whole = cached(bb, samples(), root=tmp_path / "whole", data_key="d", bs=4, shard=8)
    def raced(): # while our first shard is under way, another process finishes the store
        for k, s in enumerate(samples()):
            if k == 5: ours.append(cached(bb, samples(), root=tmp_path / "two", data_key="d", bs=4, shard=8))
            yield s
    got = cached(bb, raced(), root=tmp_path / "two", data_key="d", bs=4, shard=8)
    assert got.ids == ours[0].ids == whole.ids and got.feat("b", slice(None)).x.equal(whole.feat("b", slice(None)).x)
    assert not list(got.folder.glob(".*"))

def test_two_processes_at_once(tmp_path):
    code = KILLED.replace("if k == int(sys.argv[2])", "if False")
    ps = [subprocess.Popen([sys.executable, "-c", code, tmp_path, "0", os.path.dirname(__file__)], stderr=subprocess.PIPE) for _ in range(2)]
    for p in ps: assert p.wait(120) == 0, p.stderr.read()
    got = cached(encoder(), samples(), root=tmp_path, data_key="d", bs=2, shard=4)
    assert got.ids == [f"i{k}" for k in range(23)] and got.complete

def test_memory_holds_a_batch(tmp_path):
    alive, most = set(), []
    def stream():
        for k in range(200):
            x = torch.zeros(3, 8, 16)
            alive.add(k); weakref.finalize(x, alive.discard, k)
            most.append(len(alive))
            yield str(k), x
            del x
    cached(encoder(), stream(), root=tmp_path, data_key="d", bs=4, shard=100)
    assert max(most) <= 10

@pytest.mark.parametrize("kw,words", [({"data_key": ""}, "data_key"), ({"dtype": "bfloat16"}, "float16 or float32, not bfloat16"), ({"pool": "max"}, "not 'max'"),
                                      ({"layers": "aa"}, "no layer 'aa'")])
def test_bad_arguments(tmp_path, kw, words):
    with pytest.raises(ValueError, match=words): cached(encoder(), samples(), root=tmp_path, **({"data_key": "d"} | kw))

def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    bb = encoder(scale=1e6)
    with pytest.raises(ValueError, match="beyond float16: store it as float32"): cached(bb, samples(), root=tmp_path, data_key="d")
    assert cached(bb, samples(), root=tmp_path, data_key="d", dtype="float32").feat("b", 0).x.isfinite().all()

def test_other_samples_under_the_same_key(tmp_path):
    bb = encoder()
    cached(bb, samples(8), root=tmp_path, data_key="d", bs=4, shard=4)
    index = next(tmp_path.glob("*/index.json"))
    index.write_text(index.read_text().replace("true", "false") if '"complete": true' in index.read_text() else "")
    with pytest.raises(ValueError, match="other samples"): cached(bb, ((f"x{k}", PIXELS[k]) for k in range(8)), root=tmp_path, data_key="d", bs=4, shard=4)

def test_images_of_several_sizes(tmp_path):
    mixed = [("a", torch.zeros(3, 8, 16)), ("b", torch.zeros(3, 16, 16))]
    with pytest.raises(ValueError, match="need one size"): cached(encoder(), mixed, root=tmp_path, data_key="d", bs=1)
    with pytest.raises(ValueError, match="need one size"): cached(encoder(), mixed, root=tmp_path, data_key="e", bs=1, shard=1)

def test_no_samples_and_bad_batches(tmp_path):
    with pytest.raises(ValueError, match="no samples"): cached(encoder(), [], root=tmp_path, data_key="d")
    with pytest.raises(ValueError, match="1 ids and 2 images"): cached(encoder(), [(["a"], torch.zeros(2, 3, 8, 16))], root=tmp_path, data_key="d")

def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError): Stored(tmp_path)
    got = cached(encoder(), samples(4), root=tmp_path, data_key="d")
    with pytest.raises(ValueError, match="no stored layer 'c'"): got.layer("c")
    assert got.layer("a", cls=True) is None and len(FeatureStore(tmp_path).entries()) == 1 and FeatureStore(tmp_path).entries()[0]["samples"] == 4

def test_the_default_root_is_the_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    assert FeatureStore().root == tmp_path / "features"

def test_store_version_is_in_the_key(monkeypatch):
    before = key_of(encoder(), ["a"], "d")
    monkeypatch.setattr(store, "VERSION", 99)
    assert key_of(encoder(), ["a"], "d") != before
