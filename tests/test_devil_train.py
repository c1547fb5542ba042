import copy
import json
import subprocess
import sys
import textwrap
from math import comb

import pytest
import torch
from devil_toys import config, encoder, images, lm, logits
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from vlnotes.backbones import Backbone, freeze
from vlnotes.checkpoints import seeded
from vlnotes.devil import translator
from vlnotes.devil import train as dt
from vlnotes.devil.explain import Devil, smooth, whole
from vlnotes.devil.pairs import ImagePairs, ScenePairs, batch, captioned_images, once, prepared, sharded
from vlnotes.devil.train import DevilTask, caption_loss, check, hidden_layers, hidden_tokens, kept, mean_features, pool, prepare, step, validate
from vlnotes.draws import keys
from vlnotes.hooks import Feat
from vlnotes.runs import launch
from vlnotes.text import collate
from vlnotes.train import FitConfig, fit, rng_for

SMALL = dict(layers=None, prompt=2, hidden=16, depth=1, heads=2, ff=16, max_length=10, init=.1)

@pytest.fixture(autouse=True)
def few(monkeypatch):
    "The mean training feature of a few items is enough here."
    monkeypatch.setattr(mean_features, "__defaults__", (8, 8))

def settings(out, **kw):
    fitting = dict(steps=6, bs=4, lr=3e-3, save_every=2, log_every=1)
    base = dict(encoder="zoo/convnet", lm="zoo/lm", devil=SMALL, fit=fitting, out=str(out), device="cpu", progress=False)
    return {**base, **kw}

def vit():
    with seeded(0): net = VisionTransformer(img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=0)
    return Backbone(freeze(net), "toy/vit", input_size=(16, 16), mean=(0.,) * 3, std=(1.,) * 3)

def task(tokens="spatial", enc=None, speaker=None, **kw):
    enc = enc or encoder()
    cfg = config(tokens=tokens, **kw) if enc.name == "toy/stages" else config().from_dict(
        {**config(tokens=tokens, **kw).to_dict(), "layers": enc.layer_names, "channels": [i.channels for i in enc.layers]})
    return DevilTask(enc, speaker or lm(), cfg, seed=2)

class Pairs:
    "Images of random colours and what is said of them."
    TEXTS = ["a red square", "green", "blue and red . a square", "a square . a square ."]
    def __init__(self, speaker, n=8): self.speaker, self.x = speaker, images(n)
    def __len__(self): return len(self.x)
    def batch(self, ids, rng=None, epochs=None):
        ids = [int(i) for i in ids]
        return batch(self.x[ids], ids, [[self.TEXTS[i % 4]] for i in ids], self.speaker, config(), epochs=0 if epochs is None else epochs)


def many(n, seed=0): return keys(seed, 0, range(n))


# ---- feature dropout

def test_constant_maps_stay_constant():
    c = torch.randn(10, generator=torch.Generator().manual_seed(0))
    for grid in ((1, 1), (2, 2), (3, 5), (7, 7)):
        f = Feat(c.expand(4, grid[0] * grid[1], 10), grid, "x")
        assert torch.allclose(pool(f), c.expand(4, 10), atol=1e-6)
        assert torch.allclose(pool(f, kept(many(4, 1), f.x.shape[1], .5)), c.expand(4, 10), atol=1e-6)
        for k in (1, 3, 5, 7): assert torch.allclose(smooth(f, k).x, f.x, atol=1e-5)
        assert torch.allclose(f.cell(0, 0), c.expand(4, 10))

def test_one_hot_maps_reveal_the_kept_cells():
    n = 9
    f = Feat(torch.eye(n).expand(200, n, n), (3, 3), "x")
    keep = kept(many(200, 2), n, .5)
    count = keep.sum(1, keepdim=True)
    assert torch.allclose(pool(f, keep) * count, keep.float(), atol=1e-6) and count.min() >= 1
    assert torch.allclose(pool(f), torch.full((200, n), 1 / n))

@pytest.mark.parametrize("p", [0., .3, .5, .9])
def test_law_of_kept_cells(p):
    n, rows = 4, 40_000
    keep = kept(many(rows, 3), n, p)
    count, empty = keep.sum(1), p ** n
    for k in range(1, n + 1):
        want = comb(n, k) * (1 - p) ** k * p ** (n - k) / (1 - empty)
        assert (count == k).float().mean().item() == pytest.approx(want, abs=4 * (want * (1 - want) / rows) ** .5 + 1e-9)
    assert not (count == 0).any()
    each = (1 - p) / (1 - empty) # every cell alike
    assert torch.allclose(keep.float().mean(0), torch.full((n,), each), atol=.012)

