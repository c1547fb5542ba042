"Many families of encoders, random weights: one interface, the same numbers as plain hooks, the model left as it was."
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlnotes import backbones
from vlnotes.backbones import Backbone, freeze, load, save
from vlnotes.checkpoints import fingerprint, fit, read_weights

CLIP_TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
OPEN_CLIP = {
    "tinyrn": {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": CLIP_TEXT},
    "tinyvit": {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}, "text_cfg": CLIP_TEXT},
    "tinycoca": {"embed_dim": 16, "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16, "attentional_pool": True,
                 "attn_pooler_heads": 2, "output_tokens": True}, "text_cfg": CLIP_TEXT | {"embed_cls": True, "output_tokens": True},
                 "multimodal_cfg": CLIP_TEXT | {"attn_pooler_heads": 2}, "custom_text": True},
    "tinytimm": {"embed_dim": 16, "vision_cfg": {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "avg",
                 "timm_proj": "linear", "image_size": 64}, "text_cfg": CLIP_TEXT},
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HF = {"vit": ("ViTConfig", SMALL | {"image_size": 64}), "dinov2": ("Dinov2Config", SMALL | {"image_size": 56}),
      "dinov2reg": ("Dinov2WithRegistersConfig", SMALL | {"image_size": 64}), "clip": ("CLIPVisionConfig", SMALL | {"image_size": 64, "patch_size": 16}),
      "siglip": ("SiglipVisionConfig", SMALL | {"image_size": 64, "patch_size": 16}),
      "convnext": ("ConvNextConfig", {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "image_size": 64}),
      "swin": ("SwinConfig", {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": 128, "window_size": 4}),
      "resnet": ("ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"})}

# what, options, first layer, channels and grid of the last, class token
CASES = [
    ("timm/resnet10t", {}, "act1", (512, (6, 6)), False),
    ("timm/convnext_atto", {}, "stages.0", (320, (7, 7)), False),
    ("timm/swin_tiny_patch4_window7_224", {"img_size": 112, "depths": (1, 2, 1, 1)}, "layers.0", (768, (4, 4)), False), # grid 3.5 is padded
    ("timm/davit_tiny", {"depths": (1, 1, 1, 1)}, "stages.0", (768, (7, 7)), False),
    ("timm/efficientnet_b0", {}, "blocks.0", (320, (7, 7)), False),
    ("timm/mobilenetv3_small_050", {}, "bn1", (288, (7, 7)), False),
    ("timm/vit_tiny_patch16_224", {"img_size": 64, "depth": 3}, "blocks.0", (192, (4, 4)), True),
    ("timm/vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 3}, "blocks.0", (384, (4, 4)), True),
    ("timm/deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}, "blocks.0", (192, (4, 4)), True),
    ("timm/vit_medium_patch16_reg4_gap_256", {"img_size": 64, "depth": 2}, "blocks.0", (512, (4, 4)), False), # registers, no class token
    ("timm/mixer_s32_224", {}, "blocks.0", (512, (7, 7)), False),
    ("timm/hiera_tiny_224", {}, "blocks.0", (768, (7, 7)), False), # no hook gives these maps
    ("timm/coat_lite_tiny", {}, "serial_blocks1", (320, (7, 7)), False), # no module has these names
    ("timm/regnetx_002", {}, "stem", (368, (7, 7)), False),
    ("timm/densenet121", {}, "features.norm0", (1024, (7, 7)), False),
    ("torchvision/alexnet", {"num_classes": 2}, "features.0", (256, (6, 6)), False),
    ("torchvision/vgg11", {"num_classes": 2, "init_weights": False}, "features.0", (512, (7, 7)), False),
    ("torchvision/resnet18", {}, "layer1", (512, (7, 7)), False),
    ("torchvision/mobilenet_v3_small", {}, "features.0", (576, (7, 7)), False),
    ("torchvision/swin_t", {}, "features.0", (768, (7, 7)), False),
    ("torchvision/vit_b_32", {"image_size": 64}, "encoder.layers.encoder_layer_0", (768, (2, 2)), True),
    ("torchvision/regnet_y_400mf", {}, "trunk_output.block1", (440, (7, 7)), False),
    ("open_clip/tinyrn", {}, "layer1", (256, (2, 2)), False),
    ("open_clip/tinyvit", {}, "transformer.resblocks.0", (64, (4, 4)), True),
    ("open_clip/tinycoca", {}, "transformer.resblocks.0", (64, (4, 4)), True),
    ("open_clip/tinytimm", {}, "act1", (512, (2, 2)), False),
    ("hf/vit", {}, "layers.0", (32, (4, 4)), True),
    ("hf/dinov2", {}, "encoder.layer.0", (32, (4, 4)), True),
    ("hf/dinov2reg", {}, "encoder.layer.0", (32, (4, 4)), True),
    ("hf/clip", {}, "encoder.layers.0", (32, (4, 4)), True),
    ("hf/siglip", {}, "encoder.layers.0", (32, (4, 4)), False),
    ("hf/convnext", {}, "encoder.stages.0", (64, (2, 2)), False),
    ("hf/swin", {}, "encoder.layers.0", (128, (4, 4)), False),
    ("hf/resnet", {}, "encoder.stages.0", (64, (7, 7)), False),
]

def make(what, root, **options):
    "An encoder with random weights; open_clip's from a configuration file, transformers' from a saved folder."
    source, _, name = what.partition("/")
    if source == "open_clip":
        pytest.importorskip("open_clip")
        (root / f"{name}.json").write_text(json.dumps(OPEN_CLIP[name]))
        return load(f"open_clip/{root / name}.json@random", **options)
    if source == "hf":
        import transformers
        kind, values = HF[name]
        getattr(transformers, kind)(**values).save_pretrained(root / name)
        with pytest.warns(UserWarning, match="preprocessor_config"): return load(f"hf/{root / name}@random", **options)
    return load(f"{what}@random", **options)

def plain_hooks(bb, x):
    "What ordinary forward hooks on the same modules give in an ordinary pass, copied at once."
    got, modules, handles = {}, dict(bb.net.named_modules()), []
    for n in bb.layer_names:
        def hook(m, i, o, n=n): got[n] = (o if isinstance(o, torch.Tensor) else o[0]).clone()
        if n in modules: handles.append(modules[n].register_forward_hook(hook))
    with torch.no_grad(): bb.net(x)
    for h in handles: h.remove()
    return got

def rows(raw, info):
    "Raw output to (B, N, C), by the table alone."
    if raw.dim() == 3: return raw[:, raw.shape[1] - info.grid[0] * info.grid[1]:]
    return raw.flatten(2).mT if raw.shape[1] == info.channels else raw.flatten(1, 2)

@pytest.mark.parametrize("what,options,first,last,cls", CASES, ids=[c[0] for c in CASES])
def test_family(what, options, first, last, cls, tmp_path):
    bb = make(what, tmp_path, **options)
    x = torch.randn(2, 3, *bb.input_size, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in bb.model.state_dict().items()}
    info = {l.name: l for l in bb.layers}
    assert bb.layer_names[0] == first
    assert (bb.layers[-1].channels, bb.layers[-1].grid, bb.layers[-1].cls) == (*last, cls)

    got = bb.features(x)
    assert list(got) == bb.layer_names
    for n, f in got.items():
        assert f.shape == (2, f.grid[0] * f.grid[1], info[n].channels) and f.grid == info[n].grid and f.layer == n
        assert (f.cls is not None) == info[n].cls and not f.x.requires_grad and f.x.isfinite().all()

    ref, same = plain_hooks(bb, x), [n for n, l in info.items() if bb.places[n].hooked]
    if what not in ("timm/hiera_tiny_224", "timm/coat_lite_tiny"): assert same == bb.layer_names
    for n in same:
        assert got[n].x.equal(rows(ref[n], info[n])), n
        if info[n].cls: assert got[n].cls.equal(ref[n][:, 0])

    early, ran = bb.layer_names[0], []
    modules = dict(bb.net.named_modules())
    if (late := modules.get(bb.layer_names[-1])) is not None and late.__class__ is not nn.ModuleList:
        handle = late.register_forward_hook(lambda *a: ran.append(1))
        assert bb.features(x, early)[early].x.equal(got[early].x) and not ran # the last layer did not run
        handle.remove()

    alone = bb.features(x[1:], 1)[bb.layer_names[-1]].x # tolerance: another batch size, another order of sums
    assert (alone[0] - got[bb.layer_names[-1]].x[1]).abs().max() <= 1e-4 * alone.abs().max()

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bb.model.modules())
    assert not any(m.training for m in bb.model.modules()) and not any(p.requires_grad for p in bb.model.parameters())
    assert all(v.equal(before[k]) for k, v in bb.model.state_dict().items())
    image = bb.transform(Image.new("RGB", (90, 70), "red"))
    assert image.shape == (3, *bb.input_size) and image.dtype == torch.float32

def tiny(**kw): return load("timm/resnet10t@random", **kw)

def test_a_hook_where_the_stages_do_not_reach():
    bb, x = tiny(), torch.randn(1, 3, 64, 64)
    got = bb.features(x, ["fc", "layer1.0.bn1", "layer4", "global_pool"])
    assert list(got) == ["layer1.0.bn1", "layer4", "global_pool", "fc"] # network order
    assert got["fc"].x[:, 0].equal(bb.model(x)) and got["fc"].grid == (1, 1)
    assert got["layer4"].x.equal(bb.features(x, "layer4")["layer4"].x)
    assert bb.info("layer1.0.bn1").channels == 64

def test_stages_and_hooks_in_one_pass():
    bb = load("timm/hiera_tiny_224@random")
    x, calls = torch.randn(1, 3, 224, 224), []
    bb.net.patch_embed.register_forward_hook(lambda *a: calls.append(1))
    got = bb.features(x, ["blocks.2", "patch_embed"])
    assert len(calls) == 1 and got["blocks.2"].x.equal(bb.features(x, "blocks.2")["blocks.2"].x)

def test_a_module_that_runs_twice_gives_its_last_output():
    bb, x, seen = load("torchvision/resnet18@random"), torch.randn(1, 3, 64, 64), []
    bb.net.layer1[0].relu.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    got = bb.features(x, ["layer1.0.relu"])
    assert len(seen) == 2 and got["layer1.0.relu"].map().equal(seen[1])

def test_the_users_own_model_is_taken_as_it_is():
    import timm
    net, calls = timm.create_model("resnet10t"), []
    net.layer1.register_forward_hook(lambda *a: calls.append(1))
    with pytest.raises(RuntimeError, match="training mode"): load(net)
    net.eval()
    with pytest.raises(RuntimeError, match="asks for a gradient"): load(net)
    assert all(p.requires_grad for p in net.parameters()) and not calls
    bb = load(net.requires_grad_(False))
    assert bb.model is net and bb.input_size == (176, 176) and len(net.layer1._forward_hooks) == 1 and calls
    net.bn1.train() if hasattr(net, "bn1") else net.train()
    with pytest.raises(RuntimeError, match="bn1"): bb.features(torch.randn(1, 3, 64, 64))

def test_any_module_will_do():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True))
            self.head = nn.Linear(5, 2)
        def forward(self, x): return self.head(self.body(x).mean((2, 3)))
    bb = Backbone(Net().eval().requires_grad_(False), input_size=(12, 20))
    assert bb.layer_names == ["body.0", "body.2"] and bb.layers[-1].grid == (8, 16)
    x = torch.randn(2, 3, 12, 20)
    got = bb.features(x, "body.0,body.1,head")
    assert got["body.0"].map().equal(bb.net.body[0](x)) and (got["body.0"].x < 0).any() and (got["body.1"].x >= 0).all()

