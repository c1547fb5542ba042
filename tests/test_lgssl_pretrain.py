"LGSSL: views, batches by number, pre-training with resume and several processes, collapse, and what goes wrong."
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlnotes import backbones, docmnist, runs
from vlnotes.checkpoints import seeded
from vlnotes.draws import keys
from vlnotes.lgssl import pretrain as lg
from vlnotes.lgssl.corpus import build
from vlnotes.lgssl.objectives import OBJECTIVES, objective
from vlnotes.lgssl.pairs import embed, pair
from vlnotes.lgssl.views import RECIPES, boxes, coloured, cropped, crops, plan
from vlnotes.train import FitConfig, Order, fit, groups, rate

TINY = {"simclr": dict(hidden=16, out=8), "simsiam": dict(hidden=16, out=8, predict=8), "nnclr": dict(hidden=16, out=8, predict=8, queue=24),
        "swav": dict(hidden=16, out=8, prototypes=6, queue=16, queue_from=1, freeze=1), "lgsimclr": dict(hidden=16, out=8)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    docmnist.generate(40, regions=(1, 1), seed=3).write_shards(root/"t", n_per_shard=20)
    c = build(str(root/"t/*.tar"), root/"c.arrow")
    z = embed(c.captions)
    pair(c, z, root/"p.arrow", k=2)
    np.save(root/"v.npy", z)
    return root


def config(world, out, name="lgsimclr", **more):
    return dict(objective=name, options=TINY.get(name, {}), encoder="timm/resnet10t", corpus=str(world/"c.arrow"), pairs=str(world/"p.arrow"), size=32, seed=1, device="cpu", progress=False,
                out=str(out), fit=dict(steps=4, bs=8, save_every=2, log_every=2)) | more


# ---- schedule and decay

def test_the_published_schedule():
    cfg = FitConfig(**lg.PAPER)
    told = {0: 1e-5, 1: 1.01980e-5, 2500: 5.0510e-4, 4999: 1e-3, 5000: 1e-3, 10000: 9.98974e-4, 50000: 9.19125e-4, 127500: 5.005e-4, 200000: 1.00194e-4, 250000: 1e-6}
    for s, v in told.items(): assert rate(s, cfg) == pytest.approx(v, rel=2e-5), s


def test_every_parameter_is_in_one_group_and_the_scale_never_decays():
    net = objective("clip", nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4)), 4, tower=lg.TextTower(5, 9, 8, 2, 1))
    task = lg.Task(net, "global_crop", 2, (.5,) * 3, (.2,) * 3)
    wd, plain = ([id(p) for p in g["params"]] for g in groups(task, .01))
    assert len(set(wd) | set(plain)) == len(wd) + len(plain) == sum(1 for _ in task.parameters())
    assert id(net.clip_scale) in plain and id(net.language_backbone.token_embedding.weight) in wd
    assert id(net.language_backbone.transformer.resblocks[0].attn.in_proj_bias) in plain and id(net.language_backbone.ln_final.weight) in plain
    legacy, = groups(lg.Task(net, "global_crop", 2, (.5,) * 3, (.2,) * 3, legacy_decay=True), .01)
    assert len(legacy["params"]) == len(wd) + len(plain) and legacy["weight_decay"] == .01


def test_tied_weights_count_once_and_frozen_ones_not_at_all():
    net = objective("lgsimclr", nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12)), 12, hidden=8, out=4)
    net.visual_backbone[2].weight = net.visual_backbone[1].weight
    net.visual_backbone[1].bias.requires_grad_(False)
    task = lg.Task(net, "global_crop", 2, (.5,) * 3, (.2,) * 3)
    found = [id(p) for g in groups(task, .01) for p in g["params"]]
    assert len(found) == len(set(found)) and found.count(id(net.visual_backbone[1].weight)) == 1 and id(net.visual_backbone[1].bias) not in found
    assert len(found) == sum(p.requires_grad for p in task.parameters())


def test_the_rate_is_for_512_pairs_of_all_processes():
    cfg = lg.fitting(dict(lr=1e-3, bs=1024), 2)
    assert cfg.lr == 2e-3 and cfg.bs == 512
    with pytest.raises(ValueError, match="multiple of the 3"): lg.fitting(dict(bs=512), 3)


