"Trials held for any describer: what looks passes, what does not look cannot, what fails has a reason."
import numpy as np
import pytest
import torch

from vlnotes import describe, examination as ex, planted, scoreboard as sb, trials
from vlnotes.backbones import load
from vlnotes.docmnist import generate
from vlnotes.subjects import Subject, items, of_describer

FEW, SEVERAL = (generate(24, regions=r, split="test", seed=41, order="reading", unique=False) for r in ((1, 2), (2, 4)))
LAYER = "layer4"
ASKED = ("changed", "spill", "inside", "auc_phrases", "more", "intact", "scrambled_top", "scrambled", "gone", "came")


@pytest.fixture(scope="module")
def probe(): return planted.probe(load("zoo/convnet"), LAYER, generate(150, regions=(1, 4), split="train", seed=1), SEVERAL)


@pytest.fixture(scope="module")
def devil(probe): return ex.examine(of_describer("devil", describe.make("devil"), LAYER), FEW, SEVERAL, probe, repeats=100)


def parrot(**kw): # says one thing of everything, whatever its encoder sees
    bb = load("zoo/convnet")
    def say(images):
        bb.features(bb.normalise(torch.from_numpy(np.stack([np.asarray(im).transpose(2, 0, 1) for _, im in images]))), LAYER)
        return ["a red three . a large circle"] * len(images)
    return Subject("parrot", say, "zoo/convnet", LAYER, net=bb, **({"blind": "a red three . a large circle"} | kw))


def test_one_that_looks_passes(devil):
    row, chance = devil
    assert row["kind"] == "describer" and chance["of"] == "devil" and "reasons" not in row
    for k in ASKED: assert row[f"{k}_lo"] <= row[k] <= row[f"{k}_hi"], k
    for k in ("changed", "inside", "auc_phrases", "more", "gone", "came"): assert row[f"{k}_lo"] > chance[k], k
    assert row["spill"] < .4 < chance["spill"] and row["falls"] and row["scrambled_hi"] < row["intact_lo"]
    assert not sb.holes(devil)


def test_one_that_does_not_look_passes_nothing(probe):
    row, chance = ex.examine(parrot(maps=lambda s, p: np.zeros((len(s.ids), len(p), 3, 3))), FEW, SEVERAL, probe, repeats=50)
    assert row["changed"] == row["spill"] == row["more"] == row["gone"] == row["came"] == 0 and row["auc_phrases"] == .5
    assert not row["falls"] and row["intact"] == row["scrambled"] # it reads its own prior
    said = " ".join(sb._tried(row, chance))
    assert "reads its own prior" in said and "not above chance in changes with the scene (0.00, chance 0.00)" in said and "above chance in true" not in said.replace("not above chance", "")


def test_what_cannot_be_held_has_a_reason(probe):
    blind = Subject("says", lambda im: ["a red three"] * len(im))
    row, _ = ex.examine(blind, FEW, SEVERAL, repeats=20)
    assert set(row["reasons"]) == {"inside", "auc_phrases", "more", "intact", "scrambled_top", "scrambled", "gone", "came"} and not sb.holes([row, _])
    row, _ = ex.examine(parrot(), FEW, SEVERAL, repeats=20)
    assert row["reasons"]["gone"] == "no probe of its layer was given" and row["reasons"]["inside"] == "it draws no maps"
    for maps, why in ((lambda s, p: 1 / 0, "asked for maps it raised ZeroDivisionError"), (lambda s, p: np.zeros((2, 2)), "are (n, P, H, W)"), (lambda s, p: np.full((len(s.ids), len(p), 3, 3), np.nan), "not finite")):
        row, _ = ex.examine(parrot(maps=maps), FEW, SEVERAL, repeats=20)
        assert why in row["reasons"]["inside"] and not sb.holes([row, _])
    other = planted.Probe("layer4", probe.weight[:7], probe.bias, {}, {}, probe.error)
    row, _ = ex.examine(parrot(), FEW, SEVERAL, other, repeats=20)
    assert "a direction of 7 numbers cannot steer the 128 channels" in row["reasons"]["came"]
    deaf = Subject("deaf", lambda im: ["a red three"] * len(im), net=load("zoo/convnet"), blind="x")
    row, _ = ex.examine(deaf, FEW, SEVERAL, probe, repeats=20)
    assert "was not run while it was steered" in row["reasons"]["gone"]
    mute = parrot(blind=lambda: 1 / 0)
    row, _ = ex.examine(mute, FEW, SEVERAL, repeats=20)
    assert "without an image it raised" in row["reasons"]["scrambled"]
    wrong = generate(10, regions=1, split="test", seed=1)
    row, _ = ex.examine(parrot(maps=lambda s, p: np.zeros((len(s.ids), len(p), 3, 3))), FEW, wrong, repeats=20)
    assert "no scene has two regions" in row["reasons"]["more"]


def test_a_describer_that_fails_or_was_taught_with_the_images_is_one_row():
    for s, why in ((Subject("broken", lambda im: 1 / 0), "ZeroDivisionError"), (Subject("none", refuses="it was not asked: no model"), "not asked"), (parrot(seen=FEW[:5]), "refused: 5 of the 24")):
        rows = ex.examine(s, FEW, SEVERAL)
        assert len(rows) == 1 and why in rows[0]["reason"] and not sb.holes(rows)
        assert why in sb.Board([], trials=rows).markdown("trials") and "was not tried" in " ".join(sb._tried(rows[0], {}))


