"Claims and unit scores against plain loops, closed forms and invariances."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vlnotes import agreement as ag
from vlnotes import claims
from vlnotes.docmnist import generate
from vlnotes.vocabulary import published

SCENES = generate(120, regions=(1, 5), split="val", seed=5)


def planted(seed, units=12, samples=1500, s=1.):
    rng = np.random.default_rng(seed)
    t = (rng.random((units, samples)) < rng.uniform(.03, .3, (units, 1))).astype(float)
    return np.maximum(t * (1 + .3 * rng.normal(size=t.shape)) + .5 * s * rng.normal(size=t.shape), 0), t


# ---- claims

def holds(claim, region): # one region, by the words of the definition
    if claim.op == "is": return claim.args[0] in region
    if claim.op == "not": return not holds(claim.args[0], region)
    return (any if claim.op == "or" else all)(holds(c, region) for c in claim.args)


words = st.sampled_from(published().attributes).map(claims.word)
trees = st.recursive(words, lambda c: st.one_of(c.map(lambda x: claims.Claim("not", (x,))),
                     st.tuples(st.sampled_from(["both", "and", "or"]), c, c).map(lambda t: claims.Claim(t[0], t[1:]))), max_leaves=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees)
def test_concept_vectors_are_the_definition(claim):
    regions = [r for i in range(len(SCENES)) for r in SCENES.regions(i)]
    assert claims.regions(claim, SCENES).tolist() == [holds(claim, r) for r in regions]
    negated = claims.Claim("not", (claim,))
    assert (claims.images(negated, SCENES) == ~claims.images(claim, SCENES)).all()
    assert not claims.asserted(negated) and claims.asserted(claim) <= set(published().attributes)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.permutations(["red", "three", "large", "circle"]), st.integers(1, 4))
def test_word_order_is_free(order, n):
    said = order[:n]
    assert claims.read(" ".join(said)).claim in [claims.both(*p) for p in [said]]
    assert claims.asserted(claims.read("a " + " and a ".join(said)).claim) == set(said)


@pytest.mark.parametrize("text, want", [
    ("A RED three!", "(red three)"), ("red, three", "(red and three)"), ("a three without a circle", "(three not (circle))"), ("isn't red", "not (red)"),
    ("a square or a ring", "(rectangle or circle)"), ("exactly 2 circles", "= 2 circle"), ("at least three regions", ">= 3 regions"), ("at most two red digits", "<= 2 red"),
    ("7 in the bottom right", "(seven in rows 2 and columns 2)"), ("something in the centre", "in rows 1 and columns 1"), ("two threes", "= 2 three"),
    ("neither red nor blue", "(not (red) and not (blue))"), ("not a red three", "not ((red three))"), ("the number is a two", "two"), ("a dog on grass", None), ("", None)])
def test_texts_and_their_claims(text, want):
    got = claims.read(text).claim
    assert (got and str(got)) == want


def test_counts_and_places_are_counted_and_placed():
    n = np.diff(SCENES.offsets)
    assert (claims.images(claims.read("three regions").claim, SCENES) == (n == 3)).all()
    assert (claims.images(claims.read("at least two regions").claim, SCENES) == (n >= 2)).all()
    red = np.array([sum("red" in r for r in SCENES.regions(i)) for i in range(len(SCENES))])
    assert (claims.images(claims.read("exactly two red digits").claim, SCENES) == (red == 2)).all()
    assert (claims.regions(claims.read("top left").claim, SCENES) == (SCENES.region["cell"] == 0)).all()


def test_what_is_no_text_or_no_word_is_told():
    with pytest.raises(ValueError, match="a description is a text, not float"): claims.read(.5)
    with pytest.raises(ValueError, match="'teal' cannot stand for 'cyan'"): claims.read("teal", synonyms={"teal": "cyan"})
    with pytest.raises(ValueError, match="not 'pixels'"): claims.vectors([], SCENES, of="pixels")
    assert claims.vectors([None, claims.word("red")], SCENES, "images").sum(1).tolist()[0] == 0