@pytest.mark.parametrize("what,options,size,grid", [
    ("timm/vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 1}, (64, 96), (4, 6)),
    ("timm/vit_tiny_patch16_224", {"img_size": 64, "depth": 1, "dynamic_img_size": True}, (32, 96), (2, 6)),
    ("timm/convnext_atto", {}, (64, 96), (2, 3)), ("torchvision/swin_t", {}, (64, 96), (2, 3)),
    ("hf/vit", {}, (32, 96), (2, 6)), ("hf/dinov2reg", {}, (32, 80), (2, 5)), ("hf/swin", {}, (256, 128), (8, 4))])
def test_other_sizes(what, options, size, grid, tmp_path):
    bb = make(what, tmp_path, **options)
    f = bb.features(torch.randn(1, 3, *size), 1)[bb.layer_names[-1]]
    assert f.grid == grid and f.shape[1] == grid[0] * grid[1]

def test_rows_of_a_wide_image_are_rows():
    "A patch that differs moves exactly its own token."
    bb = load("timm/vit_tiny_patch16_224@random", img_size=(64, 96), depth=1)
    x = torch.zeros(1, 3, 64, 96)
    y = x.clone(); y[..., 16:32, 80:96] = 1
    a, b = (bb.features(v, ["patch_embed"])["patch_embed"] for v in (x, y))
    assert (a.map() - b.map()).abs().sum(1)[0].nonzero().tolist() == [[1, 5]]

def test_dtype_and_class_tokens():
    bb = load("timm/vit_tiny_patch16_224@random", dtype=torch.bfloat16, img_size=32, depth=2)
    got = bb.features(torch.randn(1, 3, 32, 32), cls=False)
    assert all(f.x.dtype == torch.bfloat16 and f.cls is None for f in got.values()) and bb.dtype == torch.bfloat16
    assert bb.normalise(np.zeros((1, 3, 32, 32), np.uint8)).dtype == torch.bfloat16

def test_normalise_is_the_transform_without_resizing():
    bb = Backbone(nn.Sequential(nn.Conv2d(3, 2, 3)).eval().requires_grad_(False), input_size=(24, 24), mean=(.1, .2, .3), std=(.4, .5, .6))
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert torch.allclose(bb.normalise(pixels.transpose(2, 0, 1)[None])[0], bb.transform(Image.fromarray(pixels)), atol=1e-6)

def test_random_weights_are_seeded_and_global_state_is_not_read():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    a, b, c = fingerprint(tiny(seed=1).model), fingerprint(tiny(seed=1).model), fingerprint(tiny(seed=2).model)
    assert a == b != c
    assert torch.get_rng_state().equal(states[0]) and (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]

def test_coca_random_weights_are_finite(tmp_path):
    bb = make("open_clip/tinycoca", tmp_path)
    assert fingerprint(bb.model) == fingerprint(make("open_clip/tinycoca", tmp_path).model)
    assert bb.model.text_decoder.text_projection.std() > 0.1 and bb.model.text_decoder.text_projection.isfinite().all()

@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_weights_from_a_file(tmp_path, suffix):
    from safetensors.torch import save_file
    bb = tiny(seed=4, num_classes=7)
    state, file = bb.model.state_dict(), tmp_path / f"w.{suffix}"
    if suffix == "safetensors": save_file(state, file)
    else: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 2} if suffix == "pth" else state, file)
    again = load(f"timm/resnet10t@{file}") # seven classes are read off the file
    assert fingerprint(again.model) == fingerprint(bb.model) and again.name == "timm/resnet10t" and again.weights == str(file)

