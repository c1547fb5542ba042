"A job of describing that is killed while it writes its third table."
import json
import os
import subprocess
import sys

SCRIPT = """
import json, os, signal, sys
from vlnotes import describe as job
from vlnotes.notes import Notes
real, n = Notes.write, [0]
def write(self, path):
    n[0] += 1
    if n[0] == 3: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, path)
Notes.write = write
job.describe(**json.loads(sys.argv[1]), out=sys.argv[2])
"""


def killed(out, **options):
    r = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(options), str(out)], capture_output=True, text=True, timeout=300, env=os.environ, cwd=out.parent)
    assert r.returncode == -9, r.stderr
