"The benchmark itself: truth passes, blindness cannot, failures are rows, baselines cannot be left out, intervals cover."
import numpy as np
import pytest

from vlnotes import claims, faithfulness as fa, trials
from vlnotes.backbones import load
from vlnotes.docmnist import generate
from vlnotes.notes import Note, Notes
from vlnotes.truth import constant
from vlnotes.vocabulary import FACTORS

SCENES = generate(150, regions=(1, 4), split="test", seed=21, order="reading", unique=False)
SETS = [SCENES[:75], SCENES[75:]]


def truth_of(scenes): return [" . ".join("a " + " ".join(r) for r in scenes.regions(i)) for i in range(len(scenes))]


def knows(scenes=SCENES): # a describer that returns the truth
    texts = dict(zip(scenes.ids, truth_of(scenes)))
    return lambda images: [texts.get(k, "") for k, _ in images]


def subject(name, f, **kw): return fa.Subject(name, f, **{"blind": "a red three", "encoder": "zoo/convnet"} | kw)


# ---- trials

def test_the_truth_passes_everything_and_a_constant_nothing():
    best, same = (trials.with_intervals(trials.tally(t, SCENES), repeats=100) for t in (truth_of(SCENES), ["a red three"] * 150))
    assert all(best[k] == 1 for k in ("f1", "precision", "recall", *FACTORS, "binding")) and best["count_error"] == 0
    assert same["binding"] < .3 and same["f1_lo"] <= same["f1"] <= same["f1_hi"] < .4
    for f in FACTORS:
        good, bad = (trials.counterfactual(d, SCENES, f, repeats=50) for d in (truth_of, lambda s: ["a red three with a large circle"] * len(s)))
        assert good["changed"] == 1 and good["spill"] == 0 and bad["changed"] == 0
        mixed = trials.counterfactual(lambda s, r=np.random.default_rng(0): [truth_of(s)[i] for i in r.permutation(len(s))], SCENES, f, repeats=50)
        assert mixed["changed"] < .3 and mixed["spill"] > .5


def test_silence_costs_recall_and_not_precision():
    texts = [t if i % 2 else "a photograph" for i, t in enumerate(truth_of(SCENES))]
    got = trials.marks(trials.tally(texts, SCENES).sum(0))
    assert got["precision"] == 1 and .3 < got["recall"] < .7 and got["no_claim"] == .5
    denies = ["no circle" if not any("circle" in r for r in SCENES.regions(i)) else "no red" for i in range(150)]
    got = trials.marks(trials.tally(denies, SCENES).sum(0))
    assert .5 < got["denial"] < 1 and np.isnan(got["precision"])


def test_counts_in_words_and_by_digits():
    n = np.diff(SCENES.offsets)
    for texts in ([f"{('one two three four'.split())[k - 1]} regions" for k in n], truth_of(SCENES)):
        assert trials.marks(trials.tally(texts, SCENES).sum(0))["count_error"] == 0
    assert trials.marks(trials.tally(["four regions"] * 150, SCENES).sum(0))["count_error"] == pytest.approx((4 - n).mean())


@pytest.mark.parametrize("factor", FACTORS)
def test_an_edit_changes_one_thing(factor):
    before, after, words = trials.edited(SCENES, factor, seed=3)
    for i, (old, new) in enumerate(words):
        a, b = ({w for r in s.regions(i) for w in r} for s in (before, after))
        assert a ^ b == {old, new} and old in a and new in b
    x, y = before.pixels(), after.pixels()
    changed = (x != y).any(1).reshape(len(x), 3, 28, 3, 28).any((2, 4)).sum((1, 2))
    assert (changed == 1).all() # in one cell of the page


def test_intervals_of_scores_cover():
    rng, true, inside = np.random.default_rng(0), SCENES.regions, 0
    right, wrong = truth_of(SCENES), ["a photograph"] * 150
    rows = trials.tally(right, SCENES), trials.tally(wrong, SCENES)
    value = trials.marks(.7 * rows[0].sum(0) + .3 * rows[1].sum(0))["recall"]
    for k in range(500): # other images and other luck every time
        pick, ok = rng.integers(0, 150, 150), (rng.random(150) < .7)[:, None]
        got = trials.with_intervals(np.where(ok, rows[0][pick], rows[1][pick]), lambda s: {"recall": trials.marks(s)["recall"]}, repeats=300, seed=k)
        inside += got["recall_lo"] <= value <= got["recall_hi"]
    assert .92 <= inside / 500 <= .98 and true(0)


