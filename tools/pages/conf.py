"What Sphinx is told; `tools/docs.py` adds name, version and authors from settings.ini."
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "sphinx.ext.linkcode", "pages.sphinx_ext"]
exclude_patterns = ["results/*.json"]

nb_execution_mode = "off" # outputs come from the notebooks
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_merge_streams = True
nb_ipywidgets_js = {} # a widget needs a kernel, and its script another host
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline", "attrs_block"]
myst_dmath_double_inline = True # `$$` in the middle of a paragraph
myst_heading_anchors = 4

add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
linkcode_resolve = None # set by pages.sphinx_ext

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_favicon = "static/vlnotes.svg"
html_css_files = ["vlnotes.css"]
html_js_files = ["disk.js"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0063a0"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#7cc4ee"},
}
