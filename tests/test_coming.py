"""The guide's tables from the originals' names to ours: every name on our side must be there.

In the column `here`, what stands in backticks is one of
    vlnotes COMMAND ...          a command line; commands, options, describers, experiments, parameters, data sets and their options are looked up
    vlnotes.module.name          a module, or anything in it, down to a dataclass's field or a key of a dictionary
    vlnotes.module.name(a=, b="x")  the same with arguments that it takes; a text value must be spelt somewhere in its module
    zoo/NAME, timm/NAME, ...     an encoder as `vlnotes.backbones.load` takes it
    $NAME                        an environment variable that the package reads
    vlnotes[EXTRA]               an extra
    PATH/file.ext                a file: every part in lower case is spelt by what else the cell names
Words in capitals stand for what the reader fills in. Elsewhere on a page only what begins with `vlnotes` is looked up.
The commands that the README, the data page and all notebooks show are looked up in the same way."""
import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
from configparser import ConfigParser
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import click
import layout
import pytest

from vlnotes import backbones, fetch, launcher
from vlnotes.cli import main

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "nbs" / "guide"
PAGES = [GUIDE / f"coming_{m}.ipynb" for m in ("devil", "coca", "lavise", "villa", "lgssl")]
HEAD = ["old", "here", "how it differs, or why there is none"]
SUFFIX = re.compile(r"\.(json|jsonl|parquet|arrow|npy|npz|csv|html|png|txt|tar|safetensors|feather|md)$")
FORWARDS = {"devil": ["vlnotes.devil.explain.Devil.load"], "coca": ["vlnotes.coca.captions.Settings", "vlnotes.coca.captions.Settings.of"],
            "lavise": ["vlnotes.lavise.describer.Lavise"]} # what a describer hands its further options to


class Unknown(Exception):
    pass

def know(ok, sentence):
    if not ok: raise Unknown(sentence)

def text(path): return "\n\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"])

@cache
def source(module): return Path(importlib.import_module(module).__file__).read_text(encoding="utf-8")

@cache
def notebook(name):
    "An experiment's code and prose, and the modules that it imports or launches."
    path, known = launcher.experiments()[name], layout.modules(ROOT)
    s = text(path)
    used = {layout.own(i.name, known) for cell, *_ in layout.cells(path) if (tree := layout.code(cell)) for i in layout.imports(tree)}
    used |= set(re.findall(r'launch\("([\w.]+)"', s))
    return s + "".join(source(f"vlnotes.{m}") for m in sorted(used & set(known)))


# ---- what stands in backticks

def placeholder(word): return bool(re.fullmatch(r"[A-Z][A-Z0-9_:,.*]*", word))

