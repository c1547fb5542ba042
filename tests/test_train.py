import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from train_toys import Net, Points

from vlnotes import train
from vlnotes.train import FitConfig, Order, fit, groups, load_checkpoint, rate, read_checkpoint, rehearse, rng_for, save_checkpoint, trained_state

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])}
CFG = dict(steps=12, bs=8, lr=.03, warmup=2, decay=.01, clip=1., save_every=3, log_every=2)


def run(out=None, net=None, data=None, **cfg):
    net, data = net or Net(), Points() if data is None else data
    return fit(net, data, FitConfig(**{**CFG, **cfg}), out, device="cpu", progress=False), net, data

def same(a, b): return all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items())

def close(a, b, **k): return all(torch.allclose(v, b.state_dict()[n], **k) for n, v in a.state_dict().items())

def told(folder): # the log without its times
    return [{k: v for k, v in json.loads(l).items() if k != "seconds"} for l in (Path(folder)/"log.jsonl").read_text().splitlines()]

class Once:
    "Points that raise at one batch, once."
    def __init__(self, at, error, **k): self.points, self.at, self.error, self.count = Points(**k), at, error, 0
    def __len__(self): return len(self.points)
    def batch(self, ids, rng):
        self.count += 1
        if self.count == self.at: raise self.error
        return self.points.batch(ids, rng)


# ---- settings and schedules

@pytest.mark.parametrize("bad, says", [
    (dict(schedule="cosin"), "cosine"), (dict(precision="fp16"), "bf16"), (dict(steps=0), "steps"), (dict(bs=0), "bs"),
    (dict(accumulate=3), "accumulate=3"), (dict(accumulate=0), "accumulate=0"), (dict(save_every=0), "save_every"), (dict(log_every=0), "log_every")])
def test_bad_settings_are_refused(bad, says):
    with pytest.raises(ValueError, match=says) as e: FitConfig(**{"bs": 8, **bad})
    assert "\n" not in str(e.value)

def test_published_schedule():
    cfg = FitConfig(steps=1_000_000, warmup=5000, lr=1e-4, min_lr=1e-6)
    assert rate(0, cfg) == 0 and rate(5000, cfg) == pytest.approx(1e-4) and rate(2500, cfg) == pytest.approx(5e-5)
    assert rate(990_000, cfg) > 1e-6 and rate(990_051, cfg) == 1e-6 == rate(999_999, cfg)
    assert rate(502_500, cfg) == pytest.approx(5e-5)

def test_other_schedules():
    cos = FitConfig(steps=110, warmup=10, schedule="cosine", lr=1., min_lr=.1)
    assert rate(10, cos) == pytest.approx(1) and rate(60, cos) == pytest.approx(.55) and rate(110, cos) == pytest.approx(.1)
    assert all(rate(s, cos) >= rate(s + 1, cos) for s in range(10, 110))
    flat = FitConfig(steps=10, warmup=4, schedule="constant", lr=2.)
    assert [rate(s, flat) for s in (0, 2, 4, 9)] == [0, 1, 2, 2]

def test_rates_are_logged_and_applied(tmp_path):
    _, net, _ = run(tmp_path, steps=1, save_every=1)
    assert same(net, Net()), "the first update of a warm-up has rate 0"
    lines = (run(tmp_path/"b")[0], told(tmp_path/"b"))[1]
    assert [l["step"] for l in lines] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [l["lr"] for l in lines] == [rate(l["step"] - 1, FitConfig(**CFG)) for l in lines]


# ---- order and generators

