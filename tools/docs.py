"""Build the documentation from the notebooks: `python tools/docs.py [--out _site]`. No network, nothing is executed; a warning or a broken link is an error.

nbdev's processor turns each notebook's exported cells into places for their API, `pages.convert` makes MyST notebooks of them with the stored outputs,
`pages.results` adds the kept results to the experiments, `pages.figures` draws them, and Sphinx with MyST-NB and Furo makes the site. The order of pages is in
`pages/contents.toml`. Needs the extra `docs`.
"""
import argparse
import json
import re
import shutil
import sys
import time
import tomllib
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pages import convert, extra, figures, results

HERE = Path(__file__).resolve().parent
NEEDED = {"sphinx": "docs", "myst_nb": "docs", "furo": "docs", "sphinx_copybutton": "docs", "sphinx_design": "docs", "latex2mathml": "docs", "nbdev": "docs"}


def settings(root):
    cp = ConfigParser(delimiters=["="], interpolation=None)
    cp.read(root/"settings.ini", encoding="utf-8")
    return cp["DEFAULT"]


def notebooks(root):
    "Every notebook below nbs/, by its path in the checkout."
    nbs = root/"nbs"
    return {p.relative_to(root).as_posix(): p for p in sorted(nbs.rglob("*.ipynb")) if not any(q.startswith(("_", ".")) for q in p.relative_to(nbs).parts)}


def page_of(path):
    "nbs/devil/01_translator.ipynb -> devil/translator; experiments, tutorials and guide keep their names."
    return re.sub(r"(^|/)\d+_", r"\1", path.removeprefix("nbs/").removesuffix(".ipynb"))


def ordered(names, first):
    "Names in the order of `first`, the others behind them."
    return [n for n in first if n in names] + sorted(n for n in names if n not in first)


def grouped(pages, contents):
    "The groups of the library with their pages; a folder nobody named is a group of its own, a module nobody named is an error."
    top, groups, left = {p for p in pages if "/" not in p}, [], {p for p in pages if "/" in p}
    for g in contents["library"]:
        if "folder" in g: mine = [p for p in pages if p.startswith(g["folder"] + "/")]; left -= set(mine)
        else: mine = [m for m in g["modules"] if m in top]; top -= set(mine)
        if mine: groups.append({**g, "pages": mine})
    if top: raise SystemExit(f"docs: no group of tools/pages/contents.toml has {', '.join(sorted(top))}: name it in one")
    for folder in sorted({p.split("/")[0] for p in left}):
        groups.append({"title": folder, "about": f"The method `{folder}`.", "folder": folder, "pages": [p for p in pages if p.startswith(folder + "/")]})
    return groups


