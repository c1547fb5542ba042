"DeViL between any encoder and any language model: tiny random models of each family, the loading code that real ones take."
import json

import pytest
import torch
from devil_toys import lm as toy_lm
from torch.nn import functional as F

from vlnotes import backbones
from vlnotes.devil import translator
from vlnotes.devil.explain import Devil, captions, whole
from vlnotes.devil.train import DevilTask, caption_loss
from vlnotes.devil.translator import DevilConfig, Translator
from vlnotes.text import collate, load_lm

SMALL = dict(prompt=2, hidden=16, depth=2, heads=2, ff=16, max_length=10, init=.2)
CLIP_TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
CLIP = {"resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "vit": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16}}


# ---- encoders

ENCODERS = { # how it is loaded, and whether it has class tokens
    "resnet": ("timm/resnet10t@random", False),
    "convnext": ("timm/convnext_atto@random", False),
    "swin": ("timm/swin_tiny_patch4_window7_224?img_size=112&depths=[1,1,1,1]&embed_dim=24@random", False),
    "davit": ("timm/davit_tiny?depths=[1,1,1,1]&embed_dims=[32,32,64,64]&num_heads=[1,1,2,2]@random", False),
    "efficientformerv2": ("timm/efficientformerv2_s0?depths=[1,1,1,2]@random", False),
    "vit": ("timm/vit_tiny_patch16_224?img_size=32&depth=3@random", True),
    "dinov2": ("timm/vit_small_patch14_reg4_dinov2?img_size=28&depth=2@random", True),
    "clip resnet": ("resnet", False),
    "clip vit": ("vit", True),
}

def clip(kind, root, **kw): # a tiny CLIP from a configuration file
    pytest.importorskip("open_clip")
    (root/f"tiny-{kind}.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": CLIP[kind], "text_cfg": CLIP_TEXT, **kw}))
    return f"open_clip/{root}/tiny-{kind}.json@random"

_made = {}

def encoder(name, root):
    if name not in _made:
        spec, _ = ENCODERS[name]
        _made[name] = backbones.load(clip(spec, root) if spec in CLIP else spec)
    return _made[name]

def config(enc, tokens, n=2, **kw): # the last layers, deepest first; widths from the dry pass
    names = enc.chosen(n)[::-1]
    return DevilConfig(names, [enc.info(l).channels for l in names], **{"lm_dim": 32, "tokens": tokens, **SMALL, **kw})

def batch(speaker, x, texts=("a red square", "green")):
    ids, mask = collate(speaker.tokenizer, [texts[i % len(texts)] for i in range(len(x))], 10, speaker.bos)
    return {"x": x, "ids": ids, "mask": mask, "keys": torch.arange(len(x))}

def picture(enc, n=2): return torch.randn(n, 3, *enc.input_size, generator=torch.Generator().manual_seed(0))

CASES = [(name, kind) for name, (_, cls) in ENCODERS.items() for kind in (("spatial", "class", "both") if cls else ("spatial",))]

@pytest.mark.parametrize("name, tokens", CASES)
def test_any_encoder_teaches_and_is_described(name, tokens, tmp_path):
    enc, speaker = encoder(name, tmp_path), toy_lm()
    cfg = config(enc, tokens)
    task, x = DevilTask(enc, speaker, cfg, seed=1), picture(enc)
    loss, count = task.train()(batch(speaker, x), torch.Generator().manual_seed(0)) # with both dropouts
    assert loss.isfinite() and count == 6
    loss, _ = task.eval()(batch(speaker, x))
    loss.backward()
    assert all(p.weight.grad.abs().sum() > 0 for p in task.net.projections), "every token is read"
    assert all(p.grad is None for p in enc.model.parameters())
    feats = enc.features(x, list(cfg.layers))
    with torch.no_grad(): assert torch.allclose(whole(task.net, feats, list(cfg.layers)), task.prompt(batch(speaker, x), drop=False), atol=1e-5)

    d = Devil(enc, task.net.requires_grad_(False), speaker)
    notes = d.describe(x)
    assert [n.layer for n in notes if n.image_id == "0"] == ["all", *cfg.layers[::-1]] and all(isinstance(n.text, str) for n in notes)
    last = cfg.layers[0]
    h, w = enc.info(last).grid
    if tokens == "class":
        with pytest.raises(ValueError, match="class tokens only"): d.describe(x, 1, cells="all")
        return
    assert len(d.describe(x, 1, cells="all")) == 2 * h * w
    assert d.maps(x, ["red"], 1)[last].shape == (2, 1, h, w)

