"The main job, from the library's side: notes, report, manifest, out-of-domain pictures, bad input."
import json

import pytest
from killed import killed
from PIL import Image

from vlnotes import describe as job
from vlnotes import docmnist, runs, truth
from vlnotes.notes import Notes


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return job.describe(n=4, out=tmp_path_factory.mktemp("describe")/"run")


def test_default_leaves_everything(default):
    for name in ("notes.parquet", "notes.jsonl", "report.html", "manifest.json", "overview.png"): assert (default/name).stat().st_size > 0
    notes = Notes.read(default/"notes.parquet")
    assert len(notes) == len(Notes.read(default/"notes.jsonl"))
    assert set(notes.column("image_id")) == set(docmnist.generate(4, regions=(1, 4), split="test", seed=0).ids)
    assert {n.layer for n in notes} == {"all", "layer1", "layer2", "layer3", "layer4"}
    assert all(0 <= n.x0 < n.x1 <= 84 and 0 <= n.y0 < n.y1 <= 84 for n in notes)


def test_baselines_cannot_be_left_out(default):
    scores = runs.read_json(default/"manifest.json")["metrics"]["scores"]
    assert [r["who"] for r in scores][-3:] == ["constant", "shuffled", "blind"]


def test_the_words_are_right(tmp_path):
    out = job.describe(n=40, seed=3, out=tmp_path/"run")
    scores = {r["who"]: r for r in runs.read_json(out/"manifest.json")["metrics"]["scores"]}
    best = max((r for k, r in scores.items() if k.startswith("layer")), key=lambda r: sum(r[f] or 0 for f in truth.FACTORS))
    assert best["digit"] > 0.8 and best["colour"] > 0.9
    assert all(scores[k]["digit"] < 0.4 for k in ("constant", "shuffled", "blind"))


def test_photographs_are_flagged_and_scenes_are_not(tmp_path, default):
    from sklearn.datasets import load_sample_image
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path/"china.jpg")
    out = job.describe([tmp_path/"china.jpg"], out=tmp_path/"run")
    notes = Notes.read(out/"notes.parquet")
    assert all(n.extra.get("out_of_domain") for n in notes)
    assert "do not trust these words" in (out/"report.html").read_text()
    assert not any(n.extra.get("out_of_domain") for n in Notes.read(default/"notes.parquet"))
    assert all(n.x0 >= 104 and n.x1 <= 536 for n in notes) # the square in the middle of 640 x 427


def test_a_corrupt_picture_is_skipped_and_listed(tmp_path):
    (tmp_path/"in").mkdir()
    scene = docmnist.generate(1, regions=(1, 1), split="test").image(0)
    scene.save(tmp_path/"in/good.png")
    (tmp_path/"in/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("CMYK", (84, 84)).save(tmp_path/"in/print.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path/"in/one.png")
    made = runs.read_json(job.describe([tmp_path/"in"], out=tmp_path/"run")/"manifest.json")
    assert made["skipped"]["count"] == 1 and "bad.png" in json.dumps(made["skipped"])
    assert made["data"]["images"] == 3


@pytest.mark.parametrize("options, told", [
    (dict(layers="layer9"), "layer9"), (dict(by="devli"), "devil"), (dict(model="no/such/folder"), "no/such/folder"),
    (dict(encoder="timm/resnet50"), "--model"), (dict(encoder="zoo/convent"), "convnet"), (dict(units={"layer9": [0]}), "layer9"), (dict(units={"layer4": [999]}), "999")])
def test_bad_requests_get_one_sentence(options, told, tmp_path):
    with pytest.raises((ValueError, OSError, RuntimeError), match=told) as e: job.describe(n=1, out=tmp_path/"run", **options)
    assert "\n" not in str(e.value).strip()


def test_no_images(tmp_path):
    (tmp_path/"empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)): job.describe([tmp_path/"empty"], out=tmp_path/"run")


def test_a_second_run_into_the_same_folder_is_refused(default):
    with pytest.raises(FileExistsError): job.describe(n=1, out=default)


def test_several_processes_write_the_same_notes(tmp_path):
    one, two = (Notes.read(job.describe(n=4, nproc=k, cells=False, out=tmp_path/str(k))/"notes.parquet") for k in (1, 2))
    key = lambda notes: sorted((n.image_id, n.layer, n.text, round(n.score, 3)) for n in notes)
    assert key(one) == key(two)


def test_phrases_and_ctrl_c(tmp_path, monkeypatch):
    out = job.describe(n=2, phrase=("the color is red",), out=tmp_path/"run")
    assert "the color is red" in (out/"report.html").read_text()
    from vlnotes.devil.explain import Devil
    calls, real = [], Devil.describe
    def stop(self, *a, **k):
        calls.append(1)
        if len(calls) > 2: raise KeyboardInterrupt
        return real(self, *a, **k)
    monkeypatch.setattr(Devil, "describe", stop)
    with pytest.raises(KeyboardInterrupt): job.describe(n=4, batch=2, out=tmp_path/"cut")
    assert len(set(Notes.read(tmp_path/"cut/notes.parquet").column("image_id"))) == 2 # what was finished is kept


def test_killed_and_resumed_equals_never_killed(tmp_path, monkeypatch):
    killed(tmp_path/"cut", n=5, batch=1, cells=False)
    assert not (tmp_path/"cut/notes.parquet").exists() and len(list((tmp_path/"cut/parts").glob("*.parquet"))) == 2
    with pytest.raises(ValueError, match="started with n=5, not 6"): job.describe(n=6, batch=1, cells=False, out=tmp_path/"cut", resume=True)
    from vlnotes.devil.explain import Devil
    calls, real = [], Devil.describe
    monkeypatch.setattr(Devil, "describe", lambda self, *a, **k: calls.append(1) or real(self, *a, **k))
    again = job.describe(n=5, batch=1, cells=False, out=tmp_path/"cut", resume=True)
    assert len(calls) == 3, "two batches were there already"
    whole = job.describe(n=5, batch=1, cells=False, out=tmp_path/"whole")
    texts = lambda out: [(n.image_id, n.layer, n.text, n.score) for n in Notes.read(out/"notes.parquet")]
    assert texts(again) == texts(whole) and not (again/"parts").exists() and not (whole/"parts").exists()
    with pytest.raises(FileExistsError, match="finished"): job.describe(n=5, batch=1, cells=False, out=tmp_path/"cut", resume=True)


def test_units_are_described_by_the_images_they_respond_to(tmp_path):
    out = job.describe(units={"layer4": [3, 7, 11], "layer3": [0]}, batch=2, out=tmp_path/"run")
    notes = Notes.read(out/"notes.parquet")
    assert sorted((n.layer, n.unit) for n in notes) == [("layer3", 0), ("layer4", 3), ("layer4", 7), ("layer4", 11)] and all(n.text for n in notes)
    assert {n.image_id for n in notes} == {"convnet/layer3/0", "convnet/layer4/3", "convnet/layer4/7", "convnet/layer4/11"}
    page = (out/"report.html").read_text()
    assert "What single units stand for" in page and "4 notes about 4 units" in page and page.count('<img class="strip"') == 4
    assert "How far these words can be trusted" in page and "Nobody has told what is true of these units" in page # of units there is no truth, so the page says what is known of the describer
    assert runs.read_json(out/"manifest.json")["data"]["units"] == 4
    again = job.describe([out/"exemplars/convnet"], units={"layer4": [7]}, out=tmp_path/"again")
    assert [n.text for n in Notes.read(again/"notes.parquet")] == [n.text for n in notes if n.unit == 7]
