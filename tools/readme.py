"""Write README.md from nbs/index.ipynb: `python tools/readme.py [--check]`. Same notebook, same bytes; needs no package.

Markdown cells are taken as they are; code cells become fences, their stored outputs follow; directives, hidden cells and raw
cells are left out. Links relative to `nbs/` are made relative to the top folder. A picture in an output goes to nbs/images/.
"""
import argparse
import base64
import json
import re
import sys
from pathlib import Path

NOTE = "<!-- Generated from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"
HIDDEN = re.compile(r"^#\s*\|\s*(hide|default_exp\s+\S+|include:\s*false)\s*$", re.M)
DIRECTIVE = re.compile(r"^#\s*\|.*(\n|$)", re.M)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)|(<(?:img|a)\s[^>]*?(?:src|href)=\")([^\"]+)")
FENCE = re.compile(r"(^(```|~~~).*?^\2[^\n]*$)", re.M | re.S)


def text(v): return "".join(v) if isinstance(v, list) else v


def relink(markdown, base):
    "Links of a page in the folder `base` as links of a page in the top folder; code fences and addresses stay as they are."
    def one(m):
        head, to = (m[1], m[2]) if m[1] else (m[3], m[4])
        if re.match(r"[a-z][a-z0-9+.-]*:|#|/", to, re.I): return head + to
        parts = []
        for p in [*base.split("/"), *to.split("/")]:
            if p == ".." and parts: parts.pop()
            elif p not in (".", ""): parts.append(p)
        return head + "/".join(parts)
    return "".join(s if k % 3 == 1 else LINK.sub(one, s) for k, s in enumerate(FENCE.split(markdown)) if k % 3 != 2)


def fence(source, language=""):
    "A fence longer than any inside it."
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"^`{3,}", source, re.M)), default=0))
    return f"{ticks}{language}\n{source.rstrip()}\n{ticks}"


def output(out, images, base):
    "One stored output as markdown; of several forms the one that reads best on a page of text."
    if out["output_type"] == "stream": return fence(text(out["text"])) if out["name"] == "stdout" else None
    if out["output_type"] == "error": raise ValueError(f"the stored output of a cell is an error: {out.get('evalue', '')}")
    data = out.get("data", {})
    if "text/markdown" in data: return relink(text(data["text/markdown"]).strip(), base)
    if "image/png" in data:
        name = f"{base}/images/readme-{len(images) + 1}.png"
        images[name] = base64.b64decode(text(data["image/png"]))
        return f"![]({name})"
    return fence(text(data["text/plain"])) if "text/plain" in data else None


def readme(nb, base="nbs"):
    "The page and its pictures (name -> bytes) of a notebook given as a dict."
    page, images = [NOTE], {}
    for c in nb["cells"]:
        source = text(c["source"])
        if c["cell_type"] == "raw" or HIDDEN.search(source): continue
        if c["cell_type"] == "markdown": page.append(relink(source.strip(), base)); continue
        if not re.search(r"^#\s*\|\s*echo:\s*false", source, re.M) and (code := DIRECTIVE.sub("", source).strip()):
            page.append(fence(code, "python"))
        page += [o for o in (output(o, images, base) for o in c["outputs"]) if o]
    return "\n\n".join(p for p in page if p) + "\n", images


def main(argv=None):
    top = Path(__file__).resolve().parents[1]
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--check", action="store_true", help="write nothing; fail when a file would change")
    ap.add_argument("--root", type=Path, default=top, help="the checkout")
    args = ap.parse_args(argv)
    source = args.root / "nbs" / "index.ipynb"
    if not source.exists(): sys.exit(f"readme: {source} does not exist")
    page, images = readme(json.loads(source.read_text(encoding="utf-8")))
    want = {args.root / "README.md": page.encode(), **{args.root / name: data for name, data in images.items()}}
    stale = [p for p, data in want.items() if not p.exists() or p.read_bytes() != data]
    old = [p for p in sorted((args.root / "nbs" / "images").glob("readme-*.png")) if p not in want]
    if args.check and (stale or old):
        sys.exit(f"readme: {', '.join(str(p.relative_to(args.root)) for p in [*stale, *old])} out of date: python tools/readme.py")
    if args.check: return
    for p in stale: p.parent.mkdir(parents=True, exist_ok=True); p.write_bytes(want[p])
    for p in old: p.unlink()


if __name__ == "__main__": main()