# ---- views

def test_crops_stay_inside_and_have_the_area_and_ratio_asked_for():
    k = keys(0, 0, range(2000))
    for h, w in ((60, 80), (200, 40)):
        b = boxes(h, w, k, RECIPES["simclr"]).float()
        bw, bh = b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]
        assert (b[:, :2] >= 0).all() and (b[:, 2] <= w).all() and (b[:, 3] <= h).all() and (bw > 0).all()
        assert ((bw / bh) > .7).all() and ((bw / bh) < 1.4).all()
    b = boxes(80, 80, k, RECIPES["simclr"]).float()
    share = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) / 6400
    from torchvision.transforms import RandomResizedCrop
    theirs = [RandomResizedCrop.get_params(torch.zeros(1, 80, 80), (.2, 1.), (3 / 4, 4 / 3)) for _ in range(2000)]
    assert .19 < share.min() < .25 and share.max() > .93 and abs(share.mean() - np.mean([h * w / 6400 for _, _, h, w in theirs])) < .03 # the same law
    assert (boxes(80, 80, k, RECIPES["global_crop"]) != boxes(80, 80, k, RECIPES["global_crop"], stream=1)).any()


def test_a_view_belongs_to_its_sample():
    k, x = keys(0, 0, range(5)), torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    whole = coloured(x, k, RECIPES["simclr"], torch.Generator().manual_seed(1))
    alone = coloured(x[2:3], k[2:3], RECIPES["simclr"], torch.Generator().manual_seed(1))
    assert torch.allclose(whole[2], alone[0], atol=1e-6) and whole.min() >= 0 and whole.max() <= 1
    assert torch.equal(coloured(x, k, RECIPES["global_crop"]), x) # a crop and nothing else
    many = keys(0, 0, range(3000))
    g = coloured(torch.rand(3000, 3, 4, 4), many, RECIPES["simclr"], torch.Generator().manual_seed(1))
    assert abs(((g.max(1)[0] - g.min(1)[0]).amax((1, 2)) < 1e-4).float().mean() - .2) < .04 # a fifth is grey


def test_loader_and_device_crops_agree_and_antialiasing_is_a_switch():
    x = torch.randint(0, 256, (1, 3, 60, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[10, 5, 40, 35]])
    assert (crops(x, box, 30) * 255 - cropped(x[0], box[0], 30).float()).abs().max() < 1
    assert not torch.equal(cropped(x[0], box[0], 8), cropped(x[0], box[0], 8, antialias=False))
    with pytest.raises(ValueError, match="center_crop"): plan("center_crop")


# ---- batches

def test_partners_are_neighbours_and_all_of_them_come_up():
    bank = lg.Bank(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 4, 4))
    index = np.array([[1, 2], [0, -1], [-1, -1], [4, 5], [3, 5], [3, 4]])
    data = lg.Views(bank, "nn", "global_crop", 4, index)
    assert len(data) == 5 # one has no neighbour
    seen = {r: set() for r in data.rows}
    for e in range(30):
        b = data.batch(range(5), epochs=[e] * 5)
        for r, other in zip(b["ids"].tolist(), b["view1"][:, 0, 0, 0].tolist()): seen[r].add(other)
        assert b["view0"][:, 0, 0, 0].tolist() == [0, 1, 3, 4, 5]
    assert seen == {0: {1, 2}, 1: {0}, 3: {4, 5}, 4: {3, 5}, 5: {3, 4}}
    with pytest.raises(ValueError, match="give index="): lg.Views(bank, "nn", "global_crop", 4)
    with pytest.raises(ValueError, match="none has a neighbour"): lg.Views(bank, "nn", "global_crop", 4, np.full((6, 1), -1))


