"""A notebook, as nbdev's processor leaves it, becomes a page for MyST-NB: one title, headings in order, links between pages.

Outputs are the stored ones; nothing is executed. What an exported cell defines is shown as the object it is (`api`), not as code.
"""
import copy
import re
from pathlib import Path, PurePosixPath

from pages import api

FENCE = re.compile(r"(^(?P<f>`{3,}|~{3,}|:{3,}).*?^(?P=f)[^\n]*$)", re.M | re.S)
LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<to>[^)\s]+)(?P<rest>[^)]*\))")
TAG = re.compile(r"(?P<head><(?:img|a)\s[^>]*?(?:src|href)=\")(?P<to>[^\"]+)(?P<rest>\")")
NAME = re.compile(r"(?<![`\w\]}\[])`([A-Za-z_][\w.]*)(\(\))?`(?!`)")
FILE = re.compile(r"\.(html|json|jsonl|png|md|py|ipynb|parquet|csv|tar|safetensors|txt)$") # `report.html` is a file, not a function
SHOW = re.compile(r"^show_doc\(([\w.]+)", re.M)


def text(v): return "".join(v) if isinstance(v, list) else v or ""


def outside_fences(markdown, change):
    "Apply `change` to what stands outside code fences and directives."
    return "".join(p if k % 3 == 1 else change(p) for k, p in enumerate(FENCE.split(markdown)) if k % 3 != 2)