# ---- unit scores

def loop_f1(a, c, seed=0): # every threshold that occurs, for small inputs
    half = np.random.default_rng(seed).permutation(len(a)) % 2
    f = lambda on, c: 2 * (on & c).sum() / max(on.sum() + c.sum(), 1)
    out = 0
    for h in (0, 1):
        own, other = half == h, half != h
        cuts = np.unique(a[own])
        best = cuts[np.argmax([f(a[own] >= t, c[own]) for t in cuts])]
        out += f(a[other] >= best, c[other]) / 2
    return out


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_their_definitions(ties):
    a, t = planted(1, units=5, samples=300)
    if ties: a = a.round(1)
    c = t.astype(bool)
    got, why = ag.grid(a, t, ("pearson", "auprc", "f1", "auc", "spearman"))
    for u in range(5):
        for k in range(5):
            base = c[k].mean()
            assert np.isclose(got["pearson"][u, k], np.corrcoef(a[u], t[k])[0, 1], atol=1e-5)
            assert np.isclose(got["spearman"][u, k], np.corrcoef(ag.ranks(a[u]), t[k])[0, 1], atol=1e-5)
            assert np.isclose(got["auprc"][u, k], (average_precision_score(c[k], a[u]) - base) / (1 - base), atol=1e-5)
            assert np.isclose(got["auc"][u, k], roc_auc_score(c[k], a[u]), atol=1e-5)
            assert np.isclose(got["f1"][u, k], loop_f1(a[u], c[k]), atol=1e-5)
    assert why == {"unit": {}, "concept": {}}
    assert np.allclose(ag.matched(a, t, ("auprc",))[2]["auprc"], got["auprc"][2, 2])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(.01, 50), st.floats(-20, 20), st.integers(0, 99))
def test_invariances(scale, shift, seed):
    a, t = planted(seed, units=3, samples=200)
    order = np.random.default_rng(seed).permutation(200)
    same = lambda f, x, c=t: np.allclose(f(x, c), f(a, t), atol=1e-5)
    assert same(ag.pearson, scale * a + shift) and same(ag.pearson, a[:, order], t[:, order])
    assert same(ag.spearman, np.exp(a / 3) * scale + shift) and same(ag.spearman, a[:, order], t[:, order])
    assert same(ag.auprc, np.arctan(a), t) and same(ag.auprc, a[:, order], t[:, order])


def test_the_ceiling_is_reached_and_never_passed():
    rng = np.random.default_rng(4)
    for p, s in ((.05, .3), (.2, 1.), (.4, .5)):
        t = (rng.random((30, 5000)) < p).astype(float)
        a = t * (1 + .3 * rng.normal(size=t.shape)) + .5 * s * rng.normal(size=t.shape)
        r = np.diag(ag.pearson(a, t))
        assert abs(r.mean() - ag.ceiling(p, s)) < .01


def test_sound_metrics_fall_and_the_others_are_told_apart():
    a, t = planted(2, units=60, samples=6000)
    got = ag.sanity(a, t)
    for k in ("pearson", "spearman"): assert abs(got[k]["missing"] - .68) < .05 and abs(got[k]["extra"] - .64) < .05
    assert all(got[k]["sound"] for k in ("pearson", "spearman", "f1", "iou", "cosine", "auprc"))
    assert got["auc"]["missing"] > .9 and got["top20"]["extra"] > .9
    assert [ag.label(k) for k in ("auc", "pearson")] == ["auc (unsound)", "pearson"]


