"Every experiment runs in `tiny`, in a kernel of its own, and leaves what a run must leave."
import ast
import json
import time
from pathlib import Path

import layout
import pytest

from vlnotes import launcher

pytest.importorskip("papermill")


@pytest.mark.parametrize("name", sorted(launcher.experiments()))
def test_tiny(name, tmp_path):
    began = time.time()
    nb = launcher.run_notebook(name, {"preset": "tiny"}, out=tmp_path/"run", progress=False)
    made = json.loads((tmp_path/"run/manifest.json").read_text())
    assert nb.exists() and (tmp_path/"run/metrics.json").exists()
    assert made["params"] and made["preset"] == "tiny" and made["versions"]["torch"] and made["status"] == "done"
    assert time.time() - began < 300 # a smoke run: seconds on an idle machine


SMALL = ["encoder=timm/resnet10t@random", "lm=zoo/lm", "bs=2", "steps=1000"]
COST = ("encoder", "language", "missing", "memory", "hours", "GB")


@pytest.mark.parametrize("name, given, told", [
    ("devil_train", [*SMALL, "data=no/such/folder"], (*COST, "data")),
    ("devil_neurons", SMALL, (*COST, "vlnotes data milan")),
    ("devil_captions", [], ("translator missing", "vlnotes run devil_train", "data", "vlnotes data cc3m")),
    ("devil_saliency", [], ("translator missing", "vlnotes run devil_train", "data", "-p data=FOLDER")),
    ("scoreboard", [], ("concepts", "there", "always there")), ("faithfulness_units", [], ("drawn scenes", "zoo/coca: there")), ("faithfulness_layers", [], ("devil on zoo/convnet: there",)),
    ("coca_layers", ["model=zoo/coca"], ("model     zoo/coca: there", "data", "missing", "vlnotes data coco-karpathy", "5,000 images x 5 layers", "memory", "hours", "GB")),
    ("lavise_train", ["encoder=torchvision/resnet18@random"], ("encoder", "vlnotes data glove", "vlnotes data vg", "512 channels, 7x7 cells", "memory", "hours", "GB")),
    ("lavise_train", ["preset=paper_coco", "encoder=torchvision/alexnet@random"], ("vlnotes data coco", "256 channels, 6x6 cells", "trained: 87", "hours", "GB")),
    ("lavise_filters", ["encoder=torchvision/resnet18@random"], ("vlnotes data vg", "survey", "MB for the levels", "vlnotes run lavise_train", "hours", "GB")),
    ("docmnist", [], ("mnist", "vlnotes data mnist", "GB", "hours")),
    ("villa_stage1", ["features=timm/resnet10t@random", "text=hash/64"], ("vlnotes data mnist", "features", "memory", "hours", "GB")),
    ("villa_stage2", ["encoder=timm/resnet10t@random", "embedder=hash/64", "bs=4"], ("vlnotes data mnist", "encoder", "memory", "hours", "GB")),
    ("docmnist_complexity", ["encoder=none", "embedder=hash/64"], ("vlnotes data mnist", "trainings", "memory", "hours", "GB"))])
def test_paper_presets_can_be_rehearsed_on_stand_ins(name, given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path/"data"))
    text = launcher.check(name, ["preset=paper", *given])
    for word in told: assert word in text, text


NAMED = [n for n in sorted(launcher.experiments()) if {"layer", "layers"} & {k for k, *_ in launcher.parameters(launcher.find_notebook(n))}]

@pytest.mark.parametrize("name", NAMED)
def test_layers_can_be_named_whatever_the_preset(name):
    "A number in a preset would have `settings` refuse names and lists: the last four are \"4\"."
    found = [k for cell, *_ in layout.cells(Path(launcher.experiments()[name])) if "PRESETS =" in cell or "COMMON =" in cell for n in ast.walk(layout.code(cell))
             if isinstance(n, ast.Call) for k in n.keywords if k.arg in ("layer", "layers") and isinstance(k.value, ast.Constant | ast.UnaryOp)]
    assert found and all(isinstance(k.value, ast.Constant) and isinstance(k.value.value, str) for k in found), [ast.unparse(k) for k in found]

@pytest.mark.parametrize("given, told", [("layers=-1,-3", "2 layers of"), ("layers=layer2,layer4", "2 layers of"), ("layers=3", "3 layers of"), ("layers=-1", "1 layers of")])
def test_a_paper_preset_takes_layers_by_number_and_name(given, told):
    assert told in launcher.check("devil_train", ["preset=paper", *SMALL, given])


@pytest.mark.parametrize("name, given", [("lavise_filters", "units=3,8,21"), ("docmnist", "targets=4,16")])
def test_numbers_with_commas_are_taken_as_their_comment_says(name, given): launcher.check(name, ["preset=tiny", given])


def test_the_original_forms_of_the_losses_reach_training(tmp_path):
    launcher.run_notebook("lgssl_pretrain", ["preset=tiny", "objective=swav", "legacy_loss=true"], out=tmp_path/"run", progress=False)
    assert json.loads((tmp_path/"run/training/config.json").read_text())["options"]["axis"] == "batch"


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="stpes.*steps"): launcher.check_params("devil_train", ["stpes=3"])
    with pytest.raises(FileNotFoundError, match="devil_captions"): launcher.find_notebook("devil_caption")
