"Pages that no notebook holds: overviews, the command line, data, how to cite, what is verified."
import re

from pages.convert import Headings, text


def quoted(s, most=230): # a `>` line in a table
    s = " ".join(s.split()).replace("|", "\\|")
    return s if len(s) <= most else s[:most].rpartition(" ")[0] + " …"


def toctree(pages, caption="", hidden=True, depth=1):
    lines = [":::{toctree}", f":maxdepth: {depth}"]
    if hidden: lines.append(":hidden:")
    if caption: lines.append(f":caption: {caption}")
    return "\n".join([*lines, "", *pages, ":::"])


def overview(title, about, rows, head=("page", "what it is")):
    "A page that lists others: `rows` of (page, title, line), all in the same folder as this one or below."
    table = "\n".join(f"| {{doc}}`{t} <{p}>` | {quoted(s)} |" for p, t, s in rows)
    return f"# {title}\n\n{about}\n\n| {head[0]} | {head[1]} |\n| --- | --- |\n{table}\n\n{toctree([p for p, *_ in rows])}\n"


def library(groups):
    "The overview of the library: a heading and a table for every group."
    parts = ["# Library\n\nOne page per notebook; each defines, explains and tests one module of the same name. Below every page's prose stand the signatures with what each argument is, "
             "and a link to the source. {ref}`Every name <genindex>` is listed alphabetically."]
    for g in groups:
        table = "\n".join(f"| {{doc}}`{t} <{p}>` | {quoted(s)} |" for p, t, s in g["pages"])
        parts.append(f"## {g['title']}\n\n{g['about']}\n\n| module | what it is |\n| --- | --- |\n{table}")
    return "\n\n".join([*parts, toctree([g["page"] for g in groups])]) + "\n"


def document(markdown, site, source, page, origin=""):
    "A file of the repository as a page."
    base = source.rpartition("/")[0] or "."
    return site.refer(site.links(Headings().order(markdown), base, page), here=page) + (f"\n\n{origin}\n" if origin else "\n")


def section(nb, title):
    "The part of a notebook's markdown below a heading of level 2."
    body = "\n\n".join(text(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    m = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", body, re.M | re.S)
    if not m: raise ValueError(f"the front page has no section '{title}'")
    return m[1].strip()


VERIFIED = """# What is verified, and how

Four kinds of evidence stand behind a system here, and one is missing.

* **Parity**: with the same weights and inputs a system computes what its paper's formulas, and the public code of its authors, compute. The tests hold closed forms and
  small loops against the vectorised code; formats and key lists of the original checkpoints are read.
* **Synthetic truth**: on {doc}`drawn scenes <docmnist>` it is known what is where, so words are scored against it.
* **Baselines**: a constant text, other images' texts, no image at all, chance or the majority stand beside every score.
* **Invariants**: a row alone equals the row in a batch, a cache equals no cache, killed and resumed equals never killed.
* **Not there**: no published weights, no photographs, no GPU. {doc}`guide/limits` says what follows from that.

"""


def verified(nb, site):
    return VERIFIED + site.links(section(nb, "What is here"), "nbs", "verified") + "\n"


def commands(main):
    "The command line, from the command objects: every command with its arguments and options."
    import click
    parts = ["# Command line\n\nEvery command prints the same with `--help`. Bad input is one sentence and exit code 2."]
    def told(s): return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", escape(s))
    def escape(s): return " ".join((s or "").split()).replace("|", "\\|").replace("<", "&lt;")
    def walk(command, path):
        context = click.Context(command, info_name=path)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        parts.append(f"## `{path}`\n\n{told(command.help)}\n\n```sh\n{usage}\n```")
        rows = []
        for p in command.params:
            if isinstance(p, click.Argument) or p.name == "help": continue
            default = p.default if isinstance(p.default, str | int | float) and not isinstance(p.default, bool) and not p.required else ""
            name = ", ".join(p.opts) + ("" if p.is_flag else f" {p.make_metavar(context)}")
            rows.append(f"| `{escape(name)}` | {told(p.help)} | {f'`{default}`' if default not in ('', None) else ''} |")
        if rows: parts.append("| option | what it does | default |\n| --- | --- | --- |\n" + "\n".join(rows))
    for name in sorted(main.commands):
        if not main.commands[name].hidden: walk(main.commands[name], f"vlnotes {name}")
    return "\n\n".join(parts) + "\n"


def entries(bib):
    "The entries of a BibTeX file as (key, kind, fields, text)."
    found = []
    for m in re.finditer(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", bib, re.M | re.S):
        fields = {k: v.strip("{}") for k, v in re.findall(r"^\s*(\w+)\s*=\s*\{?(.*?)\}?,?\s*$", m[3], re.M)}
        found.append((m[2], m[1], fields, m[0]))
    return found


def citing(bib, methods):
    "How to cite: one line a work, its BibTeX folded below, by method."
    parts = ["# How to cite\n\nPlease cite the works whose methods you use, and the software. `vlnotes cite METHOD` prints the BibTeX below; the manifest of every run names what to cite in `cite`."]
    known, shown = entries(bib), set()
    for method, title in methods:
        works = [e for e in known if method in [k.strip() for k in e[2].get("keywords", "").split(",")] and e[0] not in shown]
        if not works: continue
        lines = []
        for key, _, f, _ in works:
            shown.add(key)
            about = f"{f.get('author', '')}. *{f.get('title', key)}*. {f.get('booktitle') or f.get('journal') or ''}"
            where = f" [{f['url'].removeprefix('https://')}]({f['url']})" if f.get("url") else ""
            lines.append(f"* {about.strip().rstrip('.')}{', ' if f.get('booktitle') or f.get('journal') else '. '}{f.get('year', '')}.{where}".replace("{", "").replace("}", ""))
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n\n:::{dropdown} BibTeX\n```bibtex\n" + "\n\n".join(e[3] for e in works) + "\n```\n:::")
    rest = [e for e in known if e[0] not in shown]
    if rest: parts.append("## Further works\n\n" + "\n".join(f"* {f.get('author', '')}. *{f.get('title', k)}*. {f.get('year', '')}.".replace("{", "").replace("}", "") for k, _, f, _ in rest)
                          + "\n\n:::{dropdown} BibTeX\n```bibtex\n" + "\n\n".join(e[3] for e in rest) + "\n```\n:::")
    return "\n\n".join(parts) + "\n"

