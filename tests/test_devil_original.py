"Checkpoints of the original: what is right comes in exactly, what is wrong gets one sentence, and nothing is executed."
import argparse
import importlib
import inspect
import json
import os
import shutil

import pytest
import torch
from devil_toys import lm as toy_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from original_toys import prompts, write
from safetensors.torch import load_file

from vlnotes import backbones
from vlnotes.devil import original, translator
from vlnotes.devil.explain import Devil
from vlnotes.devil.original import FLAGS, convert, encoder_name, namespace, read, sizes
from vlnotes.devil.translator import DevilConfig
from vlnotes.train import FitConfig

one_line = lambda e: "\n" not in str(e.value)


# ---- the import

def features(widths, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, c, generator=g) for c in widths]

@torch.no_grad()
def test_an_import_gives_the_prompts_of_the_state_dict(tmp_path):
    folder, s = write(tmp_path)
    net, about = translator.load(convert(folder, tmp_path/"out"))
    f = features((512, 256))
    assert torch.allclose(net(f), prompts(s, f), atol=2e-6)
    hidden = torch.tensor([[True, False], [False, True], [False, False]])
    assert torch.allclose(net(f, hidden), prompts(s, f, hidden=hidden), atol=2e-6)
    cfg = net.cfg
    assert (cfg.layers, cfg.channels, cfg.lm_dim, cfg.tokens) == (("layer4", "layer3"), (512, 256), 128, "spatial"), "deepest first"
    assert (cfg.prompt, cfg.hidden, cfg.depth, cfg.heads, cfg.ff, cfg.max_length) == (3, 24, 2, 4, 48, 40)
    assert (cfg.token_dropout, cfg.feature_dropout, cfg.init, cfg.lm_dropout) == (.5, .25, .02, True)
    assert about["encoder"] == "timm/resnet10t?crop_pct=1.0" and about["lm"] == "zoo/lm" and about["trained_on"] == "cc3m" and about["method"] == "devil"
    kept = about["imported"]
    assert (kept["steps"], kept["score"], kept["loss"]) == (20_000, .31, 2.5) and kept["flags"]["lr"] == 1e-4 and kept["config"]["dropout_prob"] == 0
    assert kept["flags"]["vision_feat_layers"] == [-1, -2] and "31,592 parameters" in kept["summary"]
    held = load_file(tmp_path/"out/weights.safetensors")
    assert set(held) == set(s) - {"bernoulli_prob"} and all(held[k].equal(s[k]) for k in held)
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["config.json", "weights.safetensors"], "one safetensors file and one JSON file"

def test_two_imports_are_the_same_bytes(tmp_path):
    folder, _ = write(tmp_path)
    a, b = convert(folder, tmp_path/"a"), convert(folder/"model.pt", tmp_path/"b")
    for name in ("config.json", "weights.safetensors"): assert (a/name).read_bytes() == (b/name).read_bytes()

def test_paths_may_be_relative_and_the_flags_may_lie_beside_the_weights(tmp_path, monkeypatch):
    folder, s = write(tmp_path)
    monkeypatch.chdir(folder)
    for k, file in enumerate(("model.pt", ".", "../latest_checkpoint/")): assert translator.load(convert(file, tmp_path/f"{k}"))[0].cfg.layers == ("layer4", "layer3")
    shutil.move(folder.parent/"train_params.txt", folder/"train_params.txt")
    assert convert(folder, tmp_path/"beside").is_dir()

def test_other_forms_of_the_same_weights(tmp_path):
    folder, s = write(tmp_path)
    want = load_file(convert(folder, tmp_path/"a")/"weights.safetensors")
    torch.save(torch.load(folder/"model.pt", weights_only=True), folder/"model.pt", _use_new_zipfile_serialization=False) # before torch 1.6
    old = load_file(convert(folder, tmp_path/"b")/"weights.safetensors")
    torch.save(s, folder/"model.pt") # the weights alone
    bare = load_file(convert(folder, tmp_path/"c")/"weights.safetensors")
    torch.save({"MODEL_STATE": {k: v.double() for k, v in s.items()}, "LOSS": float("inf")}, folder/"model.pt")
    double = load_file(convert(folder, tmp_path/"d")/"weights.safetensors")
    for got in (old, bare, double): assert got.keys() == want.keys() and all(v.equal(want[k]) and v.dtype == torch.float32 for k, v in got.items())
    assert json.loads((tmp_path/"d/config.json").read_text())["imported"]["loss"] == "inf"

