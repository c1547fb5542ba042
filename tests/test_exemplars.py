"Exemplars equal a reference that stores everything; batches, processes, kills and damaged images change nothing."
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from vlnotes import parts as parts_module
from vlnotes.backbones import Backbone, load
from vlnotes.exemplars import as_seen, exemplars, merge, step, strip
from vlnotes.parts import Part
from vlnotes.sources import Skipped
from vlnotes.tally import Cells, Tops, best, budget, priorities, rank_error, thresholds


class Net(nn.Module):
    "Least and greatest of patches: exact, so that no batch rounds otherwise than another. Channel 5 of `a` is dead; `c` has no map."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Patches(), nn.MaxPool2d(2), nn.Flatten()
    def forward(self, x): return self.c(self.b(self.a(x)))

class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1., 2, .5, -1, 4, 0]).view(6, 1, 1))
    def forward(self, x): return torch.cat([F.max_pool2d(x, 4), -F.max_pool2d(-x, 4)], 1) * self.scale

def encoder(size=(16, 24)): return Backbone(Net().eval().requires_grad_(False), "net", input_size=size)
def pictures(n=40, size=(16, 24), seed=0):
    x = np.random.default_rng(seed).integers(0, 256, (n, 3, *size), np.uint8)
    x[n // 2:n // 2 + 3] = x[1:4] # equal images: ties
    return x
def pairs(x): return [(f"i{k}", v) for k, v in enumerate(x)]
def run(bb, samples, layers, out, **kw): return exemplars(bb, samples, layers, out, **({"progress": False, "k": 4, "batch": 7} | kw))
def read(out, layer):
    "Everything of one layer."
    got = {n: np.load(out / layer / f"{n}.npy") for n in ("images", "masks", "units", "values", "thresholds")}
    return got | {"ids": np.loadtxt(out / layer / "ids.csv", int, delimiter=",", ndmin=2)}
def about(out): return json.loads((out / "exemplars.json").read_text())
def same(a, b):
    "Whether two folders hold the same files with the same bytes."
    files = [sorted(f.relative_to(d) for f in d.rglob("*") if f.is_file()) for d in (a, b)]
    return files[0] == files[1] and all((a / f).read_bytes() == (b / f).read_bytes() for f in files[0])

def reference(bb, x, layer, k, q, size=None, unit=None, mode="bilinear"):
    "Store every activation, then sort."
    f = bb.features(bb.normalise(x), layer)[layer]
    z = f.x if unit is None else unit(f)
    top, out = z.amax(1).numpy(), {}
    out["ids"] = np.array([sorted(range(len(x)), key=lambda i: (-top[i, u], i))[:k] for u in range(z.shape[2])])
    out["values"] = np.array([top[ids, u] for u, ids in enumerate(out["ids"])])
    out["thresholds"] = np.quantile(z.flatten(0, 1).numpy(), q, axis=0).astype(np.float32)
    kw = {} if mode == "nearest" else {"align_corners": False}
    maps = z.mT.unflatten(-1, f.grid)
    up = [F.interpolate(maps[ids, u:u + 1], size or x.shape[2:], mode=mode, **kw).numpy() for u, ids in enumerate(out["ids"])]
    out["masks"] = (np.array(up) > out["thresholds"][:, None, None, None, None]).astype(np.uint8)
    out["images"] = x[out["ids"]]
    return out


# against a reference that stores everything

@pytest.mark.parametrize("k,q,batch,mode", [(4, .99, 7, "bilinear"), (1, .5, 40, "nearest"), (15, .9, 1, "bicubic"), (40, .99, 64, "bilinear")])
def test_equals_brute_force(tmp_path, k, q, batch, mode):
    bb, x = encoder(), pictures()
    out = run(bb, pairs(x), "a,b", tmp_path / "o", k=k, quantile=q, batch=batch, upsample=mode)
    assert out == tmp_path / "o" and sorted(p.name for p in out.iterdir()) == ["a", "b", "exemplars.json", "images.csv"]
    for layer in "ab":
        got, want = read(out, layer), reference(bb, x, layer, k, q, mode=mode)
        for n, v in want.items():
            if n == "masks": v = v * (np.arange(6) != 5)[:, None, None, None, None] # channel 5 is dead
            assert np.array_equal(got[n], v), (layer, n)
        assert got["images"].dtype == got["masks"].dtype == np.uint8 and got["images"].shape == (6, k, 3, 16, 24) and got["masks"].shape == (6, k, 1, 16, 24)
        assert got["units"].tolist() == list(range(6)) and about(out)["layers"][layer]["rank_error"] == 0
    assert about(out)["images"] == 40 and about(out)["skipped"]["count"] == 0

@pytest.mark.parametrize("spec,kw,size,layers", [("timm/resnet10t@random", {}, 64, ["layer2", "layer3"]), ("timm/convnext_atto@random", {}, 64, ["stages.1"]),
                                                 ("timm/vit_tiny_patch16_224@random", {"img_size": 48, "depth": 2}, 48, ["blocks.1", "blocks.0.mlp.fc1"])])
def test_families(tmp_path, spec, kw, size, layers):
    "Convnets, channels last, and ViT tokens, of which the class token does not count."
    bb, x = load(spec, **kw), pictures(12, (size, size))
    out = run(bb, pairs(x), layers, tmp_path / "o", k=3, quantile=.9, batch=12)
    for n in layers:
        got, want, grid = read(out, n), reference(bb, x, n, 3, .9), about(out)["layers"][n]["grid"]
        for k, v in want.items(): assert np.array_equal(got[k], v), (n, k)
        assert grid == list(bb.features(bb.normalise(x[:1]), n)[n].grid) and grid[0] * grid[1] > 1

def test_written_images_give_the_written_values(tmp_path):
    bb = load("zoo/convnet")
    rng = np.random.default_rng(1)
    ims = [(f"p{i}", Image.fromarray(rng.integers(0, 256, (rng.integers(60, 130), rng.integers(60, 130), 3), np.uint8))) for i in range(10)] # of all shapes
    out = run(bb, ims, "layer4", tmp_path / "o", k=3, size=None)
    got = read(out, "layer4")
    for u in (0, 77):
        z = bb.features(bb.normalise(got["images"][u]), "layer4")["layer4"].x[..., u].amax(1)
        assert np.allclose(z, got["values"][u], atol=1e-5)
        seen = bb.normalise(got["images"][u][:1])[0]
        assert torch.allclose(seen, bb.transform(ims[got["ids"][u, 0]][1]), atol=1e-5) # cropped as the encoder crops

def test_size_resizes_pictures_and_masks(tmp_path):
    bb, x = encoder(), pictures(9)
    out = run(bb, pairs(x), "b", tmp_path / "o", size=(32, 48), quantile=.8)
    got, want = read(out, "b"), reference(bb, x, "b", 4, .8, size=(32, 48))
    assert got["images"].shape == (6, 4, 3, 32, 48) and np.array_equal(got["masks"][:5], want["masks"][:5])
    big = F.interpolate(torch.from_numpy(want["images"][0]).float(), (32, 48), mode="bicubic", antialias=True).round().clamp(0, 255)
    assert np.array_equal(got["images"][0], big.to(torch.uint8))


# units

def test_a_channel_equals_a_column_of_the_identity(tmp_path):
    bb, x, eye = encoder(), pictures(), torch.eye(6)
    def identity(f): return f.x @ eye
    whole = read(run(bb, pairs(x), "a", tmp_path / "whole"), "a")
    for name, kw in (("some", {"units": [4, 1]}), ("fn", {"unit": identity, "units": {"a": [4, 1]}}), ("all", {"unit": {"a": identity}})):
        got, rows = read(run(bb, pairs(x), "a", tmp_path / name, **kw), "a"), [4, 1] if "units" in kw else range(6)
        assert got["units"].tolist() == list(rows)
        for k in got: assert np.array_equal(got[k], whole[k][list(rows)]), (name, k)

def test_directions_and_latents(tmp_path):
    bb, x, w = encoder(), pictures(), torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).sign() # sums of six: exact enough to compare
    def latents(f): return (f.x @ w).relu()
    out = run(bb, pairs(x), "b", tmp_path / "o", unit=latents, batch=40)
    want = reference(bb, x, "b", 4, .99, unit=latents)
    for k, v in want.items(): assert np.array_equal(read(out, "b")[k], v), k