def test_weight_files_of_the_other_libraries(tmp_path):
    for what, name in [("torchvision/mobilenet_v3_small", None), ("open_clip/tinyvit", "tinyvit"), ("hf/vit", "vit")]:
        bb = make(what, tmp_path)
        torch.save(bb.model.state_dict(), tmp_path / "w.pt")
        spec = what if name is None else f"{what.split('/')[0]}/{tmp_path / name}{'.json' if 'clip' in what else ''}"
        if what.startswith("hf"):
            with pytest.warns(UserWarning): again = load(f"{spec}@{tmp_path / 'w.pt'}", seed=5)
        else: again = load(f"{spec}@{tmp_path / 'w.pt'}", seed=5)
        assert fingerprint(again.model) == fingerprint(bb.model)

def test_pretrained_from_a_local_transformers_folder(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=64))
    model.save_pretrained(tmp_path / "m")
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=[.1] * 3, image_std=[.3] * 3).save_pretrained(tmp_path / "m")
    bb = load(f"hf/{tmp_path / 'm'}") # a classifier's folder: its pooler is missing, its head is left over, and neither matters
    assert bb.mean == (.1, .1, .1) and bb.weights == "pretrained"
    x = torch.randn(1, 3, 64, 64)
    ref = model.eval()(x, output_hidden_states=True).hidden_states[1]
    assert torch.allclose(bb.features(x, [0])["layers.0"].x, ref[:, 1:], atol=1e-5)
    assert bb.transform(Image.new("RGB", (10, 10))).mean().item() == pytest.approx(-1 / 3)
    (tmp_path / "m/config.json").write_text((tmp_path / "m/config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match="do not fit its config"): load(f"hf/{tmp_path / 'm'}")
    with pytest.raises(OSError, match="neither a local folder"): load(f"hf/{tmp_path / 'nothing'}")

def test_save_and_load(tmp_path):
    bb = Backbone(tiny(seed=2, num_classes=3).model, "timm/resnet10t", input_size=(48, 48), mean=(.2,) * 3, std=(.3,) * 3, layers=["layer2", "layer4"])
    with pytest.raises(ValueError, match="say which model it is"): save(bb, tmp_path / "enc")
    save(bb, tmp_path / "enc", "timm/resnet10t", {"num_classes": 3}, data="docmnist")
    again, x = load(f"run/{tmp_path / 'enc'}"), torch.randn(2, 3, 48, 48)
    assert again.layer_names == ["layer2", "layer4"] and (again.input_size, again.mean) == ((48, 48), (.2,) * 3)
    assert all(f.x.equal(bb.features(x)[n].x) for n, f in again.features(x).items())
    assert json.loads((tmp_path / "enc/config.json").read_text())["data"] == "docmnist"
    assert fingerprint(load(f"run/{save(again, tmp_path / 'copy')}").model) == fingerprint(bb.model) # and once more
    (tmp_path / "tr").mkdir()
    (tmp_path / "tr/config.json").write_text(json.dumps({"encoder": "timm/resnet10t@random"})) # a translator's folder names its encoder
    assert load(f"run/{tmp_path / 'tr'}").name == "timm/resnet10t"
    (tmp_path / "tr/config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'encoder'"): load(f"run/{tmp_path / 'tr'}")
    with pytest.raises(FileNotFoundError, match="no config.json"): load(f"run/{tmp_path / 'nothing'}")

def test_zoo(monkeypatch):
    import sys
    import types

    import timm
    fake = types.ModuleType("vlnotes.zoo")
    fake.encoder = lambda name: (timm.create_model("resnet10t"), dict(input_size=[3, 84, 84], mean=[.1] * 3, std=[.3] * 3, layers=["layer1", "layer3"]))
    monkeypatch.setitem(sys.modules, "vlnotes.zoo", fake)
    monkeypatch.setattr("vlnotes.zoo", fake, raising=False)
    bb = load("zoo/convnet")
    assert bb.layer_names == ["layer1", "layer3"] and bb.input_size == (84, 84) and bb.name == "zoo/convnet"

@pytest.mark.parametrize("spec,error,words", [
    ("timm/resnett10@random", ValueError, "no timm model 'resnett10'; the nearest is 'resnet10t'"),
    ("torchvision/resnet19@random", ValueError, "no torchvision model 'resnet19'; the nearest is 'resnet18'"),
    ("timn/resnet18", ValueError, "no encoder 'timn/resnet18'"), ("resnet18", ValueError, "no encoder 'resnet18'"),
    ("timm/resnet10t@/nowhere/w.pth", FileNotFoundError, "no weight file /nowhere/w.pth")])
def test_names_that_match_nothing(spec, error, words):
    with pytest.raises(error, match=words): load(spec)

def test_open_clip_names_that_match_nothing():
    pytest.importorskip("open_clip")
    with pytest.raises(ValueError, match="no open_clip model 'ViT-B-31'"): load("open_clip/ViT-B-31@random")
    with pytest.raises(ValueError, match="pretrained tag of ViT-B-32 'openia'; the nearest is 'openai'"): load("open_clip/ViT-B-32@openia")

def test_bad_checkpoints_get_one_sentence(tmp_path):
    other = load("timm/convnext_atto@random")
    torch.save(other.model.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt does not fit ResNet: \d+ missing \(.*\); \d+ unexpected \(") as e: load(f"timm/resnet10t@{tmp_path / 'other.pt'}")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    torch.save({"model": other.model}, tmp_path / "pickled.pt")
    (tmp_path / "junk.pth").write_bytes(b"no weights at all")
    (tmp_path / "junk.safetensors").write_bytes(b"no weights at all")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save(other.model.state_dict(), tmp_path / "cut.pt")
    data = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[:len(data) // 2])
    for name in ("pickled.pt", "junk.pth", "junk.safetensors", "empty.pt", "cut.pt"):
        with pytest.raises(ValueError, match=name) as e: load(f"timm/resnet10t@{tmp_path / name}")
        assert "\n" not in str(e.value), name

def test_a_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path / "ran"), "w"))
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only"): read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()

def test_fit_says_what_has_another_shape():
    with pytest.raises(ValueError, match=r"1 of another shape \(weight \(3, 2\) instead of \(4, 2\)\)"): fit(nn.Linear(2, 4, bias=False), {"weight": torch.zeros(3, 2)}, "f")

@pytest.mark.parametrize("layers,words", [("layr3", "no layer 'layr3'; the nearest is 'layer3'"), ([9], "index 9"), (9, "last 9 layers"), ([], "no layer"), ("", "no layer")])
def test_layers_that_match_nothing(layers, words):
    with pytest.raises(ValueError, match=words): tiny().features(torch.randn(1, 3, 32, 32), layers)

def test_bad_batches():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(3, 32, 32\)"): tiny().features(torch.randn(3, 32, 32))

def test_layer_table_is_measured_once(monkeypatch):
    calls, look = [], backbones.probe
    monkeypatch.setattr(backbones, "probe", lambda *a, **k: calls.append(1) or look(*a, **k))
    bb = tiny()
    bb.features(torch.randn(1, 3, 32, 32)); bb.describe_table(); bb.features(torch.randn(1, 3, 32, 32), 1)
    assert len(calls) == 1

def ramp(w, h):
    rows, cols = np.mgrid[0:h, 0:w]
    return Image.fromarray(np.stack([(cols + .5) / w * 255, (rows + .5) / h * 255, rows * 0], -1).astype(np.uint8))

@pytest.mark.parametrize("size", [(300, 200), (120, 260), (224, 224)])
@pytest.mark.parametrize("what", ["plain", "oblong", "timm", "timm squash", "torchvision", "open_clip", "vit", "clip", "convnext", "convnext384"])
def test_crop_is_the_part_that_comes_through(what, size):
    "A picture whose red is the column and whose green is the row tells what its transform keeps."
    import transformers
    from vlnotes.transforms import Processor, eval_transform, visible
    side = {"size": {"height": 64, "width": 64}}
    if what == "plain": tf = eval_transform((64, 64), (0,) * 3, (1,) * 3)
    if what == "oblong": tf = eval_transform((48, 96), (0,) * 3, (1,) * 3)
    if what.startswith("timm"):
        from timm.data import create_transform
        tf = create_transform((3, 64, 64), mean=(0,) * 3, std=(1,) * 3, crop_pct=.875, crop_mode="squash" if "squash" in what else "center")
    if what == "torchvision":
        from torchvision.transforms._presets import ImageClassification
        tf = ImageClassification(crop_size=64, resize_size=73, mean=(0.,) * 3, std=(1.,) * 3)
    if what == "open_clip":
        transform = pytest.importorskip("open_clip.transform")
        tf = transform.image_transform_v2(transform.PreprocessCfg(size=64, mean=(0,) * 3, std=(1,) * 3), is_train=False)
    plain = {"image_mean": [0.] * 3, "image_std": [1.] * 3}
    if what == "vit": tf = Processor(transformers.ViTImageProcessor(**side, **plain))
    if what == "clip": tf = Processor(transformers.CLIPImageProcessor(size={"shortest_edge": 72}, crop_size=side["size"], **plain))
    if what == "convnext": tf = Processor(transformers.ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=.875, **plain))
    if what == "convnext384": tf = Processor(transformers.ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=.875, **plain))
    x, (w, h), (x0, y0, x1, y1) = tf(ramp(*size)), size, visible(tf, size)
    H, W = x.shape[1:]
    col, row = x[0, H // 2].double() * w, x[1, :, W // 2].double() * h # away from the borders of the resampling
    want = x0 + (x1 - x0) * (torch.arange(W) + .5) / W, y0 + (y1 - y0) * (torch.arange(H) + .5) / H
    slack = 1.5 * max((x1 - x0) / W, (y1 - y0) / H) + max(w, h) / 255 # a pixel of the result and a step of the colour
    assert (col - want[0])[2:-2].abs().max() < slack and (row - want[1])[2:-2].abs().max() < slack


def test_a_module_of_ones_own_says_how_it_was_trained():
    import numpy as np
    from PIL import Image
    net = freeze(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Conv2d(4, 8, 3, 2, 1)))
    bb = load(net, img_size=(32, 48), name="mine", mean=(0.,) * 3, std=(1.,) * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    assert bb.name == "mine" and bb.input_size == (32, 48) and bb.model is net
    both = bb.transform(Image.fromarray(pixels)), bb.normalise(pixels.transpose(2, 0, 1)[None])[0]
    assert torch.allclose(*both, atol=1e-6) and torch.allclose(both[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255, atol=1e-6)
    assert load(net, img_size=32, layers=["1"]).layer_names == ["1"]
    with pytest.raises(ValueError, match="has no option 'imgsize'; it takes img_size, name"): load(net, imgsize=32)