def test_layers_draw_independently():
    a, b = kept(many(20_000, 4), 3, .5, 0).float(), kept(many(20_000, 4), 3, .5, 1).float()
    assert torch.corrcoef(torch.cat([a, b], 1).T)[:3, 3:].abs().max() < .03

def test_redraws_end_even_where_almost_all_is_dropped():
    assert kept(many(500, 5), 1, .99).all() and kept(many(3000, 5), 2, .98).any(1).all()

@pytest.mark.parametrize("p", [1., 1.5, -.1])
def test_impossible_rates_are_refused(p):
    with pytest.raises(ValueError, match="at least 0 and below 1"): kept(many(2), 3, p)
    with pytest.raises(ValueError, match="at least 0 and below 1"): hidden_layers(many(2), 3, p)


# ---- token dropout

def test_law_of_hidden_layers():
    rows = 60_000
    hide = hidden_layers(many(rows, 6), 4, .5)
    pattern = (hide * torch.tensor([1, 2, 4, 8])).sum(1)
    share = torch.bincount(pattern, minlength=16) / rows
    assert share[15] == 0 and torch.allclose(share[:15], torch.full((15,), 1 / 15), atol=.005)
    assert torch.allclose((~hide).float().mean(0), torch.full((4,), 8 / 15), atol=.01)
    assert (~hidden_layers(many(rows, 7), 2, .5)).float().mean().item() == pytest.approx(2 / 3, abs=.01)
    assert not hidden_layers(many(1000, 8), 1, .9).any() and not hidden_layers(many(1000, 8), 4, 0.).any()

def test_forced_tokens_stay_hidden_and_one_usable_is_left():
    forced = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool().repeat(4000, 1)
    hide = hidden_layers(many(12_000, 9), 4, .5, forced)
    assert (hide | ~forced).all() and not hide.all(1).any() and not hide[1::3, 0].any()
    assert (~hide[0::3, 1]).float().mean().item() == pytest.approx(2 / 3, abs=.03), "the law among those that are left"
    with pytest.raises(ValueError, match="row 1 has no layer left"): hidden_layers(many(2), 2, .5, torch.tensor([[0, 1], [1, 1]]).bool())

def test_class_token_modes():
    hide = hidden_tokens(many(30_000, 10), config(tokens="both"))
    cells, cls = hide[:, :3], hide[:, 3:]
    assert not hide.all(1).any() and hide.shape == (30_000, 6)
    no_cls, no_cells, same = cls.all(1), cells.all(1), (cells == cls).all(1)
    assert (no_cls | no_cells | same).all(), "one kind alone, or the same layers of both"
    assert [m.float().mean().item() for m in (no_cls, no_cells)] == pytest.approx([1 / 3, 1 / 3], abs=.015)
    assert (~cells[no_cls]).float().mean().item() == pytest.approx(4 / 7, abs=.015)
    one = hidden_tokens(many(100, 11), config(tokens="class"))
    assert one.shape == (100, 3) and not one.all(1).any()


# ---- the loss

SPEAKER = lm()
PROMPTS = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(1))

def losses(texts, max_length=None, prompts=PROMPTS):
    with torch.no_grad(): return caption_loss(SPEAKER, prompts[:len(texts)], *collate(SPEAKER.tokenizer, texts, max_length))

def test_loss_of_one_word_by_hand():
    loss, count = losses(["red"])
    red, = SPEAKER.tokenizer("red", add_special_tokens=False).input_ids
    logp = logits(SPEAKER, PROMPTS[0], [red])
    assert count.tolist() == [2] and loss.item() == pytest.approx(-(logp[0, red] + logp[1, SPEAKER.eos]).item(), rel=1e-5)
    loss, count = losses(["red"], 2) # cut before EOS
    assert count.tolist() == [1] and loss.item() == pytest.approx(-logp[0, red].item(), rel=1e-5)