def test_each_epoch_visits_every_item_once():
    cfg = FitConfig(bs=7, steps=40)
    seen = np.concatenate([i for *_, i in Order(20, cfg)])
    for e in range(len(seen) // 20): assert sorted(seen[e * 20:(e + 1) * 20]) == list(range(20))
    assert list(seen[:20]) != list(seen[20:40])

def test_order_depends_on_seed_and_step_alone():
    cfg = FitConfig(bs=6, accumulate=2, steps=9)
    whole = [(s, p, tuple(i)) for s, p, _, i in Order(50, cfg)]
    assert [(s, p, tuple(i)) for s, p, _, i in Order(50, cfg, start=4)] == whole[8:] and len(Order(50, cfg, start=4)) == 10
    assert whole != [(s, p, tuple(i)) for s, p, _, i in Order(50, FitConfig(bs=6, accumulate=2, steps=9, seed=1))]
    pair = [[i for *_, i in Order(50, FitConfig(bs=3, steps=9), rank=r, world=2)] for r in (0, 1)]
    one = [i for *_, i in Order(50, FitConfig(bs=6, steps=9))]
    assert all(np.array_equal(np.concatenate([a, b]), c) for a, b, c in zip(*pair, one))

def test_a_stream_is_read_in_order():
    assert [list(i) for *_, i in Order(10**9, FitConfig(bs=3, steps=2, shuffle=False))] == [[0, 1, 2], [3, 4, 5]]
    assert list(next(iter(Order(4, FitConfig(bs=3, steps=3, shuffle=False), start=1)))[3]) == [3, 0, 1]

def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="nothing to train on"): run(data=Points(n=0))