def test_link_rot_is_counted_and_training_goes_on(tmp_path):
    for i in range(8):
        (tmp_path/"c/s_2017_1").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * i, 0, 0)).save(tmp_path/f"c/s_2017_1/{i}.png")
        (tmp_path/f"c/s_2017_1/{i}.txt").write_text(f"word{i % 4} thing")
    c = build(tmp_path/"c", tmp_path/"c.arrow")
    p = pair(c, embed(c.captions), tmp_path/"p.arrow")
    (tmp_path/"c/s_2017_1/3.png").unlink()
    (tmp_path/"c/s_2017_1/4.png").write_bytes(b"junk")
    cfg = config(tmp_path, tmp_path/"run")
    done = lg.step(cfg)
    assert done["steps"] == 4 and done["skipped"] == 4 # 3 and 4, and 7 and 0 whose partners they are
    told = runs.read_json(tmp_path/"run/encoder/config.json")["skipped"]
    assert told["count"] == 4 and p.index[3, 0] == 7
    for f in (tmp_path/"c").rglob("*.png"): f.unlink()
    with pytest.raises(ValueError, match="50 images in a row"): lg.step(config(tmp_path, tmp_path/"again"))


# ---- training

@pytest.mark.parametrize("name", ["nnclr", "swav", "lgsimclr"])
def test_killed_and_resumed_equals_never_killed(name, world, tmp_path):
    whole = lg.step(config(world, tmp_path/"a", name))
    task, data = lg.prepare(config(world, tmp_path/"b", name))
    cfg = lg.fitting(dict(seed=1, steps=4, bs=8, save_every=2, log_every=2))
    class Killed(Exception): pass
    def stop(step, module):
        if step == 2: raise Killed
    with pytest.raises(Killed): fit(task, data, cfg, tmp_path/"b/fit", device="cpu", after=stop, progress=False)
    resumed = lg.step(config(world, tmp_path/"b", name))
    a, b = (backbones.read_weights(tmp_path/f"{r}/encoder/weights.safetensors") for r in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a) and whole["loss"] == resumed["loss"]
    assert (tmp_path/"b/health.json").exists() and whole["health"]["step"] == 4


def test_parts_of_an_update_are_averaged_and_each_is_its_own_batch(world, tmp_path):
    def made(**more):
        cfg = lg.fitting(dict(steps=1, bs=8, seed=1, lr=.1, **more))
        return *lg.prepare(config(world, tmp_path, options=dict(hidden=16, out=8), fit=dict(bs=8, **more))), cfg
    sgd = lambda groups, cfg: torch.optim.SGD([p for g in groups for p in g["params"]], lr=.1)
    task, data, cfg = made(accumulate=2)
    assert task.net.parts == 2
    fit(task, data, cfg, device="cpu", progress=False, optimiser=sgd)
    same, data, _ = made(accumulate=2)
    same.train()
    for _, _, epochs, ids in Order(len(data), cfg):
        loss, n = same(data.batch(ids, None, epochs), None)
        assert n == 4
        (loss / 8).backward()
    for p in same.parameters(): p.data -= cfg.lr * p.grad
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(task.parameters(), same.parameters()))
    whole, data, cfg = made()
    fit(whole, data, cfg, device="cpu", progress=False, optimiser=sgd)
    assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(task.parameters(), whole.parameters())) # fewer negatives: another task
    for bad, told in ((dict(bs=8, accumulate=3), "accumulate=3 must divide"), (dict(bs=64), "bs=64 pairs an update are asked of 40 images")):
        with pytest.raises(ValueError, match=told): lg.step(config(world, tmp_path/"bad", fit=dict(steps=1, **bad)))


def test_two_processes(world, tmp_path):
    cfg = config(world, tmp_path/"run", "nnclr")
    done = runs.launch("lgssl.pretrain", cfg, 2, tmp_path)
    assert done["world"] == 2 and done["steps"] == 4
    enc = backbones.load(f"run/{tmp_path}/run/encoder")
    assert enc.features(torch.zeros(1, 3, 32, 32), -1)


@pytest.mark.parametrize("name", [k for k in OBJECTIVES if k not in TINY])
def test_every_objective_trains_from_a_configuration(name, world, tmp_path):
    if OBJECTIVES[name].text == "ids": pytest.importorskip("open_clip")
    more = dict(vectors=str(world/"v.npy")) if name == "clip_sentence" else dict(tower=dict(width=16, heads=2, layers=1), context=20)
    options = {"lgsimsiam": TINY["simsiam"], "slip": dict(hidden=16, out=8), "lgslip": dict(hidden=16, out=8)}.get(name, dict(out=8))
    done = lg.step(config(world, tmp_path/"run", name, options=options, **more, fit=dict(steps=2, bs=4, save_every=2, log_every=1)))
    assert np.isfinite(done["loss"]) and done["steps"] == 2