def test_loss_is_the_likelihood_of_words_and_end():
    texts = Pairs.TEXTS
    loss, count = losses(texts)
    for i, t in enumerate(texts):
        ids = SPEAKER.tokenizer(t, add_special_tokens=False).input_ids + [SPEAKER.eos]
        logp = logits(SPEAKER, PROMPTS[i], ids[:-1])
        assert count[i] == len(ids) and loss[i].item() == pytest.approx(-sum(logp[k, w].item() for k, w in enumerate(ids)), rel=1e-4)

def test_padding_and_batch_mates_change_nothing():
    ids, mask = collate(SPEAKER.tokenizer, Pairs.TEXTS)
    with torch.no_grad():
        loss, count = caption_loss(SPEAKER, PROMPTS, ids, mask)
        wide, _ = caption_loss(SPEAKER, PROMPTS, F.pad(ids, (0, 6), value=SPEAKER.pad), F.pad(mask, (0, 6)))
        odd, _ = caption_loss(SPEAKER, PROMPTS, torch.where(mask, ids, 5), mask)
        for i in range(4): # alone, without its padding
            n = int(mask[i].sum())
            one, c = caption_loss(SPEAKER, PROMPTS[i:i + 1], ids[i:i + 1, :n], mask[i:i + 1, :n])
            assert torch.allclose(one, loss[i:i + 1], rtol=1e-4) and c == count[i]
    assert torch.allclose(wide, loss, rtol=1e-4) and torch.allclose(odd, loss, rtol=1e-4)

def test_batch_loss_is_the_token_mean():
    t = task(token_dropout=0., feature_dropout=0.)
    total, count = t(Pairs(t.frozen[1]).batch(range(4)), rng_for(0))
    with torch.no_grad():
        f = t.frozen[0].features(images(8)[:4], ["low", "mid", "high"])
        each, n = caption_loss(t.frozen[1], whole(t.net, f, ["low", "mid", "high"]), *collate(t.frozen[1].tokenizer, Pairs.TEXTS))
    assert torch.allclose(total, each.sum(), rtol=1e-4) and count == n.sum()


# ---- the task

def test_gradients_reach_the_translator_alone():
    t = task().train()
    loss, _ = t(Pairs(t.frozen[1]).batch(range(4)), rng_for(0))
    loss.backward()
    frozen = [*t.frozen[0].model.parameters(), *t.frozen[1].model.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in t.net.parameters())
    assert sum(bool(p.grad.any()) for p in t.net.parameters()) > 30
    assert {n for n, p in t.named_parameters() if p.requires_grad} == {f"net.{n}" for n, _ in t.net.named_parameters()}

def test_frozen_parts_stay_in_eval_mode():
    t = task().train()
    assert t.net.training and not any(m.training for m in t.frozen[1].model.modules()) and not any(m.training for m in t.frozen[0].model.modules())
    paper = task(lm_dropout=True).train()
    assert paper.lm_model.training and not paper.eval().lm_model.training
    t.frozen[0].model.train()
    with pytest.raises(RuntimeError, match="training mode"): t(Pairs(t.frozen[1]).batch(range(4)), rng_for(0))

def test_training_changes_the_translator_alone(tmp_path):
    t = task()
    before = copy.deepcopy([t.frozen[0].model.state_dict(), t.lm_model.state_dict(), t.net.state_dict()])
    fit(t, Pairs(t.frozen[1]), FitConfig(steps=3, bs=4, lr=.01), tmp_path, device="cpu", progress=False)
    for was, now in zip(before[:2], (t.frozen[0].model.state_dict(), t.lm_model.state_dict())): assert all(v.equal(now[k]) for k, v in was.items())
    assert not all(v.equal(t.net.state_dict()[k]) for k, v in before[2].items())
    held = {k[6:] for k in load_file(tmp_path/"checkpoint.safetensors") if k.startswith("model.")}
    assert held == {f"net.{k}" for k in t.net.state_dict()}, "the frozen language model is not copied into checkpoints"

@pytest.mark.parametrize("drop", [False, True])
def test_exact_resume_with_every_dropout(tmp_path, drop):
    speaker = lm(dropout=.3)
    def go(out, stop=None):
        t = task(speaker=speaker, lm_dropout=drop)
        data = Pairs(speaker)
        real, n = data.batch, [0]
        def batch(ids, rng, epochs=None):
            n[0] += 1
            if n[0] == stop: raise KeyboardInterrupt
            return real(ids, rng, epochs)
        data.batch = batch
        try: fit(t, data, FitConfig(steps=6, bs=4, lr=.01, save_every=2), out, device="cpu", progress=False)
        except KeyboardInterrupt: assert stop
        return t.net.state_dict()
    state = torch.get_rng_state()
    whole_run = go(tmp_path/"a")
    assert torch.get_rng_state().equal(state)
    torch.rand(3)
    go(tmp_path/"b", 4)
    again = go(tmp_path/"b")
    assert all(v.equal(again[k]) for k, v in whole_run.items())

