"""Every public class and function: a wrong argument is named, or the result works."""

import dataclasses
import inspect
import itertools
import math
import types
from collections.abc import Sequence
from typing import Literal

import numpy
import pytest
import torch
from torch import nn

import probgen as pg
from probgen import mcmc
from probgen import transforms as t
from probgen.core.arguments import checked

from .. import rosters
from ..calls import CALLS, NOT_BUILT

WRONG = (None, "x", -1, 0, math.nan, math.inf, 1.5, [], (-1,), object(), torch.ones(2, 2), {})
LEFT_OUT = {  # functions that run a user's model or module, whose errors are its own, and plots
    *("as_lazy", "as_lazy_transform", "broadcast", "call_and_ladj", "detached", "increasing_root"),
    *("initialize_part", "inverse_and_ladj", "is_wrapped", "load", "register", "sample", "save"),
    *("checkerboard", "digits", "mnist", "convert", "noise", "fit", "attribute", "diagnose"),
    *("khat", "posterior", "ais", "infer_discrete", "likelihood", "minibatch", "potential", "run"),
    *("smc", "warm_up", "corner", "coverage", "density", "images", "manifold", "ranks"),
    *("residuals", "training"),
}


def public():
    """All that `__all__` of the package and of its public modules name, by its name."""
    found, modules, seen = {}, [pg], set()
    while modules:
        module = modules.pop()
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, types.ModuleType):
                if thing not in seen:
                    seen.add(thing)
                    modules.append(thing)
            elif inspect.isclass(thing) or inspect.isfunction(thing):
                found.setdefault(thing, name)
    return found


def recorded():
    """Valid arguments of the classes of which the rosters build something."""
    made = {}

    def meet(value):
        if isinstance(value, nn.Module):
            for module in value.modules():
                args, kwargs = module.__dict__.get("_recorded", ((), {}))
                if "_recorded" in module.__dict__:
                    made.setdefault(type(module), (args, kwargs))
                    for argument in itertools.chain(args, kwargs.values()):
                        meet(argument)
        elif dataclasses.is_dataclass(value) and not inspect.isclass(value):
            fields = [f.name for f in dataclasses.fields(value) if f.init]
            made.setdefault(type(value), ((), {n: getattr(value, n) for n in fields}))
        elif isinstance(value, (list, tuple)):
            for part in value:
                meet(part)

    for roster in (rosters.TRANSFORMS, rosters.BOUNDED, rosters.KERNELS, rosters.UNADJUSTED):
        for build in roster.values():
            meet(build())
    for build in rosters.FLOWS.values():
        meet(build(3, 0))
    for build, _ in rosters.HEADS.values():
        meet(build(2, context=0))
    for roster in (rosters.LATENTS, rosters.ENERGIES, rosters.DIFFUSIONS):
        for build in roster.values():
            meet(build(0))
    return made


PUBLIC = public()
with torch.random.fork_rng():
    ROSTER = {c: given for c, given in recorded().items() if c in PUBLIC and c not in CALLS}
TRIED = {f"{c.__module__.split('.')[1]} {c.__name__}": c for c in [*ROSTER, *CALLS]}
VP = pg.diffusion.VP()


def arguments(function):
    given = ROSTER[function] if function in ROSTER else ((), CALLS[function]())
    return inspect.signature(function).bind(*given[0], **given[1]).arguments


def is_same(value, other):
    return value is other or (type(value) is type(other) and value == other)


def use(made):
    """Draw from a distribution, and score the draws."""
    if not isinstance(made, pg.LazyDistribution):
        return made if isinstance(made, torch.Tensor) else torch.zeros(())
    flat = isinstance(made.context_shape, tuple) and made.context_shape
    context = torch.zeros(2, *made.context_shape) if flat else None
    with torch.no_grad():
        distribution = made(context)
        x = distribution.sample(() if flat else (2,))
        if made.density is not pg.Density.EXACT:
            return x
        return torch.cat([x.double().reshape(-1), distribution.log_prob(x).double().reshape(-1)])


@pytest.mark.parametrize("name", TRIED)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_argument_is_named_or_works(name, unchecked):
    function = TRIED[name]
    signature = inspect.signature(function)
    for argument, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for value in WRONG:
            if is_same(value, parameter.default):
                continue
            given = {**arguments(function), argument: value}
            call = f"{name}({argument}={value!r:.40})"
            made = outcome = None
            try:
                made = function(**given)
            except Exception as error:
                outcome = error
            if outcome is not None:
                refused = isinstance(outcome, (TypeError, ValueError))
                named = argument in str(outcome) or isinstance(value, torch.Tensor)
                assert refused and named, f"{call}: {type(outcome).__name__}: {outcome}"  # noqa: PT018
                continue
            if isinstance(value, torch.Tensor):
                continue  # a tensor of another shape, which some of the arguments take
            try:
                found = use(made)
            except (TypeError, ValueError) as error:
                pytest.fail(f"{call} was accepted, and then: {type(error).__name__}: {error}")
            assert bool(found.isfinite().all()), f"{call} was accepted, and then: {found}"


