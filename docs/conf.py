"""Sphinx settings of the documentation; `make docs` builds it into build/docs."""

import importlib.metadata
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.util.nodes import make_refnode

FOLDER = Path(__file__).parent

project = "hos_jax"
author = "the hos_jax authors"
copyright = author
release = importlib.metadata.version("hos_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    # MathJax and its fonts in the built site: formulas need no network.
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]

# Notebooks are shown with the outputs that are stored in them.
shutil.copytree(
    FOLDER.parent / "notebooks",
    FOLDER / "notebooks",
    dirs_exist_ok=True,
    ignore=shutil.ignore_patterns("*.py", ".*"),
)
nb_execution_mode = "off"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# `$` of shell prompts stays what it is.
myst_dmath_allow_labels = False

# Single backticks of docstrings: a link where the name is known, code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "hos_jax"
html_static_path = []
html_copy_source = False
html_show_copyright = False


def _escape_prose(app, what, name, obj, options, lines):
    """What docutils would read as markup: |x| as a substitution, a lone "k." as a numbered list.

    Lines with a backslash are left alone: they are TeX.
    """
    for index, line in enumerate(lines):
        if "\\" not in line and "``" not in line:
            line = re.sub(r"\|([^|`]+)\|", r"\\|\1\\|", line)
            lines[index] = re.sub(r"(^|: )(\w\.)$", r"\1\\\2", line)


def _link_notebooks(app, name, source):
    """Pages link to the notebooks where the repository has them; the site has copies in `docs`."""
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)?)notebooks/", r"](\1notebooks/", source[0])


def _skip_fields(app, what, name, obj, skip, options):
    """Fields of named tuples are described by their class."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def _resolve_repository_link(app, env, node, contnode):
    """Links of included files to other files of the repository: pages, or plain text."""
    target = node["reftarget"].partition("#")[0]
    if not (FOLDER.parent / target).is_file():
        return None
    page = target.removeprefix("docs/").removesuffix(".md")
    if page in env.found_docs:
        return make_refnode(app.builder, env.docname, page, "", contnode)
    return contnode


def _describe_drawn_images(app, doctree, name):
    """What a notebook draws has the title of its section as its alternative text; without one
    docutils takes the name of its file, a hash."""
    for image in doctree.findall(nodes.image):
        section = image
        while section is not None and not isinstance(section, nodes.section):
            section = section.parent
        if section is not None and not image.get("alt"):
            image["alt"] = f"figure: {section.next_node(nodes.title).astext()}"


def setup(app):
    app.connect("doctree-resolved", _describe_drawn_images)
    app.connect("source-read", _link_notebooks)
    app.connect("missing-reference", _resolve_repository_link)
    app.connect("autodoc-process-docstring", _escape_prose)
    app.connect("autodoc-skip-member", _skip_fields)