def test_dead_units_are_listed_and_written(tmp_path):
    out = run(encoder(), pairs(pictures()), "a,b", tmp_path / "o")
    got = read(out, "a")
    assert about(out)["layers"]["a"]["dead"] == [{"unit": 5, "reason": "its activation is -0 in every cell of every image"}] or \
           about(out)["layers"]["a"]["dead"] == [{"unit": 5, "reason": "its activation is 0 in every cell of every image"}]
    assert not got["masks"][5].any() and got["ids"][5].tolist() == [0, 1, 2, 3] and got["images"][5].any()
    assert about(out)["layers"]["a"]["empty_masks"] == (~got["masks"].any((2, 3, 4))).sum() >= 4


# what must not matter

@pytest.mark.parametrize("kw", [{"batch": 1}, {"batch": 40}, {"workers": 0}, {"every": 1}, {"world": 2}, {"world": 3}])
@pytest.mark.parametrize("memory", [1024, .035]) # exact, and a sample
def test_batches_threads_and_processes_do_not_matter(tmp_path, kw, memory):
    bb, x = encoder(), pictures(120)
    a = run(bb, pairs(x), "a", tmp_path / "a", memory=memory)
    for r in range(kw.get("world", 1)): b = run(bb, pairs(x), "a", tmp_path / "b", memory=memory, **kw, **({"rank": r} if "world" in kw else {}))
    if "world" in kw: assert b == tmp_path / f"b/parts/{r:04d}-of-{r + 1:04d}" and merge(tmp_path / "b") == tmp_path / "b"
    assert same(a, tmp_path / "b") and (about(a)["layers"]["a"]["kept"] < 120 * 24) == (memory < 1)

