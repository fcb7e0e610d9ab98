"""Sphinx configuration. `sphinx-build -t fast` leaves out the tutorials, which take minutes."""

import inspect
import os
from pathlib import Path

import probgen
from probgen import core, training

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


def names(module, entries, toctree=True):
    """A table of names of a module, each with a page of its own."""
    options = "   :nosignatures:\n" + "   :toctree: generated\n" * toctree
    lines = "".join(f"   {entry}\n" for entry in entries)
    return f".. currentmodule:: {module}\n\n.. autosummary::\n{options}\n{lines}\n"


def section(file):
    """A heading for a file and its docstring."""
    title = heading(file.rpartition(".")[2].replace("_", " ").capitalize(), "-")
    return title + f".. automodule:: {file}\n   :no-index:\n\n"


def heading(text, line):
    return f"{text}\n{line * len(text)}\n\n"


def write_api(app, config):
    """Writes a page per module of `probgen.__all__`, from its own `__all__`.

    Its sections are the files in which the names are defined, opened by their docstrings.
    """
    folder = Path(app.srcdir, "api")
    folder.mkdir(exist_ok=True)
    modules = [name for name in probgen.__all__ if inspect.ismodule(getattr(probgen, name))]
    pages = {}
    for name in modules:
        module = getattr(probgen, name)
        page = heading(name.capitalize(), "=") + f".. automodule:: {module.__name__}\n\n"
        files = {}
        for entry in module.__all__:
            files.setdefault(getattr(module, entry).__module__, []).append(entry)
        for file, entries in sorted(files.items()):
            if file == module.__name__:
                page += names(file, entries)
            elif file.startswith(module.__name__):
                page += section(file) + names(module.__name__, entries)
            elif file.startswith("probgen."):
                home = getattr(probgen, file.split(".")[1])
                if left := [e for e in entries if e not in home.__all__]:  # not shown at home
                    page += section(file) + names(module.__name__, left)
        pages[name] = page
    index = heading("API reference", "=") + (
        "One page per kind of object. A section opens with the mathematics of its kind;\n"
        ":doc:`../symbols` lists the letters.\n\n"
        ".. toctree::\n   :maxdepth: 1\n\n"
    )
    index += "".join(f"   {name}\n" for name in modules)
    objects = sorted(set(probgen.__all__) - set(modules))
    kept = [f"~core.{name}" for name in objects if name in core.__all__]
    index += "\n" + section("probgen.training") + names("probgen", training.__all__)
    index += heading("From the core", "-") + names("probgen", kept, toctree=False)
    pages["index"] = index
    config.autosummary_generate = [f"api/{name}.rst" for name in pages]  # also those just made
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def skip_aliases(app, what, name, obj, skip, options):
    """Leaves out the fields of named tuples, which their arguments describe."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.connect("config-inited", write_api)
    app.connect("autodoc-skip-member", skip_aliases)
