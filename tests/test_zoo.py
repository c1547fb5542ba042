import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from vlnotes import backbones, docmnist, zoo
from vlnotes.text import load_lm

NAMES = sorted(zoo.table())
ENCODERS = ("convnet", "vit")

def features(name, x): # of the last layer, mean over the grid
    bb = backbones.load(f"zoo/{name}")
    return bb.features(x, 1)[bb.layer_names[-1]].mean()

def scenes(n=60, **k): return docmnist.generate(n, regions=(1, 9), split="test", seed=11, **k)

@pytest.fixture
def copy(tmp_path):
    "A zoo of one's own to damage."
    for n in ("convnet", "lm"):
        for suffix in (".safetensors", ".md"): shutil.copy(zoo.WEIGHTS/f"{n}{suffix}", tmp_path)
    (tmp_path/"zoo.json").write_text(json.dumps({k: v for k, v in zoo.table().items() if k in ("convnet", "lm")}))
    return tmp_path


# ---- what travels with the package

def test_the_zoo_holds_what_it_should():
    assert {"convnet", "vit", "lm", "devil-convnet", "devil-vit", "coca"} <= set(NAMES)
    assert sum(p.stat().st_size for p in zoo.WEIGHTS.iterdir()) < 8.1e6, "what travels with the package stays at 8 MB"
    files = {p.name for p in zoo.WEIGHTS.iterdir()}
    assert files == {"zoo.json"} | {f"{n}.{s}" for n in NAMES for s in ("safetensors", "md")}

@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_whole(name):
    e, path = zoo.entry(name), zoo.WEIGHTS/f"{name}.safetensors"
    assert e["file"] == path.name and hashlib.sha256(path.read_bytes()).hexdigest() == e["sha256"]
    with safe_open(path, "pt") as f:
        own = [k for k in f.keys() if not k.startswith(("domain.", "means."))]
        kinds, n = {f.get_slice(k).get_dtype() for k in f.keys()}, sum(int(np.prod(f.get_slice(k).get_shape())) for k in own)
    assert not kinds - {"F16", "I64"} and n == e["parameters"]
    w = zoo.weights(name)
    assert all(v.dtype in (torch.float32, torch.int64) and v.isfinite().all() for v in w.values()), "half on disk, float in use"
    assert {"torch", "timm", "transformers", "python"} <= set(e["versions"]) and e["trained_on"] and e["metrics"] and e["seconds"] > 0
    assert "/" not in json.dumps(e["versions"]) and "/tmp" not in json.dumps(e) and "/home" not in json.dumps(e), "no path of the machine it was made on"
    card = (zoo.WEIGHTS/f"{name}.md").read_text()
    assert card.startswith(f"# {name}") and e["sha256"] in card and "What it is not for" in card and "licence" in card and f"{e['parameters']:,}" in card
    for k, v in e["metrics"].items():
        if isinstance(v, list): assert f"{k}:" in card and all("| " + " | ".join("" if row[k] is None else str(row[k]) for k in row if not k.endswith(("_lo", "_hi", "_n"))) + " |" in card for row in v)
        else: assert f"{k}: {v}" in card

@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_come_frozen_enough_and_agree_with_their_table(name):
    net, cfg = zoo.encoder(name)
    assert isinstance(net, nn.Module) and not any(m.training for m in net.modules())
    bb = backbones.load(f"zoo/{name}")
    assert bb.layer_names == cfg["layers"] == zoo.ENCODERS[name]["layers"] and bb.input_size == (84, 84)
    x = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    want = net.forward_intermediates(x, intermediates_only=True)
    stem = len(want) - len(cfg["layers"])
    got = bb.features(x)
    for l, m in zip(cfg["layers"], want[stem:]):
        assert torch.allclose(got[l].map(), m[0] if isinstance(m, tuple) else m, atol=1e-5), l
        info = bb.info(l)
        assert (info.channels, info.grid) == (m.shape[1], tuple(m.shape[2:]))
    assert bb.info(cfg["layers"][-1]).channels == 128