@pytest.mark.parametrize("tokens", ["class", "both"])
def test_class_tokens_of_an_encoder_without_any(tokens, tmp_path):
    enc, speaker = encoder("resnet", tmp_path), toy_lm()
    with pytest.raises(ValueError, match="has no class token.*tokens='spatial'") as e: DevilTask(enc, speaker, config(enc, tokens))
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="has no class token"): Devil(enc, Translator(config(enc, tokens), 0), speaker).describe(picture(enc))

def test_both_kinds_are_pooled_from_one_layer(tmp_path):
    enc = encoder("clip vit", tmp_path)
    cfg = config(enc, "both")
    net, x = Translator(cfg, 0).eval(), picture(enc, 1)
    f = enc.features(x, list(cfg.layers))
    a, b = cfg.layers
    assert cfg.slots == [(a, "cells"), (b, "cells"), (a, "cls"), (b, "cls")]
    with torch.no_grad():
        by_hand = net([f[a].x.mean(1), f[b].x.mean(1), f[a].cls, f[b].cls])
        assert torch.allclose(whole(net, f, [a, b]), by_hand, atol=1e-6)
        assert torch.allclose(whole(net, f, [b]), net([f[b].x.mean(1), f[b].cls], slots=[1, 3]), atol=1e-6)


def test_law_of_the_kinds_in_training(tmp_path):
    "One kind alone or the same layers of both, each a third; within each, every choice of layers but none alike."
    from vlnotes.draws import keys
    from vlnotes.devil.train import hidden_tokens
    n, cfg = 42_000, config(encoder("vit", tmp_path), "both", n=3)
    k = keys(0, 0, [str(i) for i in range(n)])
    shown = ~hidden_tokens(k, cfg)
    found = {tuple(p): c for p, c in zip(*(v.tolist() for v in shown.long().unique(dim=0, return_counts=True)))}
    some = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1) if a + b + c]
    want = {p + (0, 0, 0) for p in some} | {(0, 0, 0) + p for p in some} | {p + p for p in some}
    assert set(found) == want and len(want) == 21
    assert all(abs(c - n / 21) < 5 * (n / 21) ** .5 for c in found.values())
    forced = torch.tensor([[True, False, False, False, True, True]]).expand(n, -1)
    shown = ~hidden_tokens(k, cfg, forced)
    assert not (shown & forced).any() and shown.any(1).all() and set(shown[:, [1, 2, 3]].float().mean(0).gt(.2).tolist()) == {True}

# ---- QuickGELU

def test_quick_gelu_is_what_the_configuration_says(tmp_path):
    plain, quick = (backbones.load(clip("vit", tmp_path, quick_gelu=q)) for q in (False, True))
    for bb, act in ((plain, F.gelu), (quick, lambda v: v * torch.sigmoid(1.702 * v))):
        block = bb.net.transformer.resblocks[-1]
        seen = {}
        with torch.no_grad():
            handle = block.ln_2.register_forward_hook(lambda m, i, o: seen.update(x=i[0], normed=o))
            out = bb.features(picture(bb), 1)["transformer.resblocks.2"]
            handle.remove()
            want = seen["x"] + block.mlp.c_proj(act(block.mlp.c_fc(seen["normed"]))) # the block's feed-forward part, by hand
        assert torch.allclose(torch.cat([out.cls[:, None], out.x], 1), want, atol=1e-5)
    x = picture(plain)
    assert not torch.allclose(plain.features(x, 1)["transformer.resblocks.2"].x, quick.features(x, 1)["transformer.resblocks.2"].x, atol=1e-5)