def value(given, where, name):
    "A value is something to fill in, a number, a path or address, or a word that the code knows."
    if placeholder(given) or re.fullmatch(r"-?[\d.e,-]+|true|false|none|None|True|False|", given) or re.search(r"[/.\[{]", given): return
    for word in re.split(r"[,;]", given): know(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", where), f"{name} has no value {word!r}")

def attribute(obj, name, path):
    if inspect.isclass(obj) and dataclasses.is_dataclass(obj) and name in {f.name for f in dataclasses.fields(obj)}: return inspect.getattr_static(obj, name, None)
    if isinstance(obj, dict) and name in obj: return obj[name]
    know(hasattr(obj, name), f"{path} has no {name}")
    return getattr(obj, name)

def dotted(path):
    "The object of a dotted name, and the module it stands in."
    parts = path.split(".")
    for k in range(len(parts), 0, -1):
        try: module, obj = (m := ".".join(parts[:k])), importlib.import_module(m)
        except ModuleNotFoundError as e:
            if e.name and not path.startswith(e.name): raise # something else is missing
            continue
        for i, p in enumerate(parts[k:]): obj = attribute(obj, p, ".".join(parts[:k + i]))
        return obj, module
    raise Unknown(f"there is no {path}")

def call(target):
    "`vlnotes.module.name(a=, b=1)`."
    path, _, rest = target.partition("(")
    obj, module = dotted(path)
    if not rest: return module
    know(callable(obj) and rest.endswith(")"), f"{target} cannot be called")
    args = ast.parse("f(" + re.sub(r"=\s*(?=[,)])", "=...", rest), mode="eval").body
    know(not args.args, f"{target} holds an argument without a name")
    takes = inspect.signature(obj).parameters
    for k in args.keywords:
        know(k.arg in takes and takes[k.arg].kind is not inspect.Parameter.VAR_KEYWORD, f"{path} takes no {k.arg}")
        v = ast.literal_eval(k.value)
        if isinstance(v, str) and not placeholder(v): value(v, source(module), f"{path}({k.arg})")
    return module

def params_of(name): return {k: comment for k, _, comment in launcher.parameters(launcher.find_notebook(name))}

def options_of(cmd, ctx):
    "{spelling: parameter} of a command's options."
    return {s: p for p in cmd.params if isinstance(p, click.Option) for s in (*p.opts, *p.secondary_opts)} | {s: None for s in ctx.help_option_names}

def command(line):
    "A command line: its positionals and options, each looked up. Gives the texts of what it runs."
    words = shlex.split(line)[1:]
    know(words and words[0] in main.commands, f"there is no command {line!r}")
    name, words = words[0], words[1:]
    cmd, free, given = main.commands[name], [], []
    known = options_of(cmd, click.Context(cmd))
    while words:
        w = words.pop(0)
        if not w.startswith("-") or w == "-": free.append(w); continue
        know(w in known, f"`vlnotes {name}` has no option {w}")
        p = known[w]
        flag = p is None or p.is_flag
        know(flag or words, f"{w} in {line!r} has no value")
        given.append((w, None if flag else words.pop(0)))
    most = [p for p in cmd.params if isinstance(p, click.Argument)]
    know(len(free) <= len(most) or any(p.nargs < 0 for p in most), f"{line!r} has {len(free)} words for {len(most)} places")
    pairs = [v.partition("=")[::2] for o, v in given if o in ("-o", "-p")]
    return {"describe": describe, "run": run, "data": data, "import": import_, "step": step}.get(name, lambda *a: [source("vlnotes.cli"), source("vlnotes.runs")])(free, dict(given), pairs)

def describe(free, given, pairs):
    by = given.get("--by", "devil")
    known = {e.name: e for e in entry_points(group="vlnotes.describers")}
    know(by in known, f"there is no describer {by!r}")
    make = known[by].load()
    takes = {k for k, p in inspect.signature(make).parameters.items() if p.kind is not p.VAR_KEYWORD}
    where = source(make.__module__)
    for f in FORWARDS.get(by, []): takes |= set(inspect.signature(obj := dotted(f)[0]).parameters); where += source(obj.__module__)
    if by == "coca": takes.add("paper")
    for k, v in pairs: know(k in takes, f"the describer {by} takes no {k}"); value(v, where, k)
    return [source(f"vlnotes.{m}") for m in ("describe", "report", "notes", "runs", "cli")] + [where]

def run(free, given, pairs):
    if not free or placeholder(free[0]): know(not pairs, "parameters of no experiment"); return [source("vlnotes.launcher"), source("vlnotes.runs")]
    if free[0].endswith(".ipynb"): free = [Path(free[0]).stem, *free[1:]] # a copy
    know(free[0] in launcher.experiments(), f"there is no experiment {free[0]!r}")
    takes, where = params_of(free[0]), notebook(free[0])
    for k, v in pairs: know(k in takes, f"{free[0]} has no parameter {k}"); value(v, where, k)
    if preset := given.get("--preset"): know(f'"{preset}"' in takes["preset"] + ' "small"', f"{free[0]} has no preset {preset}")
    return [where, source("vlnotes.launcher"), source("vlnotes.runs")]

def data(free, given, pairs):
    if not free or placeholder(free[0]): know(not pairs, "options of no data set"); return [source("vlnotes.fetch")]
    d = fetch._find(free[0]) if free[0] in {e.name for e in entry_points(group="vlnotes.datasets")} | set(fetch.DATASETS) else None
    know(d is not None, f"there is no data set {free[0]!r}")
    where = source("vlnotes.fetch") + "".join(source(f.__module__) for f in (d.make, d.check) if f) + "\n".join([*d.layout, *(f.url for f in d.files), *(f.dest for f in d.files)])
    for k, v in pairs: know(k in d.options, f"{free[0]} has no option {k}"); value(v, where + (ROOT / "data" / "README.md").read_text(encoding="utf-8"), k)
    return [where]

def import_(free, given, pairs):
    known = {e.name: e for e in entry_points(group="vlnotes.importers")}
    know(free and free[0] in known, f"there is no importer {free[:1]}")
    convert = known[free[0]].load()
    takes, where = list(inspect.signature(convert).parameters)[2:], source(convert.__module__)
    for k, v in pairs: know(k in takes, f"the importer {free[0]} has no option {k}"); value(v, where, k)
    return [where, *(source(f"vlnotes.{free[0]}.{p.stem}") for p in sorted((ROOT / "vlnotes" / free[0]).glob("*.py")) if p.stem != "__init__")]

def step(free, given, pairs):
    if free and placeholder(free[0]): return [source("vlnotes.runs")]
    know(free and callable(getattr(dotted(f"vlnotes.{free[0]}")[0], "step", None)), f"vlnotes.{free[:1]} is no step")
    return [source(f"vlnotes.{free[0]}")]

def encoder(target):
    kind, _, name = target.partition("/")
    name = re.split(r"[?@]", name)[0]
    know(kind in backbones.SOURCES, f"there is no source of encoders {kind!r}")
    if placeholder(name) or kind == "run": return
    if kind == "timm":
        import timm
        know(timm.is_model(name.split(".")[0]), f"timm has no {name}")
    if kind == "zoo":
        from vlnotes import zoo
        know(name in zoo.table(), f"the zoo has no {name}")
    if kind == "torchvision":
        from torchvision import models
        know(name in models.list_models(), f"torchvision has no {name}")
    if kind == "open_clip": value(name, source("vlnotes.backbones") + source("vlnotes.coca.layers") + "".join(source(f"vlnotes.{m}.original") for m in ("devil", "villa", "coca")), target)

@cache
def everything(): return "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "vlnotes").rglob("*.py")))

def resolve(target, beside=()):
    "Look up one thing in backticks; `beside` is what else its cell names. Gives the texts in which it speaks of files."
    if target == "vlnotes": return []
    if m := re.fullmatch(r"vlnotes\[(\w+)\]", target):
        cp = ConfigParser(delimiters=["="], interpolation=None)
        cp.read(ROOT / "settings.ini", encoding="utf-8")
        know(f"{m[1]}_requirements" in cp["DEFAULT"], f"there is no extra {m[1]}"); return []
    if target.startswith("vlnotes "): return command(target)
    if target.startswith("vlnotes."): return [source(call(target))]
    if target.startswith("$"): know(re.search(rf'["\']{re.escape(target[1:])}["\']', everything()), f"nothing reads {target}"); return []
    if SUFFIX.search(target):
        where = "\n".join(t for b in beside for t in resolve(b))
        know(where, f"{target} stands alone: the cell does not say what writes or reads it")
        for part in target.split("/"):
            if not placeholder(part): know(re.search(rf"(?<![\w-]){re.escape(part)}(?![\w-])", where), f"nothing named beside {target} spells {part}")
        return []
    if "/" in target: encoder(target); return []
    raise Unknown(f"{target!r} is none of the forms that are looked up")


# ---- pages

def ticks(cell): return re.findall(r"`([^`]+)`", cell)

def row(line): return [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]

def tables(md):
    "Rows of all tables of a page, each with its line."
    out, lines = [], md.splitlines()
    for i, line in enumerate(lines[:-1]):
        if not line.startswith("|") or not re.fullmatch(r"\|[\s:|-]+\|?", lines[i + 1]): continue
        know(row(line) == HEAD, f"a table has the columns {row(line)}")
        for k in range(i + 2, len(lines)):
            if not lines[k].startswith("|"): break
            out.append((lines[k], row(lines[k])))
    return out

def check_row(cells):
    know(len(cells) == 3, f"a row has {len(cells)} cells, not three")
    old, here, why = cells
    know(old, "a row names nothing old")
    found = ticks(here)
    if here == "none": know(len(re.findall(r"[^\W\d_]{2,}", why)) >= 3, f"{old}: there is none, and no reason"); return
    know(found, f"{old}: neither a name in backticks nor `none`: {here!r}")
    for t in found: resolve(t, [b for b in found if not SUFFIX.search(b)])

@cache
def rows(page): return tables(text(page))

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_new_name_of_the_tables_is_there(page):
    bad = []
    for line, cells in rows(page):
        try: check_row(cells)
        except Unknown as e: bad.append(f"{e}\n    {line}")
    assert not bad, "\n".join(bad)
    assert len(rows(page)) > 30

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_new_name_of_the_prose_is_there(page):
    md, bad = text(page), []
    said = {t for t in ticks(re.sub(r"```.*?```", "", md, flags=re.S)) if re.match(r"vlnotes[ .\[]", t)}
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", md, re.S)).replace("\\\n", " ")
    lines = {x.split("#")[0].strip() for x in blocks.splitlines() if x.startswith("vlnotes ")}
    assert lines, "the page shows no command"
    for t in sorted(said | lines):
        try: resolve(t)
        except Unknown as e: bad.append(f"{e}: {t}")
    assert not bad, "\n".join(bad)

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_no_old_name_has_two_rows(page):
    seen = [cells[0] for _, cells in rows(page)]
    assert not {o for o in seen if seen.count(o) > 1}

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_of_the_guide_is_prose_and_tables(page):
    doc = json.loads(page.read_text(encoding="utf-8"))
    assert {c["cell_type"] for c in doc["cells"]} == {"markdown"}
    assert doc["metadata"]["kernelspec"]["name"] == "python3"
    assert len({c["id"] for c in doc["cells"]}) == len(doc["cells"])
    first = "".join(doc["cells"][0]["source"]).splitlines()
    assert first[0].startswith("# Coming from ") and any(x.startswith("> ") for x in first[1:3])


def shown(md):
    "The commands that a text shows: lines of its blocks up to a comment, and what stands in backticks."
    blocks = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", md, re.S)).replace("\\\n", " ")
    found = [re.split(r"\s{2,}| #", line)[0] for line in blocks.splitlines()] + [" ".join(t.split()) for t in ticks(re.sub(r"```.*?```", "", md, flags=re.S))]
    for line in found:
        for part in line.split("&&"):
            words = part.split()
            while words and words[-1].startswith("-"): words.pop() # "`vlnotes run -f`", as prose says it
            if words[:1] == ["vlnotes"] and len(words) > 1: yield " ".join(words)

TEXTS = [ROOT / f for f in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")] + layout.notebooks(ROOT)

def test_every_command_that_a_text_shows_is_there():
    bad, n = [], 0
    for path in TEXTS:
        md = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
        for line in dict.fromkeys(shown(md)):
            n += 1
            try: resolve(line)
            except (Unknown, ValueError) as e: bad.append(f"{path.relative_to(ROOT)}: {line}: {e}")
    assert not bad, "\n".join(bad)
    assert n > 200


# ---- what the package itself knows of the originals has a row

def old(page): return {t for _, cells in rows(GUIDE / f"coming_{page}.ipynb") for t in ticks(cells[0])}

def test_the_flags_that_the_importer_of_devil_knows_have_rows():
    from vlnotes.devil.original import FLAGS
    assert not set(FLAGS) - {t.lstrip("-") for t in old("devil")}

def test_the_sets_and_groups_of_milannotations_have_rows():
    from vlnotes.devil.milan import GROUPS, SETS
    assert not {*SETS, *GROUPS} - old("devil")

def test_the_released_encoders_and_the_catalogue_of_lgssl_have_rows():
    from vlnotes.lgssl.catalogue import CATALOGUE, NO_METRIC
    from vlnotes.lgssl.original import KINDS, RELEASED
    assert not {*RELEASED, *CATALOGUE, *NO_METRIC} - old("lgssl")
    for prefix in (k[1] for k in KINDS.values() if k[1]): assert prefix in old("lgssl")

def test_the_settings_of_the_originals_captions_have_rows():
    for k in ("seq_len", "min_seq_len", "temperature", "top_k", "top_p", "repetition_penalty"): assert k in old("coca")


# ---- the look-up can fail

WRONG = ["vlnotes descibe", "vlnotes describe --by devl", "vlnotes describe --modle RUN", "vlnotes describe --by coca -o seqlen=40", "vlnotes describe --by coca -o method=gredy",
         "vlnotes describe --model", "vlnotes run devil_trian", "vlnotes run devil_train -p learning_rate=1", "vlnotes run devil_train -p tokens=clas", "vlnotes run devil_train --preset large",
         "vlnotes run devil_train devil_captions", "vlnotes run -p steps=3", "vlnotes data cc33m", "vlnotes data cc3m -o limits=3", "vlnotes import devl FILE --out DIR", "vlnotes import devil FILE -o lmm=X", "vlnotes import lavise FILE -o draw=wth",
         "vlnotes.nowhere", "vlnotes.devil.translator.DevilConfig.token_drop", "vlnotes.devil.translator.DevilConfig(tokens=\"clas\")", "vlnotes.decode.decode(beam=4)",
         "vlnotes.decode.decode(4)", "vlnotes.decode.Decoded.ids(x=)", "zoo/convnext", "time/resnet50", "timm/resnet5000", "torchvision/resnet19", "open_clip/rn5", "$VLNOTES_DATUM", "vlnotes[every]",
         "metrics.json", "greedy", "vlnotes explore --prot 3", "vlnotes cite devil coca"]

@pytest.mark.parametrize("target", WRONG)
def test_a_wrong_name_is_found(target):
    with pytest.raises((Unknown, SyntaxError)): resolve(target)

def test_a_file_that_nothing_named_beside_it_writes_is_found():
    resolve("RUN/translator/config.json", ["vlnotes run devil_train"])
    for name in ("RUN/translator/configs.json", "RUN/translators/config.json", "onfig.json"):
        with pytest.raises(Unknown): resolve(name, ["vlnotes run devil_train"])

@pytest.mark.parametrize("cells", [["`a`", "", ""], ["`a`", "none", ""], ["`a`", "none", "no use"], ["", "`vlnotes describe`", ""], ["`a`", "the command line", "in words"], ["`a`", "`vlnotes describe`"]])
def test_an_empty_row_is_found(cells):
    with pytest.raises(Unknown): check_row(cells)

def spoilt(t):
    "One letter more in each name of a target."
    if t.startswith("vlnotes "):
        words = shlex.split(t)
        for i, w in enumerate(words[1:], 1):
            k, eq, v = w.partition("=")
            if placeholder(k) or "/" in k and not eq or words[i - 1] in ("--out", "--model", "--layers", "--units", "--phrase", "--encoder", "--words", "--device", "--batch", "--n", "--nproc", "-f", "--data-root", "--copy"): continue
            if words[1] in ("describe", "explore", "cite") and i > 1 and not w.startswith("-") and words[i - 1] not in ("--by", "-o"): continue
            if words[1] == "import" and i > 2 and not w.startswith("-") and words[i - 1] != "-o": continue # the reader's own file
            if re.fullmatch(r"[\d.,-]+", w): continue
            yield shlex.join([*words[:i], k + "q" + eq + v, *words[i + 1:]])
    elif t.startswith("vlnotes."):
        path, paren, rest = t.partition("(")
        yield path + "q" + paren + rest
        for m in re.finditer(r"(\w+)=", rest): yield path + paren + rest[:m.end(1)] + "q" + rest[m.end(1):]

@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_name_spoilt_by_a_letter_is_found(page):
    n, missed = 0, []
    for t in sorted({t for _, cells in rows(page) for t in ticks(cells[1])}):
        for wrong in spoilt(t):
            n += 1
            try: resolve(wrong); missed.append(wrong)
            except (Unknown, SyntaxError): pass
    assert n > 40 and not missed, missed