def test_streams_of_generators_differ():
    draws = [torch.rand(4, generator=rng_for(*k)) for k in [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (2, 0, 0)]]
    assert all(not a.equal(b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.rand(4, generator=rng_for(0, 1, 1)).equal(draws[2])

def test_no_global_random_state_is_read_or_changed(tmp_path):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    _, a, _ = run(tmp_path)
    assert torch.get_rng_state().equal(before[0]) and (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    torch.manual_seed(6), np.random.seed(6), random.seed(6)
    assert same(a, run()[1])


# ---- one update

def test_frozen_parts_and_decay_groups():
    net = Net()
    wd, plain = groups(net, .3)
    ids = lambda g: {id(p) for p in g["params"]}
    assert ids(wd) == {id(net.a.weight), id(net.b.weight)} and wd["weight_decay"] == .3
    assert ids(plain) == {id(net.a.bias), id(net.b.bias), id(net.norm.weight), id(net.norm.bias)} and plain["weight_decay"] == 0
    _, after, _ = run(net=Net())
    assert after.frozen.weight.equal(net.frozen.weight) and not after.a.weight.equal(net.a.weight) and not after.training
    assert not any(k.startswith("frozen") for k in trained_state(after))
    with pytest.raises(ValueError, match="nothing to train"): groups(Net().requires_grad_(False), 0.)

def test_tied_frozen_weights_stay_out_of_checkpoints():
    net = Net()
    net.again = nn.Linear(5, 3)
    net.again.weight = net.frozen.weight
    net.again.bias.requires_grad_(False)
    assert set(trained_state(net)) == {k for k in net.state_dict() if k.startswith(("a.", "b.", "norm."))}

class Counted(nn.Module):
    "A count that differs from item to item, as tokens do."
    def __init__(self, scale=1.):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.zeros(6)), scale
    def forward(self, batch, rng):
        x, y = batch
        n = 1 + (x[:, 1] > 0).long() * 3
        return self.scale * (n * (x @ self.w - y) ** 2).sum(), n.sum()

def test_the_mean_is_over_all_counts_of_an_update():
    data, cfg = Points(noise=0), dict(steps=1, warmup=0, decay=0., clip=None, lr=1e-2)
    seen = {}
    class Watch(Counted):
        def __init__(self): super().__init__(); self.w.register_post_accumulate_grad_hook(lambda p: seen.update(g=p.grad.clone()))
    run(net=Watch(), data=data, accumulate=1, **cfg)
    x, y = data.x[data.seen[0]], data.y[data.seen[0]]
    n = 1 + (x[:, 1] > 0).float() * 3
    w = torch.zeros(6, requires_grad=True)
    ((n * (x @ w - y) ** 2).sum() / n.sum()).backward()
    assert torch.allclose(seen["g"] / n.sum(), w.grad)
    sgd = []
    for k in (1, 2, 4, 8): sgd.append(run(net=Counted(), data=Points(noise=0), accumulate=k, **{**cfg, "steps": 5})[1].w)
    assert all(torch.allclose(a, sgd[0], atol=1e-7) for a in sgd) and sgd[0].abs().sum() > 0
    assert torch.allclose(run(net=Counted(8.), data=Points(noise=0), **{**cfg, "steps": 5})[1].w, sgd[0], atol=1e-4), "AdamW is free of scale"

def test_clip_bounds_the_gradient_that_the_optimiser_sees(monkeypatch):
    norms, real = [], torch.optim.AdamW.step
    def spy(self, *a, **k):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"])))
        return real(self, *a, **k)
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(net=Counted(100.), clip=.5), run(net=Counted(100.), clip=None)
    assert norms[:12] == pytest.approx([.5] * 12, rel=1e-4) and max(norms[12:]) > 5

def test_bf16_switch_runs_and_is_another_arithmetic():
    class Watch(Net):
        kinds = set()
        def forward(self, batch, rng): self.kinds.add(self.a(batch[0]).dtype); return super().forward(batch, rng)
    net = run(net=Watch(), precision="bf16")[1]
    assert Watch.kinds == {torch.bfloat16} and net.a.weight.dtype == torch.float32
    assert not same(net, run(net=Watch())[1]) and Watch.kinds == {torch.bfloat16, torch.float32}, "a later run does not inherit the precision"

def test_loader_processes_change_nothing(tmp_path):
    a, b = run(tmp_path/"a", steps=4, accumulate=2)[1], run(tmp_path/"b", steps=4, accumulate=2, workers=1)[1]
    assert same(a, b) and told(tmp_path/"a") == told(tmp_path/"b")

def test_a_batch_may_be_any_nest():
    class Nested(Net):
        def forward(self, batch, rng): return super().forward((batch["x"][0], batch["x"][1]), rng)
    class Data(Points):
        def batch(self, ids, rng):
            x, y = super().batch(ids, rng)
            return {"x": [x, y], "names": "abc", "none": None}
    assert same(run(net=Nested(), data=Data(), steps=2)[1], run(steps=2)[1])


# ---- stopping and going on

def test_a_run_in_two_halves_is_the_run_in_one(tmp_path):
    result, whole, _ = run(tmp_path/"whole")
    assert result["steps"] == 12 and result["world"] == 1 and math.isfinite(result["loss"])
    with pytest.raises(RuntimeError): run(tmp_path/"halves", data=Once(9, RuntimeError("stop")))
    assert read_checkpoint(tmp_path/"halves/checkpoint.safetensors")[0]["step"] == 6
    _, net, data = run(tmp_path/"halves")
    assert same(net, whole) and len(data.seen) == 6 and told(tmp_path/"halves") == told(tmp_path/"whole")

def test_a_finished_run_is_not_run_again(tmp_path):
    first, net, _ = run(tmp_path)
    again, other, data = run(tmp_path)
    assert same(net, other) and not data.seen and again["loss"] == first["loss"] and again["steps"] == 12
    assert len(told(tmp_path)) == 8

def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    run(tmp_path/"a", steps=6, schedule="constant"), run(tmp_path/"a", schedule="constant")
    assert same(run(tmp_path/"a", schedule="constant")[1], run(schedule="constant")[1])

@pytest.mark.parametrize("at", [1, 5, 12])
def test_ctrl_c_while_data_is_read(tmp_path, at):
    with pytest.raises(KeyboardInterrupt): run(tmp_path, data=Once(at, KeyboardInterrupt()))
    assert read_checkpoint(tmp_path/"checkpoint.safetensors")[0]["step"] == at - 1
    _, net, data = run(tmp_path)
    assert same(net, run()[1]) and len(data.seen) == 13 - at

@pytest.mark.parametrize("where", ["forward", "optimiser"])
def test_ctrl_c_waits_for_the_end_of_the_update(tmp_path, monkeypatch, where):
    count, real = [0], torch.optim.AdamW.step
    def strike():
        count[0] += 1
        if count[0] == 5: os.kill(os.getpid(), signal.SIGINT); time.sleep(.01)
    class Struck(Net):
        def forward(self, batch, rng):
            if where == "forward": strike()
            return super().forward(batch, rng)
    def step(self, *a, **k):
        if where == "optimiser": strike()
        return real(self, *a, **k)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    old = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): run(tmp_path, net=Struck())
    assert signal.getsignal(signal.SIGINT) is old
    assert read_checkpoint(tmp_path/"checkpoint.safetensors")[0]["step"] == 5
    assert same(run(tmp_path)[1], run()[1])

def test_a_second_ctrl_c_stops_at_once_and_keeps_the_old_checkpoint(tmp_path):
    class Struck(Net):
        n = 0
        def forward(self, batch, rng):
            self.n += 1
            if self.n == 5:
                for _ in range(2): os.kill(os.getpid(), signal.SIGINT); time.sleep(.01)
            return super().forward(batch, rng)
    with pytest.raises(KeyboardInterrupt): run(tmp_path, net=Struck())
    assert read_checkpoint(tmp_path/"checkpoint.safetensors")[0]["step"] == 3
    assert same(run(tmp_path)[1], run()[1])

def test_training_off_the_main_thread(tmp_path):
    got = []
    t = threading.Thread(target=lambda: got.append(run(tmp_path)[1]))
    t.start(); t.join()
    assert same(got[0], run()[1])

def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path):
    class Sour(Net):
        n, at = 0, 8
        def forward(self, batch, rng):
            loss, count = super().forward(batch, rng)
            self.n += 1
            return (loss * math.nan if self.n == self.at else loss), count
    with pytest.raises(FloatingPointError, match="nan between update 6 and 8.*is intact") as e: run(tmp_path, net=Sour())
    assert "\n" not in str(e.value) and "checkpoint.safetensors" in str(e.value)
    info, tensors = read_checkpoint(tmp_path/"checkpoint.safetensors")
    assert info["step"] == 6 and all(v.isfinite().all() for v in tensors.values())
    assert same(run(tmp_path)[1], run()[1])
    early = Sour(); early.at = 1
    with pytest.raises(FloatingPointError, match="no checkpoint was written yet"): run(tmp_path/"new", net=early)