def test_building_is_seeded_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (zoo.build(zoo.ENCODERS["vit"], s).state_dict() for s in (0, 0, 1))
    assert all(v.equal(b[k]) for k, v in a.items()) and not all(v.equal(c[k]) for k, v in a.items())
    assert torch.get_rng_state().equal(state)

def test_the_language_model_knows_the_worlds_words():
    lm = load_lm("zoo/lm")
    assert not lm.model.training and lm.bos == lm.eos == 2 and not any(p.requires_grad for p in lm.model.parameters())
    for text in scenes(20).texts: assert lm.decode(lm.encode(text)) == text
    assert lm.model.config.model_type == "opt"

def test_neither_encoder_looks_at_batch_mates():
    x = backbones.load("zoo/convnet").normalise(scenes(6).pixels())
    for name in ENCODERS: assert torch.allclose(features(name, x)[2:3], features(name, x[2:3]), atol=1e-5)


# ---- bad input

def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'devil-convet'; did you mean 'devil-convnet'"): zoo.entry("devil-convet")
    with pytest.raises(ValueError, match="it holds convnet.*vit") as e: zoo.encoder("qqqqqq")
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="did you mean 'convnet'"): backbones.load("zoo/convnett")

def test_an_empty_folder_is_an_empty_zoo(tmp_path):
    assert zoo.table(tmp_path) == {}
    with pytest.raises(ValueError, match="holds nothing"): zoo.entry("convnet", tmp_path)

@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_a_wrong_checksum_is_refused(copy, how):
    p = copy/"convnet.safetensors"
    b = bytearray(p.read_bytes())
    if how == "flip": b[-1] ^= 1
    p.write_bytes(b if how == "flip" else b[:1000] if how == "cut" else b"")
    for call in (lambda: zoo.weights("convnet", copy), lambda: zoo.encoder("convnet", copy)):
        with pytest.raises(ValueError, match="sha256") as e: call()
        assert str(p) in str(e.value) and "\n" not in str(e.value)
    assert zoo.weights("lm", copy)

def test_a_missing_file_says_what_to_do(copy):
    (copy/"lm.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lm.safetensors is missing: reinstall"): zoo.weights("lm", copy)

def test_a_torn_table_is_refused(copy):
    (copy/"zoo.json").write_text('{"convnet": {"fi')
    with pytest.raises(ValueError, match="zoo.json is not JSON"): zoo.table(copy)


# ---- another zoo for a while

def test_at_changes_the_zoo_and_gives_it_back(copy):
    whole = zoo.table()
    with zoo.at(copy):
        assert set(zoo.table()) == {"convnet", "lm"} and load_lm("zoo/lm").dim == 128
        with pytest.raises(ValueError, match="no 'vit'"): backbones.load("zoo/vit")
    assert zoo.table() == whole
    with pytest.raises(RuntimeError), zoo.at(copy): raise RuntimeError
    assert zoo.table() == whole

def test_what_is_written_can_be_read(tmp_path):
    net = zoo.build(zoo.ENCODERS["convnet"], 3)
    state = {f"encoder.{k}": v for k, v in net.state_dict().items()}
    config = {**zoo.ENCODERS["convnet"], "input_size": 84, "mean": [.5] * 3, "std": [.5] * 3}
    for seconds in (1, 2): zoo.write("mine", state, config, {"digit": .5}, "A test.", "nothing", 3, seconds, tmp_path)
    zoo.write("other", {"a": torch.ones(2)}, {}, {}, "A test.", "nothing", 0, 1, tmp_path)
    assert set(zoo.table(tmp_path)) == {"mine", "other"} and zoo.entry("mine", tmp_path)["seconds"] == 2
    again, cfg = zoo.encoder("mine", tmp_path)
    assert cfg == config
    for k, v in net.state_dict().items(): assert torch.allclose(again.state_dict()[k], v, atol=1e-3), k
    with zoo.at(tmp_path): assert backbones.load("zoo/mine").mean == (.5,) * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.md", "mine.safetensors", "other.md", "other.safetensors", "zoo.json"]