def test_pointing_deletion_and_their_bad_input():
    maps = lambda s, p: np.stack([np.r_[claims.regions(claims.word(w), s), False][s.grid(6, 6)] for w in p], 1).astype(float)
    got = trials.pointing(maps, SCENES, repeats=50)
    assert got["inside"] == got["auc"] == 1 and got["chance"] < .3
    assert trials.pointing(lambda s, p: 1 - maps(s, p), SCENES, repeats=50)["inside"] == 0
    with pytest.raises(ValueError, match=r"are \(n, P, H, W\)"): trials.pointing(lambda s, p: np.zeros((3, 2)), SCENES)
    with pytest.raises(ValueError, match="not finite"): trials.pointing(lambda s, p: np.full((len(s), len(p), 3, 3), np.nan), SCENES)
    with pytest.raises(ValueError, match="more regions"): trials.deletion(lambda x, w: np.zeros(len(w)), generate(4, regions=1, split="test", seed=1))
    with pytest.raises(ValueError, match="finite numbers"): trials.deletion(lambda x, w: np.zeros(1), SCENES)
    with pytest.raises(ValueError, match="no factor 'place'"): trials.edited(SCENES, "place")
    with pytest.raises(ValueError, match="2 texts for 150 scenes"): trials.tally(["a", "b"], SCENES)


def test_scrambling_goes_from_the_top_and_is_undone():
    bb, x = load("zoo/convnet"), SCENES[:2].pixels()
    read = lambda: {n: f.x.clone() for n, f in bb.features(bb.normalise(x)).items()}
    whole = read()
    with trials.scrambled(bb, 2, seed=1):
        now = read()
        assert [bool(now[n].equal(whole[n])) for n in bb.layer_names] == [True, True, False, False]
    assert all(v.equal(whole[n]) for n, v in read().items())
    with pytest.raises(RuntimeError, match="stop"), trials.scrambled(bb, 4): raise RuntimeError("stop")
    assert all(v.equal(whole[n]) for n, v in read().items()) # also after an error
    with pytest.raises(ValueError, match="4 layers, not 9"), trials.scrambled(bb, 9): pass


# ---- judging

def test_only_what_looks_gets_a_good_row():
    rng = np.random.default_rng(0)
    any_text = truth_of(SCENES)
    blind = [subject("one word", lambda im: ["red"] * len(im)), subject("random", lambda im: [any_text[k] for k in rng.integers(0, 150, len(im))]),
             subject("best constant", lambda im: [fa.best_constant(generate(1500, regions=(1, 4), split="train", seed=99))] * len(im)),
             subject("majority", lambda im: [constant()] * len(im)), subject("everything", lambda im: [" ".join(SCENES.vocab.attributes)] * len(im))]
    rows = fa.judge([subject("truth", knows()), *blind], SETS, repeats=300)
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    assert by["truth"]["good"] and by["truth"]["f1"] == 1 and set(by["truth"]["ahead_of"]) == {s.name for s in blind}
    assert not any(by[s.name]["good"] for s in blind)
    common = {r["who"]: r["f1"] for r in rows if r["kind"] == "baseline" and "of" not in r}
    assert by["majority"]["f1"] == pytest.approx(common["majority"], abs=.03) and by["best constant"]["f1"] == pytest.approx(common["constant"], abs=.03)
    assert by["one word"]["images"] == 150 and by["one word"]["seeds"] == 2 and len(by["one word"]["f1_by_seed"]) == 2
    board = fa.scoreboard(rows)
    assert sum("**" in line for line in board.markdown().splitlines()) == 1
    assert any("do not show that it looked" in t for t in board.reading())


def test_a_describer_that_ignores_the_image_equals_its_blind_self():
    text = "a red three . a large circle"
    rows = fa.judge([subject("deaf", lambda im: [text] * len(im), blind=text)], SCENES, repeats=200)
    lo, hi = next(r for r in rows if r["kind"] == "describer")["over_blind"]
    assert lo == hi == 0


BAD = [("raises", lambda im: [][0], "it raised IndexError"), ("nothing", lambda im: None, "returned nothing"), ("short", lambda im: ["red"], "1 texts for 150 images"),
       ("numbers", lambda im: [1.] * len(im), "float where a text"), ("empty", lambda im: [""] * len(im), "every text it returned is empty"),
       ("mute", lambda im: ["a nice photograph"] * len(im), "claims anything"),
       ("others", lambda im: Notes([Note("elsewhere", "e", "l", "red", 0., "k", "m")]), "notes are about images it was not given, such as 'elsewhere'"),
       ("no notes", lambda im: Notes(), "no notes")]