def test_widths_must_fit():
    with pytest.raises(ValueError, match="speaks 16-wide prompts, toy/lm reads 32"): task(lm_dim=16)

@pytest.mark.parametrize("tokens", ["class", "both"])
def test_class_tokens_are_learned_and_used(tokens):
    enc = vit()
    t = task(tokens, enc)
    pairs = Pairs(t.frozen[1])
    start = float(t.eval()(pairs.batch(range(8)), rng_for(0))[0].detach())
    fit(t, pairs, FitConfig(steps=12, bs=8, lr=.01, shuffle=False), device="cpu", progress=False)
    assert float(t(pairs.batch(range(8)), rng_for(0))[0].detach()) < start
    means = mean_features(t, pairs)
    assert set(means) == set(t.cfg.slots)
    f = enc.features(images(8), list(t.cfg.layers))
    for (l, kind), v in means.items(): assert torch.allclose(v, (f[l].cls if kind == "cls" else f[l].x.flatten(0, 1).unflatten(0, (8, -1)).mean(1)).mean(0), atol=1e-5)
    t.net.means = means
    d = Devil(enc, t.net.eval(), t.frozen[1])
    texts = {n.layer: n.text for n in d.describe(images(1))}
    assert set(texts) == {"all", *enc.layer_names} and isinstance(d.blind(), str)
    if tokens == "class":
        with pytest.raises(ValueError, match="reads class tokens only, so .* has no cells"): d.describe(images(1), cells="all")
    else: assert len(d.describe(images(1), 1, cells="all")) == 16

def test_a_task_learns_its_captions():
    t = task(token_dropout=0., feature_dropout=0., hidden=32, ff=64, prompt=4)
    pairs = Pairs(t.frozen[1], 4)
    r = fit(t, pairs, FitConfig(steps=80, bs=4, lr=.01, shuffle=False), device="cpu", progress=False)
    first = task(token_dropout=0., feature_dropout=0., hidden=32, ff=64, prompt=4)
    loss, n = first(pairs.batch(range(4)), rng_for(0))
    assert r["loss"] < .6 * float(loss.detach() / n)


# ---- data

def test_scenes_are_prepared_as_their_pictures_are():
    from vlnotes import backbones, docmnist
    s = docmnist.generate(2, regions=(1, 4))
    zoo = backbones.load("zoo/convnet")
    assert torch.allclose(prepared(zoo, s.pixels()), torch.stack([zoo.transform(s.image(i)) for i in range(2)]), atol=1e-5)
    big = Backbone(freeze(encoder().model), input_size=(112, 112), mean=(.5,) * 3, std=(.2,) * 3)
    assert torch.allclose(prepared(big, s.pixels()), torch.stack([big.transform(s.image(i)) for i in range(2)]), atol=.03)

def test_scene_pairs_depend_on_their_number():
    pairs = ScenePairs(encoder(), load_small(), config(), mix=[{"regions": (1, 3)}], seed=4)
    a, b = pairs.batch(range(6)), pairs.batch(range(3, 6))
    ids, jds = a["ids"], b["ids"]
    assert a["x"][3:].equal(b["x"]) and ids[3:, :jds.shape[1]].equal(jds) and a["keys"][3:].equal(b["keys"]) and len(pairs) == 10**9
    assert ids.shape[1] <= 12, "captions are cut to the translator's length"

def load_small():
    from vlnotes.pretrain import words
    return lm(words())

@pytest.fixture
def folder(tmp_path):
    d = tmp_path/"pictures"
    d.mkdir()
    for i, c in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]): Image.new("RGB", (30 + i, 20), c).save(d/f"{i}.png")
    (tmp_path/"captions.csv").write_text("image,caption\n0.png,red\n0.png,a red digit\n1.png,green\n2.png,blue\n")
    return d

