"""Where things are: imports without circles, names that stand once, files of a readable size."""

import ast
import collections
import importlib
import inspect
import pkgutil
import types
import warnings
from pathlib import Path

import pytest

import probgen
from probgen.core.deprecation import RENAMED

ROOT = Path(probgen.__file__).parents[1]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in (ROOT / "probgen").rglob("*.py")}


def imports(module):
    """Pairs of a module and a name that a file imports, in functions and for type checkers too."""
    path = FILES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, node.module] if node.module else base)
            yield from ((target, alias.name) for alias in node.names)


IMPORTS = {module: set(imports(module)) for module in FILES}


def file_of(module, name):
    """The file in which a name is defined, through the packages that export it."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    if module in FILES and FILES[module].name == "__init__.py":
        for other, alias in IMPORTS[module]:
            if alias == name and other != module:
                return file_of(other, name)
    return module


def test_files_import_each_other_in_no_circle():
    left = {m: {file_of(*pair) for pair in IMPORTS[m]} & FILES.keys() - {m} for m in FILES}
    while free := {m for m, needed in left.items() if not needed & left.keys()}:
        left = {m: needed for m, needed in left.items() if m not in free}
    assert not left, {m: sorted(needed & left.keys()) for m, needed in left.items()}


def test_no_name_hides_a_module():
    hidden = []
    for module, path in FILES.items():
        if path.name == "__init__.py":
            package = importlib.import_module(module)
            for found in pkgutil.iter_modules(package.__path__):
                value = vars(package).get(found.name)
                if value is not None and not isinstance(value, types.ModuleType):
                    hidden.append(f"{module}.{found.name}")
    assert not hidden


def test_a_name_of_a_class_stands_once():
    places = collections.defaultdict(set)
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].add(module)
    assert not {name: where for name, where in places.items() if len(where) > 1}


LONG = {"probgen/distributions/energy/base.py"}  # one class, of which parts are to move


def test_files_have_at_most_400_lines_and_tests_600():
    found = [*ROOT.glob("probgen/**/*.py"), *ROOT.glob("tests/**/*.py")]
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in found}
    long = {n for n, count in lines.items() if count > (600 if n.startswith("tests") else 400)}
    assert long == LONG, {n: lines[n] for n in long}


def test_all_names_exist_and_stand_once():
    for module in FILES:
        names = getattr(importlib.import_module(module), "__all__", [])
        assert len(names) == len(set(names)), module
        for name in names:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


PRIVATE = {"DenseRung", "ImageRung"}  # which checkpoints alone name


@pytest.mark.parametrize("former", RENAMED)
def test_a_former_name_warns_and_works(former):
    found = 0
    for module in (probgen.diffusion, probgen.distributions, probgen.objectives):
        new = vars(module).get(RENAMED[former])
        if inspect.isclass(new):
            with pytest.warns(DeprecationWarning, match=f"is now .*{RENAMED[former]}"):
                assert getattr(module, former) is new
            found += 1
    assert found == (former not in PRIVATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hasattr(probgen.diffusion, "Nothing")
