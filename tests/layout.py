"The rules of the tree, as functions from a checkout's root to a list of sentences; an empty list means the rule holds."
import ast
import io
import json
import re
import shlex
import sys
import tokenize
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import NamedTuple

LIB = "vlnotes"
TIERS = {**dict.fromkeys(["notes", "runs"], 0),
         **dict.fromkeys(["hooks", "backbones", "store", "data", "fetch", "docmnist"], 1),
         **dict.fromkeys(["text", "decode", "metrics", "plots", "train", "zoo"], 1),
         **dict.fromkeys(["report", "explore", "faithfulness", "cli"], 3)}
METHOD = 2 # any other folder: a method, which may stand on tiers 0 and 1 and on its own folder
BANDS = ((10, 0), (60, 1), (100, 3)) # a module in no folder has the tier of its notebook's number: below 10, 60, 100
HEAVY = {"open_clip", "webdataset", "papermill", "pooch", "sentence_transformers", "pandas", "requests", "pycocotools", "bert_score", "pycocoevalcap",
         "jupyterlab", "ipywidgets", "anywidget", "nbdev", "fastcore", "llguidance"} # imported inside the function that needs them
ONLY_IN = {"matplotlib": {"plots"}} # at module level in these alone
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ALIASES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "open_clip": "open-clip-torch", "faiss": "faiss-cpu",
           "huggingface_hub": "transformers", "tokenizers": "transformers", "nbformat": "papermill", "nbclient": "papermill", "traitlets": "ipywidgets",
           "jupyter_client": "ipykernel"}
STORIES = ("experiments", "tutorials", "guide") # folders of notebooks that export nothing; the guide's are pages of the documentation only


class Import(NamedTuple):
    name: str # full dotted name
    line: int
    inside: bool # of a function
    star: bool


# ---- reading

def modules(root: Path) -> dict[str, Path]: # dotted name without the library's -> file
    "Every exported module; the version file and nbdev's index are none."
    lib = root / LIB
    return {".".join(p.relative_to(lib).with_suffix("").parts): p for p in sorted(lib.rglob("*.py"))
            if p.name not in ("__init__.py", "_modidx.py")}

def notebooks(root: Path) -> list[Path]:
    nbs = root / "nbs"
    return sorted(p for p in nbs.rglob("*.ipynb") if not any(q.startswith(("_", ".")) for q in p.relative_to(nbs).parts))

def story(root: Path, nb: Path) -> str: # one of STORIES or ""
    first = nb.relative_to(root / "nbs").parts[0]
    return first if first in STORIES else ""

@cache
def tree(path: Path, stamp: int) -> ast.Module: return ast.parse(path.read_text(encoding="utf-8"), str(path))
def parse(path: Path) -> ast.Module: return tree(path, path.stat().st_mtime_ns)

def cells(nb: Path) -> list[tuple[str, set, dict]]: # source, tags, the cell itself; code cells only
    doc = json.loads(nb.read_text(encoding="utf-8"))
    return [("".join(c["source"]), set(c.get("metadata", {}).get("tags", [])), c)
            for c in doc["cells"] if c["cell_type"] == "code"]

def code(source: str) -> ast.Module | None: # None where a cell is not plain Python
    "A cell's tree without its magics and shell lines."
    lines = [("pass" if re.match(r"\s*[%!]", s) else s) for s in source.splitlines()]
    try: return ast.parse("\n".join(lines))
    except SyntaxError: return None

