"Runs and launcher: whole files, run folders, manifests without secrets, notebooks that fail, time out, are interrupted and resume."
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlnotes import launcher, runs

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = 'preset = "small" # which\nout = None # run folder\nseed = None\nlr = None # rate\nlayers = None\nsteps = 3 # how many\nfast = False\nwhat = "docmnist"'


def notebook(path, *sources, parameters=PARAMETERS, **tags): # tags: c1="check" tags the second source
    cells = [new_markdown_cell("# a question"), new_code_cell("import json, os, sys, time\nfrom pathlib import Path")]
    if parameters is not None: cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for i, s in enumerate(sources):
        cells.append(new_code_cell(textwrap.dedent(s), metadata={"tags": [tags[f"c{i}"]]} if f"c{i}" in tags else {}))
    nb = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}})
    nbformat.write(nb, path)
    return path


def quiet(nb, params=None, out=None, **k): return launcher.run_notebook(nb, params, out, progress=False, **k)
def manifest(folder): return runs.read_json(Path(folder)/"manifest.json")


# files

def test_atomic_keeps_the_old_file_and_cleans_up(tmp_path):
    p = tmp_path/"deep/a.txt"
    with runs.atomic(p) as t: t.write_text("one")
    with pytest.raises(ZeroDivisionError):
        with runs.atomic(p) as t: t.write_text("two"); raise ZeroDivisionError
    assert p.read_text() == "one" and os.listdir(p.parent) == ["a.txt"]
    with runs.atomic(tmp_path/"folder") as t: t.mkdir(); (t/"x").touch()
    assert os.listdir(tmp_path/"folder") == ["x"]
    with pytest.raises(ZeroDivisionError):
        with runs.atomic(tmp_path/"folder2") as t: t.mkdir(); (t/"x").touch(); raise ZeroDivisionError
    assert sorted(os.listdir(tmp_path)) == ["deep", "folder"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
def test_disk_full_is_one_sentence(tmp_path):
    p = tmp_path/"a.bin"
    p.write_bytes(b"old")
    with pytest.raises(OSError, match="the disk is full: .*a.bin could not be written and is as it was before"):
        with runs.atomic(p) as t:
            t.symlink_to("/dev/full")
            with open(t, "wb") as f: f.write(b"x" * 100000)
    assert p.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@dataclass
class Cfg:
    lr: float = .1
    root: Path = Path("x")


def test_json(tmp_path):
    np = pytest.importorskip("numpy")
    obj = {"c": Cfg(), "a": np.arange(3), "f": np.float32(.5), "s": {"b", "a"}, "é": None}
    runs.write_json(tmp_path/"a.json", obj)
    assert runs.read_json(tmp_path/"a.json") == {"c": {"lr": .1, "root": "x"}, "a": [0, 1, 2], "f": .5, "s": ["a", "b"], "é": None}
    for bad in (float("nan"), float("inf"), object(), {(1, 2): 3}):
        with pytest.raises(ValueError, match="a.json holds what JSON cannot"): runs.write_json(tmp_path/"a.json", {"x": bad})
    assert runs.read_json(tmp_path/"a.json")["f"] == .5
    (tmp_path/"b.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match="b.json is not JSON or is cut off"): runs.read_json(tmp_path/"b.json")
    for p in ("c.json", "."):
        with pytest.raises(FileNotFoundError, match="there is no file"): runs.read_json(tmp_path/p)


def test_stable_hash():
    assert runs.stable_hash({"a": 1, "b": [1.5, None]}) == runs.stable_hash({"b": (1.5, None), "a": 1}) != runs.stable_hash({"a": 1, "b": [1.5]})
    code = "from vlnotes.runs import stable_hash; print(stable_hash({'x': {'b', 'a', 'c'}, 'y': 1}))"
    seen = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": s}).stdout for s in "12"}
    assert len(seen) == 1 and len(seen.pop().strip()) == 64


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path/"env"))
    assert runs.data_root() == tmp_path/"env" and runs.data_root(tmp_path/"flag") == tmp_path/"flag"
    monkeypatch.delenv("VLNOTES_DATA")
    monkeypatch.setattr(runs, "checkout", lambda: tmp_path)
    assert runs.data_root() == tmp_path/"data"
    monkeypatch.setattr(runs, "checkout", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    assert runs.data_root() == tmp_path/"cache/vlnotes"
    (tmp_path/"f").touch()
    with pytest.raises(NotADirectoryError, match="is a file"): runs.data_root(tmp_path/"f")


# run folders

def test_new_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = runs.new_run("demo"), runs.new_run("demo")
    assert a != b and a.parent == tmp_path/"runs" and a.name.startswith("demo-") and a.is_dir() and b.is_dir()
    assert runs.new_run("demo", tmp_path/"new/deep") == tmp_path/"new/deep" == runs.new_run("demo", "new/deep") # an empty folder is fine
    for name in ("a/b", "", "..//", "a b"):
        with pytest.raises(ValueError, match="a run's name"): runs.new_run(name, tmp_path/"z")


def test_second_run_into_the_same_folder(tmp_path):
    (tmp_path/"x").touch()
    with pytest.raises(FileExistsError, match="already holds files; give another folder"): runs.new_run("d", tmp_path)
    with pytest.raises(FileExistsError, match="is a file"): runs.new_run("d", tmp_path/"x")
    assert runs.new_run("d", tmp_path, resume=True) == tmp_path and (tmp_path/"x").exists()


def test_resume_refusals(tmp_path):
    with pytest.raises(ValueError, match="resume needs the folder"): runs.new_run("d", resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume"): runs.new_run("d", tmp_path/"none", resume=True)
    runs.manifest(tmp_path, name="d")
    with pytest.raises(FileExistsError, match="is finished; there is nothing to resume"): runs.new_run("d", tmp_path, resume=True)
    runs.begin(tmp_path, name="d", params={})
    with pytest.raises(FileExistsError, match=f"still running .process {os.getpid()}"): runs.new_run("d", tmp_path, resume=True)
    runs.write_json(tmp_path/"manifest.json", manifest(tmp_path) | {"pid": 2**22 + 7}) # killed: no such process
    assert runs.new_run("d", tmp_path, resume=True) == tmp_path


# what to cite, and the manifest

def test_cite():
    everything = runs.cite()
    assert everything.startswith("@software{vlnotes,") and everything.count("\n@") >= 13 and everything.count("{") == everything.count("}")
    for method, arxiv in dict(devil="2309.01617", coca="2205.01917", lavise="2204.04601", villa="2308.11194", docmnist="2308.11194", lgssl="2302.12248",
                              concepts="2204.10965").items():
        assert arxiv in runs.cite(method) and runs.cite(method).startswith("@software{vlnotes,") and runs.cite(method) != everything
    assert runs.cite("vlnotes").count("@software") == 1
    with pytest.raises(ValueError, match="nothing to cite for 'devill'; the nearest is 'devil'"): runs.cite("devill")


@pytest.mark.parametrize("argv", [["--token", "SECRET"], ["--token=SECRET"], ["-p", "api_key=SECRET"], ["-p", "HF_TOKEN=SECRET"], ["https://me:SECRET@host/f"],
                                  ["https://host/f?token=SECRET&x=1"], ["--hf-password", "SECRET"], ["Authorization: Bearer SECRET"], ["hf_SECRETSECRET"]])
def test_secrets_are_masked(argv, tmp_path, monkeypatch):
    assert "SECRET" not in "".join(runs.masked_argv(argv)) and "***" in "".join(runs.masked_argv(argv))
    monkeypatch.setattr(sys, "argv", ["vlnotes", *argv])
    runs.manifest(tmp_path, name="d", params={"api_key": "SECRET", "lr": 1, "deep": {"password": "SECRET"}})
    assert "SECRET" not in (tmp_path/"manifest.json").read_text()


def test_secrets_from_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "correct-horse")
    assert runs.masked_argv(["-p", "note=correct-horse-battery"]) == ["-p", "note=***-battery"]


def test_plain_words_are_not_masked():
    argv = ["run", "x", "-p", "bos_token=</s>", "-p", "token_dropout=.1", "--layers", "-1,-4", "--keypoints", "3", "a=b", "monkey=5"]
    assert runs.masked_argv(argv) == argv


def test_manifest(tmp_path):
    m = runs.manifest(tmp_path, name="demo", params={"lr": 1e-3}, seed=3, preset="tiny", data={"sha256": "0"}, protocol="held out", cite=("devil", "docmnist"),
                      skipped=[("a.jpg", "empty"), ("b.jpg", "cut off")], metrics={"f1": .5, "deep": [float("nan")]}, started=time.time() - 5, note="x")
    assert m == manifest(tmp_path) and m["status"] == "done" and m["skipped"] == {"count": 2, "items": [["a.jpg", "empty"], ["b.jpg", "cut off"]]}
    assert runs.read_json(tmp_path/"metrics.json") == m["metrics"] == {"f1": .5, "deep": [None]}
    assert 5 <= m["seconds"] < 60 and m["peak_memory_mb"]["process"] > 1 and m["versions"]["vlnotes"] and m["python"] and m["note"] == "x"
    assert len(m["cite"]) == 4 and "DeViL" in m["cite"][1] and m["started"] < m["ended"] and m["started"].endswith("Z")
    with pytest.raises(ValueError, match="nothing to cite"): runs.manifest(tmp_path, name="x", cite=("devli",))


def test_git_commit_is_recorded_in_a_checkout(tmp_path, monkeypatch):
    def git(*a): subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *a], check=True, capture_output=True)
    git("init"); (tmp_path/"f").touch(); git("add", "."); git("commit", "-m", "x")
    monkeypatch.setattr(runs, "checkout", lambda: tmp_path)
    found = runs.manifest(tmp_path/"run", name="x")["git"]
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path/"f").write_text("1")
    assert runs.manifest(tmp_path/"run", name="x")["git"]["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert "git" not in runs.manifest(tmp_path/"run2", name="x")


def test_settings():
    presets = {"tiny": {"lr": .1, "layers": None}, "small": {"lr": .2, "layers": [1]}}
    assert runs.settings(presets, "small", lr=None, layers=3) == {"lr": .2, "layers": 3} and presets["small"]["layers"] == [1]
    with pytest.raises(ValueError, match="no preset 'smal'; the nearest is 'small'"): runs.settings(presets, "smal")
    with pytest.raises(ValueError, match="sets no 'layer'; the nearest is 'layers'"): runs.settings(presets, "tiny", layer=1)
    presets = {"tiny": {"lr": .1, "layers": 1}, "small": {"lr": .2, "layers": ""}} # a count here, names there
    with pytest.raises(ValueError, match="lr must be a number"): runs.settings(presets, "tiny", lr="fast")
    assert runs.settings(presets, "tiny", layers=["a", "b"])["layers"] == ["a", "b"]


# parameters

@pytest.mark.parametrize("text,value", [("1e-4", 1e-4), ("3", 3), ("-2.5E3", -2500.), (".5", .5), ("5.", 5.), ("010", 10), ("1:30", "1:30"), ("no", "no"), ("true", True),
    ("null", None), ("", None), ("-1,-4", [-1, -4]), ("1e-3, 2", [1e-3, 2]), ("layer3", "layer3"), ("layer3,layer4", "layer3,layer4"), ("[a, 1e-2]", ["a", 1e-2]),
    ("{a: 1}", {"a": 1}), ("'5'", "5"), ('"1e-4"', "1e-4"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), (".inf", float("inf")), ("a red, square", "a red, square"),
    ("0x10", "0x10"), ("+7", 7), ("None", None)])
def test_values_are_yaml(text, value):
    found = launcher.parse_value(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["[1, 2", "{a: ", "!!python/object/apply:os.system ['true']", "a: b: c", "&a [*a, 1", "'"])
def test_bad_yaml_is_refused(text):
    with pytest.raises(ValueError, match="lr=.* is not YAML"): launcher.parse_value(text, "lr")


def test_parameters(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", parameters='a: int = 3 # how many # and why\nb = [1, "x#y"]\nc = -1e-3\n# a comment\nd = {\n  "k": None} # a dict')
    assert launcher.parameters(nb) == [("a", 3, "how many # and why"), ("b", [1, "x#y"], ""), ("c", -1e-3, ""), ("d", {"k": None}, "a dict")]


@pytest.mark.parametrize("source", ["a = os.getcwd()", "a, b = 1, 2", "import os", "print(1)", "a = b = [print]", "a: int"])
def test_parameters_must_be_literals(tmp_path, source):
    with pytest.raises(ValueError, match=r"a.ipynb, parameters cell, line 2: .* is not `name = literal`"): launcher.parameters(notebook(tmp_path/"a.ipynb", parameters=f"x = 1\n{source}"))


def test_bad_notebooks(tmp_path):
    with pytest.raises(ValueError, match="0 cells tagged"): launcher.parameters(notebook(tmp_path/"a.ipynb", parameters=None))
    with pytest.raises(ValueError, match="parameters cell is not Python"): launcher.parameters(notebook(tmp_path/"a.ipynb", parameters="a = = 1"))
    for text in ("", "hello", "[]", "{}", '{"cells": [', "\x00"):
        (tmp_path/"b.ipynb").write_text(text)
        with pytest.raises(ValueError, match="b.ipynb"): launcher.parameters(tmp_path/"b.ipynb")
    with pytest.raises(FileNotFoundError, match="there is no notebook .*c.ipynb"): launcher.parameters(tmp_path/"c.ipynb")


def test_unknown_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "experiments", lambda: {"devil_captions": tmp_path/"x"})
    with pytest.raises(FileNotFoundError, match="no experiment 'devil_caption'; the nearest is 'devil_captions'"): launcher.find_notebook("devil_caption")


def test_check_params(tmp_path):
    nb = notebook(tmp_path/"a.ipynb")
    assert launcher.check_params(nb, ["lr=1e-4", "layers=-1,-4", "what=5", "steps=7", "fast=true", "seed="]) == dict(lr=1e-4, layers=[-1, -4], what="5", steps=7, fast=True, seed=None)
    assert launcher.check_params(nb, {"lr": 3, "layers": [1], "what": "no"}) == {"lr": 3, "layers": [1], "what": "no"}
    with pytest.raises(ValueError, match="a has no parameter 'layer'; the nearest is 'layers'"): launcher.check_params(nb, {"layer": "3"})
    with pytest.raises(ValueError, match="-p 'lr' must be NAME=VALUE"): launcher.check_params(nb, ["lr"])
    with pytest.raises(ValueError, match="steps must be a number .default 3., not 'many'"): launcher.check_params(nb, ["steps=many"])
    with pytest.raises(ValueError, match="fast must be true or false"): launcher.check_params(nb, ["fast=1"])
    with pytest.raises(ValueError, match="steps must be a number"): launcher.check_params(nb, ["steps=true"])


def test_parameter_files(tmp_path):
    nb = notebook(tmp_path/"a.ipynb")
    (tmp_path/"p.yaml").write_text('lr: 1e-3\nlayers: [-1, 2]\nwhat: "1e-4"\n')
    (tmp_path/"p.json").write_text('{"lr": 2, "seed": 5}')
    assert launcher.check_params(nb, ["seed=6"], [tmp_path/"p.yaml", tmp_path/"p.json"]) == {"lr": 2, "layers": [-1, 2], "what": "1e-4", "seed": 6}
    runs.manifest(tmp_path/"r", name="a", params={"lr": .5, "layers": [-1], "api_key": "x"})
    assert launcher.read_params(tmp_path/"r/manifest.json") == {"lr": .5, "layers": [-1], "api_key": "***"}
    for name, text in {"q.yaml": "- 1\n- 2", "r.yaml": "a: [", "s.json": "{", "t.yaml": "\xff\xfe"}.items():
        (tmp_path/name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=name): launcher.read_params(tmp_path/name)
    (tmp_path/"theirs.yaml").write_text("lr: 0.5\ndata: 'pipe:rm -rf /tmp/x'\n")
    with pytest.raises(ValueError, match="holds a command in data; commands are run only where you type them"): launcher.read_params(tmp_path/"theirs.yaml")
    with pytest.raises(FileNotFoundError, match="no parameter file"): launcher.read_params(tmp_path/"none.yaml")
    notebook(tmp_path/"k.ipynb", parameters="api_key = None")
    with pytest.raises(ValueError, match="api_key was masked"): launcher.check_params(tmp_path/"k.ipynb", {"api_key": "***"})


# running notebooks

WORK = """
    from vlnotes.runs import manifest, new_run
    run = new_run("a", out)
    manifest(run, name="a", params={"lr": lr or .1, "steps": steps}, seed=seed or 0, cite=("devil",), metrics={"lr": lr, "layers": layers})
    print("executable", sys.executable)
"""


def test_a_run_and_its_manifest(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", WORK)
    (tmp_path/"p.yaml").write_text("steps: 4\n")
    done = quiet(nb, ["lr=1e-4", "layers=-1,-4"], tmp_path/"odd {name} é/run", files=[tmp_path/"p.yaml"])
    m = manifest(done.parent)
    assert m["params"] == {"steps": 4, "lr": 1e-4, "layers": [-1, -4]} and m["values"] == {"lr": 1e-4, "steps": 4} and m["preset"] == "small"
    assert m["status"] == "done" and m["metrics"] == {"lr": 1e-4, "layers": [-1, -4]} == runs.read_json(done.parent/"metrics.json") and m["attempts"] == 1
    assert "pid" not in m and "ipykernel" not in " ".join(m["argv"]) and m["cite"] and m["notebook"]["sha256"] == runs.file_hash(nb)
    assert sorted(os.listdir(done.parent)) == ["a.ipynb", "given-p.yaml", "manifest.json", "metrics.json"]
    printed = "".join(o.text for c in nbformat.read(done, 4).cells for o in c.get("outputs", []) if o.output_type == "stream")
    assert f"executable {sys.executable}" in printed
    again = quiet(nb, None, tmp_path/"again", files=[done.parent/"manifest.json"]) # a manifest is a valid -f
    assert manifest(again.parent)["params"] == m["params"]
    with pytest.raises(FileExistsError, match="already holds files"): quiet(nb, None, tmp_path/"again")
    with pytest.raises(FileExistsError, match="finished"): quiet(nb, None, tmp_path/"again", resume=True)


def test_a_foreign_kernelspec_does_not_win(tmp_path, monkeypatch):
    spec = tmp_path/"jupyter/kernels/python3"
    spec.mkdir(parents=True)
    (spec/"kernel.json").write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path/"jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path/"jupyter"))
    nb = notebook(tmp_path/"a.ipynb", "Path(out, 'metrics.json').write_text(json.dumps({'exe': sys.executable}))")
    assert manifest(quiet(nb, out=tmp_path/"run").parent)["metrics"] == {"exe": sys.executable}


def test_failure_keeps_the_partial_notebook_and_resumes(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", "print('first')", "if not Path(out, 'half').exists(): Path(out, 'half').touch(); raise ValueError('the middle\\nbroke')",
                  "Path(out, 'metrics.json').write_text('{\"lr\": %r}' % lr)")
    with pytest.raises(RuntimeError, match="a: code cell 5 of 6 failed: ValueError: the middle .executed so far: .*a.ipynb") as e: quiet(nb, {"lr": 2}, tmp_path/"run")
    assert "\n" not in str(e.value)
    m = manifest(tmp_path/"run")
    assert m["status"] == "failed" and "the middle" in m["error"] and m["params"] == {"lr": 2}
    assert "first" in (tmp_path/"run/a.ipynb").read_text()
    with pytest.raises(FileExistsError, match="--resume"): quiet(nb, {"lr": 2}, tmp_path/"run")
    with pytest.raises(ValueError, match="has lr=2, not 3; a resumed run keeps its parameters"): quiet(nb, {"lr": 3}, tmp_path/"run", resume=True)
    quiet(nb, None, tmp_path/"run", resume=True)
    m = manifest(tmp_path/"run")
    assert m["status"] == "done" and m["attempts"] == 2 and m["params"] == {"lr": 2} and m["metrics"] == {"lr": 2} and "error" not in m
    assert (tmp_path/"run/a.attempt1.ipynb").exists()


def test_cell_time_limit(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", "print('begun', flush=True); time.sleep(900)")
    t = time.time()
    with pytest.raises(RuntimeError, match="a: code cell 4 of 4 ran longer than the limit of 2 s"): quiet(nb, {"lr": 1}, tmp_path/"run", cell_timeout=1.5)
    with pytest.raises(ValueError, match="a cell may take 0 seconds"): quiet(nb, {"lr": 1}, tmp_path/"none", cell_timeout=0)
    assert time.time() - t < 250 and manifest(tmp_path/"run")["status"] == "failed" and "begun" in (tmp_path/"run/a.ipynb").read_text()


def test_a_dead_kernel(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", "os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match="lost its Python process"): quiet(nb, {"lr": 1}, tmp_path/"run")


def test_ctrl_c_and_sigkill_then_resume(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", "print('begun', flush=True); Path(out, 'pid').write_text(str(os.getpid()))\nif not Path(out, 'go').exists(): time.sleep(900)",
                  "Path(out, 'metrics.json').write_text('{}')")
    code = "import faulthandler, sys; faulthandler.enable(); from vlnotes.launcher import run_notebook; run_notebook(sys.argv[1], None, sys.argv[2], resume=sys.argv[3] == '1')"
    for attempt, how in enumerate((signal.SIGINT, signal.SIGKILL)):
        (tmp_path/"run/pid").unlink(missing_ok=True)
        p = subprocess.Popen([sys.executable, "-c", code, nb, tmp_path/"run", str(attempt)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.time() + 120
        while not (tmp_path/"run/pid").exists() and time.time() < end and p.poll() is None: time.sleep(.1)
        time.sleep(.3)
        kernel = int((tmp_path/"run/pid").read_text())
        if how == signal.SIGKILL:
            with pytest.raises(FileExistsError, match="still running"): quiet(nb, None, tmp_path/"run", resume=True)
        p.send_signal(how)
        try: _, err = p.communicate(timeout=120)
        except subprocess.TimeoutExpired: # where does it hang?
            p.send_signal(signal.SIGABRT)
            pytest.fail(p.communicate(timeout=60)[1])
        assert p.returncode != 0
        for _ in range(900): # the kernel ends too
            try: os.kill(kernel, 0)
            except ProcessLookupError: break
            time.sleep(.1)
        else: pytest.fail("the kernel lives on")
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in err and manifest(tmp_path/"run")["status"] == "interrupted"
            assert "begun" in (tmp_path/"run/a.ipynb").read_text()
    (tmp_path/"run/go").touch()
    quiet(nb, None, tmp_path/"run", resume=True)
    assert manifest(tmp_path/"run")["status"] == "done" and manifest(tmp_path/"run")["attempts"] == 3


def test_check_runs_only_the_check(tmp_path):
    nb = notebook(tmp_path/"a.ipynb", "sizes = {'tiny': 3}", "raise SystemError('the real work')", "print('needs', sizes.get(preset), 'files', lr)", c0="setup", c2="check")
    assert launcher.check(nb, {"preset": "tiny", "lr": "1e-3"}) == "needs 3 files 0.001\n"
    with pytest.raises(ValueError, match="no cell tagged 'check'"): launcher.check(notebook(tmp_path/"b.ipynb", "1"))
    with pytest.raises(ValueError, match="no parameter"): launcher.check(nb, {"presett": "tiny"})
    with pytest.raises(RuntimeError, match="FileNotFoundError: mnist is missing"): launcher.check(notebook(tmp_path/"c.ipynb", "raise FileNotFoundError('mnist is missing')", c0="check"))
    assert os.listdir(tmp_path) == ["a.ipynb", "b.ipynb", "c.ipynb"] or len(os.listdir(tmp_path)) == 3
    ok = notebook(tmp_path/"d.ipynb", "raise SystemError('only when asked')", "Path(out, 'metrics.json').write_text('{}')", c0="check")
    assert manifest(quiet(ok, {"lr": 1}, tmp_path/"run").parent)["status"] == "done"


# steps

@pytest.fixture
def probe(monkeypatch):
    m = types.ModuleType("vlnotes.probe")
    m.step = lambda cfg: {"got": cfg, "world": int(os.environ.get("WORLD_SIZE", 1))}
    monkeypatch.setitem(sys.modules, "vlnotes.probe", m)
    return m


def test_one_process(tmp_path, probe):
    assert runs.launch("probe", {"lr": 1e-3}, 1, tmp_path) == {"got": {"lr": 1e-3}, "world": 1} == runs.read_json(tmp_path/"result.json")
    assert runs.read_json(tmp_path/"config.json") == {"lr": 1e-3}


@pytest.mark.parametrize("name", ["os.system", "../x", "probe.", "", "Probe", "a b", "devil..train", "nothing", "devil.nothing"])
def test_only_steps_of_this_package(tmp_path, name):
    with pytest.raises(ValueError, match="step"): runs.launch(name, {}, 1, tmp_path)


def test_a_module_without_a_step(tmp_path):
    with pytest.raises(ValueError, match="vlnotes.notes has no function `step`"): runs.launch("notes", {}, 1, tmp_path)
    with pytest.raises(ValueError, match="nproc must be at least 1"): runs.launch("notes", {}, 0, tmp_path)


COMMAND = """#!{python}
import os, sys, types
m = types.ModuleType("vlnotes.probe")
def step(cfg):
    if cfg.get("fail") and os.environ["RANK"] == "1": raise ValueError("rank one broke")
    if cfg.get("sleep"):
        import time
        open(cfg["sleep"] + os.environ["RANK"], "w").write(str(os.getpid()))
        time.sleep(900)
    return {{"world": int(os.environ["WORLD_SIZE"]), "rank": int(os.environ["RANK"])}}
m.step = step
sys.modules["vlnotes.probe"] = m
from vlnotes.runs import run_step
assert sys.argv[1] == "step"
run_step(*sys.argv[2:])
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    c = tmp_path/"vlnotes-command"
    c.write_text(COMMAND.format(python=sys.executable))
    c.chmod(0o755)
    monkeypatch.setattr(runs, "_command", lambda: str(c))
    return c


def test_two_processes(tmp_path, command):
    assert runs.launch("probe", {"a": 1}, 2, tmp_path/"r") == {"world": 2, "rank": 0}
    with pytest.raises(RuntimeError, match="probe on 2 processes failed .exit code 1.; its last lines:") as e: runs.launch("probe", {"fail": True}, 2, tmp_path/"f")
    assert "rank one broke" in str(e.value)


def test_workers_stop_when_the_launcher_is_killed(tmp_path, command):
    code = f"from vlnotes import runs; runs._command = lambda: {str(command)!r}; runs.launch('probe', {{'sleep': {str(tmp_path/'pid')!r}}}, 2, {str(tmp_path/'r')!r})"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 120
    while not ((tmp_path/"pid0").exists() and (tmp_path/"pid1").exists()) and time.time() < end: time.sleep(.1)
    time.sleep(.3)
    p.kill(); p.wait()
    pids = [int((tmp_path/f"pid{i}").read_text()) for i in range(2)]
    for _ in range(900):
        if not any(os.path.exists(f"/proc/{i}") for i in pids): return
        time.sleep(.1)
    pytest.fail("workers live on")


def test_no_command(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path/"python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="there is no command `vlnotes`"): runs._command()


def test_citation_file_agrees_with_the_bibliography():
    import yaml
    from vlnotes import __version__
    if not (top := runs.checkout()): pytest.skip("only in a checkout")
    c = yaml.safe_load((top/"CITATION.cff").read_text(encoding="utf-8"))
    bib = runs.cite()
    assert c["cff-version"] == "1.2.0" and c["version"] == __version__ and f"version = {{{__version__}}}" in bib
    for r in c["references"]:
        assert r["title"] in bib and {"type", "authors", "year"} <= set(r) and r.get("url", "") in bib and r.get("doi", "") in bib
        for a in r["authors"]: assert a.get("family-names", "") in bib


def test_question_and_copies(tmp_path, monkeypatch):
    for kind in ("experiments", "tutorials"): (tmp_path/"src"/kind).mkdir(parents=True)
    nb = notebook(tmp_path/"src/experiments/a.ipynb")
    node = nbformat.read(nb, 4)
    assert launcher.question(nb) == ""
    node.cells[0].source = "# a\nfirst text\n> does it work?\nmore"
    nbformat.write(node, nb)
    assert launcher.question(nb) == "does it work?"
    notebook(tmp_path/"src/tutorials/t.ipynb")
    real = launcher._shipped
    monkeypatch.setattr(launcher, "_shipped", lambda kind: {p.stem: p for p in (tmp_path/"src"/kind).glob("*.ipynb")})
    assert [p.name for p in launcher.copy("all", tmp_path/"to/deep")] == ["a.ipynb", "t.ipynb"] and launcher.copy("a", tmp_path/"one") == [tmp_path/"one/a.ipynb"]
    assert [p.name for p in launcher.copy("tutorials", tmp_path/"two")] == ["t.ipynb"]
    with pytest.raises(FileExistsError, match="already holds a.ipynb"): launcher.copy("all", tmp_path/"one")
    assert not (tmp_path/"one/t.ipynb").exists()
    with pytest.raises(FileNotFoundError, match="no experiment or tutorial 'b'"): launcher.copy("b", tmp_path/"three")
    assert isinstance(real("experiments"), dict)


def test_kept_results_are_read_back(tmp_path, monkeypatch):
    (tmp_path/"experiments/results").mkdir(parents=True)
    (tmp_path/"experiments/results/a.json").write_text('{"metrics": {"score": 1}}')
    monkeypatch.setattr(launcher, "_home", lambda: tmp_path)
    assert launcher.result("a") == {"metrics": {"score": 1}}
    with pytest.raises(FileNotFoundError, match="no kept result 'aa'.*'a'"): launcher.result("aa")
    (tmp_path/"experiments/results/b.json").write_text('{"metrics":')
    with pytest.raises(ValueError, match="b.json is not JSON"): launcher.result("b")


def test_signatures_of_addresses_are_masked():
    kept = runs.masked({"data": "https://host/{00..09}.tar?X-Amz-Signature=abcdef&x=1", "other": "https://host/a?se=1&sig=q%2B1"})
    assert kept == {"data": "https://host/{00..09}.tar?X-Amz-Signature=***&x=1", "other": "https://host/a?se=1&sig=***"}