@pytest.mark.parametrize("asked, tag, made", [("ViT-B-32", "openai", "ViT-B-32-quickgelu"), ("ViT-B-32-quickgelu", "openai", "ViT-B-32-quickgelu"),
                                              ("RN50", "openai", "RN50-quickgelu"), ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32")])
def test_weights_that_need_quick_gelu_get_it(asked, tag, made, monkeypatch, tmp_path):
    "No weights are fetched: what open_clip is asked to make is seen, and a tiny model stands in."
    open_clip = pytest.importorskip("open_clip")
    clip("vit", tmp_path)
    open_clip.add_model_config(str(tmp_path/"tiny-vit.json"))
    seen, real = [], open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, **kw: seen.append((name, kw["pretrained"])) or real("tiny-vit"))
    bb = backbones.load(f"open_clip/{asked}@{tag}")
    assert seen == [(made, tag)] and bb.name == f"open_clip/{asked}" and bb.recipe[0] == f"open_clip/{made}", "saved and loaded again it is the same function"


# ---- options in an encoder's name

def test_options_in_a_name():
    bb = backbones.load("timm/resnet10t?crop_pct=1.0&num_classes=3@random")
    assert bb.crop(bb.input_size) == (0, 0, *bb.input_size) != backbones.load("timm/resnet10t@random").crop(bb.input_size)
    assert bb.model.fc.out_features == 3 and bb.name == "timm/resnet10t?crop_pct=1.0&num_classes=3" and bb.recipe == ("timm/resnet10t", {"crop_pct": 1.0, "num_classes": 3})

def test_options_are_kept_in_a_folder(tmp_path):
    bb = backbones.load("timm/resnet10t?crop_pct=1.0&num_classes=3@random", seed=3)
    again, x = backbones.load(f"run/{backbones.save(bb, tmp_path)}"), torch.randn(1, 3, 64, 64)
    assert again.features(x)["layer4"].x.equal(bb.features(x)["layer4"].x) and again.crop((300, 200)) == bb.crop((300, 200))

@pytest.mark.parametrize("options", ["crop_pct", "crop_pct=", "=1", "checkpoint_path=/tmp/x", 'num_classes="3"', "weights_only=false", "a.b=1", "", "x={}", "x=[]"])
def test_options_that_are_no_numbers_are_refused(options):
    "A name may come from a file: it can point at no other file and switch no check off."
    with pytest.raises(ValueError, match="no option with a number") as e: backbones.load(f"timm/resnet10t?{options}@random")
    assert "\n" not in str(e.value)


def test_a_precision_may_be_named(saved):
    "As a saved configuration does."
    bb, lm = backbones.load("timm/resnet10t@random", dtype="bfloat16"), load_lm(saved("gpt2"), dtype="bfloat16")
    assert bb.dtype == lm.model.dtype == torch.bfloat16 == bb.features(picture(bb, 1), 1)["layer4"].x.dtype
    for load in (lambda: backbones.load("timm/resnet10t@random", dtype="half"), lambda: load_lm(saved("gpt2"), dtype="half")):
        with pytest.raises(ValueError, match="dtype is 'half'; choose float32"): load()


# ---- language models

def llama_words(specials): # a vocabulary of sentence pieces
    v = {s: i for i, s in enumerate(specials)}
    for c in "▁adogrenblu.": v.setdefault(c, len(v))
    merges = [("▁", "a"), ("d", "o"), ("do", "g"), ("▁", "dog"), ("r", "e"), ("re", "d"), ("▁", "red")]
    for a, b in merges: v[a + b] = len(v)
    return v, merges

def byte_words(*specials): # GPT-2's bytes, and merges for "a dog"
    from tokenizers import ByteLevelBPETokenizer
    t = ByteLevelBPETokenizer()
    t.train_from_iterator(["a dog on the red cat"] * 3, vocab_size=270, show_progress=False)
    t.add_special_tokens(list(specials))
    model = json.loads(t._tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]

_sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, initializer_range=.3, vocab_size=280)
_heads = dict(_sizes, head_dim=8)
TEXT = "a red dog"

def _opt(t):
    v, m = byte_words("</s>", "<pad>")
    tok = t.GPT2Tokenizer(vocab={"</s>": len(v), "<pad>": len(v) + 1, **v}, merges=m, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>")
    e = tok.eos_token_id
    return tok, t.OPTForCausalLM(t.OPTConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=16,
                                             max_position_embeddings=64, bos_token_id=e, eos_token_id=e, pad_token_id=tok.pad_token_id, init_std=.3))