def test_the_order_of_images_moves_the_ids_alone(tmp_path):
    bb, far = encoder(), np.arange(30, dtype=np.uint8)[:, None, None, None]
    x = np.clip(pictures(30, seed=4), 2 + far, 250 - far) # another least and greatest value in each: no ties
    order = np.random.default_rng(0).permutation(30)
    a, b = (read(run(bb, pairs(v), "b", tmp_path / n, units=range(4)), "b") for n, v in (("a", x), ("b", x[order])))
    assert np.array_equal(a["ids"], order[b["ids"]])
    for k in ("values", "thresholds", "images", "masks"): assert np.array_equal(a[k], b[k])

def test_more_processes_than_images_or_blocks(tmp_path):
    bb, x = encoder(), pictures(5)
    for r in range(7): run(bb, pairs(x), "b", tmp_path / "b", world=7, rank=r)
    assert same(merge(tmp_path / "b"), run(bb, pairs(x), "b", tmp_path / "a"))


# the sample of cells

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 3))
def test_the_sample_is_the_least_of_all(most, room, sizes, seed):
    rng = np.random.default_rng(seed)
    rows, priority = rng.random((sum(sizes), 2), np.float32), rng.permutation(10_000)[:sum(sizes)].astype(np.uint64)
    c, start = Cells(2, most, room), 0
    for n in sizes:
        c.add(torch.from_numpy(rows[start:start + n])[:, None], priority[start:start + n, None]); start += n
    c.cut()
    keep = np.sort(np.argsort(priority)[:most])
    assert sorted(map(tuple, c.rows[:c.n])) == sorted(map(tuple, rows[keep])) and sorted(c.priority[:c.n]) == sorted(priority[keep])
    at = rng.permutation(len(rows))[:len(rows) // 2]
    rest = np.setdiff1d(np.arange(len(rows)), at)
    both = np.concatenate(parts_module.merged([priority[at], priority[rest]], [rows[at], rows[rest]], most))
    assert sorted(map(tuple, both)) == sorted(map(tuple, rows[keep]))

@pytest.mark.parametrize("quantile", [.99, .9])
def test_thresholds_stay_within_the_stated_bound(quantile):
    "Also where cells of an image are alike, and where most are zero."
    g = np.random.default_rng(0)
    act = (g.normal(size=(3000, 1, 10)) + .1 * g.normal(size=(3000, 16, 10))).astype(np.float32)
    act[..., 5:] = np.maximum(act[..., 5:] - 2, 0)
    for seed in range(5):
        c = Cells(10, 4000, 500)
        for a in range(0, 3000, 500): c.add(torch.from_numpy(act[a:a + 500]), priorities(seed, np.arange(a, a + 500), 16))
        c.cut()
        t, e = thresholds([c.rows[:c.n]], quantile), rank_error(c.n, 48_000, quantile, 10)
        over, from_there = ((act > t).mean((0, 1)), (act >= t).mean((0, 1)))
        assert .001 < e < .05 and (over <= 1 - quantile + e).all() and (from_there >= 1 - quantile - e).all()

def test_the_bound_shrinks_with_the_sample_and_ends_at_zero():
    e = [rank_error(m, 10**6, .99, 100) for m in (1000, 10_000, 100_000, 10**6)]
    assert e == sorted(e, reverse=True) and e[-1] == 0 and e[2] < .002

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 5000)), min_size=1, max_size=5), st.floats(.01, 20))
def test_the_memory_is_shared_without_waste(layers, memory):
    widths, cells = ({str(i): v[j] for i, v in enumerate(layers)} for j in (0, 1))
    most, limit = budget(memory, widths, cells), memory * 2**20 / 4.5
    used = sum(most[n] * w for n, w in widths.items())
    assert used <= limit and all(most[n] <= cells[n] for n in widths)
    if used < min(limit, sum(w * cells[n] for n, w in widths.items())) - sum(widths.values()): raise AssertionError("memory is left, and cells too")
    cut = [most[n] for n in widths if most[n] < cells[n]]
    assert not cut or max(most.values()) - min(cut) <= sum(widths.values()) # those that are cut keep the most, up to rounding