def test_nobody_is_asked_twice_about_the_same_scenes():
    asked = []
    s = Subject("counts", lambda im: asked.append(len(im)) or ["a red three"] * len(im), blind="x")
    ex.examine(s, FEW, SEVERAL, repeats=20)
    assert len(asked) <= 1 + 2 * 4 # the scenes, and before and after of every factor; the control asks nobody
    tell = ex.Teller(s)
    assert tell(FEW) is tell(FEW) and tell.anew(FEW) is not tell(FEW)


def test_the_second_table_stands_on_the_page(devil):
    score = {"recall": .5, "f1": .5, "f1_lo": .4, "f1_hi": .6}
    rows = [{"who": b, "kind": "baseline", "encoder": "none"} | score for b in ("constant", "random", "majority")]
    rows += [{"who": "devil", "kind": "describer", "encoder": "zoo/convnet", "layer": LAYER, "beats": []} | score]
    rows += [{"who": b, "of": "devil", "kind": "baseline", "encoder": "zoo/convnet", "layer": LAYER} | score for b in ("shuffled image", "blind")]
    board = sb.scoreboard(rows, trials=devil)
    page = board.html()
    assert "<h2>Trials</h2>" in page and all(h in page for h in sb.TRIALS.values()) and f"{devil[0]['changed_lo']:.3f} to" in page and "chance of devil" in page
    assert board.markdown("trials").count("\n") == 3 and "<script" not in page and "http" not in page.replace("http-equiv", "")
    with pytest.raises(ValueError, match="no table of trials with holes in it.*points inside of devil"): sb.scoreboard(rows, trials=[devil[0] | {"inside": float("nan")}, devil[1]])
    with pytest.raises(ValueError, match="chance levels of devil"): sb.scoreboard(rows, trials=devil[:1])


# ---- steering

@pytest.mark.parametrize("name, layer", [("zoo/convnet", "layer3"), ("zoo/vit", "blocks.3")])
def test_a_direction_is_held_and_let_go(name, layer):
    bb, rng = load(name), np.random.default_rng(0)
    x, width = bb.normalise(FEW[:3].pixels()), bb.info(layer).channels
    w, along = rng.normal(size=width), rng.normal(size=width)
    along *= np.sign(along @ w)
    read = lambda f: f.x.numpy() @ w + .2
    plain = bb.features(x, [layer, bb.layer_names[-1]])
    for up, way in ((True, None), (False, along)):
        with trials.steered(bb, layer, w, .2, 1., up, way): now = bb.features(x, [layer, bb.layer_names[-1]])
        r, was = read(now[layer]), read(plain[layer])
        want = np.maximum(was, 1) if up else np.minimum(was, 1)
        assert np.allclose(r, want, atol=1e-3)
        moved = (now[layer].x - plain[layer].x).numpy().reshape(-1, width)
        direction = (w if way is None else way) / np.linalg.norm(w if way is None else way)
        assert np.allclose(moved, (moved @ direction)[:, None] * direction, atol=1e-3) # along the way, and nowhere else
        assert not torch.equal(now[bb.layer_names[-1]].x, plain[bb.layer_names[-1]].x) # later layers see it
    assert all(v.x.equal(plain[k].x) for k, v in bb.features(x, list(plain)).items())
    with pytest.raises(ValueError, match="has no layer 'attic' to steer; its layers are"), trials.steered(bb, "attic", w, 0, 1, True): pass
    with pytest.raises(RuntimeError, match="was not run"), trials.steered(bb, layer, w, 0, 1, True): pass
    with pytest.raises(KeyError), trials.steered(bb, layer, w, 0, 1, True): raise KeyError("mine") # not hidden by the missing run
    assert not dict(bb.net.named_modules())[layer]._forward_hooks


def test_the_pattern_of_a_probe_moves_its_own_reading(probe):
    assert torch.allclose((probe.weight * probe.pattern).sum(0), torch.ones(len(probe.bias)), atol=1e-3)


def test_causes_need_a_control():
    with pytest.raises(ValueError, match="two words at least, not 1"): trials.causes(lambda s: ["red"] * len(s), FEW, ["red"], None, None)


def test_edits_of_several_factors_are_counted_together_and_by_scene():
    tell = lambda s: [" . ".join("a " + " ".join(r) for r in s.regions(i)) for i in range(len(s))]
    each = [trials.counterfactual(tell, SEVERAL, f, repeats=20) for f in ("digit", "colour")]
    both = trials.counterfactual(tell, SEVERAL, ("digit", "colour"), repeats=20)
    assert both["edits"] == sum(e["edits"] for e in each) and both["changed"] == 1 and both["factor"] == "digit, colour"
    guess = lambda s: ["a red three"] * len(s)
    mixed = [trials.counterfactual(guess, SEVERAL, f, repeats=20) for f in ("digit", "colour")]
    pooled = trials.counterfactual(guess, SEVERAL, ("digit", "colour"), repeats=20)
    assert pooled["named"] == pytest.approx(sum(m["named"] * m["edits"] for m in mixed) / sum(m["edits"] for m in mixed))
    assert items(FEW[:1])[0][0] == FEW.ids[0]