def _gpt2(t):
    v, m = byte_words()
    tok = t.GPT2Tokenizer(vocab={"<|endoftext|>": len(v), **v}, merges=m)
    e = tok.eos_token_id
    return tok, t.GPT2LMHeadModel(t.GPT2Config(vocab_size=280, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=e, eos_token_id=e, initializer_range=.3))

def _llama(t):
    v, m = llama_words(["<unk>", "<s>", "</s>"])
    return t.LlamaTokenizer(vocab=v, merges=m), t.LlamaForCausalLM(t.LlamaConfig(**_sizes, bos_token_id=1, eos_token_id=2))

def _qwen(config, model, **kw): # no BOS in the tokenizer; <|endoftext|> and <|im_end|> as Qwen has them
    def make(t):
        v, m = byte_words()
        n = len(v)
        tok = t.Qwen2Tokenizer(vocab={**v, "<|endoftext|>": n, "<|im_end|>": n + 1}, merges=m, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None)
        ids = dict(bos_token_id=n, eos_token_id=n + 1, pad_token_id=n)
        return tok, getattr(t, model)(getattr(t, config)(**{**ids, **kw}))
    return make

def _gemma(config, model, **kw):
    def make(t):
        v, m = llama_words(["<pad>", "<eos>", "<bos>", "<unk>"])
        return t.GemmaTokenizer(vocab=v, merges=m), getattr(t, model)(getattr(t, config)(**_heads, bos_token_id=2, eos_token_id=1, pad_token_id=0, **kw))
    return make

SPEAKERS = { # how it is made, and where its BOS comes from
    "opt": (_opt, "BOS of the tokenizer"), "gpt2": (_gpt2, "BOS of the tokenizer"), "llama": (_llama, "BOS of the tokenizer"),
    "qwen2": (_qwen("Qwen2Config", "Qwen2ForCausalLM", **_sizes), "BOS of the configuration; the tokenizer has none"),
    "qwen3": (_qwen("Qwen3Config", "Qwen3ForCausalLM", **_heads, bos_token_id=None), "<|endoftext|>; there is no BOS"),
    "gemma": (_gemma("GemmaConfig", "GemmaForCausalLM"), "BOS of the tokenizer"),
    "gemma2": (_gemma("Gemma2Config", "Gemma2ForCausalLM", sliding_window=6), "BOS of the tokenizer"),
    "gemma3": (_gemma("Gemma3TextConfig", "Gemma3ForCausalLM", sliding_window=6, layer_types=["sliding_attention", "full_attention"]), "BOS of the tokenizer"),
}

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "name -> folder, written once."
    import transformers
    made = {}
    def get(name):
        if name not in made:
            torch.manual_seed(list(SPEAKERS).index(name))
            made[name] = tmp_path_factory.mktemp("lm")/name
            for part in SPEAKERS[name][0](transformers): part.save_pretrained(made[name])
        return str(made[name])
    return get

@pytest.fixture(params=SPEAKERS)
def speaker(request, saved): return request.param, load_lm(saved(request.param))

def test_a_sentence_is_framed(speaker):
    name, lm = speaker
    assert lm.opens == SPEAKERS[name][1] and lm.name.endswith(name) and lm.dim == (16 if name == "opt" else 32) and lm.max_length == 64
    plain = lm.tokenizer(TEXT, add_special_tokens=False).input_ids
    assert lm.encode(TEXT, eos=True) == [lm.bos, *plain, lm.eos] and lm.bos not in plain and lm.eos not in plain
    assert lm.tokenizer(lm.tokenizer.eos_token, add_special_tokens=False).input_ids == [lm.eos], "the ending is one token"
    assert lm.decode(lm.encode(TEXT, eos=True)) == TEXT
    ids, mask = collate(lm.tokenizer, [TEXT, "a"], None, lm.bos)
    assert ids[0].tolist() == lm.encode(TEXT, eos=True) and (ids[:, 0] == lm.bos).all() and ids[1, mask[1]].tolist() == lm.encode("a", eos=True)
    assert (ids[~mask] == lm.pad).all() and lm.pad < lm.model.get_input_embeddings().weight.shape[0]
    assert collate(lm.tokenizer, [TEXT], 3, lm.bos)[0].shape == (1, 3)
    assert not any(p.requires_grad for p in lm.model.parameters()) and not lm.model.training

