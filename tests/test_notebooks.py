"Every lesson and tutorial runs top to bottom, its assertions are tests; experiments run through `vlnotes run`."
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nbdev", reason="running notebooks as tests needs the extra dev")
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb

CONFIG = get_config(cfg_name="settings.ini", path=Path(__file__).parent)
ROOT = Path(CONFIG.nbs_path)
NOTEBOOKS = sorted(p for p in ROOT.rglob("*.ipynb") if not any(q.startswith(("_", ".")) for q in p.relative_to(ROOT).parts)
                   and p.relative_to(ROOT).parts[0] != "experiments")


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_notebook(nb, monkeypatch, capfd):
    import matplotlib.pyplot as plt
    import torch
    monkeypatch.chdir(nb.parent)
    for seed in (random.seed, np.random.seed, torch.manual_seed): seed(0) # no notebook sees what another left behind
    threads, before = torch.get_num_threads(), {p.name for p in nb.parent.iterdir()}
    ok, _ = run_nb(nb, skip_flags=set(CONFIG.tst_flags.split()), force_flags=set(), basepath=CONFIG.config_path)
    plt.close("all")
    torch.set_num_threads(threads)
    out, err = capfd.readouterr()
    assert ok, f"{nb.name}\n{out[-4000:]}{err[-4000:]}"
    left = {p.name for p in nb.parent.iterdir()} - before
    assert not left, f"{nb.name} leaves files behind: {sorted(left)}"
