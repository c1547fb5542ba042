"""The page of an experiment: what it asks, its command, its parameters and presets, and its last kept result with the manifest."""
import ast
import json
import re
from pathlib import Path

from pages.api import remark

MOST = 40 # rows of a table that a page shows; the file holds all


def number(v):
    "A value as one reads it in a table."
    if v is None: return "–"
    if isinstance(v, bool): return "yes" if v else "no"
    if isinstance(v, int): return f"{v:,}" if abs(v) >= 10_000 else str(v)
    if isinstance(v, float): return f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.4g}" if abs(v) < .01 or abs(v) >= 100 else f"{v:.3f}"
    if isinstance(v, list): return ", ".join(map(number, v)) if len(v) <= 12 else f"{len(v)} values"
    if isinstance(v, dict): return ", ".join(f"{k} {number(x)}" for k, x in v.items())
    return str(v)


def short(v, most=72):
    s = " ".join(number(v).split())
    return s if len(s) <= most else s[:most - 1].rpartition(" ")[0] + " …"


def merged(row):
    "A row whose bounds stand behind their value: `f1, f1_lo, f1_hi` becomes `0.78 [0.76, 0.80]`."
    out, used = {}, set()
    ends = [("_lo", "_hi")]
    for k, v in row.items():
        for lo, hi in ends:
            if k + lo in row and k + hi in row:
                out[k] = f"{number(v)} [{number(row[k + lo])}, {number(row[k + hi])}]" if v is not None else "–"
                used |= {k, k + lo, k + hi}
        if isinstance(v, list | tuple) and len(v) == 3 and all(isinstance(x, float | int) for x in v) and v[1] <= v[0] <= v[2]:
            out[k] = f"{number(v[0])} [{number(v[1])}, {number(v[2])}]"; used.add(k)
        if k not in used: out[k] = v
    for lo, hi, what in (("lo", "hi", ("accuracy", "right", "share", "value", "score")), ("low", "high", ("ratio",))):
        main = next((w for w in what if isinstance(row.get(w), int | float)), None)
        if main and lo in out and hi in out:
            out[main] = f"{number(row[main])} [{number(out.pop(lo))}, {number(out.pop(hi))}]"
    return out