@torch.no_grad()
def test_a_prompt_of_words_is_read_as_the_words(speaker):
    "Also where the model scales its embeddings: the loss after a prompt made of words is the loss after the words."
    _, lm = speaker
    words = lm.encode(TEXT, bos=False)
    prompt = lm.model.get_input_embeddings()(torch.tensor([words]))
    ids, mask = collate(lm.tokenizer, ["a dog"], None, lm.bos)
    loss, n = caption_loss(lm, prompt, ids, mask)
    row = torch.tensor([[lm.bos, *words, *ids[0, 1:].tolist()]])
    logp = lm.model(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
    assert n.item() == ids.shape[1] - 1 and loss.item() == pytest.approx(-logp[len(words):].sum().item(), rel=1e-4)

@torch.no_grad()
def greedy(lm, row, n, dtype=torch.float32): # token by token without a cache: ids, and the logits each was taken from
    e, ids, seen = lm.model.get_input_embeddings(), [], []
    while len(ids) < n - 1:
        x = torch.cat([e(torch.tensor([[lm.bos]])), row[None].to(dtype), e(torch.tensor([ids], dtype=torch.long))], 1)
        seen.append(lm.model(inputs_embeds=x, use_cache=False).logits[0, -1].float())
        ids.append(int(seen[-1].argmax()))
        if ids[-1] == lm.eos: return ids[:-1], seen
    return ids, seen

def test_captions_equal_decoding_without_a_cache(speaker):
    _, lm = speaker
    prompts = torch.randn(3, 2, lm.dim, generator=torch.Generator().manual_seed(3))
    for cap, row in zip(captions(lm, prompts, 16), prompts):
        ids, _ = greedy(lm, row, 16)
        assert list(cap.ids) == ids and cap.text == lm.decode(ids)

@torch.no_grad()
def test_bfloat16(speaker, saved):
    "Rounding may turn a near tie, so what is chosen is the best up to rounding."
    name, _ = speaker
    lm = load_lm(saved(name), dtype=torch.bfloat16)
    assert lm.model.dtype == torch.bfloat16
    prompts = torch.randn(3, 2, lm.dim, generator=torch.Generator().manual_seed(3))
    e = lm.model.get_input_embeddings()
    for cap, row in zip(captions(lm, prompts, 12), prompts):
        x = torch.cat([e(torch.tensor([[lm.bos]])), row[None].bfloat16(), e(torch.tensor([cap.ids], dtype=torch.long))], 1)
        logits = lm.model(inputs_embeds=x, use_cache=False).logits[0, 2:].float()
        for z, i in zip(logits, cap.ids): assert z[i] >= z.max() - .05 * z.std()
    ids, mask = collate(lm.tokenizer, [TEXT, "a"], None, lm.bos)
    loss, _ = caption_loss(lm, prompts[:2], ids, mask)
    with torch.no_grad(): exact, _ = caption_loss(load_lm(saved(name)), prompts[:2], ids, mask)
    assert loss.dtype == torch.float32 and torch.allclose(loss, exact, rtol=.1)

def test_devil_speaks_through_it(speaker, tmp_path):
    name, lm = speaker
    enc = encoder("resnet", tmp_path)
    cfg = config(enc, "spatial", lm_dim=lm.dim)
    task = DevilTask(enc, lm, cfg, seed=1).train()
    loss, _ = task(batch(lm, picture(enc), ("a dog", "red")), torch.Generator().manual_seed(0))
    loss.backward()
    assert task.net.out_proj.weight.grad.abs().sum() > 0 and all(p.grad is None for p in lm.model.parameters())
    folder = translator.save(tmp_path/"run", task.net, "timm/resnet10t@random", lm.name)
    for dtype in (None, torch.bfloat16):
        d = Devil.load(folder, dtype=dtype)
        notes = d.describe(picture(enc, 1), 1)
        assert len(notes) == 1 and len(notes[0].extra["ids"]) < cfg.max_length and d.lm.model.dtype == (dtype or torch.float32)
        assert d.maps(picture(enc, 1), ["a dog"], 1)[cfg.layers[0]].isfinite().all()