def test_weights_that_are_no_longer_finite_are_not_kept(tmp_path):
    class Burst(Net):
        n = 0
        def forward(self, batch, rng):
            loss, count = super().forward(batch, rng)
            self.n += 1
            if self.n == 6: self.a.weight.register_hook(lambda g: g * math.inf) # the loss of this update is still finite
            return loss, count
    with pytest.raises(FloatingPointError, match="a weight is nan.*is intact"): run(tmp_path, net=Burst(), clip=None)
    assert read_checkpoint(tmp_path/"checkpoint.safetensors")[0]["step"] == 3
    assert same(run(tmp_path, clip=None)[1], run(clip=None)[1])

@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    real, calls = save_file, []
    def full(tensors, path, *a, **k):
        calls.append(path)
        if len(calls) == 3: Path(path).write_bytes(b"half"); raise error
        real(tensors, path, *a, **k)
    monkeypatch.setattr(train, "save_file", full)
    with pytest.raises(OSError, match="the disk is full.*checkpoint.safetensors") as e: run(tmp_path)
    assert "\n" not in str(e.value) and sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    assert read_checkpoint(tmp_path/"checkpoint.safetensors")[0]["step"] == 6
    monkeypatch.undo()
    assert same(run(tmp_path)[1], run()[1]) and told(tmp_path)[-1]["step"] == 12


# ---- checkpoints

def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    for other in (Net(width=7), Counted()):
        with pytest.raises(ValueError, match="checkpoint of another model: .* tensors differ, first") as e: run(tmp_path, net=other)
        assert "\n" not in str(e.value) and "checkpoint.safetensors" in str(e.value)

