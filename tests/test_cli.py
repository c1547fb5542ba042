"The command line as a person uses it: exit codes, sentences, files."
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from original_toys import write

from vlnotes.cli import main


def run(*args, **kw): return CliRunner().invoke(main, list(map(str, args)), **kw)


@pytest.mark.parametrize("args, told", [
    (["descirbe"], "describe"), (["run", "devil_caption"], "devil_captions"), (["run", "devil_train", "-p", "stpes=3"], "steps"),
    (["run", "devil_captions", "--preset", "smal"], "small"), (["describe", "--by", "devli"], "devil"), (["describe", "no/such/photo.jpg"], "no/such/photo.jpg"),
    (["describe", "--layers", "layer44"], "layer4"), (["data", "mnits"], "mnist"), (["cite", "devli"], "devil"), (["data", "docmnist", "-o", "n"], "NAME=VALUE"), (["experiments", "--copy", "zoo"], "folder"),
    (["describe", "--units", "layer4"], "LAYER:IDS"), (["run", "no/such.ipynb"], "no/such.ipynb"), (["step", "devil.trian", "x.json"], "x.json")])
def test_mistakes_get_one_sentence_and_exit_code_2(args, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = run(*args)
    assert r.exit_code == 2 and told in r.output, r.output
    said = [l for l in r.output.splitlines() if l.startswith("vlnotes: ")]
    assert len(said) == 1 and "Traceback" not in r.output


def test_describe_prints_a_table(tmp_path):
    r = run("describe", "--n", 2, "--out", tmp_path/"run")
    assert r.exit_code == 0, r.output
    for word in ("layer4", "blind", "report.html"): assert word in r.output
    again = run("describe", "--n", 2, "--out", tmp_path/"run")
    assert again.exit_code == 2 and str(tmp_path/"run") in again.output


def test_layers_are_read_alike(tmp_path):
    r = run("describe", "--n", 1, "--no-cells", "--layers", "-1,layer2", "--out", tmp_path/"run")
    assert r.exit_code == 0 and "layer4" in r.output and "layer2" in r.output and "layer3" not in r.output


def test_experiments_are_listed_and_copied(tmp_path):
    assert "devil_captions" in run("experiments").output
    assert run("experiments", "--copy", "zoo", tmp_path/"nbs").exit_code == 0 and (tmp_path/"nbs/zoo.ipynb").exists()


def test_cite_and_version():
    assert "2309.01617" in run("cite", "devil").output and run("--version").exit_code == 0


@pytest.fixture
def checkpoint(tmp_path): return write(tmp_path)[0]

def test_an_original_checkpoint_is_imported_and_described(tmp_path, checkpoint):
    from PIL import Image
    Image.new("RGB", (80, 60), "red").save(tmp_path/"a.png")
    r = run("import", "devil", checkpoint, "--out", tmp_path/"net", "-o", "encoder=timm/resnet10t@random", "-o", "layers=-1,-2")
    assert r.exit_code == 0, r.output
    assert f"read {checkpoint}: 31,592 parameters, layer4, layer3 of timm/resnet10t@random" in r.output and f"vlnotes describe --model {tmp_path/'net'}" in r.output
    r = run("describe", tmp_path/"a.png", "--model", tmp_path/"net", "--out", tmp_path/"said")
    assert r.exit_code == 0 and "layer4" in r.output and "layer3" in r.output and (tmp_path/"said/report.html").exists(), r.output


@pytest.mark.parametrize("args, told", [
    (["devli", "{file}", "--out", "{new}"], "no importer 'devli'; the nearest is 'devil'"), (["devil", "{file}", "--out", "{used}"], "already exists and is not empty"),
    (["devil", "no/such", "--out", "{new}"], "there is no no/such"), (["devil", "{file}", "--out", "{new}", "-o", "enocder=x"], "no option 'enocder'; the nearest is 'encoder'"),
    (["devil", "{file}", "--out", "{new}", "-o", "layers"], "-o 'layers' is not NAME=VALUE"), (["devil", "{file}", "--out", "{new}", "-o", "out=x"], "no option 'out'"),
    (["devil", "{file}", "--out", "{new}", "-o", "layers=-1"], "2 layer tokens"), (["devil", "{file}/model.pt", "--out", "{new}", "-o", "lm=zoo/lmm"], "did you mean 'lm'")])
def test_imports_that_fail_say_why(tmp_path, checkpoint, args, told):
    (tmp_path/"used").mkdir()
    (tmp_path/"used/x").touch()
    r = run("import", *(a.format(file=checkpoint, new=tmp_path/"new", used=tmp_path/"used") for a in args))
    said = [l for l in r.output.splitlines() if l.startswith("vlnotes: ")]
    assert r.exit_code == 2 and told in r.output and len(said) == 1 and "Traceback" not in r.output and not (tmp_path/"new").exists(), r.output


def test_an_import_needs_a_folder(checkpoint):
    r = run("import", "devil", checkpoint)
    assert r.exit_code == 2 and "--out" in r.output


def test_data_lists_what_is_where(): assert "docmnist" in run("data").output


def test_the_installed_command_works_from_another_folder(tmp_path):
    exe = Path(sys.executable).with_name("vlnotes")
    r = subprocess.run([exe, "run", "nothing"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "VLNOTES_DATA": str(tmp_path)})
    assert r.returncode == 2 and r.stderr.startswith("vlnotes: ") and r.stderr.count("\n") == 1
