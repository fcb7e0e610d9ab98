"""How the package is built: few levels, few methods that are overridden, declared members."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import probgen
from probgen.core.derive import derivation, is_abstract

ROOT = Path(probgen.__file__).parent
HOOKS = {  # methods with a default, which subclasses may replace; `core/lazy.py` tells of them
    "LazyDistribution.pyro_guide",
    "LazyDistribution.pyro_model",
    "LazyDistribution.set_from_data",
    "Objective.at",
    "Objective.held_out",
}
DERIVED = {  # abstract members that a class is given, unless it defines them
    "Bijector": {"_call", "_inverse", "initial"},
    "Denoiser": {"mean"},
    "Elementwise": {"embed"},
    "EnergyBased": {"exact_log_partition", "initial", "set_base", "transition"},
    "Kernel": {"exact"},
    "LazyDistribution": {"event_shape", "standardized_parts", "support"},
    "LazyTransform": {"initialize", "initialized"},
    "Parametric": {"set_parameters"},
    "Rung": {"start_prior", "start_rise"},
    "Schedule": {"forward", "log_snr_slope", "time"},
    "Units": {"log_measure"},
}


def own(cls):
    """The class and its bases in this package, itself first."""
    return [base for base in cls.__mro__ if base.__module__.startswith("probgen")]


def classes():
    names = [m.name for m in pkgutil.walk_packages(probgen.__path__, "probgen.")]
    modules = [importlib.import_module(name) for name in names]
    found = (c for m in modules for c in vars(m).values() if inspect.isclass(c))
    return sorted({c for c in found if own(c)[:1] == [c]}, key=lambda c: c.__qualname__)


def is_member(value):
    return callable(value) or isinstance(value, (property, staticmethod, classmethod))


def overridden(cls):
    """The members of a class that a base defines already, each with that base."""
    for name, value in vars(cls).items():
        if name.startswith("__") or not is_member(value):
            continue
        bases = [base for base in own(cls)[1:] if name in vars(base)]
        if (
            bases
            and not is_abstract(before := vars(bases[0])[name])
            and not inspect.isclass(before)
        ):
            yield f"{bases[0].__qualname__}.{name}"


def test_classes_have_at_most_four_levels():
    deep = {c.__qualname__: len(own(c)) for c in classes() if len(own(c)) > 4}
    assert not deep, deep


def test_no_method_is_overridden_but_five_hooks():
    found = {(c.__qualname__, name) for c in classes() for name in overridden(c)}
    assert {name for _, name in found} == HOOKS, sorted(f for f in found if f[1] not in HOOKS)


def test_only_these_members_are_derived():
    found = {}
    for c in classes():
        names = {name for name, value in vars(c).items() if derivation(value) is not None}
        if names:
            found[c.__qualname__] = names
    assert found == DERIVED


GETATTR = "getattr", 3  # with a default
FILES = [*ROOT.glob("objectives/*.py"), *ROOT.glob("inference/*.py"), ROOT / "training.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_members_are_declared_and_not_asked_for_by_name(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    named = [n for n in calls if isinstance(n.func, ast.Name)]
    asked = [n for n in named if n.func.id == "hasattr" or (n.func.id, len(n.args)) == GETATTR]
    assert not asked, [f"line {n.lineno}: {ast.unparse(n)}" for n in asked]