def write(source, root):
    "Write Sphinx's source folder; full name -> address of its source for every object."
    from pages import sphinx_ext
    cfg, contents = settings(root), tomllib.loads((HERE/"pages/contents.toml").read_text(encoding="utf-8"))
    site, books = convert.Site(root, cfg["git_url"], cfg["branch"]), notebooks(root)
    lib = cfg["lib_path"]
    kinds = {}
    for path in books:
        folder = path.split("/")[1] if path.count("/") > 1 else ""
        kinds[path] = folder if folder in ("experiments", "tutorials", "guide") else "index" if path == "nbs/index.ipynb" else "library"
        site.pages[path] = page_of(path)
    site.pages |= {"data/README.md": "data-sets", "CHANGELOG.md": "changelog", "CONTRIBUTING.md": "contributing", f"{lib}/references.bib": "citing",
                   "nbs/experiments": "experiments", "nbs/experiments/results": "experiments", "nbs/tutorials": "tutorials"}
    modules = {path: f"{lib}.{page_of(path).replace('/', '.')}" for path, k in kinds.items() if k == "library"}
    site.page_of = {module.removeprefix(f"{lib}."): site.pages[path] for path, module in modules.items()}
    for module in modules.values(): site.add_module(root/f"{module.replace('.', '/')}.py", module)
    kept = results.kept(root/"nbs/experiments/results")
    drawn = figures.draw(kept, source/"images")
    for found in kept.values():
        for p, _ in found:
            (source/"results").mkdir(exist_ok=True)
            shutil.copy2(p, source/"results")
    told = {}
    for path, file in books.items():
        raw = json.loads(file.read_text(encoding="utf-8"))
        told[path] = (raw, *convert.summary(raw))
        page, module = site.pages[path], modules.get(path, "")
        made = convert.process(file)
        where = f"Notebook [`{path}`]({site.blob(path)})" + (f" · module [`{module}`]({site.blob(module.replace('.', '/') + '.py')})" if module else "")
        nb = convert.convert(made, site, path, page, module, "" if kinds[path] == "index" else f":::{{div}} origin\n{where}\n:::")
        if kinds[path] == "experiments":
            parts = results.page(raw, kept.get(file.stem, []), drawn, lambda p: f"../results/{p.name}")
            at = next(k for k, c in enumerate(nb["cells"]) if c["cell_type"] == "markdown") + 1
            more = [{"cell_type": "markdown", "metadata": {}, "id": f"r{k}", "source": s} for k, s in enumerate([*parts, "## The notebook"])]
            for c in nb["cells"][at:]:
                if c["cell_type"] == "code" and c["source"].count("\n") > 14: c["metadata"]["tags"].append("hide-input") # long work is folded away
                if c["cell_type"] == "markdown": c["source"] = convert.outside_fences(c["source"], lambda s: re.sub(r"^##(?=\s)", "###", s, flags=re.M))
            nb["cells"][at:at] = more
        if kinds[path] == "index": front = nb; continue
        target = source/f"{page}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(nb), encoding="utf-8")
    def of(kind, order):
        mine = {Path(p).stem: p for p, k in kinds.items() if k == kind}
        return [(site.pages[mine[n]], told[mine[n]][1], told[mine[n]][2]) for n in ordered(mine, order)]
    tutorials, guide, experiments = of("tutorials", contents["tutorials"]), of("guide", contents["guide"]), of("experiments", contents["experiments"])
    pages = {}
    library = grouped([site.pages[p] for p in modules], contents)
    by_page = {site.pages[p]: told[p] for p in modules}
    for g in library:
        g["page"] = f"library/{re.sub('[^a-z]+', '-', g['title'].lower()).strip('-')}"
        g["pages"] = [(p, by_page[p][1], by_page[p][2]) for p in g["pages"]]
        pages[g["page"]] = extra.overview(g["title"], g["about"], [(f"../{p}", t, s) for p, t, s in g["pages"]], ("module", "what it is"))
    pages["library"] = extra.library(library)
    pages["tutorials"] = extra.overview("Tutorials", "Stories on the small world: each runs from top to bottom in under a minute on two CPU cores, without network, and is a notebook you can copy: "
                                        "`vlnotes experiments --copy tutorials FOLDER`.", tutorials, ("tutorial", "what it shows"))
    pages["experiments"] = extra.overview("Experiments", "Notebooks that make the numbers: each has presets, runs headless with `vlnotes run NAME`, and keeps the result of its last published run here. "
                                          "`vlnotes experiments` lists them on your machine.", experiments, ("experiment", "what it does"))
    coming = [g for g in guide if g[0].startswith("guide/coming_")]
    others = [g for g in guide if g not in coming and g[0] not in ("guide/gallery", "guide/limits")]
    if coming: pages["coming"] = extra.overview("Coming from the original", "For those who used one of the five original systems: its commands, flags, configuration keys and files, and what they are called here.", coming, ("system", "what the page holds"))
    pages["verified"] = extra.verified(told["nbs/index.ipynb"][0], site)
    def read(path): return (root/path).read_text(encoding="utf-8")
    for path in ("data/README.md", "CHANGELOG.md", "CONTRIBUTING.md"): pages[site.pages[path]] = extra.document(read(path), site, path, site.pages[path], f"*This page is [`{path}`]({site.blob(path)}).*")
    methods = [("vlnotes", "The software"), *((g["folder"], g["title"]) for g in contents["library"] if "folder" in g), ("trust", "Trust in words")]
    pages["citing"] = extra.citing(read(f"{lib}/references.bib"), methods)
    from vlnotes.cli import main as command
    pages["commands"] = extra.commands(command)
    has = {g[0] for g in guide}
    trees = [("Learn", ["tutorials", *[p for p in ("guide/gallery",) if p in has], *(p for p, *_ in others), *(["coming"] if coming else [])]), ("Look up", ["library", "commands", "data-sets"]),
             ("Results", ["experiments", "verified", *[p for p in ("guide/limits",) if p in has]]), ("Project", ["changelog", "citing", "contributing"])]
    for caption, tree in trees: front["cells"].append({"cell_type": "markdown", "metadata": {}, "id": f"t{caption[:4].lower().replace(' ', '')}", "source": extra.toctree(tree, caption)})
    (source/"index.ipynb").write_text(json.dumps(front), encoding="utf-8")
    for page, markdown in pages.items():
        (source/f"{page}.md").parent.mkdir(parents=True, exist_ok=True)
        (source/f"{page}.md").write_text(markdown, encoding="utf-8")
    for file, target in site.files.items():
        (source/target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/file, source/target)
    if site.broken: raise SystemExit("docs: " + "\n".join(site.broken))
    sphinx_ext.IMPORTS.update(site.imports)
    return {e.full: f"{site.blob(module.replace('.', '/') + '.py')}#L{e.lines[0]}-L{e.lines[1]}" for module, found in site.entries.items() for top in found.values() for e in (top, *top.members)}


