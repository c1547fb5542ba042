import math
import random
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.metrics import (
    average_precision,
    bleu,
    bootstrap,
    caption_scores,
    cider_d,
    lcs,
    mrr,
    paired_bootstrap,
    precision_at_k,
    ptb_tokenize,
    r_precision,
    recall_at_k,
    rouge_l,
    wilson,
)

@pytest.mark.parametrize("text, words", [
    ("The digit appears to be three.", "the digit appears to be three"),
    ("It's a dog; they don't, can't, won't, I'm, we've", "it 's a dog they do n't ca n't wo n't i 'm we 've"),
    ("DON'T cannot gonna", "do n't can not gon na"),
    ("a black-and-white cat and/or 1,000 birds at 10:30", "a black-and-white cat and/or 1,000 birds at 10:30"),
    ('a "red" (old) [big] bike -- really...', "a red -lrb- old -rrb- -lsb- big -rsb- bike really"),
    ("the U.S. flag, Mr. Smith, p.m. and St. Louis etc.", "the u.s. flag mr. smith p.m. and st. louis etc."),
    ("$5 and 50% of 3.5 or .5", "$ 5 and 50 % of 3.5 or .5"),
    ("the dogs' bowls, 'quoted', '90s rock 'n' roll at five o'clock", "the dogs bowls quoted '90s rock 'n' roll at five o'clock"),
    ("“curly” it’s – fine…", "curly it 's fine"),
    ("what?! no!!! yes!", "what ?! no !!! yes"),
    ("AT&T & R&B #1 @home a@b.com http://x.com/a.", "at&t & r&b # 1 @home a@b.com http://x.com/a"),
    ("  tabs\tand\nlines  ", "tabs and lines"),
    ("café naïve 東京", "café naïve 東京"),
    ("... -- ' \" , .", ""), ("", "")])
def test_ptb(text, words): assert ptb_tokenize(text) == words.split()

# Brute force, written from the definitions.

def slow_bleu(hyps, refs, n=4):
    out, c, r = [], sum(map(len, hyps)), 0
    for h, rs in zip(hyps, refs): r += sorted((abs(len(x)-len(h)), len(x)) for x in rs)[0][1]
    precisions = []
    for k in range(1, n+1):
        hit = said = 0
        for h, rs in zip(hyps, refs):
            grams = [tuple(h[i:i+k]) for i in range(len(h)-k+1)]
            for g in set(grams): hit += min(grams.count(g), max([tuple(x[i:i+k]) for i in range(len(x)-k+1)].count(g) for x in rs))
            said += len(grams)
        precisions.append(hit/said if said else 0)
        p = math.prod(precisions)
        out.append(p**(1/k) * min(1, math.exp(1-r/c)) if p and c else 0.)
    return out

