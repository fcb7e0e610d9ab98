"""How the package is built: few levels, few methods that are overridden, declared members."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

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
    "LatentLayer": {"initialize_prior", "initialize_bottom_up"},
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
FILES = [
    *ROOT.glob("objectives/*.py"),
    *ROOT.glob("inference/*.py"),
    *(ROOT / "training" / f"{name}.py" for name in ("fitting", "players", "state")),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_members_are_declared_and_not_asked_for_by_name(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    named = [n for n in calls if isinstance(n.func, ast.Name)]
    asked = [n for n in named if n.func.id == "hasattr" or (n.func.id, len(n.args)) == GETATTR]
    assert not asked, [f"line {n.lineno}: {ast.unparse(n)}" for n in asked]


class Halfway(probgen.diffusion.Schedule):
    """A schedule that leaves `logs` to its subclasses."""

    clean = False


class Geometric(Halfway):
    def logs(self, t):
        return 0 * t, 4 * t - 2


class Closed(Geometric):
    def time(self, log_snr):
        return super().time(log_snr).round(decimals=3)


def test_a_class_that_defines_what_is_abstract_is_given_the_rest():
    assert "time" not in vars(Halfway)
    assert "time" in vars(Geometric)
    with pytest.raises(TypeError, match=r"Can't instantiate abstract class Halfway .*logs'?$"):
        Halfway()
    log_snr = torch.tensor(-2.0)
    torch.testing.assert_close(Geometric().time(log_snr), torch.tensor(0.75))
    assert Closed().time(log_snr) == 0.75


class Tent(probgen.core.Elementwise):
    def call_and_ladj(self, x):
        return 2 * x, torch.full_like(x, 2.0).log()

    def inverse_and_ladj(self, y):
        return y / 2, torch.full_like(y, 2.0).log()


def test_a_bijector_of_a_user_is_given_its_value_alone_and_has_nothing_to_learn():
    x = torch.randn(3)
    assert torch.equal(Tent()(x), 2 * x)
    assert torch.equal(Tent().inv(x), x / 2)
    assert Tent.embed(x) is x
    assert Tent().inv.inv is not None
    with pytest.raises(TypeError, match="Tent has no parameters to learn"):
        probgen.transforms.Learned(Tent, features=3)


class Bowl(probgen.distributions.EnergyBased):
    def __init__(self):
        super().__init__(2, located=True)

    def log_density(self, x, context=None):
        return -x.square().sum(-1) / 2

    def base(self, context=None):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def test_an_energy_of_a_user_that_defines_what_is_abstract_draws_and_is_not_tractable():
    bowl = Bowl()
    assert bowl.initial(3).shape == (3, 2)
    assert not bowl.tractable
    assert bowl.transition().step_size == bowl.step_size
    with pytest.raises(ValueError, match="known exactly, got a Bowl"):
        bowl.exact_log_partition()
