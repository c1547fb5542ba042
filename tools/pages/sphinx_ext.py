"What the site adds to Sphinx: formulas as MathML made at build time, and a link from every object to its lines in the repository."
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

OBJECTS = {} # full name -> address of its source; filled by the builder
IMPORTS = {} # module -> {local name: full name}; filled by the builder


class Types(SphinxPostTransform):
    "A type in a signature leads to the class of that name in its own module or among the module's imports, never to a namesake."
    default_priority = 5

    def run(self, **kwargs):
        for signature in self.document.findall(desc_signature):
            for ref in list(signature.findall(pending_xref)):
                module, name = ref.get("py:module") or "", ref.get("reftarget", "")
                head, _, rest = name.partition(".")
                full = f"{IMPORTS.get(module, {}).get(head, f'{module}.{head}')}{'.' + rest if rest else ''}"
                if full in OBJECTS: ref["reftarget"], ref["refspecific"] = full, False
                else: ref.replace_self(ref.children)


def inline(self, node):
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def source(domain, info):
    "The address of an object's lines, for sphinx.ext.linkcode."
    return OBJECTS.get(f"{info.get('module')}.{info.get('fullname')}") if domain == "py" else None


def light(app, pagename, templatename, context, doctree):
    "No page may ask another host."
    for k in ("css_files", "script_files"):
        for f in context.get(k) or []:
            if str(getattr(f, "filename", f)).startswith(("http:", "https:", "//")): raise ExtensionError(f"{pagename} would load {f} from the network")


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "linkcode_resolve", source), priority=100)
    app.add_post_transform(Types)
    app.connect("html-page-context", light, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