def grid(head, rows):
    "A markdown table."
    lines = [[remark(str(h)) for h in head], ["---"] * len(head), *([remark(short(v)) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(r) + " |" for r in lines)


def records(rows):
    """A table of dictionaries. What is the same in every row is said once below it, texts of a wide table are left to the file, and few records of many
    numbers stand side by side."""
    rows = [merged(r) for r in rows]
    keys = list(dict.fromkeys(k for r in rows for k in r))
    keys = [k for k in keys if any(r.get(k) not in (None, "", [], {}) for r in rows)]
    notes, same, texts = [], [], []
    if len(keys) > 8 and len(rows) > 1:
        same = [k for k in keys[1:] if all(k in r and r[k] == rows[0][k] for r in rows) and len(short(rows[0][k])) < 40]
        texts = [k for k in keys[1:] if k not in same and any(isinstance(r.get(k), str) and " [" not in r[k] and len(r[k]) > 40 or isinstance(r.get(k), list) and len(number(r[k])) > 40 for r in rows)]
    keys = [k for k in keys if k not in (*same, *texts)]
    if "of" in keys and keys[0] == "who": keys = ["who", "of", *[k for k in keys if k not in ("who", "of")]]
    if len(rows) > MOST: notes.append(f"The first {MOST} of {len(rows)} rows; the file below holds all.")
    if same: notes.append("In every row: " + ", ".join(f"{k.replace('_', ' ')} {short(rows[0][k])}" for k in same) + ".")
    if texts: notes.append(f"In the file below: {', '.join(k.replace('_', ' ') for k in texts)}.")
    below = f"\n\n*{remark(' '.join(notes))}*" if notes else ""
    name, *rest = [k.replace("_", " ") for k in keys]
    if len(keys) > 6 and 1 < len(rows) <= 7: return grid([name, *(r.get(keys[0]) for r in rows)], [[t, *(r.get(k) for r in rows)] for t, k in zip(rest, keys[1:])]) + below
    return grid([name, *rest], [[r.get(k) for k in keys] for r in rows[:MOST]]) + below


def scalar(v): return not isinstance(v, dict | list)


def flat(row): return isinstance(row, dict) and all(scalar(v) or isinstance(v, list) and all(map(scalar, v)) or isinstance(v, dict) and all(map(scalar, v.values())) and len(v) <= 6 for v in row.values())


def tables(value, name="", depth=0):
    "Metrics of any shape as a list of (caption, markdown)."
    if isinstance(value, list) and value and all(map(flat, value)): return [(name, records(value))]
    if isinstance(value, dict) and value:
        if all(isinstance(v, dict) and flat(v) for v in value.values()) and len(value) > 1:
            return [(name, records([{"": k, **v} for k, v in value.items()]))]
        plain = {k: v for k, v in value.items() if scalar(v) or isinstance(v, list) and all(map(scalar, v))}
        out = [(name, grid(["what", "value"], merged(plain).items()))] if plain else []
        for k, v in value.items():
            if k not in plain: out += tables(v, f"{name}, {k}" if name else k, depth + 1)
        return out
    if isinstance(value, list) and value:
        return [t for k, v in enumerate(value) for t in tables(v, f"{name} {k + 1}", depth + 1)]
    return [(name, number(value))] if value not in (None, [], {}) else []


# ---- presets

def reckon(node, known):
    "A preset's expression as a dictionary: literals, `dict(...)`, `a | b`, names seen before; what cannot be told is kept as code."
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr): return {**reckon(node.left, known), **reckon(node.right, known)}
    if isinstance(node, ast.Name): return known.get(node.id, {})
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict": pairs = [(k.arg, k.value) for k in node.keywords if k.arg]
    elif isinstance(node, ast.Dict): pairs = [(ast.literal_eval(k), v) for k, v in zip(node.keys, node.values) if isinstance(k, ast.Constant)]
    elif isinstance(node, ast.IfExp): return reckon(node.body, known)
    else: return {}
    def value(v):
        if isinstance(v, ast.BinOp | ast.Dict) or isinstance(v, ast.Call) and ast.unparse(v.func) == "dict" or isinstance(v, ast.Name) and v.id in known: return reckon(v, known)
        try: return ast.literal_eval(v)
        except ValueError: return ast.unparse(v)
    return {k: value(v) for k, v in pairs}


def presets(nb):
    "Name -> values of an experiment's presets, read from the cell that sets `PRESETS`; empty where there is none."
    known = {}
    for c in nb["cells"]:
        source = "".join(c["source"])
        if c["cell_type"] != "code" or "PRESETS" not in source: continue
        for n in ast.parse(source).body:
            if isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name):
                if n.targets[0].id == "PRESETS" and isinstance(n.value, ast.Dict):
                    return {ast.literal_eval(k): reckon(v, known) for k, v in zip(n.value.keys, n.value.values)}
                known[n.targets[0].id] = reckon(n.value, known)
    return {}


def parameters(nb):
    "Parameter -> what it is, in the order of the cell tagged `parameters`."
    for c in nb["cells"]:
        if "parameters" in c.get("metadata", {}).get("tags", []):
            found = re.findall(r"^(\w+)\s*=\s*(.+?)\s+#\s*(.+)$", "".join(c["source"]), re.M)
            return {name: (value, about) for name, value, about in found}
    return {}


def parameter_table(nb):
    "Every parameter with its value in each preset; a value equal to that of `small` is not repeated."
    said, sets = parameters(nb), presets(nb)
    names = [k for k in ("small", *sets) if k in sets]
    names = list(dict.fromkeys(names))
    def code(v): return f"`{v!r}`".replace("|", "\\|") if v not in ("", None) else "`''`" if v == "" else ""
    rows = []
    for k, (default, about) in said.items():
        if k in ("preset", "out"): rows.append([f"`{k}`", remark(about), f"`{default}`", *([""] * (len(names) - 1))][:2 + max(1, len(names))]); continue
        base = sets.get("small", {}).get(k)
        rows.append([f"`{k}`", remark(about), *(code(sets[n].get(k)) if n == "small" or sets[n].get(k) != base else "" for n in names)] if names else [f"`{k}`", remark(about), f"`{default}`"])
    head = ["parameter", "what it is", *([f"`{n}`" for n in names] or ["default"])]
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


