"""What a module offers, read from its source without importing it, and written as Sphinx objects in markdown.

A signature keeps names and defaults; types and the comment behind each argument ("docments") go into a table below it.
"""
import ast
import inspect
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Param:
    "One argument or field."
    name: str # with its stars
    type: str = ""
    default: str | None = None # None where it must be given
    about: str = ""


@dataclass
class Entry:
    "A function, class or method."
    kind: str # function, class, method, property
    name: str # qualified within the module: `Notes.filter`
    module: str # `vlnotes.notes`
    lines: tuple[int, int] # first and last in the module's file
    params: list[Param] = field(default_factory=list)
    returns: str = ""
    result: str = "" # the comment on what comes back
    doc: str = ""
    bases: tuple[str, ...] = ()
    options: tuple[str, ...] = () # classmethod, staticmethod, async
    members: list["Entry"] = field(default_factory=list)
    fields: bool = False # a dataclass or named tuple, whose arguments are its fields

    @property
    def full(self): return f"{self.module}.{self.name}"


def comments(source): # line -> comment
    "Comments of a file by line; the marks of nbdev and of linters are no prose."
    found = {}
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type != tokenize.COMMENT: continue
        words = re.sub(r"\s*(noqa|type: ignore|pragma:).*$", "", t.string.lstrip("#").strip())
        if words and not words.startswith(("%%", "|")): found[t.start[0]] = words
    return found


def arguments(node, said, skip=0): # of a function, without the first `skip`
    "The arguments of a function with types, defaults and comments; bare `*` and `/` are kept as arguments without a name's meaning."
    a, made = node.args, []
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    def one(arg, default, stars=""):
        made.append((Param(stars + arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", ast.unparse(default) if default else None),
                     max(arg.end_lineno, default.end_lineno if default else 0)))
    for k, (arg, d) in enumerate(zip(plain, defaults)):
        if k >= skip: one(arg, d)
        if a.posonlyargs and k == len(a.posonlyargs) - 1 and k >= skip: made.append((Param("/"), -1))
    if a.vararg: one(a.vararg, None, "*")
    elif a.kwonlyargs: made.append((Param("*"), -1))
    for arg, d in zip(a.kwonlyargs, a.kw_defaults): one(arg, d)
    if a.kwarg: one(a.kwarg, None, "**")
    ends = node.returns.end_lineno if node.returns else None
    for k, (p, line) in enumerate(made): # a comment belongs to the last argument on its line; on the line of the result, to that
        later = any(n == line for _, n in made[k + 1:])
        if line in said and not later and line != ends and not (line == node.lineno == node.body[0].lineno): p.about = said[line]
    return [p for p, _ in made]


def result(node, said):
    "What is said about the value that comes back: the comment on the line where the signature ends."
    line = node.returns.end_lineno if node.returns else node.lineno
    one_liner = node.body[0].lineno == node.lineno
    if not node.returns and not one_liner: return ""
    return said.get(line, "")


def written(annotation):
    "An annotation as it is read; one in quotation marks without them."
    if annotation is None: return ""
    return annotation.value if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str) else ast.unparse(annotation)


def decorators(node): return [ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list]


def function(node, said, module, owner="", patched=False):
    "The entry of a function, or of a method of `owner`."
    marks = decorators(node)
    kind = "property" if {"property", "cached_property"} & set(marks) else "method" if owner else "function"
    options = tuple(k for k in ("classmethod", "staticmethod") if k in marks)
    skip = int(bool(owner) and "staticmethod" not in marks)
    return Entry(kind, f"{owner}.{node.name}" if owner else node.name, module, (node.lineno, node.end_lineno), arguments(node, said, skip),
                 written(node.returns), result(node, said), ast.get_docstring(node) or "", (),
                 (*options, *(["async"] if isinstance(node, ast.AsyncFunctionDef) else [])))


def class_(node, said, module):
    "The entry of a class: its fields or the arguments of `__init__`, and the public methods that have something to say."
    bases = tuple(b for b in map(ast.unparse, node.bases) if b not in ("object", "Protocol"))
    e = Entry("class", node.name, module, (node.lineno, node.end_lineno), doc=ast.get_docstring(node) or "", bases=bases)
    if "dataclass" in decorators(node) or "NamedTuple" in bases:
        e.fields = True
        for n in node.body:
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not ast.unparse(n.annotation).startswith("ClassVar"):
                e.params.append(Param(n.target.id, ast.unparse(n.annotation), ast.unparse(n.value) if n.value else None, said.get(n.end_lineno, "")))
    for n in node.body:
        if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef): continue
        if n.name == "__init__":
            e.params = arguments(n, said, 1)
            if own := ast.get_docstring(n): e.doc = f"{e.doc}\n\n{own}".strip()
        elif not n.name.startswith("_") or n.name == "__call__":
            m = function(n, said, module, node.name)
            if m.doc or m.result or any(p.about for p in m.params): e.members.append(m)
    return e