# ---- what is ordinary

def test_domain_measures_distance_from_ordinary_features():
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 3
    w = zoo.domain(z)
    far = lambda x: ((x - w["domain.mean"]) @ w["domain.white"]).square().mean(1) / w["domain.limit"]
    assert far(z).max() < 1 and far(z).quantile(.999).item() == pytest.approx(.5, abs=.01) # the limit is twice what one in a thousand exceeds
    step = torch.eye(8)[[0, 7]] * 8 + w["domain.mean"]
    assert far(step)[0] > 10 * far(step)[1], "a step along a narrow direction is farther than the same step along a wide one"
    assert zoo.domain(torch.ones(50, 3))["domain.white"].isfinite().all()

def test_strangeness_reads_the_encoders_own_limits():
    for name in ENCODERS:
        w = zoo.weights(name)
        assert {k for k in w if k.startswith("domain.")} == {"domain.mean", "domain.white", "domain.limit"}
        far = w["domain.mean"] + 100
        assert zoo.strangeness(name, torch.stack([w["domain.mean"], far])).tolist()[0] == 0
        assert zoo.strangeness(name, far[None]) > 1


# ---- these stand on the trained weights

@pytest.mark.parametrize("name", ENCODERS)
def test_photographs_are_strange_and_held_out_scenes_are_not(name):
    from sklearn.datasets import load_sample_image
    bb = backbones.load(f"zoo/{name}")
    ours = zoo.strangeness(name, features(name, bb.normalise(scenes(150).pixels())))
    assert (ours > 1).sum() == 0, f"{ours.max():.2f}"
    china = Image.fromarray(load_sample_image("china.jpg"))
    for im in (china, china.convert("L").convert("RGB"), china.resize((90, 60)), Image.new("RGB", (50, 50), "white")):
        assert zoo.strangeness(name, features(name, bb.transform(im)[None])) > 1
    noise = torch.rand(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    assert zoo.strangeness(name, features(name, (noise - .15) / .32)) > 1

def test_encoders_see():
    for name, least in (("convnet", dict(digit=.94, colour=.99, shape=.97, size=.97)), ("vit", dict(digit=.85, colour=.97, shape=.9, size=.9))):
        m = zoo.entry(name)["metrics"]
        assert all(m[k] >= v for k, v in least.items()), (name, m)

def test_the_language_model_is_sure_of_its_grammar():
    assert min(v for k, v in zoo.entry("lm")["metrics"].items() if "nats" in k) < 1.2

@pytest.mark.parametrize("name", ENCODERS)
def test_translators_name_what_is_there(name):
    rows = {r["who"]: r for r in zoo.entry(f"devil-{name}")["metrics"]["cells"]}
    least = dict(digit=.93, colour=.97, shape=.9, size=.9) if name == "convnet" else dict(digit=.85, colour=.97, shape=.8, size=.85)
    assert any(all(r[k] >= v for k, v in least.items()) for r in rows.values()), rows
    for who in ("constant", "shuffled", "blind"): assert rows[who]["digit"] < .3 and rows[who]["colour"] < .4


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("picture", ["china.jpg", "flower.jpg"])
def test_photographs_are_strange_and_scenes_are_not(name, picture):
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from vlnotes import docmnist
    from vlnotes.backbones import load
    enc = load(f"zoo/{name}")
    far = lambda x: zoo.strangeness(name, enc.features(x)[enc.layer_names[-1]].x.mean(1))
    assert far(enc.transform(Image.fromarray(load_sample_image(picture)))[None]).item() > 1
    scenes = docmnist.generate(100, regions=(1, 9), split="test", seed=5)
    assert far(enc.normalise(scenes.pixels())).max() < 0.8