class Site:
    "Which file becomes which page, and where every name of the library is explained."
    def __init__(self, root, git_url, branch="main"):
        self.root, self.git, self.branch = Path(root), git_url.rstrip("/"), branch
        self.pages = {} # path in the checkout -> page, without ending
        self.entries, self.imports = {}, {} # module -> {name: Entry}, {name: full name of what it imports from the library}
        self.page_of = {} # module, without the library's name -> page
        self.broken = [] # sentences
        self.files = {} # path in the checkout -> path below the site's source: pictures and downloads

    def add_module(self, path, module):
        self.entries[module], self.imports[module] = api.read(path, module), api.imported(path)
        self.known = {}

    def blob(self, path, kind=""):
        "The address of a file or folder of the repository."
        return f"{self.git}/{kind or ('tree' if (self.root/path).is_dir() else 'blob')}/{self.branch}/{path}"

    def file(self, page):
        "The file Sphinx reads for a page."
        if not hasattr(self, "books"): self.books = {p for f, p in self.pages.items() if f.endswith(".ipynb")}
        return page + (".ipynb" if page in self.books else ".md")

    def target(self, to, base, page):
        "Where a link written in a file of the folder `base` leads from `page`; says so in `broken` when it leads nowhere."
        if re.match(r"[a-z][a-z0-9+.-]*:|#|//", to, re.I): return to
        path, _, anchor = to.partition("#")
        parts = []
        for p in PurePosixPath(base, path).parts:
            if p == ".." and parts: parts.pop()
            elif p not in ("..", "."): parts.append(p)
        full = "/".join(parts)
        up = "../" * page.count("/")
        if full in self.pages: return f"{up}{self.file(self.pages[full])}{'#' + anchor if anchor else ''}"
        if not (self.root/full).exists():
            self.broken.append(f"{page}: the link to {to} leads nowhere")
            return to
        if Path(full).suffix in (".png", ".jpg", ".svg", ".gif"):
            self.files[full] = f"images/{Path(full).name}"
            return f"{up}images/{Path(full).name}"
        return self.blob(full)

    def links(self, markdown, base, page):
        "Links of a text, rewritten."
        def one(m): return m["head"] + self.target(m["to"], base, page) + m["rest"]
        return outside_fences(markdown, lambda s: TAG.sub(one, LINK.sub(one, s)))

    def resolve(self, name, module=""):
        "The full name of what a name in prose means, or None where that is not certain."
        name = name.removeprefix("vlnotes.")
        if (module, name) not in self.known: self.known[module, name] = self._resolve(name, module)
        return self.known[module, name]

    def _resolve(self, name, module):
        if not self.known or "all" not in self.known: # every name: full, module.name, name
            table = {}
            for m, entries in self.entries.items():
                short = m.removeprefix("vlnotes.")
                for n, full in api.names(entries).items():
                    for key in {f"{short}.{n}", f"{short.rpartition('.')[2]}.{n}", *([n] if re.search("[A-Z_]", n) else [])}: table.setdefault(key, set()).add(full)
            self.known["all"] = table
        own = api.names(self.entries.get(module, {}))
        if name in own: return own[name]
        head, _, rest = name.partition(".")
        if (full := self.imports.get(module, {}).get(head)):
            full = f"{full}.{rest}".rstrip(".")
            if full in {f for v in self.known["all"].values() for f in v}: return full
        found = self.known["all"].get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    def refer(self, markdown, module="", here=""):
        "Names in backticks that belong to the library become references to their explanation."
        def one(m):
            full = None if FILE.search(m[1]) else self.resolve(m[1], module)
            if full: return f"{{py:obj}}`{m[1]}{m[2] or ''} <{full}>`"
            page = self.page_of.get(m[1].removeprefix("vlnotes.")) if "." in m[1] else None
            return f"[`{m[1]}`]({'../' * here.count('/')}{self.file(page)})" if page else m[0]
        lines = lambda s: "\n".join(t if t.startswith("#") else NAME.sub(one, t) for t in s.split("\n"))
        return outside_fences(markdown, lambda s: "".join(p if k % 2 else lines(p) for k, p in enumerate(re.split(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\))", s))))


class Headings:
    "Levels in order: one title a page, no level left out."
    def __init__(self): self.last = 0

    def order(self, markdown):
        def one(m):
            level = len(m[1])
            level = max(2, min(level, self.last + 1)) if self.last else 1
            self.last = level
            return "#" * level + m[2]
        return outside_fences(markdown, lambda s: re.sub(r"^(#{1,6})(\s+\S)", one, s, flags=re.M))


def front(cell):
    "Title and description of a raw front matter cell as markdown; an empty text where it is none."
    lines = text(cell["source"]).strip().split("\n")
    if len(lines) < 2 or lines[0] != "---" or lines[-1] != "---": return ""
    said = dict(s.split(":", 1) for s in lines[1:-1] if ":" in s)
    said = {k.strip(): v.strip().strip("\"'") for k, v in said.items()}
    return f"# {said['title']}" + (f"\n\n> {said['description']}" if said.get("description") else "") if "title" in said else ""


def alternative(before):
    "What a picture shows, for those who cannot see it: the first sentence before it."
    plain = re.sub(r"[`*_>#\[\]]|\([^)]*\)|\{[^}]*\}", "", before).strip().split("\n\n")[-1]
    return re.split(r"(?<=[.!?])\s", " ".join(plain.split()))[0][:160]


def outputs(cell, site, base, page):
    "The stored outputs that a page shows. Raises ValueError for a stored error."
    kept = []
    for o in copy.deepcopy(cell.get("outputs", [])):
        if o["output_type"] == "error": raise ValueError(f"{page}: the stored output of a cell is an error: {o.get('evalue', '')}")
        if o["output_type"] == "stream" and o.get("name") == "stderr": continue
        data = o.get("data", {})
        for k in [k for k in data if k.startswith("application/vnd.jupyter")]: del data[k] # widgets need a kernel
        if "image/png" in data: data.pop("image/jpeg", None)
        if "text/markdown" in data: data["text/markdown"] = site.links(text(data["text/markdown"]), base, page)
        if data or o["output_type"] == "stream": kept.append(o)
    return kept


def convert(nb, site, source, page, module="", origin=""):
    """The page of a processed notebook, as a notebook for MyST-NB.

    `source` is the notebook's path in the checkout, `page` its page, `module` what it exports, `origin` a line below the title."""
    base, heads, cells, before = str(PurePosixPath(source).parent), Headings(), [], ""
    known, shown = site.entries.get(module, {}), set()
    def add(markdown): cells.append({"cell_type": "markdown", "metadata": {}, "id": f"c{len(cells)}", "source": markdown})
    def link(s): return site.refer(site.links(s, base, page), module, page)
    for c in in_order(nb["cells"], known):
        body = text(c["source"]).strip()
        if c["cell_type"] == "raw": body = front(c)
        if c["cell_type"] in ("markdown", "raw"):
            if not body: continue
            first = not heads.last
            body = link(heads.order(body))
            if first and heads.last:
                body = re.sub(r"^(# [^\n]+\n(?:\s*\n)?(?:>[^\n]*\n?)*)", lambda m: m[1].rstrip() + f"\n\n{origin}\n\n" if origin else m[1], body, count=1)
            add(body); before = body
            continue
        if m := SHOW.search(body):
            e = known.get(m[1])
            if e is None or m[1] in shown: continue
            shown.add(m[1])
            add(api.markdown(e, link))
            continue
        directives = set(re.findall(r"^#\s*\|\s*(.+?)\s*$", body, re.M))
        if {"include: false", "hide"} & directives: continue
        body = re.sub(r"^#\s*\|.*(\n|$)", "", body, flags=re.M).strip()
        kept = outputs(c, site, base, page)
        if not body and not kept: continue
        meta = {"tags": sorted({t for t in c.get("metadata", {}).get("tags", []) if t.startswith(("remove-", "hide-"))} | ({"remove-input"} if "echo: false" in directives else set()))}
        if any("image/png" in o.get("data", {}) for o in kept): meta["mystnb"] = {"image": {"alt": alternative(before) or page}}
        cells.append({"cell_type": "code", "metadata": meta, "id": f"c{len(cells)}", "source": body, "outputs": kept, "execution_count": None})
    if not heads.last: raise ValueError(f"{source} has no title: its first markdown cell begins with `# name`")
    return {"cells": cells, "nbformat": 4, "nbformat_minor": 5,
            "metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}}


def in_order(cells, known):
    "The processor writes the `show_doc` cells of one exported cell last name first; here they stand as the module defines them."
    out, run = [], []
    def line(c): e = known.get(SHOW.search(text(c["source"]))[1]); return e.lines[0] if e else 0
    for c in [*cells, None]:
        if c is not None and c["cell_type"] == "code" and SHOW.search(text(c["source"])): run.append(c); continue
        out += sorted(run, key=line) + [c]
        run = []
    return out[:-1]


def summary(nb):
    "Title and the `>` line of a notebook."
    for c in nb["cells"]:
        body = front(c) if c["cell_type"] == "raw" else text(c["source"])
        if c["cell_type"] != "code" and (m := re.search(r"^# (.+)$", body, re.M)):
            quote = re.search(r"^>\s*(.+(?:\n>\s*.+)*)", body, re.M)
            return m[1].strip(), re.sub(r"\n>\s*", " ", quote[1]).strip() if quote else ""
    return "", ""


def process(path):
    "The notebook as nbdev's processor leaves it: exported cells become `show_doc` cells, hidden ones go. Nothing is executed."
    from nbdev.process import NBProcessor
    from nbdev.processors import add_show_docs, filter_stream_, hide_, hide_line, populate_language, rm_export, rm_header_dash, strip_ansi
    p = NBProcessor(path, procs=[populate_language, add_show_docs, strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, hide_])
    p.process()
    kept = ("cell_type", "source", "metadata", "outputs")
    return {"cells": [{k: c[k] for k in kept if k in c} for c in p.nb.cells]}