def slow_lcs(a, b):
    t = [[0]*(len(b)+1) for _ in range(len(a)+1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b): t[i+1][j+1] = t[i][j]+1 if x == y else max(t[i][j+1], t[i+1][j])
    return t[-1][-1]

words = st.lists(st.sampled_from("a b c d e".split()), max_size=9)
items = st.lists(st.tuples(words, st.lists(words.filter(len), min_size=1, max_size=3)), min_size=1, max_size=5)

@settings(max_examples=80, deadline=None)
@given(items)
def test_bleu_and_rouge_equal_brute_force(items):
    hyps, refs = [h for h, _ in items], [r for _, r in items]
    assert np.allclose(bleu(hyps, refs), slow_bleu(hyps, refs))
    want = []
    for h, rs in items:
        p, r = max(slow_lcs(h, x)/max(len(h), 1) for x in rs), max(slow_lcs(h, x)/len(x) for x in rs)
        want.append((1+1.44)*p*r/(r+1.44*p) if p and r else 0)
    assert np.allclose(rouge_l(hyps, refs, each=True), want) and np.isclose(rouge_l(hyps, refs), np.mean(want))

@settings(max_examples=150, deadline=None)
@given(words, words)
def test_lcs(a, b): assert lcs(a, b) == lcs(b, a) == slow_lcs(a, b)

def slow_cider(hyps, refs):
    out = []
    grams = lambda w, n: Counter(tuple(w[i:i+n]) for i in range(len(w)-n+1))
    for h, rs in zip(hyps, refs):
        total = 0
        for x in rs:
            for n in range(1, 5):
                df = lambda g: max(1, sum(any(g in grams(y, n) for y in ys) for ys in refs))
                a, b = ({g: k*(math.log(len(hyps)) - math.log(df(g))) for g, k in grams(w, n).items()} for w in (h, x))
                na, nb = (math.sqrt(sum(v*v for v in w.values())) for w in (a, b))
                dot = sum(min(v, b.get(g, 0))*b.get(g, 0) for g, v in a.items())
                if na and nb: total += dot/(na*nb) * math.exp(-(max(len(h)-1, 0)-max(len(x)-1, 0))**2/72) / 4
        out.append(10*total/len(rs))
    return out

@settings(max_examples=40, deadline=None)
@given(items)
def test_cider_equals_brute_force(items):
    hyps, refs = [h for h, _ in items], [r for _, r in items]
    assert np.allclose(cider_d(hyps, refs, each=True), slow_cider(hyps, refs))

def corpus(n=30, seed=0):
    rng = random.Random(seed)
    word = lambda i, j: f"w{i}x{j}" if rng.random() < .6 else f"common{rng.randrange(9)}"
    return [" ".join(word(i, j) for j in range(rng.randint(5, 11))) for i in range(n)]

def test_perfect_is_highest_and_shuffled_lower():
    texts = corpus()
    refs = [[t, "common1 and something else"] for t in texts]
    perfect, shuffled = caption_scores(texts, refs), caption_scores(texts[1:] + texts[:1], refs)
    assert list(perfect) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert all(np.isclose(perfect[k], 1) for k in list(perfect)[:5]) and all(shuffled[k] < perfect[k] for k in perfect)

def test_closed_forms_of_cider():
    texts = [" ".join(f"w{i}x{j}" for j in range(4+i)) for i in range(5)]
    assert np.allclose(cider_d(texts, [[t] for t in texts], each=True), 10) and cider_d(texts[:1], [texts[:1]]) == 0
    # the second hypothesis shares no word with its reference
    got = cider_d(["a b c d", "e f g h"], [["a b c d"], ["x y z w"]], each=True)
    assert np.allclose(got, [10, 0])

def test_order_of_items_and_of_references_does_not_matter():
    texts, other = corpus(), corpus(seed=1)
    refs, order = [[a, b] for a, b in zip(texts, other)], np.random.default_rng(0).permutation(30)
    base, mixed = caption_scores(other[::-1], refs), caption_scores([other[::-1][i] for i in order], [refs[i][::-1] for i in order])
    assert all(np.isclose(base[k], mixed[k]) for k in base)

def test_brevity_picks_the_closest_reference():
    assert np.isclose(bleu(["a b c"], [["a b c d", "a b c d e f"]])[0], math.exp(1-4/3)) and bleu(["a b c"], [["a b", "a b c d"]])[0] == 1
    assert bleu([""], [["a b"]]) == (0, 0, 0, 0) and rouge_l([""], [["a"]]) == 0 and cider_d(["", "a"], [["b c"], ["d"]]) == 0

@pytest.mark.parametrize("hyps, refs, said", [
    (["a"], ["b"], "into a list"), (["a"], [["b"], ["c"]], "1 hypotheses for 2"), ([], [], "no captions"), (["a"], [[]], "item 0")])
def test_bad_captions(hyps, refs, said):
    for f in (bleu, rouge_l, cider_d, caption_scores):
        with pytest.raises(ValueError, match=said): f(hyps, refs)

def test_five_thousand_items_in_seconds():
    rng = random.Random(0)
    texts = [" ".join(rng.choices([f"w{i}" for i in range(300)], k=10)) for _ in range(5000)]
    t = time.process_time()
    caption_scores(texts, [[t] for t in texts])
    assert time.process_time() - t < 10 # about 1.5 s alone

def test_retrieval_by_hand():
    s, r = [[.9, .8, .7, .6, .5], [.1, .2, .3, .4, .5], [1, 2, 3, 4, 5.]], [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0]*5]
    assert np.allclose(recall_at_k(s, r, 1)[:2], [.5, 0]) and np.allclose(recall_at_k(s, r, 9)[:2], 1)
    assert np.allclose(precision_at_k(s, r, 4)[:2], [.5, .25]) and np.allclose(r_precision(s, r)[:2], [.5, 0])
    assert np.allclose(mrr(s, r)[:2], [1, 1/4]) and np.allclose(average_precision(s, r)[:2], [(1 + 2/3)/2, (1/4 + 2/5)/2])
    assert all(np.isnan(f(s, r)[2]) for f in (mrr, average_precision, r_precision))

