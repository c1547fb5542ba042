import json

import pytest
import torch
from devil_toys import CHANNELS, config
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from vlnotes.devil.translator import DevilConfig, Translator, count, load, save, state

RESNET = dict(layers=("layer4", "layer3", "layer2", "layer1"), channels=(2048, 1024, 512, 256))

def net(seed=0, **kw): return Translator(config(**kw), seed).eval()

def vectors(cfg, n=3, seed=0):
    g, by = torch.Generator().manual_seed(seed), dict(zip(cfg.layers, cfg.channels))
    return [torch.randn(n, by[l], generator=g) for l, _ in cfg.slots]


# ---- the published network

def test_published_names_shapes_and_size():
    cfg, d, E = DevilConfig.paper(**RESNET), 768, 768
    with torch.device("meta"): found = {k: tuple(v.shape) for k, v in Translator(cfg).state_dict().items()}
    want = {"learnable_inputs": (1, 10, d), "position_embeddings": (1, 4, d), "layernorm.weight": (d,), "layernorm.bias": (d,),
            "out_proj.weight": (E, d), "out_proj.bias": (E,)}
    for k, c in enumerate(cfg.channels): want |= {f"projections.{k}.weight": (d, c), f"projections.{k}.bias": (d,)}
    for i in range(12):
        p = f"encoder.layers.{i}."
        want |= {p + "self_attn.in_proj_weight": (3 * d, d), p + "self_attn.in_proj_bias": (3 * d,), p + "self_attn.out_proj.weight": (d, d),
                 p + "self_attn.out_proj.bias": (d,), p + "linear1.weight": (3072, d), p + "linear1.bias": (3072,),
                 p + "linear2.weight": (d, 3072), p + "linear2.bias": (d,), p + "norm1.weight": (d,), p + "norm1.bias": (d,),
                 p + "norm2.weight": (d,), p + "norm2.bias": (d,)}
    assert found == want and count(cfg) == 88_609_536
    assert cfg.lm_dropout and (cfg.prompt, cfg.depth, cfg.heads, cfg.ff, cfg.token_dropout, cfg.feature_dropout) == (10, 12, 12, 3072, .5, .5)

@pytest.mark.parametrize("tokens", ["spatial", "class", "both"])
def test_count_needs_no_network(tokens):
    cfg = config(tokens=tokens)
    assert count(cfg) == sum(p.numel() for p in Translator(cfg).parameters())

def test_initial_weights_are_as_published():
    t = Translator(DevilConfig(("a", "b"), (200, 100), 96, hidden=192, heads=4, depth=2, ff=256)).requires_grad_(False)
    assert t.learnable_inputs.std() == pytest.approx(.1, rel=.1) and t.position_embeddings.std() == pytest.approx(.1, rel=.2)
    for name, m in t.named_modules():
        if isinstance(m, nn.Linear):
            assert not m.bias.any() and m.weight.std() == pytest.approx(.02, rel=.06), name
        if isinstance(m, nn.LayerNorm): assert m.eps == 1e-12 and (m.weight == 1).all() and not m.bias.any()
        if isinstance(m, nn.MultiheadAttention):
            bound = (6 / (192 + 3 * 192)) ** .5
            assert .97 * bound < m.in_proj_weight.abs().max() <= bound and not m.in_proj_bias.any()
    assert not t.encoder.layers[0].self_attn.in_proj_weight.equal(t.encoder.layers[1].self_attn.in_proj_weight)

def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = net(0), net(0), net(1)
    assert torch.get_rng_state().equal(before)
    assert all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items()) and not a.learnable_inputs.equal(c.learnable_inputs)

@torch.no_grad()
def test_forward_is_torchs_own_pre_norm_encoder():
    t = net(3, init=.5)
    f, hidden = vectors(t.cfg), torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0]]).bool()
    x = torch.stack([p(v) for p, v in zip(t.projections, f)], 1) + t.position_embeddings
    x = torch.cat([x, t.learnable_inputs.expand(3, -1, -1)], 1)
    for mask in (None, hidden):
        y = t.encoder(x, src_key_padding_mask=None if mask is None else F.pad(mask, (0, 3)))
        assert torch.allclose(t(f, mask), t.out_proj(t.layernorm(y))[:, -3:], atol=1e-5)
    assert t(f).shape == (3, 3, 32) and t.encoder.layers[0].activation is F.gelu


# ---- hidden tokens

@torch.no_grad()
@pytest.mark.parametrize("layer", range(3))
def test_hiding_is_deleting(layer):
    t = net(1, init=.5)
    f = vectors(t.cfg)
    others = torch.ones(3, 3, dtype=torch.bool)
    others[:, layer] = False
    alone = t([f[layer]], slots=[layer])
    assert torch.allclose(t(f, others), alone, atol=3e-6)
    for value in (1e3, -1e4, 0.): # whatever stands in the hidden layers
        rest = [v if k == layer else torch.full_like(v, value) for k, v in enumerate(f)]
        assert torch.allclose(t(rest, others), alone, atol=3e-6)
    assert not torch.allclose(t(f), alone, atol=1e-3)

@torch.no_grad()
def test_rows_hide_what_they_like_and_slots_may_be_sent_in_part():
    t = net(1, init=.5)
    f = vectors(t.cfg)
    hidden = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    together = t(f, hidden)
    for row in range(3):
        keep = [k for k in range(3) if not hidden[row, k]]
        assert torch.allclose(t([f[k][row:row + 1] for k in keep], slots=keep)[0], together[row], atol=3e-6)
    assert torch.allclose(t([f[2], f[0]], slots=[2, 0]), t([f[0], f[2]], slots=[0, 2]), atol=3e-6), "a token knows its place by its position vector"
    assert not torch.allclose(net(1, init=.5)([f[0]], slots=[0]), net(1, init=.5)([f[0] * 0], slots=[0]), atol=1e-3)