def test_priorities_are_uniform_and_belong_to_the_cell():
    p = priorities(3, np.arange(2000), 50)
    assert np.array_equal(priorities(3, np.arange(1500, 1600), 50), p[1500:1600]) and not np.array_equal(priorities(4, np.arange(2000), 50), p)
    u = p / 2.**64
    assert abs(u.mean() - .5) < .005 and np.abs(np.histogram(u, 20)[0] / u.size - .05).max() < .004 and len(np.unique(p)) == p.size
    assert np.abs(u.mean(0) - .5).max() < .04 and abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < .08 # no cell and no image is preferred

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=25), st.integers(1, 6), st.integers(1, 7), st.randoms())
def test_tops_are_a_stable_sort_in_any_order(rows, k, batch, random):
    "With many ties, and images that come in any order."
    act = torch.tensor(rows, dtype=torch.float32)[:, None] # (n, 1, 3)
    act = torch.cat([act, act - 1], 1)
    order = list(range(len(rows))); random.shuffle(order)
    t = Tops((1, 2), 3, k, 1000, 10)
    for a in range(0, len(order), batch):
        at = np.array(order[a:a + batch])
        t.add(act[at], at, priorities(0, at, 2))
    for u in range(3):
        want = sorted(range(len(rows)), key=lambda i: (-rows[i][u], i))[:k]
        assert t.keys[u, :len(want)].tolist() == want and t.values[u, :len(want)].tolist() == [rows[i][u] for i in want]
        assert np.array_equal(t.maps[u, t.slot[u, :len(want)]], act[want, :, u]) and sorted(t.slot[u]) == list(range(k))
    at = best(t.values, t.keys, k)
    assert np.array_equal(at, np.tile(np.arange(k), (3, 1)))


# sources

def png(x): Image.fromarray(x.transpose(1, 2, 0)).save(b := io.BytesIO(), "PNG"); return b.getvalue()

def shards(folder, x, sizes, bad=()):
    start = 0
    folder.mkdir()
    for j, n in enumerate(sizes):
        with tarfile.open(folder / f"{j:03d}.tar", "w") as tar:
            for i in range(start, start + n):
                data = b"no image" if i in bad else png(x[i])
                for ext, d in (("png", data), ("txt", b"words")):
                    info = tarfile.TarInfo(f"k{i:03d}.{ext}"); info.size = len(d); tar.addfile(info, io.BytesIO(d))
        start += n
    return str(folder / f"{{000..{len(sizes) - 1:03d}}}.tar")