def test_bf16(world, tmp_path):
    done = lg.step(config(world, tmp_path/"run", fit=dict(steps=2, bs=4, save_every=2, log_every=1, precision="bf16")))
    assert np.isfinite(done["loss"])


def test_collapse_is_seen():
    z = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert lg.health(z)["spread"] > .9 and lg.health(z)["rank"] > 14
    same = torch.randn(1, 16) + 1e-3 * z
    assert lg.health(same)["spread"] < .02 and same.std(1).mean() > .5 # what the original looked at is healthy in a constant network


def test_a_collapsed_network_warns(world, tmp_path):
    task, data = lg.prepare(config(world, tmp_path))
    for p in task.net.visual_backbone.parameters(): p.data.zero_()
    with pytest.warns(UserWarning, match="features collapse at step 7"): lg.Watch(data, tmp_path, n=8)(7, task)


@pytest.mark.parametrize("more, told", [
    (dict(objective="simklr"), "nearest is 'simclr'"), (dict(encoder="timm/resnet51"), "resnet5"), (dict(encoder="resnet50"), "timm/NAME"), (dict(encoder="zoo/lm"), "convnet"),
    (dict(augmentation="crop"), "global_crop"), (dict(objective="clip_sentence", options={}), "give vectors="), (dict(pairs=None), "give index=")])
def test_bad_configurations(more, told, world, tmp_path):
    with pytest.raises(ValueError, match=told): lg.step(config(world, tmp_path/"run") | more)


def test_a_rehearsal_tells_what_is_missing(tmp_path):
    text = lg.check(dict(objective="lgsimclr", encoder="timm/resnet10t", corpus=str(tmp_path/"no"), pairs=None, size=32, fit=lg.PAPER | dict(bs=4, steps=1000), device="cpu"), part=4)
    for word in ("missing", "vlnotes run lgssl_pairs", "hours", "GB", "million"): assert word in text


# ---- end to end

def test_pairs_by_concept_teach_the_concept():
    # 6 shapes of 8 x 8 pixels at random places, scales and colours; a partner is another image of the same shape, or a second crop of the same image
    rng = np.random.default_rng(0)
    masks = rng.random((6, 8, 8)) > .5
    def draw(y, seed):
        r = np.random.default_rng(seed)
        x = r.integers(0, 90, (len(y), 3, 24, 24)).astype(np.uint8)
        for i, c in enumerate(y):
            a, b, colour = *r.integers(0, 16, 2), r.integers(120, 256, 3)
            x[i, :, a:a + 8, b:b + 8] = np.where(masks[c][None], colour[:, None, None], x[i, :, a:a + 8, b:b + 8])
        return torch.from_numpy(x)
    y = np.arange(600) % 6
    bank, test, yt = lg.Bank(draw(y, 1)), draw(y[:300], 2), y[:300]
    index = np.array([rng.choice(np.flatnonzero(y == c)) for c in y])[:, None]
    from vlnotes.lgssl.logistic import logistic
    found = {}
    for name in ("lgsimclr", "simclr"):
        kind = OBJECTIVES[name]
        with seeded(0):
            trunk = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU(), nn.Conv2d(24, 32, 3, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
            task = lg.Task(objective(name, trunk, 32, hidden=64, out=32), kind.augmentation, 24, (.3,) * 3, (.3,) * 3)
        fit(task, lg.Views(bank, kind.sampling, kind.augmentation, 24, index), FitConfig(steps=120, bs=64, lr=3e-3), device="cpu", progress=False)
        with torch.no_grad(): z, zt = (trunk((x.float() / 255 - .3) / .3) for x in (bank.pixels, test))
        found[name] = (logistic(z, y, 10.).predict(zt)[0] == yt).mean()
    assert found["lgsimclr"] > found["simclr"] + .03, found