def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    run(tmp_path)
    p = tmp_path/"checkpoint.safetensors"
    data = p.read_bytes()
    for part in (data[:-40], data[:len(data) // 2], data[:100], data[:4], b"", b"no checkpoint at all" * 9):
        p.write_bytes(part)
        with pytest.raises(ValueError, match="is not a checkpoint of a training run") as e: run(tmp_path)
        assert str(p) in str(e.value)
    save_file({"a": torch.zeros(2)}, p)
    with pytest.raises(ValueError, match="is not a checkpoint of a training run"): run(tmp_path)

def test_a_checkpoint_holds_weights_averages_and_more(tmp_path):
    net = Net()
    opt = torch.optim.AdamW(groups(net, 0.), lr=.1)
    net(Points().batch(range(8), rng_for(0)), rng_for(0))[0].backward()
    opt.step()
    save_checkpoint(tmp_path/"c", net, opt, 7, note="x")
    info, tensors = read_checkpoint(tmp_path/"c")
    assert info == {"step": 7, "note": "x"} and sum(k.startswith("optimizer.") for k in tensors) == 18
    new = Net(seed=3)
    other = torch.optim.AdamW(groups(new, 0.), lr=.1)
    assert load_checkpoint(tmp_path/"c", new, other)["step"] == 7
    for m, o in ((net, opt), (new, other)): o.zero_grad(); m(Points().batch(range(8, 16), rng_for(1)), rng_for(1))[0].backward(); o.step()
    assert all(p.equal(q) for (n, p), (_, q) in zip(net.named_parameters(), new.named_parameters()) if p.requires_grad)

def test_after_is_called_with_each_checkpoint(tmp_path):
    steps = []
    fit(Net(), Points(), FitConfig(**CFG), tmp_path, device="cpu", progress=False, after=lambda s, m: steps.append((s, type(m).__name__)))
    assert steps == [(s, "Net") for s in (3, 6, 9, 12)]

def test_no_folder_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(None)
    assert not list(tmp_path.iterdir())

def test_the_log_survives_a_torn_line(tmp_path):
    with pytest.raises(RuntimeError): run(tmp_path, data=Once(9, RuntimeError("stop")))
    with open(tmp_path/"log.jsonl", "a") as f: f.write('{"step": 9, "lo')
    run(tmp_path); run(tmp_path/"whole")
    assert told(tmp_path) == told(tmp_path/"whole")

def test_rehearsal_tells_the_price_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = rehearse(Net(), Points(), FitConfig(**{**CFG, "steps": 1000}), device="cpu")
    assert r["tried"] == 4 and r["seconds_per_step"] > 0 and r["hours"] == pytest.approx(r["seconds_per_step"] * 1000 / 3600, rel=.2, abs=.02)
    assert not list(tmp_path.iterdir())


def test_another_number_of_processes_goes_on_at_the_next_item(tmp_path, capsys):
    cfg = FitConfig(bs=4, steps=9)
    pair = [np.concatenate([i for *_, i in Order(50, cfg, rank=r, world=2)]).reshape(9, 4) for r in (0, 1)]
    used = np.concatenate([np.concatenate([a[k], b[k]]) for k in range(3) for a, b in [pair]]) # three updates of two processes
    rest = [i for *_, i in Order(50, cfg, start=3, shift=24 - 3 * 4)] # as `fit` resumes with one
    whole = np.concatenate([i for *_, i in Order(50, FitConfig(bs=4, steps=12))])
    assert np.concatenate([used, *rest])[:48].tolist() == whole[:48].tolist()
    run(tmp_path, steps=4)
    info, tensors = read_checkpoint(tmp_path/"checkpoint.safetensors")
    assert info["items"] == 4 * CFG["bs"] and info["world"] == 1
    from safetensors.torch import save_file
    save_file(tensors, tmp_path/"checkpoint.safetensors", metadata={"state": json.dumps(info | {"world": 3, "items": 96})})
    data = Points()
    run(tmp_path, data=data, steps=5)
    assert "goes on with other processes (3 before, 1 now)" in capsys.readouterr().out
    assert data.seen[0] == Order(97, FitConfig(**{**CFG, "steps": 5}), shift=96).items(0)[1].tolist()


# ---- killed: one process imports everything and forks a run for each way to die

KILLER = textwrap.dedent("""
    import json, os, random, signal, sys, threading, time
    from pathlib import Path
    from tqdm import tqdm
    from train_toys import Net, Points
    from vlnotes import runs, train
    from vlnotes.train import FitConfig, fit
    root, CFG = Path(sys.argv[1]), json.loads(sys.argv[2])
    me = lambda: os.kill(os.getpid(), signal.SIGKILL)
    tqdm.set_lock(threading.RLock()) # its own lock is shared with the forked children: one that is killed while it holds it stops them all
    tqdm.monitor_interval = 0 # no thread may run when we fork

    def half(tensors, path, real=train.save_file, **k): # the second checkpoint is torn while it is written
        half.n = getattr(half, "n", 0) + 1
        real(tensors, path, **k)
        if half.n == 2: os.truncate(path, os.path.getsize(path) // 2); me()

    def unnamed(a, b, real=os.replace): # written, but not yet in its place
        unnamed.n = getattr(unnamed, "n", 0) + 1
        if unnamed.n == 2: me()
        real(a, b)

    def torn(out, line): # in the middle of a log line
        with open(out/"log.jsonl", "a") as f: f.write(json.dumps(line)[:9] if line["step"] == 8 else json.dumps(line) + chr(10))
        if line["step"] == 8: me()

    def child(name, work):
        pid = os.fork()
        if pid: return pid
        try: work(); os._exit(0)
        except BaseException as e: print(name, repr(e), flush=True); os._exit(1)

    def go(name, slow=0, **ways):
        def work():
            for k, (where, f) in ways.items(): setattr(where, k, f)
            net = Net()
            forward = net.forward
            def slowly(*a): time.sleep(slow); return forward(*a)
            net.forward = slowly
            fit(net, Points(), FitConfig(**CFG), root/name, device="cpu", progress=False)
        return child(name, work)

    def killed(name): return os.waitpid(go(name, **WAYS[name]), 0)[1] == signal.SIGKILL
    WAYS = {"half": {"save_file": (train, half)}, "unnamed": {"replace": (os, unnamed)}, "torn": {"_log": (train, torn)}}
    fit(Net(), Points(), FitConfig(**CFG), root/"whole", device="cpu", progress=False) # here: what is imported late is there for all
    for name in WAYS:
        assert killed(name), name
        assert os.waitpid(go(name), 0)[1] == 0, name
    rng, struck = random.Random(os.getpid()), 0
    for i in range(5): # from outside, at any moment, up to three times
        for _ in range(3):
            pid = go(f"random{i}", slow=.004)
            time.sleep(rng.uniform(.005, .09))
            os.kill(pid, signal.SIGKILL)
            struck += os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert os.waitpid(go(f"random{i}"), 0)[1] == 0, i
    print(json.dumps({"struck": struck}))
""")

def test_killed_at_any_moment_resumes_bit_identical(tmp_path):
    r = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path), json.dumps(CFG)], capture_output=True, text=True, timeout=300, env=ENV)
    assert r.returncode == 0, r.stdout + r.stderr
    assert json.loads(r.stdout.splitlines()[-1])["struck"] > 3
    want, log = load_file(tmp_path/"whole/checkpoint.safetensors"), told(tmp_path/"whole")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 9
    for n in names:
        got = load_file(tmp_path/n/"checkpoint.safetensors")
        assert set(got) == set(want) and all(v.equal(want[k]) for k, v in got.items()), n
        assert told(tmp_path/n) == log, n
    assert same(run(tmp_path/"whole")[1], run()[1]), "and a run in this process gives the same"