@pytest.mark.parametrize("world", [1, 2, 5])
def test_damaged_images_are_skipped_counted_and_keep_their_index(tmp_path, world):
    bb, x, bad = encoder(), pictures(30), (0, 8, 19, 29)
    source, skipped = shards(tmp_path / "s", x, [9, 10, 11], bad), Skipped()
    for r in range(world): run(bb, source, "b", tmp_path / "o", rank=r, world=world, skipped=skipped)
    out = merge(tmp_path / "o")
    good = np.array([i for i in range(30) if i not in bad])
    want, told = reference(bb, x[good], "b", 4, .99), about(out)
    assert np.array_equal(read(out, "b")["ids"], good[want["ids"]]) and np.array_equal(read(out, "b")["images"], want["images"])
    assert told["images"] == 26 and told["skipped"]["count"] == 4 == len(skipped) and ["k008"] == [i for i, r in told["skipped"]["items"] if "008" in i]
    named = dict(line.split(",") for line in (out / "images.csv").read_text().splitlines()[1:])
    assert all(named[str(i)] == f"k{i:03d}" for i in read(out, "b")["ids"].ravel())

def test_every_form_of_source_gives_the_same(tmp_path):
    bb, x = encoder(), pictures(12)
    folder = tmp_path / "f"
    folder.mkdir()
    for i, v in enumerate(x): (folder / f"{i:02d}.png").write_bytes(png(v))
    ims = [Image.fromarray(v.transpose(1, 2, 0)) for v in x]
    class Set(torch.utils.data.Dataset): # as torchvision's: (image, label)
        def __len__(self): return 12
        def __getitem__(self, i): return ims[i], i % 3
    forms = {"folder": folder, "files": sorted(folder.iterdir()), "pairs": pairs(x), "arrays": x, "tensor": torch.from_numpy(x), "pil": ims, "set": Set(),
             "stream": iter(pairs(x)), "paths": [(p.stem, p) for p in sorted(folder.iterdir())], "bytes": [("a", png(v)) for v in x], "mapping": dict(pairs(x)),
             "tars": shards(tmp_path / "s", x, [5, 7])}
    got = {n: read(run(bb, s, "b", tmp_path / n), "b") for n, s in forms.items()}
    for n in got:
        for k, v in got["pairs"].items(): assert np.array_equal(got[n][k], v), (n, k)

def test_drawn_scenes_are_a_source(tmp_path):
    from vlnotes import docmnist
    bb, s = load("zoo/convnet"), docmnist.generate(9, regions=1, seed=1)
    a, b = (run(bb, v, "layer4", tmp_path / n, source="s", units=[3]) for n, v in (("a", s), ("b", list(zip(s.ids, s.pixels())))))
    assert same(a, b) and "train-00000" in (a / "images.csv").read_text()

def test_pictures_on_disk_are_bounded(tmp_path):
    "Places of images that fell out of every list are used again."
    most, put = [], parts_module.Pool.put
    class Spy(parts_module.Pool):
        def put(self, *a): put(self, *a); most.append(self.end)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(parts_module, "Pool", Spy)
        x = np.sort(np.random.default_rng(0).integers(0, 256, (300, 1), np.uint8), 0)[..., None, None] * np.ones((1, 3, 16, 24), np.uint8) # each beats those before
        run(encoder(), list(x), "b", tmp_path / "o", units=[0], batch=5, every=2)
    assert most[-1] <= 4 + 2 * 10 # the list, and what two saved states may differ by


# interruption

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from test_exemplars import encoder, pictures, pairs, run
def some():
    for k, s in enumerate(pairs(pictures(120))):
        if k == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
        yield s