def test_an_import_is_described_without_a_network(tmp_path):
    "Encoder and language model lie on disk; the folder names them, and nothing else is said."
    lm = toy_lm()
    for part in (lm.model, lm.tokenizer): part.save_pretrained(tmp_path/"lm")
    torch.save(backbones.load("timm/resnet10t@random", seed=4).model.state_dict(), tmp_path/"resnet.pth")
    folder, s = write(tmp_path, E=32)
    out = convert(folder, tmp_path/"out", encoder=f"timm/resnet10t@{tmp_path/'resnet.pth'}", lm=str(tmp_path/"lm"))
    d = Devil.load(out)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    notes = d.describe(x)
    assert [n.layer for n in notes if n.image_id == "0"] == ["all", "layer3", "layer4"] and len(d.describe(x, "layer4", cells="all")) == 2 * 9
    f = d.encoder.features(x, d.layers)
    said = d.say(prompts(s, [f["layer4"].x.mean(1), f["layer3"].x.mean(1)]))
    assert [n.text for n in notes if n.layer == "all"] == said and all(len(n.extra["ids"]) <= 40 for n in notes)
    with pytest.raises(ValueError, match="without its mean training features"): d.blind()
    assert d.encoder.model.fc.weight.equal(torch.load(tmp_path/"resnet.pth", weights_only=True)["fc.weight"])


# ---- layers and kinds of token

CLIP = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16}, "quick_gelu": True,
        "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}}

@pytest.fixture
def clip(tmp_path, monkeypatch):
    "`open_clip/ViT-B-32-quickgelu@random` is a tiny one here; whatever else would be loaded is an error."
    pytest.importorskip("open_clip")
    (tmp_path/"tiny.json").write_text(json.dumps(CLIP))
    bb = backbones.load(f"open_clip/{tmp_path}/tiny.json@random")
    asked = []
    monkeypatch.setattr(original.backbones, "load", lambda spec: asked.append(spec) or bb)
    yield bb
    assert set(asked) <= {"open_clip/ViT-B-32-quickgelu@random"}, "no weights are asked for"

BLOCKS = ("transformer.resblocks.2", "transformer.resblocks.0")

@pytest.mark.parametrize("add, only, tokens, widths, per_layer", [
    (False, False, "spatial", (64, 64), True), (True, False, "both", (64,) * 4, True), (True, False, "both", (64,) * 4, False), (False, True, "class", (64, 64), True)])
@torch.no_grad()
def test_kinds_of_token(tmp_path, clip, add, only, tokens, widths, per_layer):
    told = {"feat_seq_len": 2, "img_embed_dims": [64, 64]} if per_layer else {} # told once per layer or once per token
    folder, s = write(tmp_path, widths, config={"add_vit_embed_token": add, **told},
                      flags=dict(vision_backbone="clip_ViT-B/32", vision_feat_layers=[-3, -1], add_vit_embed_token=add, only_vit_embed_token=only))
    net, about = translator.load(convert(folder, tmp_path/"out"))
    assert net.cfg.tokens == tokens and net.cfg.layers == BLOCKS and about["encoder"] == "open_clip/ViT-B-32-quickgelu@openai"
    kinds = {"spatial": ["cells"], "class": ["cls"], "both": ["cells", "cls"]}[tokens]
    assert net.cfg.slots == [(l, k) for k in kinds for l in BLOCKS], "grid means of all layers, then class tokens of all layers"
    f = features(widths)
    assert torch.allclose(net(f), prompts(s, f), atol=2e-6)
    d = Devil(clip, net, toy_lm(width=128))
    assert [n.layer for n in d.describe(torch.randn(1, 3, 32, 32))] == ["all", *BLOCKS[::-1]]