def test_what_cannot_be_scored_is_told():
    a, t = planted(3, units=2, samples=50)
    a[1, 7] = np.nan
    with pytest.raises(ValueError, match="unit layer4:9 in sample 7 is nan: it must be finite"): ag.checked(a, ["layer4:8", "layer4:9"])
    with pytest.raises(ValueError, match="50 samples, the activations have 40"): ag.grid(np.zeros((1, 40)), t)
    with pytest.raises(ValueError, match="no metric 'accuracy'"): ag.grid(t, t, ("accuracy",))
    with pytest.raises(ValueError, match="1 descriptions for 2 units"): ag.matched(t, t[:1])
    still = ag.matched(np.ones((1, 50)), t[:1])[0]
    assert still["pearson"] == still["f1"] == 0 and "1 in every sample" in still["reason"]
    always = ag.matched(t[:1], np.ones((1, 50)))[0]
    assert always["pearson"] == 0 and "the concept is 1 in every sample" in always["reason"]


def test_intervals_cover_and_images_are_drawn_whole():
    rng, hit = np.random.default_rng(6), 0
    for k in range(500): # a describer that is right with probability 0.7
        right = (rng.random(200) < .7).astype(float)
        lo, hi = ag.bounds(ag.resample(right[:, None], 400, k)[:, 0] / 200)
        hit += lo <= .7 <= hi
    assert .92 <= hit / 500 <= .98
    a, t = planted(7, units=1, samples=100)
    wide = lambda owner, n: np.diff([ag.matched(np.tile(a, n), np.tile(t, n), ("pearson",), owner)[0][f"pearson_{k}"] for k in ("lo", "hi")])[0]
    alone, repeated = wide(None, 1), wide(np.tile(np.arange(100), 20), 20)
    assert repeated > .7 * alone and wide(None, 20) < .5 * alone # twenty copies of an image are no new images


def test_a_wide_gap_between_pearson_and_spearman_is_flagged():
    rng = np.random.default_rng(0)
    t = (rng.random(2000) < .1).astype(float)
    tails = np.maximum(t + .5 * rng.standard_t(1.2, 2000), 0)
    plain = t + .3 * rng.normal(size=2000)
    far, near = ag.matched(np.stack([tails, plain]), np.stack([t, t]), ("pearson", "spearman"), repeats=50)
    assert abs(far["pearson"] - far["spearman"]) > .2 and "Pearson and Spearman differ" in far["flag"] and "flag" not in near
    assert far["pearson_lo"] <= far["pearson"] <= far["pearson_hi"] and far["spearman_lo"] <= far["spearman"] <= far["spearman_hi"]


def test_mean_activation_difference_has_one_control_for_all_concepts():
    a, t = planted(5, units=3, samples=4000, s=.3)
    for u in range(3):
        half = t[u] * (np.arange(4000) % 2)
        want = lambda c, x=a[u]: (x[c == 1].mean() - x[c == 0].mean()) / x.std()
        assert np.isclose(ag.mad(a[u:u + 1], t[u:u + 1])[0, 0], want(t[u]), atol=1e-4)
        assert ag.mad(a[u:u + 1], half[None])[0, 0] > .85 * ag.mad(a[u:u + 1], t[u:u + 1])[0, 0] # half of the concept scores almost as high: unsound
    assert (ag.mad(np.ones((1, 50)), t[:1, :50]) == 0).all() and (ag.mad(a[:1], np.zeros((1, 4000))) == 0).all()


def test_words_near_in_meaning_become_synonyms():
    where = {"red": [1, 0], "blue": [0, 1], "ruby": [.9, .1], "cobalt": [.2, .95], "music": [.6, .6]}
    embed = lambda texts: np.array([np.array(where.get(t, [0, 0]), float) / max(np.linalg.norm(where.get(t, [0, 0])), 1e-9) for t in texts])
    found = claims.nearest_words(["ruby", "cobalt", "music", "ruby"], embed, threshold=.9)
    assert found == {"ruby": "red", "cobalt": "blue"} and claims.nearest_words([], embed) == {}
    assert str(claims.read("a ruby thing", synonyms=found).claim) == "red" and claims.read("a ruby thing").claim is None