def test_no_public_name_is_left_out():
    known = {*TRIED.values(), *itertools.chain.from_iterable(NOT_BUILT.values())}
    left = {name for thing, name in PUBLIC.items() if thing not in known}
    errors = {n for t, n in PUBLIC.items() if inspect.isclass(t) and issubclass(t, BaseException)}
    functions = {n for t, n in PUBLIC.items() if inspect.isfunction(t)}
    assert left - errors - (LEFT_OUT & functions) == set()


@checked
def example(
    count: int,
    sizes: Sequence[int] = (),
    kind: Literal["a", "b"] = "a",
    part: nn.Module | None = None,
    weight: float = 1.0,
    *more: str,
) -> None:
    """A function with annotated arguments, one of which it checks itself."""
    if count == 7:
        raise ValueError(f"Expected an even `count`, got {count}.")
    if count == 9:
        len(weight)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": "x"}, TypeError, r"Expected `count` to be a whole number, got 'x'\."),
        ({"count": True}, TypeError, "`count` to be a whole number, got True"),
        ({"count": 7}, ValueError, "Expected an even `count`, got 7"),
        ({"count": 9, "weight": "x"}, TypeError, "`weight` to be a number, got 'x'"),
        ({"count": 9}, TypeError, "has no len"),
        ({"count": 1, "sizes": 3}, TypeError, "`sizes` to be a sequence of whole numbers, got 3"),
        ({"count": 1, "sizes": (1, 2.5)}, TypeError, "`sizes` to be a sequence of whole"),
        ({"count": 1, "sizes": "ab"}, TypeError, "`sizes` to be a sequence of whole"),
        ({"count": 1, "kind": "c"}, TypeError, "`kind` to be 'a' or 'b', got 'c'"),
        ({"count": 1, "part": 3}, TypeError, "`part` to be a Module or None, got 3"),
        ({"count": 1, "weight": math.nan}, ValueError, "`weight` to be a number, got nan"),
    ],
)
def test_an_argument_of_another_type_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        example(**arguments)


def test_arguments_of_their_types_pass():
    example(numpy.int64(3), [1, 2], "b", nn.Identity(), numpy.float32(0.5), "x", "y")
    example(1, torch.Size([3]), weight=torch.tensor(0.5), part=None)
    with pytest.raises(TypeError, match="`more` to be a string, got 3"):
        example(1, (), "a", None, 1.0, 3)


def test_classes_of_a_user_are_not_compared():
    class Own(pg.distributions.StandardNormal):
        def __init__(self, size: int):
            super().__init__(2)
            self.size = size

    assert Own("large").size == "large"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pg.models.CNF(2, probes=-1), "probes"),
        (lambda: t.ActNorm(-1), "features"),
        (lambda: pg.diffusion.BlurDegradation(shape=None), "shape"),
        (lambda: mcmc.ChEES(length=math.inf), "length"),
        (lambda: pg.models.NSF(2, hidden_features=-1), "hidden_features"),
        (lambda: pg.models.EDM(2, network="x"), "network"),
        (lambda: pg.diffusion.linear_betas(math.nan), "steps"),
        (lambda: pg.datasets.moons(9, sd=math.nan), "sd"),
        (
            lambda: pg.diffusion.GaussianDenoiser(torch.zeros(2), -torch.eye(2), VP),
            "covariance",
        ),
        (lambda: pg.metrics.bits_per_dimension(torch.zeros(3), 0), "dimensions"),
        (lambda: mcmc.HMC(scale=2.0), "scale"),
        (lambda: mcmc.MALA(scale=[1.0, 2.0]), "scale"),
    ],
)
def test_the_worst_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


SCORED = {
    **{f"flow {n}": (lambda m=m: m(3, 0)) for n, m in rosters.FLOWS.items()},
    **{f"latent {n}": (lambda m=m: m(0)) for n, m in rosters.LATENTS.items()},
    **{f"energy {n}": (lambda m=m: m(0)) for n, m in rosters.ENERGIES.items()},
    **{f"diffusion {n}": (lambda m=m: m(0)) for n, m in rosters.DIFFUSIONS.items()},
}


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("value", [None, numpy.zeros(3), "x"], ids=["None", "numpy", "text"])
def test_a_value_that_is_no_tensor_is_refused(name, value):
    with pytest.raises(TypeError, match="value"):
        SCORED[name]()().log_prob(value)