def sphinx(source, out, trees, cfg, jobs=1, quiet=True):
    "Run Sphinx; the number of its warnings, each of which is an error."
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils
    about = dict(project=cfg["title"], author=cfg["author"], project_copyright=cfg["copyright"], version=cfg["version"], release=cfg["version"], html_title=f"{cfg['title']} {cfg['version']}")
    with patch_docutils(str(HERE/"pages")), docutils_namespace():
        app = Sphinx(str(source), str(HERE/"pages"), str(out), str(trees), "html", confoverrides=about, status=None if quiet else sys.stdout, warning=sys.stderr, freshenv=True, parallel=jobs)
        app.build(force_all=True)
        return app._warncount


def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, default=Path("_site"), help="folder of the site; replaced")
    ap.add_argument("--root", type=Path, default=HERE.parent, help="the checkout")
    ap.add_argument("--work", type=Path, default=None, help="folder for what Sphinx reads; _site_src in the checkout by default")
    ap.add_argument("-j", "--jobs", type=int, default=1, help="processes of Sphinx")
    ap.add_argument("--verbose", action="store_true", help="show what Sphinx does")
    args = ap.parse_args(argv)
    import importlib.util
    if missing := [k for k in NEEDED if importlib.util.find_spec(k) is None]:
        raise SystemExit(f"docs: {', '.join(missing)} missing: pip install -e '.[{','.join(sorted({NEEDED[k] for k in missing}))}]'")
    from pages import sphinx_ext
    start, root = time.time(), args.root.resolve()
    source, out = (args.work or root/"_site_src").resolve(), args.out.resolve()
    if out.exists() and any(out.iterdir()) and not (out/"objects.inv").exists(): raise SystemExit(f"docs: {out} is no site built by this command: give an empty folder or remove it")
    built = source.parent/(source.name + ".build") # MyST-NB writes beside the site
    made, trees = built/"html", built/"trees"
    for p in (source, built): shutil.rmtree(p, ignore_errors=True)
    source.mkdir(parents=True)
    sphinx_ext.OBJECTS.update(write(source, root))
    middle = time.time()
    bad = sphinx(source, made, trees, settings(root), args.jobs, not args.verbose)
    if bad: raise SystemExit(f"docs: {bad} warnings, see above; {out} is as it was")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, out)
    shutil.rmtree(built)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {len(list(out.rglob('*.html')))} pages, {size / 1e6:.1f} MB, {time.time() - start:.0f} s ({middle - start:.0f} s to read the notebooks, {time.time() - middle:.0f} s Sphinx)")


if __name__ == "__main__": main()