# ---- the kept results

def kept(folder):
    "Experiment -> [(file, manifest)] of the kept results, the newest first."
    found = {}
    for p in sorted(Path(folder).glob("*.json")):
        m = json.loads(p.read_text(encoding="utf-8"))
        found.setdefault(m["name"], []).append((p, m))
    return {k: sorted(v, key=lambda r: r[1].get("started", ""), reverse=True) for k, v in found.items()}


def spent(seconds):
    if seconds is None: return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def provenance(m):
    "The manifest, as a table of a few lines."
    git, lines = m.get("git") or {}, []
    started, seconds = m.get("started", ""), m.get("seconds")
    lines.append(("run", f"{started[:10]}, {started[11:16]} UTC" + (f", {spent(seconds)}" if seconds else "")))
    if git.get("commit"): lines.append(("code", f"commit `{git['commit'][:10]}`" + (", with changes that were not committed" if git.get("dirty") else "")))
    lines.append(("preset, seed", f"`{m.get('preset', '–')}`, {m.get('seed', '–')}"))
    given = {k: v for k, v in (m.get("params") or {}).items() if k != "preset"}
    if given: lines.append(("parameters changed", ", ".join(f"`{k}={v}`" for k, v in given.items())))
    if m.get("data"): lines.append(("data", short(m["data"], 240)))
    if m.get("protocol"): lines.append(("protocol", str(m["protocol"])))
    if n := (m.get("skipped") or {}).get("count"): lines.append(("skipped", f"{n} items"))
    if memory := (m.get("peak_memory_mb") or {}).get("process"): lines.append(("peak memory", f"{memory:,.0f} MB"))
    some = {k: v for k, v in (m.get("versions") or {}).items() if k in ("vlnotes", "torch", "timm", "transformers", "open_clip_torch", "numpy")}
    lines.append(("versions", f"Python {m.get('python', '–')}, " + ", ".join(f"{k} {v}" for k, v in some.items())))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {remark(v)} |" for k, v in lines)])


def section(path, m, figure=None, download=""):
    "One kept result as markdown below a heading of level 3."
    out = []
    if figure: out.append(f"![{figure[1]}]({figure[0]})\n\n*{figure[1]}*")
    found = tables(m.get("metrics") or {})
    for name, table in found:
        caption = f"**{remark(name.replace('_', ' '))}**\n\n" if name else ""
        out.append(caption + table)
    head = [s for s in out if s]
    if sum(len(s) for s in head) > 9000: # long tables are folded away below the first
        first, rest = head[:2], head[2:]
        head = [*first, ":::{dropdown} All other numbers of this run\n" + "\n\n".join(rest) + "\n:::"] if rest else first
    made = ":::{dropdown} How this result was made\n" + provenance(m) + f"\n\nAll numbers and the whole manifest: {{download}}`{path.name} <{download}>`\n:::"
    return "\n\n".join([*head, made])


def page(nb, results, figures, where):
    """The parts that are put below an experiment's introduction, as markdown.

    `results` is what `kept` found, `figures` a file's stem -> (address, caption), `where` a file -> its address for a download."""
    out = []
    if not results:
        out.append("## Last kept result\n\nNo result of this experiment is kept with the sources; run it to see one.")
    for path, m in results:
        what = (m.get("values") or m.get("params") or {}).get("what") or (m.get("params") or {}).get("parts")
        title = "## Last kept result" if len(results) == 1 else f"## Kept result: {what.replace(',', ', ')}"
        cores = f" on {m['cores']} CPU cores" if m.get("cores") else ""
        date = f"Preset `{m.get('preset')}`, {m.get('started', '')[:10]}" + (f", {spent(m['seconds'])}{cores}." if m.get("seconds") else ".")
        out.append(f"{title}\n\n{date}\n\n{section(path, m, figures.get(path.stem), where(path))}")
    out.append("## Parameters and presets\n\nGiven as `-p NAME=VALUE`; what is not given has its preset's value. An empty field is the value of `small`.\n\n" + parameter_table(nb))
    return out