@pytest.mark.parametrize("layers", ["layer4,layer2", ["layer2", "layer4"], [-1, -3], [-3, -1]])
def test_layers_by_hand(tmp_path, layers):
    folder, _ = write(tmp_path, (512, 128), flags=dict(vision_feat_layers=[-1, -9]))
    assert translator.load(convert(folder, tmp_path/"out", layers=layers))[0].cfg.layers == ("layer4", "layer2")

@pytest.mark.parametrize("flags, options, says", [
    (dict(vision_feat_layers=[-1, -6]), {}, "reads layer -6; timm/resnet10t.* has 5 layers .act1, layer1"),
    (dict(vision_feat_layers=[-1, -3]), {}, "reads 256 channels where layer 'layer2' of timm/resnet10t.* has 128"),
    (dict(vision_feat_layers=[-1]), {}, "2 layer tokens; with tokens='spatial', layer4 of .* give 1"),
    (dict(vision_feat_layers=[-1, -2, -3]), {}, "2 layer tokens; .* layer4, layer3, layer2 .* give 3"),
    (dict(vision_feat_layers=[-1, -1]), {}, "2 layer tokens; .* give 1"),
    (dict(vision_feat_layers=[-1, 2]), {}, r"vision_feat_layers is \[-1, 2\]; it should be a list of numbers"),
    (dict(vision_feat_layers=[]), {}, "list of numbers"), (dict(vision_feat_layers=-1), {}, "list of numbers"), (dict(vision_feat_layers=["layer4"]), {}, "list of numbers"),
    (dict(add_vit_embed_token=True), {}, "2 layer tokens; with tokens='both'"), (dict(only_vit_embed_token=True), {}, "class tokens, and layer 'layer4' .* has none"),
    (dict(vision_backbone="timm_convnext_atto"), {}, "reads 512 channels where layer 'stages.3' of timm/convnext_atto.* has 320"),
    (dict(vision_backbone="timm_resnett10"), {}, "no timm model 'resnett10'"), (dict(vision_backbone="resnet50"), {}, "'resnet50' is neither timm_NAME nor clip_NAME"),
    (dict(vision_backbone="timm_resnet10t@/etc/passwd"), {}, "neither"), (dict(vision_backbone="timm_hf-hub:a/b"), {}, "neither"), (dict(vision_backbone=None), {}, "neither"),
    ({}, dict(layers="layer4,layr3"), "no layer 'layr3'; the nearest is 'layer3'"), ({}, dict(encoder="zoo/convnet"), "where layer 'layer4' of zoo/convnet has 128"),
    ({}, dict(tokens="cls"), "choose spatial, class or both"), ({}, dict(lm="zoo/lmm"), "did you mean 'lm'"), (dict(language_model=3), {}, "language_model is 3, which is no name")])
def test_layers_that_do_not_match(tmp_path, flags, options, says):
    folder, _ = write(tmp_path, flags=flags)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=says) as e: convert(folder, tmp_path/"out", **options)
    assert one_line(e) and sorted(os.listdir(tmp_path)) == before, "nothing is left behind"

def test_a_language_model_of_another_width(tmp_path):
    folder, _ = write(tmp_path, E=96)
    with pytest.raises(ValueError, match="speaks 96-wide prompts, zoo/lm reads 128"): convert(folder, tmp_path/"out")

def test_names_of_encoders():
    assert encoder_name("timm_resnet50") == "timm/resnet50?crop_pct=1.0" and encoder_name("timm_davit_tiny.msft_in1k") == "timm/davit_tiny.msft_in1k?crop_pct=1.0"
    assert encoder_name("clip_RN50") == "open_clip/RN50-quickgelu@openai" and encoder_name("clip_ViT-B/32") == "open_clip/ViT-B-32-quickgelu@openai"
    open_clip = pytest.importorskip("open_clip")
    for name in ("clip_RN50", "clip_RN101", "clip_ViT-B/32", "clip_ViT-B/16", "clip_ViT-L/14"):
        made, _, tag = encoder_name(name).removeprefix("open_clip/").partition("@")
        assert made in open_clip.list_models() and tag in open_clip.list_pretrained_tags_by_model(made), name