def test_as_many_features_as_tokens():
    with pytest.raises(ValueError, match="2 feature vectors for 3 layer tokens"): net()(vectors(config())[:2])

def test_prompt_of_hidden_layers_has_no_gradient():
    t = net(1)
    f = [v.requires_grad_() for v in vectors(t.cfg)]
    t(f, torch.tensor([[0, 1, 1]] * 3).bool()).square().sum().backward()
    assert f[0].grad.abs().sum() > 0 and not f[1].grad.any() and not f[2].grad.any()


# ---- configuration

@pytest.mark.parametrize("bad, says", [
    (dict(layers=()), "0 layers"), (dict(channels=(1, 2)), "3 layers and 2 widths"), (dict(tokens="cls"), "choose spatial, class or both"),
    (dict(token_dropout=1.), "token_dropout is 1.0"), (dict(feature_dropout=-.1), "feature_dropout is -0.1"), (dict(heads=5), "multiple of heads=5")])
def test_bad_settings_are_refused(bad, says):
    with pytest.raises(ValueError, match=says) as e: DevilConfig(**{**config().to_dict(), **bad})
    assert "\n" not in str(e.value)

def test_configuration_goes_through_json():
    cfg = config(tokens="both", prompt=4)
    assert DevilConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    with pytest.raises(ValueError, match="no setting 'promt'; the nearest is 'prompt'"): DevilConfig.from_dict({**cfg.to_dict(), "promt": 3})
    with pytest.raises(ValueError, match="no setting 'zzz'; there are: layers"): DevilConfig.from_dict({"zzz": 3})

def test_order_of_tokens():
    assert config().slots == [(l, "cells") for l in ("high", "mid", "low")]
    assert config(tokens="class").slots == [(l, "cls") for l in ("high", "mid", "low")]
    assert config(tokens="both").slots == config().slots + config(tokens="class").slots
    assert [p.in_features for p in net(tokens="both").projections] == [CHANNELS[l] for l in ("high", "mid", "low")] * 2


# ---- folders

@pytest.fixture
def folder(tmp_path):
    t = net(5)
    t.means = {("high", "cells"): torch.ones(10), ("low", "cells"): torch.zeros(6)}
    return save(tmp_path/"run", t, "zoo/convnet", "zoo/lm", trained_on="nothing", scores={"a": 1})

def test_a_folder_gives_the_same_network_back(folder):
    t, about = load(folder)
    assert all(v.equal(net(5).state_dict()[k]) for k, v in t.state_dict().items()) and t.cfg == config()
    assert t.means.keys() == {("high", "cells"), ("low", "cells")} and t.means["high", "cells"].equal(torch.ones(10))
    assert about["encoder"] == "zoo/convnet" and about["lm"] == "zoo/lm" and about["method"] == "devil" and about["trained_on"] == "nothing"
    assert not t.training and not any(p.requires_grad for p in t.parameters())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.safetensors"]
    assert set(state(t)) == set(load_file(folder/"weights.safetensors"))

def test_layers_with_dots_keep_their_names(tmp_path):
    t = Translator(config(("high", "mid")))
    t.means = {("blocks.0.mlp", "cells"): torch.ones(2), ("blocks.0.mlp", "cls"): torch.zeros(2)}
    assert load(save(tmp_path, t, "e", "l"))[0].means.keys() == t.means.keys()

def change(folder, **kw):
    p = folder/"config.json"
    about = json.loads(p.read_text())
    about.update(kw)
    p.write_text(json.dumps(about))

def test_another_method_is_refused(folder):
    change(folder, method="lavise")
    with pytest.raises(ValueError, match="was trained as 'lavise', not as a DeViL translator"): load(folder)
    with pytest.raises(ValueError, match="zoo/lm was trained as None"): load("zoo/lm")

@pytest.mark.parametrize("other", [dict(hidden=24), dict(depth=3), dict(layers=("high", "mid"))])
def test_weights_of_another_translator_are_refused(folder, other):
    change(folder, devil=config(**other).to_dict())
    with pytest.raises(ValueError, match="do not fit its config.json: .* tensors differ, first") as e: load(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)

@pytest.mark.parametrize("part", [0, 5, 200, -30])
def test_cut_off_weights_are_refused(folder, part):
    p = folder/"weights.safetensors"
    p.write_bytes(p.read_bytes()[:part])
    with pytest.raises(ValueError, match="weights.safetensors"): load(folder)

def test_weights_that_are_something_else(folder):
    save_file({"x": torch.zeros(3)}, folder/"weights.safetensors")
    with pytest.raises(ValueError, match="do not fit its config.json"): load(folder)
    (folder/"config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"): load(folder)

def test_what_is_missing_is_named(folder):
    (folder/"weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights.safetensors"): load(folder)
    with pytest.raises(FileNotFoundError, match="is not a trained translator: it has no config.json"): load(folder/"nowhere")
    with pytest.raises(ValueError, match="did you mean 'devil-convnet'"): load("zoo/devil-convne")

@pytest.mark.parametrize("name", ["devil-convnet", "devil-vit"])
def test_zoo_translators_load(name):
    t, about = load(f"zoo/{name}")
    assert about["encoder"] == f"zoo/{name[6:]}" and about["lm"] == "zoo/lm" and t.cfg.lm_dim == 128
    assert set(t.means) == set(t.cfg.slots), "the blind baseline has its features"
    assert t.cfg.layers[0].endswith("4"), "deepest first"