def test_image_pairs_take_one_caption_at_random(folder):
    from vlnotes.data import stream
    speaker = load_small()
    pairs = ImagePairs(stream(folder, captions=folder.parent/"captions.csv"), encoder(), speaker, config())
    assert len(pairs) == 3, "an image without a caption is left out"
    said = [speaker.decode(pairs.batch([0], None, [e])["ids"][0]) for e in range(20)]
    assert set(said) == {"red", "a red digit"}, "another pass may show another caption"
    assert said == [speaker.decode(pairs.batch([0, 1], None, [e, 0])["ids"][0]) for e in range(20)], "whatever stands beside it"
    x = pairs.batch([2, 0])["x"]
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32 and x[0, 2].min() > .99 and x[1, 0].min() > .99
    with pytest.raises(ValueError, match="no image with a caption"): ImagePairs(stream(folder), encoder(), speaker, config())


# ---- steps

def weights(folder): return load_file(folder/"weights.safetensors")

def test_a_step_trains_writes_and_loads(tmp_path):
    r = step(settings(tmp_path))
    assert r["steps"] == 6 and r["world"] == 1
    net, about = translator.load(tmp_path)
    assert net.cfg.layers == ("layer4", "layer3", "layer2", "layer1") and net.cfg.channels == (128, 96, 48, 32) and net.cfg.lm_dim == 128
    assert set(net.means) == set(net.cfg.slots) and about["run"]["steps"] == 6 and about["trained_on"] == "docmnist"
    bs = settings(tmp_path)["fit"]["bs"]
    assert about["taught_by"] == {"images": 6 * bs, "supervision": "captions", "handwriting": "digits", "split": "train"} # what a benchmark must not ask it about
    d = Devil.load(tmp_path)
    assert d.layers == ["layer1", "layer2", "layer3", "layer4"] and isinstance(d.blind(), str)
    assert len(d.describe(torch.zeros(1, 3, 84, 84))) == 5

def test_a_finished_step_can_be_taken_again(tmp_path):
    first = step(settings(tmp_path))
    before = weights(tmp_path)
    again = step(settings(tmp_path))
    assert again["loss"] == first["loss"] and all(v.equal(before[k]) for k, v in weights(tmp_path).items())

@pytest.mark.parametrize("layers, names", [([-1, -3], ["layer2", "layer4"]), (["layer1", "layer4"], ["layer1", "layer4"]), ("layer2", ["layer2"]), (2, ["layer3", "layer4"])])
def test_layers_need_not_be_contiguous(tmp_path, layers, names):
    step(settings(tmp_path, devil={**SMALL, "layers": layers}, fit=dict(steps=1, bs=2)))
    d, x = Devil.load(tmp_path), torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    assert d.layers == names
    for by in (names[0], [names[0]], -len(names), [0]):
        notes = d.describe(x, by)
        assert [n.layer for n in notes] == [names[0]] and notes[0].text == d.describe(x, names[0])[0].text
    assert set(d.maps(x, ["red"], names[0])) == {names[0]}
    with pytest.raises(ValueError, match="layer9.*nearest is"): d.describe(x, "layer9")

def test_unknown_layers_and_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="layer44.*nearest is 'layer4'"): prepare(settings(tmp_path, devil={**SMALL, "layers": "layer44"}))
    with pytest.raises(ValueError, match="the nearest is 'depth'"): prepare(settings(tmp_path, devil={**SMALL, "deph": 2}))
    with pytest.raises(ValueError, match="accumulate=3"): prepare(settings(tmp_path, fit=dict(bs=4, accumulate=3)))

def test_training_on_a_folder(tmp_path, folder):
    r = step(settings(tmp_path/"run", data=str(folder), captions=str(folder.parent/"captions.csv"), fit=dict(steps=2, bs=2)))
    assert r["steps"] == 2 and translator.load(tmp_path/"run")[1]["trained_on"] == str(folder)
    assert translator.load(tmp_path/"run")[1]["taught_by"]["images"] <= 4 and "handwriting" not in translator.load(tmp_path/"run")[1]["taught_by"]
    few = dt.examples({"data": str(folder), "captions": str(folder.parent/"captions.csv")}, 2)
    assert [s.id for s in few] == ["0.png", "1.png"] and few[0].captions == ["red", "a red digit"] and dt.examples({}, 2)[0].image.size == (84, 84)
    with pytest.raises(FileNotFoundError): step(settings(tmp_path/"run2", data=str(tmp_path/"nowhere")))