run(encoder(), some(), "a,b", sys.argv[1], source="s", every=2, memory=.07, workers=0)
"""

def test_killed_and_resumed_equals_never_killed(tmp_path):
    bb, x = encoder(), pairs(pictures(120))
    whole = run(bb, iter(x), "a,b", tmp_path / "whole", source="s", every=2, memory=.07)
    p = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cut", "90", os.path.dirname(__file__)], capture_output=True, text=True)
    assert p.returncode == -signal.SIGKILL, p.stderr
    told, _ = parts_module.state(tmp_path / "cut/parts/0000-of-0001")
    assert told["images"] == 84 and not told["done"] # twelve batches of seven; the pictures of later ones lie beside them
    drawn = []
    def rest():
        for s in x: drawn.append(s[0]); yield s
    out = run(bb, rest(), "a,b", tmp_path / "cut", source="s", every=2, memory=.07)
    assert same(whole, out) and len(drawn) == 120 and not list(out.glob(".*"))

@pytest.mark.parametrize("stop", range(0, 41, 4))
def test_interrupted_anywhere(tmp_path, stop):
    bb, x = encoder(), pairs(pictures())
    def cut():
        yield from x[:stop]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(bb, cut(), "b", tmp_path / "cut", source="s", every=1, batch=3)
    assert same(run(bb, iter(x), "b", tmp_path / "cut", source="s", every=1, batch=3), run(bb, x, "b", tmp_path / "whole", source="s", batch=3))

@pytest.mark.parametrize("which", [1, 3])
def test_interrupted_while_saving(tmp_path, monkeypatch, which):
    bb, x, savez, n = encoder(), pairs(pictures()), np.savez, []
    def cut(f, **arrays):
        n.append(f.write(b"half a file"))
        if len(n) == which: raise KeyboardInterrupt
        f.seek(0); savez(f, **arrays)
    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt): run(bb, x, "b", tmp_path / "cut", every=2, batch=3)
    monkeypatch.undo()
    assert same(run(bb, x, "b", tmp_path / "cut", every=2, batch=3), run(bb, x, "b", tmp_path / "whole", batch=3))

def test_interrupted_with_damaged_images_and_shards(tmp_path, monkeypatch):
    bb, x = encoder(), pictures(30)
    source = shards(tmp_path / "s", x, [9, 10, 11], (0, 8, 19, 29))
    whole, add, n = run(bb, source, "b", tmp_path / "whole", batch=3), Part.add, []
    def failing(self, *a):
        n.append(1)
        if len(n) == 6: raise KeyboardInterrupt
        add(self, *a)
    monkeypatch.setattr(Part, "add", failing)
    with pytest.raises(KeyboardInterrupt): run(bb, source, "b", tmp_path / "cut", batch=3, every=2)
    skipped = Skipped()
    assert same(whole, run(bb, source, "b", tmp_path / "cut", batch=3, every=2, skipped=skipped)) and len(skipped) == 4

def test_an_interrupted_merge_is_done_again(tmp_path, monkeypatch):
    bb, x, write = encoder(), pairs(pictures()), parts_module.write
    whole = run(bb, x, "a,b", tmp_path / "whole")
    def killed(out, name, *a):
        if name == "b":
            (out / ".0badbeef-b").mkdir() # what a kill leaves behind
            raise KeyboardInterrupt
        return write(out, name, *a)
    monkeypatch.setattr(parts_module, "write", killed)
    with pytest.raises(KeyboardInterrupt): run(bb, x, "a,b", tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut/a").exists() and not (tmp_path / "cut/exemplars.json").exists()
    def none(): raise AssertionError("an image was read"); yield
    monkeypatch.setattr("vlnotes.exemplars._read", lambda *a: none())
    assert same(whole, run(bb, x, "a,b", tmp_path / "cut"))

def test_the_second_time_nothing_is_read(tmp_path):
    bb, x = encoder(), pairs(pictures())
    out = run(bb, x, "b", tmp_path / "o", source="s")
    def none(): raise AssertionError("an image was read"); yield
    assert run(bb, none(), "b", tmp_path / "o", source="s") == out == merge(out)

def test_other_work_in_the_folder_is_refused(tmp_path):
    bb, x = encoder(), pairs(pictures())
    run(bb, x, "b", tmp_path / "o")
    with pytest.raises(FileExistsError, match="made with k 4, not 5"): run(bb, x, "b", tmp_path / "o", k=5)
    run(bb, x, "b", tmp_path / "p", world=2)
    with pytest.raises(FileExistsError, match="another number of processes than 1"): run(bb, x, "b", tmp_path / "p")
    with pytest.raises(FileExistsError, match="begun with seed 0, not 1"): run(bb, x, "b", tmp_path / "p", world=2, seed=1)
    (tmp_path / "q/b").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="q/b exists already"): run(bb, x, "b", tmp_path / "q")

@pytest.mark.parametrize("change", ["order", "image", "unit", "fewer"])
def test_another_set_cannot_take_up_a_share(tmp_path, change):
    bb, x = encoder(), pairs(pictures())
    def unit(f): return f.x
    def stop(): yield from x[:20]; raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(bb, stop(), "b", tmp_path / "o", source="s", every=1, unit=unit, workers=0)
    if change == "order": y = x[::-1]
    elif change == "image": y = pairs(pictures(seed=1))
    elif change == "fewer": y = x[:5]
    else: y = x
    def other(f): return f.x * 2
    other.__name__ = "unit"
    with pytest.raises(ValueError, match="was begun with other images or units: image 'i13'"):
        run(bb, iter(y), "b", tmp_path / "o", source="s", every=1, unit=other if change == "unit" else unit)

def test_parts_that_do_not_fit(tmp_path):
    bb, x = encoder(), pairs(pictures())
    with pytest.raises(FileNotFoundError, match="run `exemplars` first"): merge(tmp_path)
    run(bb, x, "b", tmp_path / "o", world=2)
    with pytest.raises(FileNotFoundError, match="0001-of-0002/state.npz"): merge(tmp_path / "o")
    def stop(): yield from x[:20]; raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(bb, stop(), "b", tmp_path / "o", source="40 items", rank=1, world=2, every=1, workers=0)
    with pytest.raises(ValueError, match=r"0001-of-0002 is not finished \(7 images read\)"): merge(tmp_path / "o")
    shutil.rmtree(tmp_path / "o/parts/0001-of-0002")
    run(bb, x, "b", tmp_path / "p", rank=1, world=2, quantile=.5)
    shutil.move(tmp_path / "p/parts/0001-of-0002", tmp_path / "o/parts/0001-of-0002")
    with pytest.raises(ValueError, match="made with quantile 0.5, not 0.99"): merge(tmp_path / "o")
    (tmp_path / "o/parts/0001-of-0002/state.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="state.npz is damaged"): merge(tmp_path / "o")

def test_step_is_one_share(tmp_path, monkeypatch):
    source = shards(tmp_path / "s", pictures(12, (84, 84)), [5, 7])
    cfg = dict(encoder="zoo/convnet", samples=source, layers="layer4", out=str(tmp_path / "o"), k=2, units=[0, 1], progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for r in "01": monkeypatch.setenv("RANK", r); got = step(json.loads(json.dumps(cfg)))
    assert got["folder"].endswith("parts/0001-of-0002")
    a = run(load("zoo/convnet"), source, "layer4", tmp_path / "a", k=2, units=[0, 1])
    assert np.array_equal(read(merge(tmp_path / "o"), "layer4")["ids"], read(a, "layer4")["ids"])


# bad input

@pytest.mark.parametrize("kw,words", [
    ({"layers": "c"}, "layer 'c' of net gives one vector per image"), ({"layers": "bb"}, "no layer 'bb'"), ({"units": [6]}, "channels 0 to 5, not 6"),
    ({"units": []}, "at least one"), ({"units": [1, 1]}, "each number once"), ({"units": {"x": [1]}}, "no layer among those asked for 'x'"),
    ({"unit": lambda f: f.mean()}, r"\(7, 6\): \(7, 24\) \+ \(K,\)"), ({"unit": lambda f: f.x, "units": [9]}, "outputs 0 to 5, not 9"),
    ({"quantile": 1}, "between 0 and 1"), ({"k": 0}, "k=0"), ({"upsample": "cubic"}, "not 'cubic'"), ({"rank": 2, "world": 2}, "outside a world of 2"),
    ({"memory": .001}, "too few for a 0.99 quantile"), ({"k": 41}, "41 exemplars .* there are 40 images: give k=40 or fewer"), ({"root": "x"}, "root= is for files")])
def test_bad_arguments_are_one_sentence(tmp_path, kw, words):
    kw = {"layers": "a"} | kw
    with pytest.raises(ValueError, match=words) as e: run(encoder(), pairs(pictures()), kw.pop("layers"), tmp_path / "o", **kw)
    assert "\n" not in str(e.value)

def test_too_few_readable_images(tmp_path):
    bb, x = encoder(), pairs(pictures(6))
    bad = [(n, b"" if i in (1, 2, 4) else png(v)) for i, (n, v) in enumerate(x)]
    with pytest.raises(ValueError, match="there are 3 images: give k=3 or fewer, or more images \\(3 could not be read; the first: i1: it is empty"):
        run(bb, iter(bad), "b", tmp_path / "o")
    assert about(run(bb, iter(bad), "b", tmp_path / "o", k=3))["images"] == 3 # the folder is free for another try
    with pytest.raises(ValueError, match="there are 0 images"): run(bb, iter([]), "b", tmp_path / "p")

def test_activations_that_are_not_finite(tmp_path):
    bb, x = encoder(), pictures(20)
    top = bb.features(bb.normalise(x), "a")["a"].x[..., 4].amax(1)
    for name, value in (("nan", torch.nan), ("inf", torch.inf), ("minus", -torch.inf)):
        def broken(f): return torch.where((f.x >= top.max()) & (torch.arange(6) == 4), value, f.x)
        with pytest.raises(ValueError, match=rf"image 'i{top.argmax()}' gives layer 'a' a value that is not finite \(unit 4\)"):
            run(bb, pairs(x), "a", tmp_path / name, unit=broken, units=[0, 4])

@pytest.mark.parametrize("image,words", [(np.zeros((3, 16, 24), np.float32), "is torch.float32 of shape"),
                                         (np.zeros((16, 24, 3), np.uint8), "give a PIL image"), (None, "is NoneType")])
def test_pixels_of_another_kind(tmp_path, image, words):
    with pytest.raises(ValueError, match=words): run(encoder(), [("x", image)] * 9, "a", tmp_path / "o")

def test_pictures_of_several_sizes(tmp_path):
    with pytest.raises(ValueError, match="image 'y' reaches the encoder as 8x24, those before as 16x24"):
        run(encoder(), [("x", np.zeros((3, 16, 24), np.uint8))] * 8 + [("y", np.zeros((3, 8, 24), np.uint8))], "a", tmp_path / "o")

def test_a_transform_that_cannot_be_undone():
    bb = encoder()
    bb.mean = (0., 0., 0.)
    with pytest.raises(ValueError, match="image 'x' is off by .* grey levels"): as_seen(bb, Image.new("RGB", (24, 16)), "x")

def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    bb, x = encoder(), pairs(pictures())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=1000))
    with pytest.raises(OSError, match="the exemplars of 6 units take 0.0 GiB"): run(bb, x, "b", tmp_path / "o")
    monkeypatch.undo()
    add, n = parts_module.Appender.add, []
    def full(self, rows):
        n.append(1)
        if len(n) > 5: raise OSError(28, "No space left on device")
        add(self, rows)
    monkeypatch.setattr(parts_module.Appender, "add", full)
    with pytest.raises(OSError, match="the disk is full"): run(bb, x, "b", tmp_path / "o")
    monkeypatch.undo()
    assert same(run(bb, x, "b", tmp_path / "o"), run(bb, x, "b", tmp_path / "p"))


# who reads them

def test_the_layout_is_that_of_milannotations(tmp_path):
    from vlnotes.devil import milan
    out = run(encoder(), pairs(pictures()), "a,b", tmp_path / "net/noise", units=[4, 2])
    u = milan.open_units(tmp_path, ["net/noise"])
    got = read(out, "a")
    assert len(u) == 4 and u.unit == [4, 2, 4, 2] and u.layer == ["a", "a", "b", "b"]
    images, masks = u.read(1)
    assert np.array_equal(images, got["images"][1]) and np.array_equal(masks, got["masks"][1])

def test_strip_gives_the_axis_back(tmp_path):
    from matplotlib.figure import Figure
    ax = Figure().add_subplot()
    rng = np.random.default_rng(0)
    for masks in (rng.integers(0, 2, (3, 1, 8, 6), np.uint8), np.zeros((3, 1, 8, 6), np.uint8), np.ones((3, 1, 8, 6), np.uint8)):
        assert strip(ax, rng.integers(0, 256, (3, 3, 8, 6), np.uint8), masks, "unit 3") is ax
        assert ax.images[-1].get_array().shape == (8, 3 * 6 + 2 * 4, 3)