def imports(body: ast.AST, package: str = "") -> Iterator[Import]:
    "Every import below a node, also inside functions, relative ones resolved; `from a import b` gives `a.b`."
    def walk(node, inside):
        for n in ast.iter_child_nodes(node):
            if isinstance(n, ast.Import):
                for a in n.names: yield Import(a.name, n.lineno, inside, False)
            elif isinstance(n, ast.ImportFrom):
                up = package.split(".")[:len(package.split(".")) - n.level + 1] if n.level else []
                base = ".".join([*up, *([n.module] if n.module else [])])
                for a in n.names: yield Import(base if a.name == "*" else f"{base}.{a.name}", n.lineno, inside, a.name == "*")
            elif (isinstance(n, ast.Call) and called(n) in ("import_module", "importlib.import_module", "__import__")
                  and n.args and isinstance(n.args[0], ast.Constant)):
                yield Import(str(n.args[0].value), n.lineno, True, False)
            yield from walk(n, inside or isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    return walk(body, False)

def asks(m: str, p: Path) -> list[Import]:
    "The imports of a module."
    return list(imports(parse(p), f"{LIB}.{m}".rpartition(".")[0]))

def called(n: ast.Call) -> str: return ast.unparse(n.func)

def own(name: str, known: dict[str, Path]) -> str | None: # the module of ours an import reaches, or None
    "`vlnotes.devil.translator.fit` reaches `devil.translator`; a folder's own name reaches the folder."
    parts = name.split(".")
    if parts[0] != LIB or len(parts) == 1: return None
    for k in range(len(parts), 1, -1):
        if (m := ".".join(parts[1:k])) in known: return m
    return parts[1] if any(m.startswith(parts[1] + ".") for m in known) or parts[1] in TIERS else None # a folder

def outside(i: Import) -> str: return i.name.split(".")[0]


# ---- who may import whom

def tiers(root: Path) -> dict[str, int]: # module -> tier
    "By name, by folder, else by the notebook's number; a module with none of them is left out."
    known = {}
    for nb in (root / "nbs").glob("[0-9][0-9]_*.ipynb"):
        known[nb.stem[3:]] = next(t for below, t in BANDS if int(nb.stem[:2]) < below)
    def one(m): return TIERS.get(m.split(".")[0], METHOD if "." in m else known.get(m))
    return {m: t for m in modules(root) if (t := one(m)) is not None}

def unplaced(root: Path) -> list[str]:
    "A module that is in no tier, and a notebook whose number says another tier than its name."
    placed = tiers(root)
    bad = [f"{p.relative_to(root)} is in no tier" for m, p in modules(root).items() if m not in placed]
    for nb in (root / "nbs").glob("[0-9][0-9]_*.ipynb"):
        band = next(t for below, t in BANDS if int(nb.stem[:2]) < below)
        if band != TIERS.get(nb.stem[3:], band): bad.append(f"nbs/{nb.name} is numbered for tier {band}, not {TIERS[nb.stem[3:]]}")
    return bad

def direction(root: Path) -> list[str]:
    "Imports that go up, from one method to another, or from a reader of notes to a method."
    known, level, bad = modules(root), tiers(root), []
    for m, p in known.items():
        if m not in level: continue
        for i in asks(m, p):
            to = own(i.name, known)
            if to is None or to.split(".")[0] == m.split(".")[0]: continue
            there = level.get(to, TIERS.get(to, METHOD))
            if there > level[m]: why = "upward"
            elif there == level[m] == METHOD: why = "sideways"
            elif there == METHOD and m.split(".")[0] != "cli": why = "to a method, which only cli may"
            else: continue
            bad.append(f"{p.relative_to(root)}:{i.line} imports {to}: {why}")
    return list(dict.fromkeys(bad))

def circles(root: Path) -> list[str]:
    "Modules that reach themselves, at module level or through functions."
    known = modules(root)
    to = {m: {t for i in asks(m, p) if (t := own(i.name, known)) in known and t != m}
          for m, p in known.items()}
    def reach(m):
        seen, todo = set(), list(to[m])
        while todo:
            if (k := todo.pop()) not in seen: seen.add(k); todo += to[k]
        return seen
    far = {m: reach(m) for m in known}
    rings = {tuple(sorted(k for k in far[m] if m in far[k])) for m in known if m in far[m]}
    return [f"import circle: {' <-> '.join(r)}" for r in sorted(rings)]

def heavy(root: Path) -> list[str]:
    "Module-level imports that must wait for the function that needs them; tier 0 also waits with torch."
    bad, level = [], tiers(root)
    for m, p in modules(root).items():
        head = m.split(".")[0]
        late = HEAVY | ({"torch", "torchvision", "timm", "transformers", "accelerate"} if level.get(m) == 0 else set())
        late |= {k for k, where in ONLY_IN.items() if head not in where}
        bad += [f"{p.relative_to(root)}:{i.line} imports {outside(i)} at module level"
                for i in asks(m, p) if not i.inside and outside(i) in late]
    return bad

def declared(root: Path) -> list[str]:
    "Packages imported without being a requirement; at module level it must be one of the core's."
    cp = ConfigParser(delimiters=["="], interpolation=None)
    cp.read(root / "settings.ini", encoding="utf-8")
    def names(v): return {re.split(r"[<>=!~\[; ]", w)[0].lower().replace("_", "-") for w in shlex.split(v)}
    core = names(cp["DEFAULT"]["requirements"])
    every = core.union(*(names(v) for k, v in cp["DEFAULT"].items()
                         if k.endswith("_requirements") and k not in ("dev_requirements", "docs_requirements")))
    bad = []
    for m, p in modules(root).items():
        for i in asks(m, p):
            if outside(i) in sys.stdlib_module_names or outside(i) == LIB: continue
            dist = ALIASES.get(outside(i), outside(i)).lower().replace("_", "-")
            if dist not in (every if i.inside else core):
                bad.append(f"{p.relative_to(root)}:{i.line} imports {outside(i)}, which settings.ini does not require")
    return list(dict.fromkeys(bad))


# ---- notebooks and modules

def mirror(root: Path) -> list[str]:
    "Library notebooks that do not mirror their module, and modules without a notebook."
    known, bad, told = modules(root), [], set()
    for nb in notebooks(root):
        where, rel = nb.relative_to(root), nb.relative_to(root / "nbs")
        if story(root, nb) or rel.as_posix() == "index.ipynb": continue
        exp = [m.group(1) for s, *_ in cells(nb) for m in re.finditer(r"^#\s*\|\s*default_exp\s+(\S+)", s, re.M)]
        if not (num := re.fullmatch(r"\d\d_([a-z][a-z0-9_]*)", rel.stem)):
            bad.append(f"{where} is not named NN_module.ipynb"); continue
        want = ".".join([*rel.parent.parts, num.group(1)])
        if exp != [want]: bad.append(f"{where} exports {exp or 'nothing'}, not {want}")
        elif want not in known: bad.append(f"{where} has no module {want}: export it")
        elif want in told: bad.append(f"{where} is a second notebook of {want}")
        told.add(want)
    return bad + [f"{p.relative_to(root)} has no notebook" for m, p in known.items() if m not in told]

def sizes(root: Path) -> list[str]:
    "Modules over 400 lines, notebooks over 300 kB (tutorials: 1 MB)."
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in modules(root).values()}
    bad = [f"{p.relative_to(root)} has {n} lines, more than 400" for p, n in lines.items() if n > 400]
    for nb in notebooks(root):
        most = 1_000_000 if story(root, nb) == "tutorials" else 300_000
        if (n := nb.stat().st_size) > most: bad.append(f"{nb.relative_to(root)} has {n // 1000} kB, more than {most // 1000}")
    return bad