def test_a_failing_describer_is_a_row_with_a_reason():
    subjects = [subject(n, f) for n, f, _ in BAD] + [subject("good", knows()), subject("trained here", knows(), seen=SCENES[:7]), subject("by id", knows(), seen=set(SCENES.ids[:3]))]
    subjects.append(subject("no blind", knows(), blind=lambda: 1 / 0))
    rows = fa.judge(subjects, SCENES, repeats=50)
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    assert len(by) == len(subjects) # never a hole
    for n, _, why in BAD: assert why in by[n]["reason"], by[n]
    assert "7 of the 150 images were in its training" in by["trained here"]["reason"] and "3 of the 150" in by["by id"]["reason"]
    assert by["no blind"]["reason"].startswith("without an image it raised ZeroDivisionError") and by["good"]["good"]
    page = fa.scoreboard(rows, "Trial").html()
    assert fa.scoreboard(rows).markdown().count("no score:") == len(subjects) - 1 and "src=" not in page and "<script" not in page


def test_notes_are_matched_by_image_and_compared_within_an_encoder():
    text = dict(zip(SCENES.ids, truth_of(SCENES)))
    notes = lambda im: Notes([Note(k, "zoo/convnet", "layer4", text.get(k, "red"), 0., "k", "m") for k, _ in reversed(im)])
    rows = fa.judge([subject("notes", notes), subject("elsewhere", lambda im: ["red"] * len(im), encoder="timm/x"), subject("here", lambda im: ["red"] * len(im))], SCENES, repeats=100)
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    assert by["notes"]["f1"] == 1 and by["notes"]["ahead_of"] == ["here"] and by["elsewhere"]["ahead_of"] == []
    assert list(by["notes"]["agrees"]) == ["here"] and by["notes"]["agrees"]["here"] < .5


def test_seeds_of_training_make_one_row():
    rng = np.random.default_rng(1)
    def noisy(seed): return lambda im: [t if rng.random() < .8 else "a blue one" for t in knows()(im)]
    rows = fa.judge([subject("net", noisy(s), seed=s) for s in range(3)], SCENES, repeats=100)
    r = next(r for r in rows if r["kind"] == "describer")
    assert r["training_seeds"] == 3 and .5 < r["seeds_agree"] < .95 and sum(x["kind"] == "describer" for x in rows) == 1


def test_no_table_without_its_baselines():
    rows = fa.judge([subject("truth", knows())], SCENES, repeats=50)
    fa.scoreboard(rows)
    for b in fa.BASELINES:
        with pytest.raises(ValueError, match=f"no scoreboard without its baselines; missing: .*{b}"): fa.scoreboard([r for r in rows if r["who"] != b])


# ---- units

def test_units_beside_their_baselines():
    said = ["red", "large", "circle", "seven", "a blue rectangle", "not a circle"]
    truth = claims.vectors([claims.read(t).claim for t in said], SCENES).astype(float)
    acts = np.maximum(truth + .3 * np.random.default_rng(0).normal(size=truth.shape), 0)
    err = RuntimeError("no memory")
    rows = fa.judge_units({"true": said, "word": ["depictions red"] * 6, "raised": err, "none": None, "short": said[:2], "mute": ["depictions"] * 6, "ints": [1] * 6}, acts, SCENES,
                          oracle=said, metrics=("pearson", "spearman", "auprc", "auc"), repeats=200)
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    assert by["true"]["good"] and by["true"]["pearson_lo"] < by["true"]["pearson"] < by["true"]["pearson_hi"] and not by["word"]["good"]
    for n, why in (("raised", "RuntimeError: no memory"), ("none", "returned nothing"), ("short", "2 descriptions for 6 units"), ("mute", "claims anything"), ("ints", "int where a text")): assert why in by[n]["reason"]
    board = fa.scoreboard(rows)
    assert "auc (unsound)" in board.markdown() and "(ceiling)" in board.markdown() and next(r for r in rows if r["kind"] == "ceiling")["pearson"] == pytest.approx(by["true"]["pearson"])
    bad = acts.copy(); bad[2, 5] = np.inf
    with pytest.raises(ValueError, match="unit layer4:2 in sample 5 is inf"): fa.judge_units({}, bad, SCENES, names=[f"layer4:{k}" for k in range(6)])
    with pytest.raises(ValueError, match="samples, the scenes"): fa.judge_units({}, acts[:, :50], SCENES)
    still = acts.copy(); still[1] = 2.
    assert fa.judge_units({"true": said}, still, SCENES, repeats=50)[0]["silent_units"] == 1


