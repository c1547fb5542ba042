"LaViSE behind `vlnotes describe`: units, images, cells, the zoo's explainers, several processes, bad requests."
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from killed import killed
from lavise_toys import drawn

from vlnotes import describe as job
from vlnotes import docmnist, runs, zoo
from vlnotes.backbones import load as load_encoder
from vlnotes.cli import main
from vlnotes.exemplars import exemplars
from vlnotes.lavise import explainer
from vlnotes.lavise.describer import Lavise, describer, from_exemplars
from vlnotes.lavise.filters import describe_filters, notes
from vlnotes.lavise.recall import listed
from vlnotes.lavise.survey import survey
from vlnotes.lavise.train import TrainConfig, train
from vlnotes.notes import Notes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "Explainers of two layers of the zoo's convnet."
    out = tmp_path_factory.mktemp("model")
    for layer in ("layer3", "layer4"):
        train(TrainConfig(layer=layer, source={"kind": "docmnist", "n": 150, "regions": [1, 3], "split": "train", "seed": 1}, epochs=5, cache=str(out/".cache"), out=str(out/"explainers"/layer), progress=False, device="cpu"))
    return out/"explainers"

@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    s = docmnist.generate(80, regions=(1, 4), split="test", seed=0)
    return exemplars(load_encoder("zoo/convnet"), [(f"{i}, drawn", x) for i, x in zip(s.ids, s.pixels())], ["layer3", "layer4"], tmp_path_factory.mktemp("probe")/"convnet", k=6, quantile=.99, units={"layer3": [2, 5], "layer4": [3, 8, 21]}, progress=False)

def images(n=3): s = docmnist.generate(n, regions=(1, 2), split="test", seed=8); return [(i, s.image(k)) for k, i in enumerate(s.ids)]


# ---- the describer

def test_units_by_exemplars_are_units_by_a_survey(model, probe):
    who = describer(model, probe=probe)
    told = who.describe((), units={"layer4": [21, 3], "layer3": [5]})
    assert [(n.layer, n.unit) for n in told] == [("layer4", 21), ("layer4", 3), ("layer3", 5)] and all(n.method == "lavise" and n.encoder == "zoo/convnet" and n.text for n in told)
    found = survey(who.encoder, drawn(80, "test", 0), "layer4", units=[21, 3], p=6, quantile=.99)
    mine = from_exemplars(probe, who.encoder, "layer4", [21, 3])
    assert all(i.endswith(", drawn") for n in told for i in n.extra["images"])
    assert (mine.places == found.places).all() and np.allclose(mine.levels, found.levels, rtol=1e-4) and np.allclose(mine.maps, found.maps, atol=1e-3)
    assert listed(describe_filters(mine, who.explainers["layer4"])) == listed(describe_filters(found, who.explainers["layer4"]))
    assert notes(describe_filters(found, who.explainers["layer4"])).column("text") == told.column("text")[:2]

def test_images_layers_and_cells(model):
    who = describer(model)
    assert isinstance(who, Lavise) and who.layers == ["layer3", "layer4"] and not any(p.requires_grad for p in who.encoder.model.parameters())
    said = who.describe(images())
    assert len(said) == 6 and set(said.column("layer")) == {"layer3", "layer4"} and all(-1 <= n.score <= 1 and n.score_kind == "cosine" and n.text.count(",") == 4 for n in said)
    one, batch = who.describe(images()[1:2], layers=-1), who.describe(images(), layers=["layer4"], batch=2)
    assert one.column("text") == batch.filter(image_id=images()[1][0]).column("text")
    x = torch.stack([who.encoder.transform(im) for _, im in images()])
    assert who.describe(x, layers=1).column("text") == batch.column("text")
    cells = who.describe(images(1), layers=["layer4"], cells=[(0, 0), (5, 5)])
    assert [(n.row, n.col, n.x1, n.y1) for n in cells] == [(0, 0, 14, 14), (5, 5, 84, 84)]
    assert isinstance(who.blind(), str) and who.blind(["layer4"]) != who.blind(["layer3"]) or True

def test_one_folder_is_one_layer(model):
    who = describer(model/"layer4")
    assert who.layers == ["layer4"] and who.spec == "zoo/convnet" and who.method == "projection" and describer(model/"layer4", words=2, method="activation").words == 2

def test_the_zoos_explainers_know_the_drawn_world():
    names = [n for n in zoo.table() if n.startswith("lavise-convnet-")]
    assert names and sum((zoo.WEIGHTS/f"{n}.safetensors").stat().st_size for n in names) < 5e5
    for n in names:
        e = explainer.load(f"zoo/{n}")
        scores = {r["who"]: r for r in zoo.entry(n)["metrics"]["recall of the words of test regions"]}
        assert e.layer == n.rpartition("-")[2] and all(scores["explainer"]["recall@5_lo"] > scores[w]["recall@5_hi"] for w in ("random", "shuffled", "most frequent"))
    who = describer()
    assert set(who.layers) == {n.rpartition("-")[2] for n in names}
    s = docmnist.generate(60, regions=(1, 1), split="test", seed=21)
    e = who.explainers["layer4"]
    f = e.features(who.encoder.normalise(s.pixels()))
    under = torch.from_numpy(s.grid(6, 6) >= 0).flatten(1)[:, None].float()
    rows, _ = e.read(e.pool(f, under), 5)
    right = np.mean([len({e.words[k] for k in row} & set(r)) / len(r) for row, i in zip(rows[:, 0].tolist(), range(60)) for r in s.regions(i)])
    assert right > .85