# ---- two processes

PAIR = textwrap.dedent("""
    import json, os, sys
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from train_toys import Net, Points
    from vlnotes.train import FitConfig, fit
    root, CFG = Path(sys.argv[1]), json.loads(sys.argv[2])
    def go(name, stop=None, **cfg):
        data = Points(noise=0)
        read = data.batch
        def batch(ids, rng):
            if stop and len(data.seen) == stop: raise RuntimeError("stop")
            return read(ids, rng)
        data.batch = batch
        net = Net(dropout=0)
        try: r = fit(net, data, FitConfig(**{**CFG, **cfg}), root/name, device="cpu", progress=False)
        except RuntimeError as e:
            assert stop and str(e) == "stop", e
            return dist.barrier()
        assert r["world"] == dist.get_world_size() == 2 and dist.get_backend() == "gloo"
        state = torch.cat([p.detach().flatten() for p in net.parameters()])
        both = [torch.empty_like(state) for _ in range(2)]
        dist.all_gather(both, state)
        assert both[0].equal(both[1]), "the processes have drifted apart"
        if dist.get_rank() == 0: (root/name/"result.json").write_text(json.dumps(r))
        dist.barrier()
    go("pair")
    go("parts", accumulate=2)
    go("halves", stop=8)
    dist.barrier()
    go("halves")
    dist.destroy_process_group()
    sys.stdout.flush(); os._exit(0) # gloo's threads may outlive the interpreter
""")