def mixed(root: Path) -> list[str]:
    "Library cells that hold imports and other code: the documentation runs import cells alone."
    bad = []
    for nb in notebooks(root):
        for k, (s, _, _) in enumerate(cells(nb)):
            if story(root, nb) or nb.name == "index.ipynb" or (t := code(s)) is None: continue
            kinds = {isinstance(n, ast.Import | ast.ImportFrom) for n in t.body}
            if len(kinds) == 2: bad.append(f"{nb.relative_to(root)}, code cell {k + 1} holds imports and other code")
    return bad

def stars(root: Path) -> list[str]:
    "Star imports in modules and notebooks."
    bad = [f"{p.relative_to(root)}:{i.line} has a star import"
           for m, p in modules(root).items() for i in asks(m, p) if i.star]
    return bad + [f"{nb.relative_to(root)}, code cell {k + 1} has a star import" for nb in notebooks(root)
                  for k, (s, _, _) in enumerate(cells(nb)) if (t := code(s)) and any(i.star for i in imports(t))]

def experiments(root: Path) -> list[str]:
    "Experiments without a sound parameters cell, and stories that export or carry results."
    bad = []
    for nb in notebooks(root):
        kind, where, all_cells = story(root, nb), nb.relative_to(root), cells(nb)
        if not kind: continue
        if any(re.search(r"^#\s*\|\s*(default_exp|exports?i?)\b", s, re.M) for s, *_ in all_cells):
            bad.append(f"{where} exports something")
        if kind != "experiments": continue
        if any(c.get("outputs") for *_, c in all_cells): bad.append(f"{where} holds outputs: they belong to the run folder")
        tagged = [s for s, tags, _ in all_cells if "parameters" in tags]
        if len(tagged) != 1: bad.append(f"{where} has {len(tagged)} cells tagged parameters, not one"); continue
        bad += [f"{where}: {b}" for b in parameters(tagged[0])]
    return bad