# ---- bad files

def test_a_folder_that_is_in_use_is_refused(tmp_path):
    folder, _ = write(tmp_path)
    (tmp_path/"used").mkdir()
    (tmp_path/"used/x").touch()
    for out in (tmp_path/"used", tmp_path/"used/x"):
        with pytest.raises(FileExistsError, match="already exists and is not empty"): convert(folder, out)
    assert os.listdir(tmp_path/"used") == ["x"]
    (tmp_path/"empty").mkdir()
    assert len(os.listdir(convert(folder, tmp_path/"empty"))) == 2

def test_missing_files(tmp_path):
    folder, _ = write(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no .*nowhere.*checkpoint folder"): convert(tmp_path/"nowhere", tmp_path/"out")
    with pytest.raises(FileNotFoundError, match="there is no .*model.pt"): convert(tmp_path, tmp_path/"out")
    (folder/"lm_model_config.json").unlink() # only the length of captions is in it
    assert translator.load(convert(folder, tmp_path/"a"))[0].cfg.max_length == 100
    (folder.parent/"train_params.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_params.txt .* is missing: give encoder= .vision_backbone., lm= .language_model., layers="): convert(folder, tmp_path/"out")
    given = dict(encoder="timm/resnet10t", lm="facebook/opt-125m", layers=[-1, -2])
    with pytest.raises(FileNotFoundError, match="give layers= .vision_feat_layers..$"): convert(folder, tmp_path/"out", encoder="timm/resnet10t", lm="x")
    net, about = translator.load(convert(folder, tmp_path/"b", **given))
    assert net.cfg.layers == ("layer4", "layer3") and about["lm"] == "facebook/opt-125m" and about["imported"]["flags"] == {} and about["trained_on"] == "unknown"
    (folder/"translation_model_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="translation_model_config.json"): convert(folder, tmp_path/"out", **given)

@pytest.mark.parametrize("name, text, says", [
    ("translation_model_config.json", "{", "is not JSON"), ("translation_model_config.json", "[1]", "holds a list"), ("translation_model_config.json", "{}", "num_attention_heads=None"),
    ("lm_model_config.json", '{"max_length"', "is not JSON"), ("lm_model_config.json", "3", "holds a int"), ("lm_model_config.json", '{"max_length": "long"}', "max_length='long'"),
    ("lm_model_config.json", '{"max_length": 1}', "max_length=1"), ("translation_model_config.json", b"\xff\xfe", "not JSON"), ("train_params.txt", b"\xff\xfe", "not text"),
    ("train_params.txt", "", "cannot be parsed")])
def test_malformed_files(tmp_path, name, text, says):
    folder, _ = write(tmp_path)
    (folder.parent/name if name.startswith("train") else folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says) as e: convert(folder, tmp_path/"out")
    assert one_line(e) and not (tmp_path/"out").exists()

@pytest.mark.parametrize("config, says", [
    (dict(hidden_size=768), "hidden_size=768; its weights and this network have 24"), (dict(num_hidden_layers=12), "num_hidden_layers=12"), (dict(intermediate_size=1), "intermediate_size=1"),
    (dict(nr_learnable_tokens=10), "nr_learnable_tokens=10"), (dict(lm_embed_dim=768), "lm_embed_dim=768"), (dict(hidden_act="relu"), "hidden_act='relu'.*'gelu'"),
    (dict(layer_norm_eps=1e-5), "layer_norm_eps=1e-05"), (dict(feat_seq_len=3), "feat_seq_len=3"), (dict(img_embed_dims=[512, 128]), "img_embed_dims"),
    (dict(num_attention_heads=5), "multiple of heads=5"), (dict(num_attention_heads=0), "num_attention_heads=0"), (dict(num_attention_heads=True), "num_attention_heads=True"),
    (dict(num_attention_heads="4"), "num_attention_heads='4'"), (dict(token_dropout=1.5), "token_dropout is 1.5"), (dict(token_dropout="much"), "token_dropout='much'"),
    (dict(token_dropout=float("nan")), "token_dropout is nan"), (dict(initializer_range=-1), "initializer_range=-1")])
def test_settings_that_contradict_the_weights(tmp_path, config, says):
    folder, _ = write(tmp_path, config=config)
    with pytest.raises(ValueError, match=says) as e: convert(folder, tmp_path/"out")
    assert one_line(e)

def drop(key): return lambda s: s.pop(key)
def put(key, value): return lambda s: s.update({key: value})

@pytest.mark.parametrize("change, says", [
    (drop("learnable_inputs"), "no checkpoint of the original|lack 'learnable_inputs'"), (drop("out_proj.weight"), "lack 'out_proj.weight'"), (drop("layernorm.bias"), "1 missing .layernorm.bias"),
    (drop("encoder.layers.1.norm1.weight"), "1 missing"), (drop("projections.0.weight"), "lack 'projections.0.weight'"), (put("extra.weight", torch.zeros(2)), "1 unexpected .extra.weight"),
    (put("projections.1.bias", torch.zeros(7)), r"projections.1.bias \(7,\) instead of \(24,\)"), (put("position_embeddings", torch.zeros(1, 3, 24)), "position_embeddings"),
    (put("projections.1.weight", torch.zeros(24)), "lack 'projections.1.weight'"), (put("encoder.layers.7.norm1.weight", torch.zeros(24)), "num_hidden_layers=2|missing"),
    (put("bernoulli_prob", torch.zeros(1, 2)), "bernoulli_prob has 2 chances for 5 tokens"), (put("layernorm.bias", "a string"), "no weights under MODEL_STATE"),
    (put("layernorm.bias", torch.zeros(24, dtype=torch.int64)), "no weights under MODEL_STATE"), (lambda s: s.clear(), "no weights under MODEL_STATE")])
def test_weights_that_do_not_fit(tmp_path, change, says):
    folder, s = write(tmp_path)
    change(s)
    torch.save({"MODEL_STATE": s, "STEPS_RUN": 1}, folder/"model.pt")
    with pytest.raises(ValueError, match=says) as e: convert(folder, tmp_path/"out")
    assert one_line(e) and "model.pt" in str(e.value)

@pytest.mark.parametrize("held", [{}, {"model": {}}, [1, 2], torch.zeros(3), {"MODEL_STATE": None}, 5])
def test_files_that_hold_something_else(tmp_path, held):
    folder, _ = write(tmp_path)
    torch.save(held, folder/"model.pt")
    with pytest.raises(ValueError, match="model.pt is no checkpoint of the original DeViL.*MODEL_STATE") as e: convert(folder, tmp_path/"out")
    assert one_line(e)

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (open, (str(self.path), "w"))

@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["root", "extra", "state"])
def test_a_pickle_does_not_run(tmp_path, zipped, where):
    folder, s = write(tmp_path)
    evil = Evil(tmp_path/"ran")
    held = {"root": evil, "extra": {"MODEL_STATE": s, "SCORE": evil}, "state": {"MODEL_STATE": {**s, "x": evil}}}[where]
    torch.save(held, folder/"model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="model.pt cannot be read as tensors and numbers alone") as e: convert(folder, tmp_path/"out")
    assert one_line(e) and not (tmp_path/"ran").exists() and not (tmp_path/"out").exists()

def test_files_that_are_cut_off_or_are_no_weights(tmp_path):
    import io
    import zipfile
    folder, _ = write(tmp_path)
    whole = (folder/"model.pt").read_bytes()
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as z: z.writestr("notes.txt", "no weights")
    torch.save(torch.nn.Linear(2, 2), folder/"module.pt")
    for data in [whole[:n] for n in (0, 1, 60, 500, len(whole) // 2, len(whole) - 20)] + [b"no weights at all", b"\x80\x02", bytes(range(256)) * 40, empty.getvalue(),
                                                                                         (folder/"module.pt").read_bytes()]:
        (folder/"model.pt").write_bytes(data)
        with pytest.raises(ValueError, match="model.pt") as e: convert(folder, tmp_path/"out")
        assert one_line(e) and len(str(e.value)) < 500 and not (tmp_path/"out").exists()


# ---- the text of the flags

BOMBS = ["Namespace(a=" + "[" * 30_000, "Namespace(a=" + "[" * 190 + "]" * 190 + ")", "Namespace(a=" + "-" * 60_000 + "1)", "Namespace(a=" + "+".join(["1"] * 40_000) + ")",
         "Namespace(a=" + "not " * 20_000 + "1)", "Namespace(a=" + "9" * 60_000 + ")", "Namespace" + "()" * 40_000, "Namespace(a=b" + ".c" * 40_000 + ")", "a" * 200_000,
         "Namespace(a=" + "(" * 150 + "1" + ",)" * 150 + ")", "Namespace(a=9**9**9**9)", "Namespace(a='x'*10**12)"]

EVIL = ["Namespace(a=__import__('os').system('touch ran'))", "Namespace(a=open('ran','w'))", "Namespace(a=(lambda: open('ran','w'))())", "Namespace(a=f'{open(\"ran\",\"w\")}')",
        "Namespace(a=[open('ran','w') for _ in '1'])", "Namespace(a={**open('ran','w')})", "Namespace(*[1])", "Namespace(**{'a': 1})", "Namespace(1)", "Namespace(a=b)",
        "Namespace(a=().__class__.__bases__)", "Namespace(__class__=1)", "Namespace(_a=1)", "Namespace(a=Namespace(b=1))", "Namespace(a=1) or open('ran','w')", "Namespace(a=1)(b=2)",
        "Namespace.__init__(a=1)", "argparse.Namespace(a=1)", "namespace(a=1)", "eval('1')", "Namespace", "Namespace(a=1, a=2)", "Namespace(a=...)", "Namespace(a=b'x')", "Namespace(a=1j)",
        "Namespace(a=1e999)", "Namespace(a=-1e999)", "Namespace(a=nan)", "Namespace(a=1+1)", "Namespace(a=not 1)", "Namespace(a=-'x')", "Namespace(a=--1)", "Namespace(a={1, 2})",
        "Namespace(a={(1,): 2})", "Namespace(a=(b:=1))", "Namespace(a=1 if 1 else 2)", "Namespace(a=PosixPath('x'))", "Namespace(a=await b)", "Namespace(a=1); import os",
        "import os", "Namespace(a=1)\nopen('ran', 'w')", "Namespace(a=1", "", "{}", "Namespace(a='\x00')", "Namespace(a=[*b])", "Namespace(a=b[0])", "Namespace(a=`1`)"]

@pytest.mark.parametrize("text", EVIL + BOMBS, ids=lambda t: t[:40])
def test_only_plain_values_are_read(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try: got = namespace(text, "params.txt")
    except ValueError as e:
        assert str(e).startswith("params.txt is not a Namespace of plain values: ") and "nothing of it was executed" in str(e) and "\n" not in str(e) and len(str(e)) < 300
    else: assert "[[[" in text or "(((" in text, got # nested lists are plain values
    assert not os.listdir(tmp_path)

def test_a_malicious_text_stops_the_import(tmp_path, monkeypatch):
    folder, _ = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (folder.parent/"train_params.txt").write_text("Namespace(vision_backbone='timm_resnet10t', lr=open('ran', 'w'))")
    with pytest.raises(ValueError, match=r"train_params.txt is not a Namespace of plain values: lr is open\('ran', 'w'\)"): convert(folder, tmp_path/"out")
    assert sorted(os.listdir(tmp_path)) == ["run"]

plain = st.recursive(st.none() | st.booleans() | st.integers(-10**30, 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
                     lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(-5, -1).map(abs), v, max_size=3), max_leaves=8)

@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(list(FLAGS)), plain, max_size=6))
def test_a_printed_namespace_is_read_back(flags):
    assert namespace(str(argparse.Namespace(**flags))) == flags

@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text("Namespace(a=1,'[]{}.*: )", max_size=60).map(lambda t: f"Namespace({t}"))
def test_any_text_is_read_or_refused(text):
    try: assert isinstance(namespace(text), dict)
    except ValueError as e: assert "not a Namespace of plain values" in str(e)

def test_tuples_are_lists():
    assert namespace("Namespace(a=(1, -2.5), b=((3,),), c={'x': (1,)})") == {"a": [1, -2.5], "b": [[3]], "c": {"x": [1]}} and namespace(" Namespace() \n") == {}


# ---- parts

def test_the_parts_can_be_read_alone(tmp_path):
    folder, s = write(tmp_path)
    o = read(folder)
    assert o.file == folder/"model.pt" and o.max_length == 40 and o.flags["dataset"] == "cc3m" and o.score == {"steps": 20_000, "score": .31, "loss": 2.5}
    assert o.state.keys() == s.keys() and sizes(o)["channels"] == [512, 256] and sizes(o)["heads"] == 4

def test_published_sizes():
    "Meta tensors of the published shapes: 88.6 million parameters, without reading or making them."
    from original_toys import CONFIG, weights
    with torch.device("cpu"): small = weights((2048, 1024, 512, 256), d=768, T=10, depth=1, ff=3072, E=768)
    state = {k.replace("layers.0", f"layers.{i}"): v for k, v in small.items() for i in (range(12) if "layers.0" in k else [0])}
    o = original.Original(None, state, {**CONFIG, "num_attention_heads": 12}, 100, {}, {})
    cfg = DevilConfig(("layer4", "layer3", "layer2", "layer1"), **sizes(o))
    assert translator.count(cfg) == 88_609_536 and cfg == DevilConfig.paper(cfg.layers, cfg.channels)


# ---- every flag

PUBLISHED = """num_workers fp16 logdir do_eval_nlp do_eval_qualitative dataset by_unit data_root nr_layers nr_heads intermediate_size nr_learnable_tokens language_model
vision_backbone vision_feat_func vision_feat_layers token_dropout feature_dropout add_vit_embed_token only_vit_embed_token model_ckpt resume max_steps eval_steps warmup_steps bs lr
min_lr decay layer loc_ids pool_locs kernel_size max_length wandb_online""".split()

def devil_train(): # the parameters of the experiment
    from vlnotes import launcher
    return {name: default for name, default, _ in launcher.parameters(launcher.find_notebook("devil_train"))}

def test_every_flag_is_in_the_table():
    assert set(FLAGS) == set(PUBLISHED)

@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_has_a_counterpart_or_a_reason(flag):
    from vlnotes.cli import main
    _, here, why = FLAGS[flag]
    if here is None: assert len(why) > 20
    elif here.startswith(("DevilConfig.", "FitConfig.")):
        owner, _, name = here.partition(".")
        assert name in {"DevilConfig": DevilConfig, "FitConfig": FitConfig}[owner].__dataclass_fields__ and name in devil_train()
    elif here.startswith("devil_train: "): assert here.removeprefix("devil_train: ") in devil_train()
    elif here.startswith("units: "): assert here.removeprefix("units: ") in importlib.import_module("vlnotes.devil.neurons").SETTINGS
    elif here.startswith("vlnotes "):
        command, *option = here.split()[1:]
        assert command in main.commands and all(any(o in p.opts for p in main.commands[command].params) for o in option)
    else: # module.function(parameter)
        where, _, parameter = here.rstrip(")").partition("(")
        module, _, name = where.rpartition(".")
        assert parameter in inspect.signature(getattr(importlib.import_module(f"vlnotes.{module}"), name)).parameters

def test_defaults_of_the_original_are_the_paper_configuration():
    paper = DevilConfig.paper(("layer4",), (2048,))
    for default, here, _ in FLAGS.values():
        if here and here.startswith("DevilConfig.") and here != "DevilConfig.tokens": assert getattr(paper, here.removeprefix("DevilConfig.")) == default
