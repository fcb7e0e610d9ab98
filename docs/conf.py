"""Sphinx configuration. `sphinx-build -t fast` leaves out the tutorials, which take minutes."""

import os
import re
from pathlib import Path

from sphinx.util import inspect

import probgen

project = "probgen"
author = "The probgen developers"
copyright = f"2026, {author}"
version = release = probgen.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]

autodoc_inherit_docstrings = False  # torch's, of methods that are overridden here
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

if tags.has("fast"):  # noqa: F821
    exclude_patterns.append("gallery")
else:
    extensions.append("sphinx_gallery.gen_gallery")
    sphinx_gallery_conf = {
        "examples_dirs": "../tutorials",
        "gallery_dirs": "gallery",
        "abort_on_example_error": True,
        "capture_repr": (),
        "write_computation_times": False,
    }

if os.environ.get("DOCS_INTERSPHINX") == "1":  # needs a network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }


def check_complete(app):
    """Raises an error unless each public name is on the page of its kind."""
    for page in Path(app.srcdir, "api").glob("*.rst"):
        module = getattr(probgen, page.stem, None)
        listed = set(re.findall(r"^   (?:~probgen\.core\.)?(\w+)$", page.read_text(), re.MULTILINE))
        missing = sorted(set(getattr(module, "__all__", ())) - listed)
        if missing:
            raise ValueError(f"Expected all public names in {page.name}, found no {missing}.")


def signature_of_init(app, what, name, obj, options, signature, returns):
    """Shows the arguments of `__init__` for modules, whose `__new__` records them unseen."""
    if what == "class" and issubclass(obj, probgen.core.Recorded):
        init = inspect.signature(obj.__init__, bound_method=True)
        options = {"show_return_annotation": False, "unqualified_typehints": True}
        return inspect.stringify_signature(init, **options), None


def skip_aliases(app, what, name, obj, skip, options):
    """Leaves out the fields of named tuples, which their arguments describe."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.connect("builder-inited", check_complete)
    app.connect("autodoc-process-signature", signature_of_init)
    app.connect("autodoc-skip-member", skip_aliases)