def test_a_run_of_another_translator_is_refused(tmp_path):
    step(settings(tmp_path, fit=dict(steps=1, bs=2)))
    with pytest.raises(ValueError, match="checkpoint of another model"): step(settings(tmp_path, devil={**SMALL, "hidden": 24}, fit=dict(steps=2, bs=2)))

KILLED = textwrap.dedent("""
    import json, os, signal, sys, threading
    from pathlib import Path
    from tqdm import tqdm
    from vlnotes import train as loop
    from vlnotes.devil import train as dt
    tqdm.set_lock(threading.RLock()) # its own lock is shared with the forked children: one that is killed while it holds it stops them all
    tqdm.monitor_interval = 0 # no thread may run when we fork
    cfg, root = json.loads(sys.argv[1]), Path(sys.argv[2])
    dt.mean_features.__defaults__ = (8, 8)
    me = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)

    def child(name, end=0, **patch):
        pid = os.fork()
        if not pid:
            try:
                for k, v in patch.items(): setattr({"_update": loop}.get(k, dt), k, v)
                dt.step({**cfg, "out": str(root/name)})
                os._exit(0)
            except BaseException as e: print(name, repr(e), flush=True); os._exit(1)
        got = os.waitpid(pid, 0)[1]
        assert got == end, (name, got)

    def third(*a, real=loop._update):
        third.n = getattr(third, "n", 0) + 1
        if third.n == 4: me()
        return real(*a)

    dt.step({**cfg, "out": str(root/"whole")}) # here: what is imported late is there for all
    child("amid", signal.SIGKILL, _update=third)
    child("amid")
    child("end", signal.SIGKILL, save=me) # trained, but not yet written
    child("end")
""")