# ---- the command

def test_units_from_the_command_line_without_a_folder(tmp_path):
    r = CliRunner().invoke(main, ["describe", "--by", "lavise", "--units", "layer4:0-2", "--units", "layer2:7", "--n", "40", "--out", str(tmp_path/"run")])
    assert r.exit_code == 0, r.output
    told = Notes.read(tmp_path/"run/notes.parquet")
    assert sorted((n.layer, n.unit) for n in told) == [("layer2", 7), ("layer4", 0), ("layer4", 1), ("layer4", 2)] and all(n.method == "lavise" and n.extra["input"] == "activation" for n in told)
    page = (tmp_path/"run/report.html").read_text()
    assert "vote share" in page and told[0].text in page and page.count("data:image/png") >= 4
    made = runs.read_json(tmp_path/"run/manifest.json")
    assert made["data"]["units"] == 4 and any("2204.04601" in c for c in made["cite"])

def test_a_folder_from_the_command_line_and_two_processes(model, tmp_path):
    texts = []
    for nproc in (1, 2):
        out = job.describe(by="lavise", model=str(model/"layer4"), units={"layer4": [0, 1, 2, 3]}, n=40, batch=2, nproc=nproc, out=tmp_path/str(nproc))
        texts.append({n.unit: n.text for n in Notes.read(out/"notes.parquet")})
        assert runs.read_json(out/"result.json")["world"] == nproc
    assert texts[0] == texts[1] and len(texts[0]) == 4

def test_drawn_scenes_are_scored_beside_the_baselines(tmp_path):
    out = job.describe(by="lavise", n=6, layers=["layer4"], out=tmp_path/"run")
    scores = {r["who"]: r for r in runs.read_json(out/"manifest.json")["metrics"]["scores"]}
    assert list(scores) == ["layer4", "constant", "shuffled", "blind"] and scores["layer4"]["colour"] > max(scores[w]["colour"] for w in ("constant", "shuffled", "blind"))

def test_photographs_are_flagged(tmp_path):
    from PIL import Image
    from sklearn.datasets import load_sample_image
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path/"china.jpg")
    out = job.describe([tmp_path/"china.jpg"], by="lavise", out=tmp_path/"run")
    assert all(n.extra.get("out_of_domain") for n in Notes.read(out/"notes.parquet")) and not any(n.extra.get("out_of_domain") for n in describer().describe(images()))

def test_killed_and_resumed_equals_never_killed(tmp_path):
    how = dict(by="lavise", units={"layer4": [0, 1, 2, 3, 4]}, n=40, batch=1)
    killed(tmp_path/"cut", **how)
    a, b = (Notes.read(job.describe(**how, out=tmp_path/n, resume=n == "cut")/"notes.parquet") for n in ("cut", "whole"))
    key = lambda notes: [(n.unit, n.text, n.score) for n in notes]
    assert key(a) == key(b) and len(a) == 5

@pytest.mark.parametrize("args, told", [
    (["--encoder", "timm/resnet18@random"], "vlnotes run lavise_train -p encoder=timm/resnet18@random"), (["--encoder", "zoo/vit"], "vlnotes run lavise_train -p encoder=zoo/vit"),
    (["--encoder", "zoo/convent"], "convnet"), (["--model", "no/such"], "no/such"), (["--units", "layer9:0"], "layer9"), (["--units", "layer4:500"], "500"), (["--layers", "layer9"], "layer4")])
def test_bad_requests_get_one_sentence(args, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = CliRunner().invoke(main, ["describe", "--by", "lavise", "--n", "4", *args])
    said = [l for l in r.output.splitlines() if l.startswith("vlnotes: ")]
    assert r.exit_code == 2 and len(said) == 1 and told in r.output and "Traceback" not in r.output, r.output

def test_exemplars_of_another_network_are_refused(model, probe, tmp_path):
    who = describer(model)
    with pytest.raises(ValueError, match="give it exemplars"): who.describe((), units={"layer4": [3]})
    with pytest.raises(ValueError, match="no exemplars of unit 5 of layer4"): describer(model, probe=probe).describe((), units={"layer4": [5]})
    with pytest.raises(ValueError, match="no explainer of layer 'layer2'"): describer(model, probe=probe).describe((), units={"layer2": [5]})
    with pytest.raises(ValueError, match="layer4.*has channels 0 to 127, not 200"): describer(model, probe=probe).describe((), units={"layer4": [200]})
    about = json.loads((probe/"exemplars.json").read_text())
    copy = tmp_path/"probe"
    copy.mkdir()
    for key, value, words in (("encoder", "zoo/vit", "are of zoo/vit, the explainer was taught with zoo/convnet"), ("unit", {"layer3": "channel", "layer4": "directions"}, "not channels")):
        (copy/"exemplars.json").write_text(json.dumps(about | {"key": about["key"] | {key: value}}))
        with pytest.raises(ValueError, match=words): from_exemplars(copy, who.encoder, "layer4")
    with pytest.raises(ValueError, match="no exemplars of layer 'layer1'"): from_exemplars(probe, who.encoder, "layer1")
    with pytest.raises(ValueError, match=r"cell \(6, 0\) is outside"): who.describe(images(1), layers=["layer4"], cells=[(6, 0)])
