"What travels with the package about its describers is what the kept runs found."
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlnotes import calibration as cal, report
from vlnotes.describe import describers
from vlnotes.notes import Note, Notes

RESULTS = Path(__file__).parents[1]/"nbs/experiments/results"
LINE = cal.line("concepts", "units", "L1", "names it", .5, "share", 20, .3, .7, {"chance": .05, "nothing": float("nan")}, True)


def unit(method, n=3): return Note(f"net/layer4/{n}", "timm/resnet50", "layer4", "stripes", .5, "cosine", method, unit=n)
def whole(method): return Note("a.jpg", "timm/resnet50", "layer4", "a dog", -.5, "mean_logprob", method)


def test_the_table_is_what_the_kept_runs_say():
    if not RESULTS.is_dir(): pytest.skip("the kept results are in the checkout")
    assert cal.table() == cal.collect(RESULTS), "run python tools/calibrate.py"


def test_every_line_has_a_run_with_a_commit_and_makes_sense():
    t = cal.table()
    assert set(t["runs"]) >= {"faithfulness_units", "scoreboard"} and t["lines"]
    for r in t["lines"]:
        run = t["runs"][r["run"]]
        assert len(run["commit"]) == 40 and run["preset"] == "small" and run["started"][:2] == "20" and r["run"] in cal.source(r["run"])
        assert r["method"] in describers() and r["rung"] in ("L0", "L1", "L2") and r["n"] > 0 and r["beside"]
        if r["lo"] is not None: assert r["lo"] <= r["score"] <= r["hi"]
        if r["kind"] in ("share", "F1"): assert 0 <= r["score"] <= 1
    for method, of in (("devil", "images"), ("coca", "images"), ("lavise", "images"), ("devil", "units"), ("lavise", "units"), ("concepts", "units")): assert cal.lines(method, (of,)), (method, of)
    assert {r["rung"] for r in cal.lines("concepts")} == {"L0", "L1", "L2"}
    assert not cal.lines("nobody") and not cal.lines("concepts", ("images",)) and not cal.lines("coca", ("units",))


def test_lines_are_collected_with_their_run(tmp_path):
    for name, m in (("b", {"name": "b", "preset": "small", "git": {"commit": "c" * 40}, "started": "2026-01-02T03:04:05Z", "versions": {"vlnotes": "9"}, "metrics": {"calibration": [LINE]}}),
                    ("a", {"name": "a", "metrics": {"calibration": {"concepts": 1}}}), ("c", {"name": "c", "metrics": [1, 2]}), ("d", {"name": "d"})):
        (tmp_path/f"{name}.json").write_text(json.dumps(m))
    made = cal.write(tmp_path, tmp_path/"out/table.json") if (tmp_path/"out").mkdir() is None else None
    t = cal.table(made)
    assert list(t["runs"]) == ["b"] and t["lines"] == [LINE | {"run": "b"}] and cal.source("b", made) == "b, small, 2026-01-02, commit ccccccc"
    assert LINE["beside"] == {"chance": .05} and cal.table(tmp_path/"gone.json")["lines"] == [] and cal.source("x", tmp_path/"gone.json") == "x"


@pytest.mark.parametrize("bad, told", [(dict(of="layers"), "'units' or 'images', not 'layers'"), (dict(score=float("nan")), "finite number"), (dict(score=None), "finite number")])
def test_what_is_no_line_is_told(bad, told):
    with pytest.raises(ValueError, match=told): cal.line(**(dict(method="x", of="units", rung="L1", asked="y", score=.5, kind="share", n=1) | bad))


# ---- on the page

def test_words_about_units_stand_beside_what_the_describer_got_elsewhere():
    page = report.html(Notes([unit("concepts")]))
    assert '<section id="trust">' in page and 'href="#trust"' in page and "Nobody has told what is true of these units" in page
    for r in cal.lines("concepts", ("units",)): assert f'{r["score"]:.2f}'.replace("-", "−") in page and r["asked"].split(",")[0].replace("'", "&#x27;") in page
    for run in {r["run"] for r in cal.lines("concepts", ("units",))}: assert cal.source(run) in page
    assert "not calibrated" not in page


def test_a_method_without_numbers_is_not_calibrated():
    page = report.html(Notes([unit("villa")]))
    assert "villa: not calibrated." in page and "<table class=\"captions known\"" not in page and "held it against known truth" in page
    both = report.html(Notes([unit("concepts"), unit("mine", 4), unit("<b>evil", 5)]))
    assert "mine, &lt;b&gt;evil: not calibrated." in both and "held them against known truth of this kind" in both and '<table class="captions known"' in both and "<b>evil" not in both


def test_images_whose_truth_is_known_need_no_calibration():
    assert '<section id="trust">' in report.html(Notes([whole("devil")])) and "these images" in report.html(Notes([whole("devil")]))
    known = report.html(Notes([whole("devil")]), scores=[{"who": "layer4", "digit": .5}])
    assert '<section id="trust">' not in known
    mixed = report.html(Notes([whole("devil"), unit("devil")]), scores=[{"who": "layer4", "digit": .5}])
    assert "of these units:" in mixed and "these images" not in mixed.partition('id="trust"')[2].partition("</section>")[0]


def test_the_module_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, vlnotes.calibration; assert 'torch' not in sys.modules"], check=True)
