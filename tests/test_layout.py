"The tree keeps its rules (`layout.py`), and each rule is shown to fail on a small tree that breaks it."
import json
import subprocess
import sys
from pathlib import Path

import layout
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("check", layout.CHECKS, ids=lambda f: f.__name__)
def test_this_tree(check):
    assert not (bad := check(ROOT)), "\n".join(bad)


@pytest.mark.parametrize("modules", ["vlnotes", "vlnotes, vlnotes.notes, vlnotes.runs"])
def test_import_is_light(modules):
    "No torch behind tier 0, and under 0.3 s for the package itself: the least of five, as the machine may be busy."
    code = (f"import sys, time; t = time.perf_counter(); import {modules}; t = time.perf_counter() - t; "
            "assert not {'torch', 'transformers', 'timm', 'pandas', 'papermill'} & set(sys.modules); print(t)")
    def once():
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr
        return float(run.stdout)
    if modules == "vlnotes": assert min(once() for _ in range(5)) < .3
    else: once()


# ---- each check can fail

def notebook(*cells, tags=(), outputs=()):
    return json.dumps({"cells": [{"cell_type": "code", "source": s, "metadata": {"tags": list(tags)}, "outputs": list(outputs)} for s in cells],
                       "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

def lib(module, source):
    "A module and the notebook that mirrors it, numbered for its tier."
    *folder, name = module.split(".")
    number = {0: "05", 1: "20", 3: "90"}[layout.TIERS.get(module, 1)]
    nb = "/".join(["nbs", *folder, f"{number}_{name}.ipynb"])
    return {f"vlnotes/{module.replace('.', '/')}.py": source, nb: notebook(f"#| default_exp {module}")}

def params(source, tags=("parameters",), **kw): return {"nbs/experiments/e.ipynb": notebook(source, tags=tags, **kw)}

SOUND = 'preset = "tiny" # tiny, small or paper\nsteps = None # how many\nlr = -1e-3 # rate\n'

GOOD = {
    "lower": lib("hooks", "from vlnotes.runs import atomic\n") | lib("runs", "x = 1\n"),
    "own folder": lib("devil.train", "from vlnotes.devil.model import M\nfrom .model import M\nfrom . import model\n")
                  | lib("devil.model", ""),
    "lower, relative": lib("devil.train", "from ..hooks import tap\nfrom .. import notes\n") | lib("hooks", "") | lib("notes", ""),
    "same tier": lib("backbones", "from vlnotes.hooks import tap\n") | lib("hooks", ""),
    "cli": lib("cli", "def f(): from vlnotes.devil.train import fit\n") | lib("devil.train", ""),
    "new method": lib("sixth.say", "from vlnotes import notes\nimport vlnotes\n") | lib("notes", ""),
    "late": lib("data", "import torch\ndef f():\n    import webdataset\n    import matplotlib\n") | lib("plots", "import matplotlib\n"),
    "front page": {"nbs/index.ipynb": notebook("import vlnotes\nprint(1)")},
    "parameters": params(SOUND),
    "tutorial": {"nbs/tutorials/first.ipynb": notebook("import torch\nx = 1", outputs=[{}])},
    "weights": lib("zoo", "import torch\ntorch.load(f, weights_only=True)\nmodel.eval()\nre.compile('x')\nnp.load(f, allow_pickle=False)\n"),
    "caught": lib("zoo", "import pickle, torch\ntry: torch.load(f, weights_only=True)\nexcept pickle.UnpicklingError: pass\n"),
    "safe yaml": lib("runs", "def f():\n    import torch\n    class L(yaml.SafeLoader): pass\n    return yaml.load(t, L)\n"),
    "magic": {"nbs/30_zoo.ipynb": notebook("#| default_exp zoo", "%time x = 1\n!ls"), "vlnotes/zoo.py": ""},
}

BAD = {
    "unplaced: no notebook, no tier": (layout.unplaced, {"vlnotes/helpers.py": ""}, "in no tier"),
    "unplaced: number of another tier": (layout.unplaced, {"nbs/61_hooks.ipynb": notebook("#| default_exp hooks")}, "tier 3, not 1"),
    "direction: up by number": (layout.direction, lib("hooks", "from vlnotes.pages import x\n")
        | {"vlnotes/pages.py": "", "nbs/61_pages.ipynb": notebook("#| default_exp pages")}, "upward"),
    "heavy: torch in tier 0 by number": (layout.heavy,
        {"vlnotes/launch.py": "import torch\n", "nbs/07_launch.ipynb": notebook("#| default_exp launch")}, "torch"),
    "direction: up": (layout.direction,
        lib("hooks", "from vlnotes.devil.train import fit\n") | lib("devil.train", ""), "upward"),
    "direction: up inside a function": (layout.direction,
        lib("notes", "def f():\n    import vlnotes.hooks\n") | lib("hooks", ""), "upward"),
    "direction: up by name": (layout.direction,
        lib("runs", "import importlib\nimportlib.import_module('vlnotes.zoo')\n") | lib("zoo", ""), "upward"),
    "direction: up, relative": (layout.direction,
        lib("zoo", "from .devil import train\n") | lib("devil.train", ""), "upward"),
    "direction: up to cli": (layout.direction,
        lib("devil.train", "from vlnotes import cli\n") | lib("cli", ""), "upward"),
    "direction: sideways": (layout.direction,
        lib("coca.layers", "from vlnotes.devil import train\n") | lib("devil.train", ""), "sideways"),
    "direction: sideways, relative": (layout.direction,
        lib("coca.layers", "from ..devil.train import fit\n") | lib("devil.train", ""), "sideways"),
    "direction: report reads a method": (layout.direction,
        lib("report", "from vlnotes.devil.train import fit\n") | lib("devil.train", ""), "only cli"),
    "circles: module level": (layout.circles,
        lib("hooks", "import vlnotes.store\n") | lib("store", "from vlnotes.hooks import tap\n"), "hooks <-> store"),
    "circles: inside functions": (layout.circles,
        lib("text", "def f(): from vlnotes.decode import d\n")
        | lib("decode", "def g(): from vlnotes import text\n"), "decode <-> text"),
    "circles: of three, in a folder": (layout.circles,
        lib("devil.a", "from . import b\n")
        | lib("devil.b", "from .c import x\n")
        | lib("devil.c", "import vlnotes.devil.a\n"), "devil.a <-> devil.b <-> devil.c"),
    "heavy: module level": (layout.heavy, lib("data", "import webdataset as wds\n"), "webdataset"),
    "heavy: under a condition": (layout.heavy,
        lib("data", "try:\n    from pandas import DataFrame\nexcept ImportError: pass\n"), "pandas"),
    "heavy: in a class body": (layout.heavy,
        lib("text", "class A:\n    import sentence_transformers\n"), "sentence_transformers"),
    "heavy: torch in tier 0": (layout.heavy, lib("notes", "import torch.nn as nn\n"), "torch"),
    "heavy: matplotlib beside plots": (layout.heavy, lib("report", "from matplotlib import pyplot\n"), "matplotlib"),
    "declared: unknown": (layout.declared, lib("data", "import left_pad\n"), "left_pad"),
    "declared: extra at module level": (layout.declared, lib("data", "import webdataset\n"), "webdataset"),
    "mirror: other name": (layout.mirror,
        {"nbs/10_hooks.ipynb": notebook("#| default_exp taps"), "vlnotes/taps.py": ""}, "not hooks"),
    "mirror: other folder": (layout.mirror,
        {"nbs/10_train.ipynb": notebook("#| default_exp devil.train"), "vlnotes/devil/train.py": ""}, "not train"),
    "mirror: no number": (layout.mirror,
        {"nbs/hooks.ipynb": notebook("#| default_exp hooks"), "vlnotes/hooks.py": ""}, "NN_module"),
    "mirror: no export": (layout.mirror, {"nbs/10_hooks.ipynb": notebook("x = 1")}, "exports nothing"),
    "mirror: no module": (layout.mirror, {"nbs/10_hooks.ipynb": notebook("#| default_exp hooks")}, "no module"),
    "mirror: no notebook": (layout.mirror, {"vlnotes/hooks.py": ""}, "vlnotes/hooks.py has no notebook"),
    "mirror: two notebooks": (layout.mirror,
        lib("hooks", "") | {"nbs/11_hooks.ipynb": notebook("#| default_exp hooks")}, "second"),
    "sizes: module": (layout.sizes, lib("hooks", "x = 1\n" * 401), "401 lines"),
    "sizes: notebook": (layout.sizes, {"nbs/10_hooks.ipynb": notebook("#" * 300_001)}, "more than 300"),
    "sizes: experiment": (layout.sizes, {"nbs/experiments/e.ipynb": notebook("#" * 300_001)}, "more than 300"),
    "sizes: tutorial": (layout.sizes, {"nbs/tutorials/t.ipynb": notebook("#" * 1_000_001)}, "more than 1000"),
    "mixed: imports and code": (layout.mixed,
        {"nbs/10_hooks.ipynb": notebook("#| export\nimport torch\nx = 1")}, "code cell 1"),
    "stars: module": (layout.stars, lib("hooks", "from vlnotes.notes import *\n"), "star"),
    "stars: notebook": (layout.stars,
        {"nbs/tutorials/t.ipynb": notebook("x = 1", "from vlnotes.notes import *")}, "code cell 2"),
    "experiments: no cell": (layout.experiments, params(SOUND, tags=()), "0 cells tagged"),
    "experiments: list": (layout.experiments, params(SOUND + "layers = [1] # which\n"), "layers is not a flat"),
    "experiments: computed": (layout.experiments, params(SOUND + "n = len('x') # how many\n"), "n is not a flat"),
    "experiments: no comment": (layout.experiments, params(SOUND + "n = 1\n"), "n has no comment"),
    "experiments: no preset": (layout.experiments, params("n = 1 # how many\n"), "no parameter preset"),
    "experiments: other code": (layout.experiments, params(SOUND + "print(1)\n"), "is no parameter"),
    "experiments: exports": (layout.experiments, params("#| export\n" + SOUND), "exports something"),
    "experiments: outputs": (layout.experiments, params(SOUND, outputs=[{"output_type": "stream"}]), "run folder"),
    "experiments: tutorial exports": (layout.experiments,
        {"nbs/tutorials/t.ipynb": notebook("# | export\nx = 1")}, "exports something"),
    "unsafe: load": (layout.unsafe, lib("zoo", "import torch\ntorch.load(f)\n"), "weights_only"),
    "unsafe: load, False": (layout.unsafe,
        lib("zoo", "import torch\ntorch.load(f, weights_only=False)\n"), "weights_only"),
    "unsafe: load, hidden": (layout.unsafe, lib("zoo", "from torch import load\n"), "torch.load by name"),
    "unsafe: pickle": (layout.unsafe,
        lib("zoo", "def f():\n    import pickle\n    return pickle.load(g)\n"), "uses pickle.load"),
    "unsafe: pickle, by name": (layout.unsafe, lib("zoo", "from pickle import loads\n"), "imports pickle.loads"),
    "unsafe: pickle, renamed": (layout.unsafe, lib("zoo", "import pickle as p\n"), "another name"),
    "unsafe: joblib": (layout.unsafe, lib("zoo", "import joblib\n"), "imports joblib"),
    "unsafe: eval": (layout.unsafe, lib("zoo", "eval('1')\n"), "calls eval"),
    "unsafe: numpy pickle": (layout.unsafe, lib("zoo", "np.load(f, allow_pickle=True)\n"), "allow_pickle"),
    "unsafe: remote code": (layout.unsafe, lib("zoo", "load(n, trust_remote_code=flag)\n"), "trust_remote_code"),
    "unsafe: shell": (layout.unsafe, lib("zoo", "subprocess.run(c, shell=True)\n"), "shell"),
    "unsafe: yaml": (layout.unsafe, lib("zoo", "yaml.load(f, yaml.Loader)\n"), "yaml.load"),
    "unsafe: device": (layout.unsafe, lib("zoo", "model.cuda()\n"), ".cuda()"),
}

def plant(root, files):
    settings = "[DEFAULT]\nrequirements = torch>=2 matplotlib\ndata_requirements = webdataset pandas\ndev_requirements = left_pad\n"
    for name, text in {"settings.ini": settings, "vlnotes/__init__.py": "", "vlnotes/_modidx.py": "from x import *", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root

@pytest.mark.parametrize("name", GOOD)
def test_a_sound_tree_passes(tmp_path, name):
    root = plant(tmp_path, GOOD[name])
    assert {f.__name__: bad for f in layout.CHECKS if (bad := f(root))} == {}

@pytest.mark.parametrize("name", BAD)
def test_a_broken_tree_is_found(tmp_path, name):
    check, files, words = BAD[name]
    assert any(words in b for b in check(plant(tmp_path, files))), check(tmp_path)

def test_every_check_is_shown_to_fail():
    assert {f.__name__ for f, *_ in BAD.values()} == {f.__name__ for f in layout.CHECKS}
