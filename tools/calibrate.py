"""Write the table of calibration that travels with the package, from the results kept with the sources: `python tools/calibrate.py`.

Run it after `tools/keep.py` has kept a run of `faithfulness_units`, `faithfulness_layers` or `scoreboard`.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from vlnotes import calibration

if __name__ == "__main__": print(calibration.write(Path(__file__).parents[1]/"nbs/experiments/results"))
