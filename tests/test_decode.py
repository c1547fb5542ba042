import itertools
import math

import numpy as np
import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vlnotes.decode import PrefixDecoder, decode, draws, filtered, sample, score

V, BOS = 30, 2
_llama = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, initializer_range=.4, pad_token_id=0, bos_token_id=BOS, eos_token_id=3)
_opt = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, max_position_embeddings=64, pad_token_id=1,
            bos_token_id=BOS, eos_token_id=BOS, init_std=.4)
FAMILIES = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**_opt, word_embed_proj_dim=32)),
    "opt-350m-like": lambda: OPTForCausalLM(OPTConfig(**_opt, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=.4)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_llama)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_llama)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_llama, head_dim=16)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**_llama, sliding_window=6)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_llama, head_dim=8)),
    "gemma2-window": lambda: Gemma2ForCausalLM(Gemma2Config(**_llama, head_dim=8, sliding_window=6)),
    "gemma3-window": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_llama, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"])),
    "qwen3.5-recurrent": lambda: Qwen3_5ForCausalLM(Qwen3_5TextConfig(**_llama, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2,
                                                   linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"])),
}
_made = {}

def model(name):
    if name not in _made:
        torch.manual_seed(list(FAMILIES).index(name))
        _made[name] = FAMILIES[name]().eval()
    return _made[name]

def prefixes(lm, n=5, p=4, seed=0):
    width = lm.get_input_embeddings().weight.shape[1]
    return torch.randn(n, p, width, generator=torch.Generator().manual_seed(seed))

@torch.no_grad()
def recompute(lm, row, ids): # logits of the token after BOS, prefix, ids, without a cache
    embed = lm.get_input_embeddings()
    x = torch.cat([embed(torch.tensor([[BOS]])), row[None], embed(torch.tensor([ids], dtype=torch.long))], 1)
    return lm(inputs_embeds=x, use_cache=False).logits[0]

def slowly(lm, row, eos, max_length):
    ids = []
    while len(ids) < max_length-1:
        ids.append(recompute(lm, row, ids)[-1].argmax().item())
        if ids[-1] == eos: return ids[:-1]
    return ids

@pytest.fixture(params=FAMILIES)
def lm(request): return model(request.param)

@pytest.fixture
def opt():
    lm = model("opt")
    return lm, PrefixDecoder(lm), prefixes(lm)

def test_cached_equals_uncached_and_endings_end(lm):
    dec, prefix = PrefixDecoder(lm), prefixes(lm)
    free = decode(dec, prefix, bos=BOS, eos=-1, max_length=14)
    assert free.ids == [slowly(lm, row, -1, 14) for row in prefix] and not any(free.finished)
    eos = free.ids[0][3]
    ended = decode(dec, prefix, bos=BOS, eos=eos, max_length=14)
    assert ended.ids == [slowly(lm, row, eos, 14) for row in prefix] and ended.finished[0]
    assert all(eos not in ids for ids in ended.ids)
    for ids, logp, bits, over in zip(ended.ids, ended.logprobs, ended.entropy, ended.finished):
        assert len(logp) == len(bits) == len(ids) + over

METHODS = {"greedy": {}, "sample": dict(method="sample", top_p=.9, seed=3), "beam": dict(method="beam", beams=3)}

@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_row_alone_in_company_in_any_order_and_in_chunks(lm, options):
    dec, prefix = PrefixDecoder(lm), prefixes(lm)
    eos = decode(dec, prefix, bos=BOS, eos=-1, max_length=9).ids[1][2]
    options = dict(bos=BOS, eos=eos, max_length=10) | options
    all_ = decode(dec, prefix, **options)
    for i in range(5):
        one = decode(dec, prefix[i:i+1], rows=[i], **options)
        assert one.ids[0] == all_.ids[i] and torch.allclose(one.logprobs[0], all_.logprobs[i], atol=1e-4)
    order = [3, 0, 4, 2, 1]
    assert decode(dec, prefix[order], rows=order, **options).ids == [all_.ids[i] for i in order]
    assert decode(dec, prefix, budget=1, **options).ids == all_.ids
    assert decode(dec, prefix, **options).ids == all_.ids

def test_layers_of_different_widths():
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig
    torch.manual_seed(0)
    own = dict(head_dim=8, global_head_dim=16, sliding_window=5, hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    lm = Gemma4ForCausalLM(Gemma4TextConfig(**_llama, **own)).eval()
    dec, prefix = PrefixDecoder(lm), prefixes(lm)
    assert decode(dec, prefix, bos=BOS, eos=-1, max_length=12).ids == [slowly(lm, row, -1, 12) for row in prefix] and dec.row_bytes(12) > 0

def test_a_model_without_a_cache_is_refused():
    class Bare(torch.nn.Module): # would swallow a cache unread
        def get_input_embeddings(self): return torch.nn.Embedding(V, 8)
        def forward(self, input_ids=None, inputs_embeds=None, **kw): raise AssertionError
    with pytest.raises(ValueError, match="Bare keeps no keys and values"): PrefixDecoder(Bare())

def test_a_state_space_model_is_decoded_right_or_refused(): # its cache has a name of its own in older transformers
    from transformers import Mamba2Config, Mamba2ForCausalLM
    torch.manual_seed(0)
    lm = Mamba2ForCausalLM(Mamba2Config(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1, initializer_range=.4)).eval()
    try: dec = PrefixDecoder(lm)
    except ValueError as e: assert "Mamba2ForCausalLM keeps no keys and values" in str(e)
    else: assert decode(dec, prefixes(lm), bos=BOS, eos=-1, max_length=10).ids == [slowly(lm, row, -1, 10) for row in prefixes(lm)]

def test_embeddings_path_equals_ids_path(lm):
    ids = torch.tensor([[BOS, 7, 11, 4]])
    dec = PrefixDecoder(lm)
    with torch.no_grad():
        logits, cache = dec.start(lm.get_input_embeddings()(ids[:, 1:]), BOS)
        assert torch.allclose(logits, lm(ids).logits[:, -1], atol=1e-4)
        more, _ = dec.next(torch.tensor([9]), cache)
        assert torch.allclose(more, lm(torch.cat([ids, torch.tensor([[9]])], 1)).logits[:, -1], atol=1e-4)

def test_reorder_leaves_the_old_cache_alone(lm):
    dec, prefix = PrefixDecoder(lm), prefixes(lm)
    with torch.no_grad():
        _, cache = dec.start(prefix, BOS)
        swapped = dec.reorder(cache, torch.tensor([4, 4, 0]))
        a, _ = dec.extend(torch.tensor([[5, 6]]*3), swapped)
        b, _ = dec.extend(torch.tensor([[5, 6]]*5), cache)
    assert torch.allclose(a, b[[4, 4, 0]], atol=1e-4)

def test_score_equals_a_plain_pass_and_shares_beginnings(lm):
    dec, prefix = PrefixDecoder(lm), prefixes(lm)
    phrases = [[5, 9, 11], [5], [5, 9], [5, 9, 11, 7, 7, 4], [8, 9, 1, 2], [5, 9, 11], [6]]
    got = score(dec, prefix, phrases, bos=BOS)
    raw = score(dec, prefix, phrases, bos=BOS, raw=True)
    small = score(dec, prefix, phrases, bos=BOS, budget=1)
    for j, ids in enumerate(phrases):
        for i, row in enumerate(prefix):
            logits = recompute(lm, row, ids)[4:-1]
            assert torch.allclose(got[j][i], logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0], atol=2e-4)
            assert torch.allclose(raw[j][i], logits.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=2e-3)
        assert torch.allclose(got[j], small[j], atol=2e-4)

def test_score_of_a_whole_vocabulary_is_one(opt):
    lm, dec, prefix = opt
    words = torch.cat(score(dec, prefix, [[i] for i in range(V)], bos=BOS), 1)
    assert torch.allclose(words.exp().sum(1), torch.ones(5), atol=1e-5)
    after = torch.stack([s[:, 1] for s in score(dec, prefix, [[6, i] for i in range(V)], bos=BOS)], 1)
    assert torch.allclose(after.exp().sum(1), torch.ones(5), atol=1e-5)

def test_decoding_and_scoring_agree(opt):
    lm, dec, prefix = opt
    for options in ({}, dict(method="beam", beams=3), dict(method="sample", temperature=1.7, top_k=9, repetition_penalty=1.3)):
        out = decode(dec, prefix, bos=BOS, eos=5, max_length=9, **options)
        for i, (ids, over) in enumerate(zip(out.ids, out.finished)):
            s, = score(dec, prefix[i:i+1], [ids + [5]*over], bos=BOS)
            assert torch.allclose(s[0], out.logprobs[i], atol=1e-4)
        assert torch.allclose(out.score, torch.stack([x.sum() for x in out.logprobs]))

def test_entropy_is_of_the_raw_distribution(opt):
    lm, dec, prefix = opt
    out = decode(dec, prefix, bos=BOS, eos=-1, max_length=6, method="sample", top_k=1, temperature=.3)
    for i, row in enumerate(prefix):
        p = recompute(lm, row, out.ids[i])[4:-1].softmax(-1)
        assert torch.allclose(out.entropy[i], -(p*p.log2()).sum(-1), atol=1e-3)
    assert (out.mean_entropy <= math.log2(V) + 1e-5).all()

def test_empty_prefix_no_rows_and_bfloat16(opt):
    lm, dec, prefix = opt
    plain = decode(dec, prefix[:, :0], bos=BOS, eos=-1, max_length=6)
    with torch.no_grad(): ids = lm.generate(torch.tensor([[BOS]]), max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    assert plain.ids[0] == ids[0, 1:].tolist()
    none = decode(dec, prefix[:0], bos=BOS, eos=BOS, max_length=6)
    assert len(none) == 0 and none.ids == [] and none.score.shape == (0,)
    assert [s.shape for s in score(dec, prefix[:0], [[3, 4]], bos=BOS)] == [(0, 2)] and score(dec, prefix, [], bos=BOS) == []
    torch.manual_seed(0)
    half = PrefixDecoder(FAMILIES["opt"]().eval().to(torch.bfloat16))
    out = decode(half, prefix, bos=BOS, eos=BOS, max_length=8)
    assert out.logprobs[0].dtype == torch.float32 and score(half, prefix, [[3, 4]], bos=BOS)[0].isfinite().all()


# The loop asks three verbs and nothing else: a bigram table is a decoder too.

class Bigram:
    def __init__(self, table): self.table, self.fed = table, []
    def start(self, prefix, bos): return self.table[bos] + 0*prefix[:, 0, :1], torch.arange(len(prefix))
    def next(self, ids, cache):
        self.fed.append(len(ids))
        assert len(ids) == len(cache)
        return self.table[ids], cache
    def extend(self, ids, cache): return self.table[ids], cache
    def reorder(self, cache, index): return cache[index]

def chain(v=6, seed=0): return Bigram(torch.randn(v, v, generator=torch.Generator().manual_seed(seed)) * 2)

def test_finished_rows_leave_the_batch():
    table = torch.full((5, 5), -9.)
    for a, b in ((1, 2), (2, 3), (3, 0), (4, 0)): table[a, b] = 9
    class Two(Bigram):
        def start(self, prefix, bos): return self.table[torch.tensor([1, 4, 3, 4])], torch.arange(4)
    toy = Two(table)
    out = decode(toy, torch.zeros(4, 1, 1), bos=1, eos=0, max_length=9)
    assert out.ids == [[2, 3], [], [], []] and all(out.finished) and toy.fed == [1, 1]

def test_lengths_and_rules():
    toy, rows = chain(), torch.zeros(2, 1, 1)
    for n in (2, 3, 7):
        free = decode(toy, rows, bos=1, eos=-1, max_length=n)
        assert all(len(ids) == n-1 for ids in free.ids)
        forced = decode(toy, rows, bos=1, eos=0, max_length=n, force_end=True)
        assert all(over and len(ids) <= n-2 and len(p) == len(ids)+1 for ids, p, over in zip(forced.ids, forced.logprobs, forced.finished))
    end = decode(toy, rows, bos=1, eos=-1, max_length=4).ids[0][0]
    for options in ({}, dict(method="beam", beams=2), dict(method="sample")):
        held = decode(toy, rows, bos=1, eos=end, max_length=9, min_length=5, **options)
        assert all(len(ids) >= 4 for ids in held.ids)
        without = decode(toy, rows, bos=1, eos=-1, max_length=9, forbid=[end, 3], **options)
        assert not {end, 3} & set(without.ids[0])
    two = decode(toy, rows, bos=1, eos=(0, end), max_length=9)
    assert two.ids[0] == [] and two.finished[0]

def test_repetition_penalty_follows_the_rule():
    table = torch.tensor([[0., 0, 0, 0], [0, 4., 3., -1], [0, 4., 3., -1], [0, 4., 3., -1]])
    assert decode(Bigram(table), torch.zeros(1, 1, 1), bos=1, eos=-1, max_length=4).ids == [[1, 1, 1]]
    # BOS is seen, so 4 becomes 2 and token 2 wins with 3; then 2 is seen too: 1.5 against 2
    assert decode(Bigram(table), torch.zeros(1, 1, 1), bos=1, eos=-1, max_length=4, repetition_penalty=2.).ids == [[2, 1, 1]]

def brute(table, bos, eos, max_length, penalty):
    best, v = (-math.inf, None), len(table)
    logp = table.log_softmax(-1)
    for n in range(1, max_length):
        for ids in itertools.product(range(v), repeat=n):
            if eos in ids[:-1] or (ids[-1] != eos and n < max_length-1): continue
            total = sum(logp[a, b].item() for a, b in zip((bos, *ids), ids))
            best = max(best, (total / (n+1)**penalty, [i for i in ids if i != eos]))
    return best

@pytest.mark.parametrize("penalty", [0., 1., 2.])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_finds_the_best_sequence(penalty, seed):
    toy = chain(4, seed)
    out = decode(toy, torch.zeros(2, 1, 1), bos=1, eos=0, max_length=5, method="beam", beams=200, length_penalty=penalty)
    value, ids = brute(toy.table, 1, 0, 5, penalty)
    assert out.ids == [ids, ids]
    assert math.isclose(out.score[0] / (len(ids) + 1 + out.finished[0])**penalty, value, rel_tol=1e-5)

def test_one_beam_is_greedy_and_more_beams_score_higher():
    toy, rows = chain(9), torch.zeros(1, 1, 1)
    one = decode(toy, rows, bos=1, eos=-1, max_length=8, method="beam", beams=1)
    assert one.ids == decode(toy, rows, bos=1, eos=-1, max_length=8).ids
    assert decode(toy, rows, bos=1, eos=-1, max_length=8, method="beam", beams=4).score >= one.score

@pytest.mark.parametrize("options", [dict(), dict(top_k=3), dict(top_p=.7), dict(top_k=4, top_p=.8, temperature=.7),
                                     dict(top_p=.7, temperature=2., temperature_last=True)])
def test_sampled_frequencies(options):
    z, n = torch.tensor([1.5, 1., .5, .2, -.3, -1.]), 20_000
    toy = Bigram(z.expand(6, 6))
    ids = decode(toy, torch.zeros(n, 1, 1), bos=1, eos=-1, max_length=2, method="sample", seed=4, **options).ids
    t, last = options.get("temperature", 1.), options.get("temperature_last", False)
    want = (z if last else z/t).softmax(0).numpy().copy()
    if k := options.get("top_k"): want[np.argsort(-want)[k:]] = 0
    want /= want.sum()
    if p := options.get("top_p"):
        order = np.argsort(-want)
        want[order[np.searchsorted(want[order].cumsum(), p)+1:]] = 0
    if last: want = np.where(want > 0, want**(1/t), 0) # softmax(z/t) restricted to the kept set
    want /= want.sum()
    seen = np.bincount(np.array(ids)[:, 0], minlength=6)
    assert (seen[want == 0] == 0).all()
    keep = want > 0
    chi = ((seen[keep] - n*want[keep])**2 / (n*want[keep])).sum()
    assert chi < 25 # far tail of chi-square with at most five degrees of freedom (p about 1e-4)

def test_draws_depend_on_seed_and_row_only():
    assert np.array_equal(draws(1, 7, 5), draws(1, 7, 9)[:5])
    assert not np.array_equal(draws(1, 7, 5), draws(1, 8, 5)) and not np.array_equal(draws(1, 7, 5), draws(2, 7, 5))
    state = torch.get_rng_state()
    decode(chain(), torch.zeros(3, 1, 1), bos=1, eos=0, max_length=5, method="sample")
    assert torch.equal(state, torch.get_rng_state())

def test_filters_keep_ties_and_at_least_one():
    z = torch.tensor([[1., 3., 3., 2.]])
    assert filtered(z, top_k=1).isfinite().tolist() == [[False, True, True, False]]
    assert filtered(z, top_p=1e-9).isfinite().sum() == 1 and filtered(z).equal(z) and filtered(z, top_k=9).equal(z)
    assert sample(torch.tensor([[-math.inf, 0., -math.inf]]).expand(3, 3), torch.tensor([0., .5, 1-1e-16])).tolist() == [1, 1, 1]

@pytest.mark.parametrize("options, said", [
    (dict(method="nucleus"), "nucleus"), (dict(max_length=1), "max_length"), (dict(temperature=0.), "temperature"),
    (dict(top_p=1.5), "top_p"), (dict(beams=0), "beams"), (dict(rows=[1]), "row names")])
def test_options_that_make_no_sense(opt, options, said):
    lm, dec, prefix = opt
    with pytest.raises(ValueError, match=said): decode(dec, prefix, **(dict(bos=BOS, eos=BOS, max_length=5) | options))

def test_bad_prefix_phrase_and_train_mode(opt):
    lm, dec, prefix = opt
    with pytest.raises(ValueError, match="rows, positions, 32"): decode(dec, prefix[..., :7], bos=BOS, eos=BOS, max_length=5)
    with pytest.raises(ValueError, match="outside the vocabulary of 30"): score(dec, prefix, [[3, 30]], bos=BOS)
    with pytest.raises(ValueError, match="no tokens"): score(dec, prefix, [[]], bos=BOS)
    try:
        lm.train()
        with pytest.raises(ValueError, match="train mode"): decode(dec, prefix, bos=BOS, eos=BOS, max_length=5)
    finally: lm.eval()


def test_an_id_may_end_a_row_at_any_length(opt):
    lm, dec, prefix = opt
    free = decode(dec, prefix, bos=BOS, eos=-1, max_length=10)
    pad = free.ids[0][1]
    held = decode(dec, prefix, bos=BOS, eos=-1, max_length=10, min_length=9, also_end=[pad])
    assert held.ids[0] == free.ids[0][:1] and held.finished[0] and len(held.entropy[0]) == 2 # the ending is told too
    for a, b in zip(free.ids[1:], held.ids[1:]): assert b == (a[:a.index(pad)] if pad in a else a)


def test_beams_ranked_by_logits_maximise_the_sum_of_logits(opt):
    lm, dec, prefix = opt
    def best(raw): # exhaustive, three tokens without an ending
        out = []
        for row in prefix:
            sums = {}
            for seq in itertools.product(range(V), repeat=2):
                z = recompute(lm, row, list(seq))[-3:] # of the first, the second and the third token
                z = z if raw else z.log_softmax(-1)
                first = z[0, seq[0]] + z[1, seq[1]]
                sums[*seq, int(z[2].argmax())] = float(first + z[2].max())
            out.append(list(max(sums, key=sums.get)))
        return out
    for rank_by in ("logit", "logprob"):
        got = decode(dec, prefix[:, :], bos=BOS, eos=-1, max_length=4, method="beam", beams=V, rank_by=rank_by)
        assert got.ids == best(rank_by == "logit")
    with pytest.raises(ValueError, match="logits"): decode(dec, prefix, bos=BOS, eos=2, max_length=4, rank_by="logits")