def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    script = tmp_path/"pair.py"
    script.write_text(PAIR)
    cfg = {**CFG, "bs": 4}
    r = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path), json.dumps(cfg)],
                       capture_output=True, text=True, timeout=300, env=ENV)
    assert r.returncode == 0, (r.stdout + r.stderr)[-3000:]
    _, one, _ = run(tmp_path/"one", net=Net(dropout=0), data=Points(noise=0))
    pair = load_file(tmp_path/"pair/checkpoint.safetensors")
    for k, v in one.state_dict().items():
        if f"model.{k}" in pair: assert torch.allclose(pair[f"model.{k}"], v, atol=1e-5), k
    parts, halves = (load_file(tmp_path/n/"checkpoint.safetensors") for n in ("parts", "halves"))
    assert all(torch.allclose(parts[k], v, atol=1e-5) for k, v in pair.items())
    assert all(halves[k].equal(v) for k, v in pair.items()), "resumed on two processes: the same to the bit"
    assert json.loads((tmp_path/"pair/result.json").read_text())["world"] == 2 and told(tmp_path/"halves") == told(tmp_path/"pair")
    for a, b in zip(told(tmp_path/"pair"), told(tmp_path/"one")): assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], abs=1e-5)


# ---- another optimiser

def test_another_optimiser_is_fed_the_same_groups_and_rates(tmp_path):
    seen = []
    class Plain(torch.optim.SGD):
        def step(self, closure=None): seen.append(sorted({g["lr"] for g in self.param_groups})); return super().step()
    make = lambda groups, cfg: Plain(groups, lr=cfg.lr)
    def go(out, steps): net = Net(); return fit(net, Points(), FitConfig(**{**CFG, "steps": steps, "schedule": "constant"}), out, device="cpu", progress=False, optimiser=make), net
    (_, whole), _ = go(tmp_path/"whole", 12), go(tmp_path/"half", 6)
    _, again = go(tmp_path/"half", 12)
    assert same(whole, again) and seen[0] == [0.] and seen[5] == [.03] # the warm-up begins with nothing
    assert rehearse(Net(), Points(), FitConfig(**CFG), device="cpu", optimiser=make)["seconds_per_step"] >= 0

def test_a_rate_that_falls_after_a_checkpoint(tmp_path):
    cfg, rates = FitConfig(**{**CFG, "schedule": "constant", "warmup": 0}), []
    def after(step, module): cfg.lr /= 2; rates.append(cfg.lr)
    fit(Net(), Points(), cfg, tmp_path, device="cpu", progress=False, after=after)
    assert rates == [.03 / 2**k for k in (1, 2, 3, 4)] and list(dict.fromkeys(l["lr"] for l in told(tmp_path))) == [.03, .015, .0075, .00375]