def patch_of(node):
    "The class a `@patch` function is added to, or an empty string."
    if "patch" not in decorators(node) or not node.args.args or not node.args.args[0].annotation: return ""
    return ast.unparse(node.args.args[0].annotation).strip("'\"")


def read(path, module):
    "The public functions and classes of a module's file, by qualified name."
    source = Path(path).read_text(encoding="utf-8")
    said, found = comments(source), {}
    for n in ast.parse(source).body:
        if isinstance(n, ast.ClassDef): found[n.name] = class_(n, said, module)
        elif isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef):
            e = function(n, said, module, patch_of(n))
            found[e.name] = e
    return {k: e for k, e in found.items() if not any(p.startswith("_") for p in k.split("."))}


def imported(path, lib="vlnotes"):
    "What a module brings in from the library: local name -> full name."
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {a.asname or a.name: f"{n.module}.{a.name}" for n in tree.body if isinstance(n, ast.ImportFrom) and (n.module or "").startswith(lib + ".") for a in n.names}


# ---- as markdown

def outside(s, change):
    "Apply `change` to the parts of a text that are no code."
    return "".join(p if k % 2 else change(p) for k, p in enumerate(re.split(r"(```.*?```|``.*?``|`[^`]*`)", s, flags=re.S)))


def prose(s): return outside(s, lambda t: t.replace("<", "&lt;").replace("$", r"\$")) # a docstring
def remark(s): return outside(" ".join(s.split()), lambda t: re.sub(r"([*|$])", r"\\\1", t.replace("<", "&lt;"))).replace("`|", "`\\|") # a comment


def code(s):
    "A bit of code in a table; a bar would end the column."
    ticks = "``" if "`" in s else "`"
    return f"{ticks}{' '.join(s.split())}{ticks}".replace("|", r"\|") if s else ""


def told(e): return any(p.about for p in e.params)


def signature(e):
    "Name and arguments with defaults; with types too where no table follows that holds them. A default of many letters is left out."
    def one(p):
        typed = bool(p.type) and not told(e)
        d = None if p.default is None else " ".join(p.default.split())
        value = "" if d is None else f"{' = ' if typed else '='}{d if len(d) <= 40 else '...'}"
        return p.name + (f": {' '.join(p.type.split())}" if typed else "") + value
    name = e.name.rpartition(".")[2] if e.kind != "class" else e.name
    if e.kind == "property" or e.kind == "class" and not e.params: return name
    back = f" -> {' '.join(e.returns.split())}" if e.returns and e.returns != "None" and e.kind != "class" else ""
    return f"{name}({', '.join(map(one, e.params))}){back}"


def table(e):
    "Arguments with type, default and comment; empty where the comments say nothing."
    if not told(e): return ""
    rows = [p for p in e.params if p.name not in ("*", "/")]
    lines = [[f"`{p.name}`", code(p.type), code(p.default or ""), remark(p.about)] for p in rows]
    if e.result: lines.append(["*returns*", code(e.returns), "", remark(e.result)])
    keep = [k for k in range(4) if k == 0 or any(row[k] for row in lines)]
    head = ["Field" if e.fields else "Argument", "Type", "Default", "What it is"]
    out = [[head[k] for k in keep], ["---"] * len(keep), *([row[k] for k in keep] for row in lines)]
    return "\n".join("| " + " | ".join(r) + " |" for r in out)


def markdown(e, link=lambda s: s, depth=0):
    "The entry as a Sphinx object with its docstring, its table and its members; `link` turns names in prose into references."
    inner = "\n\n".join(markdown(m, link, depth + 1) for m in e.members)
    fence = ":" * (4 if e.members else 3)
    owner = e.name.rpartition(".")[0] + "." if depth == 0 and "." in e.name else "" # a method that another cell adds to its class
    head = [f"{fence}{{py:{e.kind}}} {owner}{signature(e)}", f":module: {e.module}"]
    if e.kind == "property" and e.returns: head.append(f":type: {' '.join(e.returns.split())}")
    head += [f":{o}:" for o in e.options]
    shown = table(e)
    after = f"*Returns* {remark(e.result)}" if e.result and not shown else ""
    base = f"Built on `{'`, `'.join(e.bases)}`." if e.bases and e.bases != ("NamedTuple",) and not e.doc else ""
    return "\n".join([*head, "", "\n\n".join(s for s in (link(prose(inspect.cleandoc(e.doc))), base, shown, after, inner) if s), fence])


def names(entries): # every qualified name -> full name
    "All names of a module that can be linked to, members too."
    return {m.name: m.full for e in entries.values() for m in (e, *e.members)}