def test_a_killed_step_gives_the_same_translator(tmp_path):
    r = subprocess.run([sys.executable, "-c", KILLED, json.dumps(settings("")), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stdout + r.stderr
    want = weights(tmp_path/"whole")
    for n in ("amid", "end"):
        assert all(v.equal(want[k]) for k, v in weights(tmp_path/n).items()) and len(weights(tmp_path/n)) == len(want)
        a, b = (json.loads((tmp_path/k/"config.json").read_text()) for k in (n, "whole"))
        assert a["run"]["loss"] == b["run"]["loss"]

def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    cfg = settings(tmp_path/"pair", fit=dict(steps=4, bs=2, lr=3e-3, log_every=1, save_every=4), docmnist={"mix": [{"regions": [1, 3]}]}, val={"limit": 5, "every": 2, "bs": 2})
    r = launch("devil.train", cfg, 2, tmp_path/"pair")
    assert r["world"] == 2 and r["steps"] == 4 and json.loads((tmp_path/"pair/result.json").read_text()) == r
    one = step({**cfg, "out": str(tmp_path/"one"), "fit": {**cfg["fit"], "bs": 4}})
    lines = [[json.loads(l) for l in (tmp_path/k/"fit/log.jsonl").read_text().splitlines()] for k in ("pair", "one")]
    assert [l["loss"] for l in lines[0]] == pytest.approx([l["loss"] for l in lines[1]], abs=2e-4), "both dropouts are on: the same cells and layers fall"
    a, b = weights(tmp_path/"pair"), weights(tmp_path/"one")
    assert a.keys() == b.keys() and r["loss"] == pytest.approx(one["loss"], abs=1e-4)
    for k, v in a.items(): # a key's bias has no gradient but rounding, which AdamW turns into a step of full length; means are of fewer items here
        if "in_proj_bias" not in k and "means" not in k: assert torch.allclose(v, b[k], atol=2e-3) and (v - b[k]).abs().mean() < 1e-4, k
    va, vb = (json.loads((tmp_path/k/"val.json").read_text()) for k in ("pair", "one"))
    assert [v["n"] for v in va] == [5] and va[0]["loss"] == pytest.approx(vb[0]["loss"], abs=1e-3), "each image is validated once, by one process"
    assert Devil.load(tmp_path/"pair").describe(torch.zeros(1, 3, 84, 84), 1)[0].layer == "layer4"


# ---- streams and validation

@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    from vlnotes import docmnist
    d = tmp_path_factory.mktemp("shards")/"scenes"
    docmnist.generate(30, regions=(1, 2), seed=3).write_shards(d, n_per_shard=7)
    return f"{d}/*.tar"

@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_interrupted_goes_on_where_it_was(tmp_path, shards, workers):
    from vlnotes import train as loop
    fitting = dict(steps=7, bs=4, lr=3e-3, save_every=3, log_every=1, workers=workers)
    step(settings(tmp_path/"a", data=shards, fit=fitting, buffer=6))
    real, n = loop._update, [0]
    def once_more(*a):
        n[0] += 1
        if n[0] == 5: raise RuntimeError("stop")
        return real(*a)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop, "_update", once_more)
        with pytest.raises(RuntimeError, match="stop"): step(settings(tmp_path/"b", data=shards, fit=fitting, buffer=6))
    step(settings(tmp_path/"b", data=shards, fit=fitting, buffer=6))
    a, b = weights(tmp_path/"a"), weights(tmp_path/"b")
    assert all(v.equal(b[k]) for k, v in a.items())

def test_two_processes_read_their_own_shards(tmp_path, shards):
    cfg = settings(tmp_path/"pair", data=shards, fit=dict(steps=4, bs=3, save_every=2), buffer=4)
    assert launch("devil.train", cfg, 2, tmp_path/"pair")["world"] == 2
    from vlnotes.train import read_checkpoint
    places = read_checkpoint(tmp_path/"pair/fit/checkpoint.safetensors")[0]["places"]
    assert len(places) == 2 and all(p["world"] == 2 for p in places)
    alone = step({**cfg, "fit": dict(steps=6, bs=3, save_every=2)}) # and go on with one
    assert alone["steps"] == 6 and alone["world"] == 1

def test_captions_are_cut_to_what_the_language_model_can_hold():
    speaker = lm() # 40 places
    long = batch(torch.zeros(1, 3, 16, 16), ["x"], [["red square " * 60]], speaker, config(max_length=100))
    assert long["ids"].shape[1] == speaker.max_length - 3 < 100
    t = task(speaker=speaker, max_length=100)
    assert t(long)[0].isfinite(), "with the prompt it just fits"

def test_a_stream_sees_every_sample_once_a_pass(shards):
    enc, speaker = encoder(), load_small()
    for world in (1, 2, 5):
        names = [n for r in range(world) for b in once(shards, enc, speaker, config(), bs=4, rank=r, world=world) for n in b["names"]]
        assert len(names) == 30 == len(set(names)), "the last, smaller batch counts"
    assert len([n for r in (0, 1) for b in once(shards, enc, speaker, config(), 9, 4, r, 2) for n in b["names"]]) == 9
    flow = captioned_images(shards, enc, speaker, config(), buffer=5).start(4)
    first = [n for _, (b, _) in zip(range(15), flow) for n in b["names"]]
    assert len(set(first[:30])) == 30 and len(set(first[30:])) == 30 and first[:30] != first[30:], "another order each pass, nothing lost at its end"
    assert sharded(shards) and sharded(["https://x/{0..3}.tar"]) and sharded("pipe:cat a.tar") and not sharded("photos/")

def test_validation_chooses_and_resumes(tmp_path):
    cfg = settings(tmp_path, fit=dict(steps=4, bs=4, lr=3e-3, save_every=2, log_every=1), val={"limit": 6, "every": 2})
    r = step(cfg)
    history = json.loads((tmp_path/"val.json").read_text())
    assert [v["step"] for v in history] == [2, 4] and r["val"] == history[-1] and history[0]["n"] == 6
    assert {"loss", "Bleu_4", "ROUGE_L", "CIDEr"} <= set(history[0])
    chosen = json.loads((tmp_path/"best-loss/config.json").read_text())["chosen_by"]
    assert chosen == min(history, key=lambda v: v["loss"]) and Devil.load(tmp_path/"best-CIDEr")
    again = step({**cfg, "fit": {**cfg["fit"], "steps": 6}})
    assert [v["step"] for v in json.loads((tmp_path/"val.json").read_text())] == [2, 4, 6] and again["val"]["step"] == 6

def test_validation_is_the_token_mean_and_leaves_the_mode(tmp_path):
    t = task()
    pairs = Pairs(t.frozen[1])
    t.train()
    both = validate(t, [pairs.batch(range(3)), pairs.batch(range(3, 8))])
    assert t.training and both["n"] == 8
    loss, n = t.eval()(pairs.batch(range(8)))
    assert both["loss"] == pytest.approx(float(loss.detach() / n), rel=1e-4)
    with pytest.raises(ValueError, match="no image with a caption"): validate(t, [])

def test_pooled_features_train_as_images_do():
    t = task(token_dropout=0., feature_dropout=0.)
    b = Pairs(t.frozen[1]).batch(range(4))
    f = t.frozen[0].features(b["x"], list(t.cfg.layers))
    pooled = {**{k: v for k, v in b.items() if k != "x"}, "feats": [f[l].x.mean(1) for l in t.cfg.layers], "absent": torch.zeros(4, 3, dtype=torch.bool)}
    assert torch.allclose(t(pooled)[0], t(b)[0], rtol=1e-5)
    before = t.prompt(pooled, drop=False)
    pooled["absent"][1, 0] = True
    after = t.prompt(pooled, drop=False)
    assert torch.allclose(after[[0, 2, 3]], before[[0, 2, 3]], atol=1e-5) and not torch.allclose(after[1], before[1], atol=1e-3)
    pooled["feats"][0] = pooled["feats"][0].clone(); pooled["feats"][0][1] = 1e3
    assert torch.allclose(t.prompt(pooled, drop=False), after, atol=1e-5), "an absent token has no say"

def test_heads_that_do_more_than_a_matrix_are_noticed():
    from vlnotes.text import make_lm
    from transformers import Gemma2Config, Gemma2ForCausalLM
    tok = SPEAKER.tokenizer
    with seeded(0): capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tok), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                                                           head_dim=16, final_logit_softcapping=.1, initializer_range=1., bos_token_id=2, eos_token_id=2, pad_token_id=1))
    speaker = make_lm(capped.eval(), tok, "capped")
    assert dt._plain_head(SPEAKER) and not dt._plain_head(speaker)
    ids, mask = collate(tok, Pairs.TEXTS)
    with torch.no_grad():
        loss, count = caption_loss(speaker, PROMPTS, ids, mask)
        for i in range(4):
            n = int(mask[i].sum())
            one, c = caption_loss(speaker, PROMPTS[i:i + 1], ids[i:i + 1, :n], mask[i:i + 1, :n])
            assert torch.allclose(one, loss[i:i + 1], rtol=1e-4) and c == count[i]