def parameters(source: str) -> list[str]:
    "What is wrong with a parameters cell: each line is `name = scalar # what it is`, and `preset` is one of them."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    bad, names = [], set()
    for n in ast.parse(source).body:
        if not (isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name)):
            bad.append(f"`{ast.unparse(n)}` is no parameter"); continue
        name = n.targets[0].id
        names.add(name)
        try: flat = isinstance(ast.literal_eval(n.value), str | int | float | bool | None)
        except ValueError: flat = False
        if not flat: bad.append(f"parameter {name} is not a flat scalar")
        if not comments.get(n.end_lineno): bad.append(f"parameter {name} has no comment")
    return bad + ([] if "preset" in names else ["there is no parameter preset"])


# ---- nothing from outside is executed

def unsafe(root: Path) -> list[str]:
    "Calls and imports that could execute what a file holds, and devices written into the code."
    bad = []
    for m, p in modules(root).items():
        def say(n, what, p=p): bad.append(f"{p.relative_to(root)}:{n.line if isinstance(n, Import) else n.lineno} {what}")
        for i in asks(m, p):
            if outside(i) in PICKLES and i.name not in ("pickle", "pickle.UnpicklingError"): say(i, f"imports {i.name}")
            if i.name == "torch.load": say(i, "imports torch.load by name, which hides it from this check")
        safe = {f"yaml.{k}" for k in ("SafeLoader", "CSafeLoader")}
        safe |= {n.name for n in ast.walk(parse(p)) if isinstance(n, ast.ClassDef) and safe & {ast.unparse(b) for b in n.bases}}
        for n in ast.walk(parse(p)):
            if isinstance(n, ast.Import):
                for a in n.names:
                    if a.name == "pickle" and a.asname: say(n, "imports pickle under another name")
            if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle" and n.attr != "UnpicklingError":
                say(n, f"uses pickle.{n.attr}") # the error may be caught: weights_only raises it
            if not isinstance(n, ast.Call): continue
            name, kw = called(n), {k.arg: k.value for k in n.keywords}
            def true(k, kw=kw): return k in kw and not (isinstance(kw[k], ast.Constant) and kw[k].value in (False, None))
            only = kw.get("weights_only")
            if name == "torch.load" and not (isinstance(only, ast.Constant) and only.value is True):
                say(n, "calls torch.load without weights_only=True")
            if name in ("eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"):
                say(n, f"calls {name}")
            if name == "yaml.load" and not safe & {ast.unparse(a) for a in [*n.args[1:], *kw.values()]}:
                say(n, "calls yaml.load without a safe loader")
            for k in ("allow_pickle", "trust_remote_code", "shell"):
                if true(k): say(n, f"passes {k}=True")
            if name.endswith(".cuda") and not n.args: say(n, "calls .cuda(): follow the device of what is given")
    return bad


CHECKS = (unplaced, direction, circles, heavy, declared, mirror, sizes, mixed, stars, experiments, unsafe)