def test_the_constant_word_is_chosen_in_the_other_half_of_the_images():
    red, blue = (claims.vectors([claims.read(w).claim], SCENES)[0].astype(float) for w in ("red", "blue"))
    owner = np.repeat(np.arange(len(SCENES)), np.diff(SCENES.offsets))
    acts = np.where(owner % 2 == 0, red, blue)[None] + .01 * np.random.default_rng(0).normal(size=(1, len(owner))) # even images fire on red, odd ones on blue
    rows = fa.judge_units({"red": ["red"]}, acts, SCENES, repeats=50, metrics=("pearson",))
    constant = rows[0]
    assert constant["who"] == "constant" and constant["said"] == ["red", "blue"] # chosen on even, said on odd; and the other way round
    assert constant["pearson"] < 0 < rows[2]["pearson"] # what fits one half does not fit the other: nothing was tuned on what is scored
    same = fa.judge_units({"red": ["red"]}, red[None] + .01, SCENES, repeats=50, metrics=("pearson",))[0]
    assert same["said"] == ["red", "red"] and same["pearson"] == pytest.approx(1, abs=1e-4)


def test_units_over_several_seeds_are_one_row_with_its_spread():
    said = ["red", "large", "circle", "seven"]
    truth = claims.vectors([claims.read(t).claim for t in said], SCENES).astype(float)
    acts = np.maximum(truth + .3 * np.random.default_rng(0).normal(size=truth.shape), 0)
    seeds = [said, [*said[:3], "six"], ["blue", *said[1:]]]
    rows = fa.judge_units({"seeds": seeds, "once": said, "short": [said, said[:2]], "mixed": [said, [None] * 4]}, acts, SCENES, repeats=60, metrics=("pearson", "spearman"))
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    alone = [next(r for r in fa.judge_units({"x": s}, acts, SCENES, repeats=60, metrics=("pearson",)) if r["who"] == "x")["pearson"] for s in seeds]
    r = by["seeds"]
    assert r["pearson"] == pytest.approx(np.mean(alone)) and r["spread"] == pytest.approx(np.std(alone, ddof=1)) and r["pearson_by_training_seed"] == pytest.approx(alone)
    assert r["training_seeds"] == 3 and r["seeds_agree"] == pytest.approx((.75 + .75 + .5) / 3) and r["pearson_lo"] < r["pearson"] < r["pearson_hi"]
    assert "seeds_agree" not in by["once"] and by["once"]["agrees"]["seeds"] == 1 and "2 descriptions for 4 units" in by["short"]["reason"] and "returned nothing" in by["mixed"]["reason"]
    board = fa.scoreboard(rows)
    assert "seeds agree" in board.markdown().splitlines()[0]
    assert any("Over 3 seeds it says the same to 67%" in t for t in board.reading())


def test_a_table_of_failing_describers_is_a_table():
    rows = fa.judge([subject("broken", lambda im: 1 / 0)], SCENES, repeats=20)
    board = fa.scoreboard(rows)
    assert "no score: it raised ZeroDivisionError" in board.markdown() and "ZeroDivisionError" in board.html() and len(board.reading()) == 1
    with pytest.raises(ValueError, match="missing: majority"): fa.scoreboard([r for r in rows if r["who"] != "majority"])


def test_the_page_is_safe_and_whole():
    evil = subject("<script>alert(1)</script>", knows(), supervision="<b>|captions", trained=1234)
    rows = fa.judge([evil, subject("broken | pipe", lambda im: 1 / 0)], SCENES, repeats=20)
    board = fa.scoreboard(rows, "<i>title", notes=["<u>note"])
    page = board.html()
    assert "<script" not in page and "<i>title" not in page and "<u>note" not in page and "&lt;script&gt;" in page and "1,234" in page
    lines = board.markdown().splitlines()
    assert len({line.count(" | ") for line in lines}) == 1 # a pipe in a name breaks no row
    assert "default-src 'none'" in page and "prefers-color-scheme:dark" in page


def test_captions_of_cells_name_the_region_under_the_cell():
    under = lambda s: [" ".join(r) for i in range(len(s)) for r in s.regions(i)]
    rows = fa.judge([subject("cells", knows(), cells=under), subject("swapped", knows(), cells=lambda s: under(s)[::-1]), subject("short", knows(), cells=lambda s: ["red"]),
                     subject("raises", knows(), cells=lambda s: 1 / 0)], SCENES, repeats=60)
    by = {r["who"]: r for r in rows if r["kind"] == "describer"}
    assert by["cells"]["cell"] == 1 and all(by["cells"][f"cell_{f}"] == 1 for f in FACTORS) and by["swapped"]["cell"] < .6
    assert "of cells it raised ZeroDivisionError" in by["raises"]["note"] and "cell" not in by["raises"] and by["raises"]["good"] # its words about images keep their score
    assert "note" in by["short"] and "1 texts for" in by["short"]["note"]
    assert "cells" in fa.scoreboard(rows).markdown().splitlines()[0] and any("of cells it raised" in t for t in fa.scoreboard(rows).reading())