# ---- what a run needs

@pytest.fixture
def stand_in(monkeypatch): monkeypatch.setattr(dt, "_stand_in", lambda name: lm())

def test_check_where_everything_is_there(tmp_path):
    text = check(settings(tmp_path, fit=dict(steps=1000, bs=2)), part=1)
    for line in ("encoder   zoo/convnet: there", "language  zoo/lm: there", "data      drawn scenes: always there", "for 1,000 updates", "4 layers of zoo/convnet"): assert line in text
    assert len(text.splitlines()) == 7 and not list(tmp_path.iterdir())

def test_check_says_what_is_missing(tmp_path, stand_in, folder):
    cfg = settings(tmp_path/"x", encoder="timm/resnet10t@random", lm="facebook/opt-125m", data=str(tmp_path/"none"), fit=dict(steps=10, bs=2))
    text = check(cfg, part=1)
    assert "timm/resnet10t@random: there" in text and "-p lm=FOLDER" in text and "-p data=FOLDER" in text and str(tmp_path/"none") in text
    text = check({**cfg, "encoder": "timm/resnet10t", "data": str(folder), "captions": str(folder.parent/"captions.csv")}, part=1)
    assert "timm/resnet10t: missing" in text and "resnet10t@FILE" in text and "there, first image 0.png" in text
    assert not (tmp_path/"x").exists()
    with pytest.raises(ValueError, match="resnet10"): check({**cfg, "encoder": "timm/resnet10tt@random"}, part=1)

def test_the_stand_in_has_the_published_size(monkeypatch):
    import transformers
    sizes, real = [], transformers.OPTForCausalLM
    class Small(transformers.OPTForCausalLM):
        def __new__(cls, cfg):
            sizes.append((cfg.hidden_size, cfg.num_hidden_layers, cfg.vocab_size, cfg.word_embed_proj_dim))
            return real(transformers.OPTConfig(hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2))
    monkeypatch.setattr(transformers, "OPTForCausalLM", Small)
    assert "stand-in for x" == dt._stand_in("x").name and sizes == [(768, 12, 50272, 768)]