def test_a_constant_score_gets_what_chance_gives():
    s, r = np.zeros((1, 10)), np.arange(10)[None] < 3
    assert np.isclose(recall_at_k(s, r, 4), .4) and np.isclose(precision_at_k(s, r, 4), .3) and np.isclose(r_precision(s, r), .3)
    assert np.isclose(average_precision(s, r), .3) and np.isclose(mrr(s, r), 1/(11/4))

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_retrieval_ignores_the_order_of_the_gallery(seed):
    rng = np.random.default_rng(seed)
    s, r = rng.integers(0, 4, (3, 8)).astype(float), rng.random((3, 8)) < .4
    order = rng.permutation(8)
    for f in (mrr, average_precision, r_precision, lambda *a: recall_at_k(*a, 3), lambda *a: precision_at_k(*a, 3)):
        assert np.allclose(f(s, r), f(s[:, order], r[:, order]), equal_nan=True)
        assert np.allclose(f(r.astype(float), r)[r.any(1)], f(r*2.+1, r)[r.any(1)])

def test_average_precision_equals_scikit_learn():
    from sklearn.metrics import average_precision_score
    rng = np.random.default_rng(0)
    s, r = rng.integers(0, 9, (20, 30)).astype(float), rng.random((20, 30)) < .3
    assert np.allclose(average_precision(s, r), [average_precision_score(b, a) for a, b in zip(s, r)])

def test_bad_retrieval():
    with pytest.raises(ValueError, match="queries, gallery"): recall_at_k(np.zeros((2, 3)), np.zeros((2, 4)), 1)
    with pytest.raises(ValueError, match="NaN"): mrr([[np.nan, 1]], [[1, 0]])

def test_wilson_solves_its_equation():
    for k, n in ((0, 10), (3, 10), (10, 10), (950, 1000)):
        lo, hi = wilson(k, n)
        for p in (lo, hi):
            if 0 < p < 1: assert np.isclose(abs(k/n - p), 1.959963984540054 * math.sqrt(p*(1-p)/n))
        assert 0 <= lo <= k/n <= hi <= 1
    assert wilson(0, 0) == (0, 1) and wilson(5, 10, .99)[0] < wilson(5, 10)[0]
    for bad in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="successes"): wilson(*bad)
    with pytest.raises(ValueError, match="level"): wilson(1, 2, .5)

def test_bootstrap():
    x = np.random.default_rng(0).normal(size=200)
    assert bootstrap(x, seed=3) == bootstrap(x, seed=3) != bootstrap(x, seed=4)
    lo, hi = bootstrap(x)
    wide = bootstrap(x, level=.99)
    assert wide[0] < lo < x.mean() < hi < wide[1] and np.isclose(hi-lo, 2*1.96*x.std()/200**.5, rtol=.1)
    assert np.allclose(bootstrap(x, np.mean), (lo, hi), atol=.02) and bootstrap(np.r_[x, np.nan]) == (lo, hi)
    assert bootstrap(np.ones(5)) == (1, 1) and all(map(math.isnan, bootstrap([])))
    pairs = np.stack([x, 2*x], 1)
    assert np.allclose(bootstrap(pairs, lambda v: np.corrcoef(v.T)[0, 1], n=50), 1)

def test_bootstrap_covers():
    hit = sum(lo < .5 < hi for lo, hi in (bootstrap(np.random.default_rng(i).random(60), n=400, seed=i) for i in range(200)))
    assert 175 <= hit <= 199 # 95 % of 200, four standard errors below

def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    better, same = paired_bootstrap(a + .2, a + rng.normal(0, .05, 300)), paired_bootstrap(a, a + rng.normal(0, 1, 300))
    assert better["lo"] > 0 and better["p"] < .01 and same["lo"] < 0 < same["hi"] and same["p"] > .05
    assert paired_bootstrap(a, a)["p"] == 1 and paired_bootstrap(np.r_[a, np.nan], np.r_[a, 1])["diff"] == 0
    with pytest.raises(ValueError, match="same items"): paired_bootstrap(a, a[:-1])
