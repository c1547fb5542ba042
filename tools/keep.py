"""Keep the result of a run with the sources: `python tools/keep.py runs/NAME-TIME` writes nbs/experiments/results/NAME.json
(NAME-WHAT.json for a part of `speed`).

The manifest is kept as it is (parameters, seeds, versions, commit, metrics), without what belongs to one machine alone: the
command line with its folders, and the platform's build string.
"""
import json
import platform
import sys
from pathlib import Path


def keep(run, top):
    "Write a run's manifest below `top`; the path of the file."
    made = json.loads((Path(run)/"manifest.json").read_text(encoding="utf-8"))
    if made.get("status") != "done": raise SystemExit(f"{run} is {made.get('status')}, not done: only finished runs are kept")
    made.pop("argv", None)
    made["platform"] = platform.system()
    what = (made.get("values") or made["params"]).get("what", "all")
    target = top/"nbs/experiments/results"/f"{made['name']}{'' if what == 'all' else '-' + what.replace(',', '-')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    for run in sys.argv[1:]: print(keep(run, Path(__file__).parents[1]))
