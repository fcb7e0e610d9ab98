"""The law of saving: a module is loaded as it is, or it is refused before it is written."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch

import probgen as pg
from probgen.core.registry import RECORDS, is_registered, kind_of, name_of
from tests.rosters import (
    BOUNDED,
    DIFFUSIONS,
    ENERGIES,
    FLOWS,
    HEADS,
    LATENTS,
    TRANSFORMS,
    C,
    D,
    context_of,
    interior,
    moved,
)

MODULES = {
    **{f"flow, {n}": lambda build=build: build(3, C) for n, build in FLOWS.items()},
    **{
        f"head, {n}": lambda build=build: build(3, context=C, hidden_features=(8,))
        for n, (build, _) in HEADS.items()
    },
    **{f"latent, {n}": lambda build=build: build(C) for n, build in LATENTS.items()},
    **{f"energy, {n}": lambda build=build: build(0) for n, build in ENERGIES.items()},
    **{f"diffusion, {n}": lambda build=build: build(C) for n, build in DIFFUSIONS.items()},
    **{f"transform, {n}": build for n, build in {**TRANSFORMS, **BOUNDED}.items()},
}


@pytest.fixture(params=MODULES)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return moved(MODULES[name]())


def outcome(module):
    """What a module draws and says of its draws, or how it fails."""
    torch.manual_seed(1)
    try:
        context = context_of(module, 4)
        made = module(context)
        if isinstance(module, pg.LazyTransform):
            x = interior(made.domain, 4, D)
            return [x, made(x)]
        law = module.base(context) if module.density is pg.Density.UNNORMALIZED else made
        x = law.sample() if module.context else law.sample((4,))
        if module.density is pg.Density.PUSHFORWARD:
            return [x]
        return [x, made.log_prob(x).detach()]
    except Exception as error:
        return [type(error), str(error)[:40]]


def check_same(module, again):
    """Both are the same in what they do, in their state, and in what they would save."""
    first, second = outcome(module), outcome(again)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    expected, found = module.state_dict(), again.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    for (n, a), (m, b) in zip(module.named_modules(), again.named_modules(), strict=True):
        assert (n, kind_of(a), a.training) == (m, kind_of(b), b.training)


def save_and_load(module, folder):
    module.save(folder)
    return pg.load(folder)


def changed(value):
    """Another value of the same kind, if there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5
    if RECORDS.get(name_of(type(value))) is type(value) and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            old = getattr(value, field.name)
            if field.init and isinstance(old, (int, float)) and not isinstance(old, bool):
                return dataclasses.replace(value, **{field.name: changed(old)})
    return value


def arguments(part):
    """The public attributes of a module that are arguments of its constructor."""
    names = inspect.signature(type(part).__init__).parameters
    return {n: v for n, v in vars(part).items() if n in names and not n.startswith("_")}


def parts_of(module):
    return [part for part in module.modules() if is_registered(part)]


def test_a_module_is_saved_without_edits(module, tmp_path):
    module.eval()
    again = save_and_load(module, tmp_path)
    check_same(module, again)
    assert '"edits": []' in (tmp_path / "model.json").read_text()


def test_every_attribute_that_is_an_argument_is_saved(module, tmp_path):
    for n, value in arguments(module).items():  # of the module itself, one by one
        if changed(value) is value:
            continue
        setattr(module, n, changed(value))
        try:
            assert getattr(save_and_load(module, tmp_path), n) == changed(value)
        except TypeError:  # a context for a module that has no room for it
            assert n == "context"
        setattr(module, n, value)
    for part in parts_of(module):  # and all of all parts
        for n, value in arguments(part).items():
            setattr(part, n, value if n == "context" else changed(value))
    again = save_and_load(module, tmp_path)
    check_same(module, again)
    for part, other in zip(parts_of(module), parts_of(again), strict=True):
        for n, value in arguments(part).items():
            new = vars(other)[n]
            assert type(new) is type(value)
            if changed(value) is not value:
                assert new == value
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        copied.save(tmp_path)  # with the same edits
        check_same(module, pg.load(tmp_path))


def resized(part):
    """A module that fits in the place of another, with wider hidden layers, if it has any."""
    args, kwargs = vars(part)["_recorded"]
    bound = inspect.signature(type(part).__init__).bind(part, *args, **kwargs)
    bound.apply_defaults()
    sizes = bound.arguments.get("hidden_features")
    if not sizes:
        return None
    bound.arguments["hidden_features"] = tuple(n + 1 for n in sizes)
    return type(part)(*bound.args[1:], **bound.kwargs)


def test_every_part_is_saved_that_was_replaced_by_another_that_fits(module, tmp_path):
    size, count = sum(p.numel() for p in module.parameters()), 0
    for path, part in dict(module.named_modules()).items():
        new = resized(part) if path and is_registered(part) else None
        try:
            owner = module.get_submodule(path.rpartition(".")[0])
        except AttributeError:  # of a part that was replaced
            continue
        if new is None or dict(owner.named_children()).get(path.rpartition(".")[2]) is not part:
            continue
        setattr(owner, path.rpartition(".")[2], moved(new).requires_grad_(count % 2 == 0))
        count += 1
    again = save_and_load(module, tmp_path)
    check_same(module, again)
    check_same(module, save_and_load(copy.deepcopy(again), tmp_path))
    assert [p.requires_grad for p in module.parameters()] == [
        p.requires_grad for p in again.parameters()
    ]
    if count:
        assert size < sum(p.numel() for p in again.parameters())


@pytest.mark.parametrize("name", ["flow, NSF", "latent, recipe", "diffusion, edm", "energy, rbm"])
def test_large_modules_are_compared_without_their_weights(name, tmp_path, monkeypatch):
    for place in ("edits", "checkpoint"):
        monkeypatch.setattr(f"probgen.core.{place}.SMALL", 0)
    module = moved(MODULES[name]())
    module.steps = 3
    for dtype in (torch.float32, torch.float64):
        module.to(dtype).save(tmp_path)
        again = pg.load(tmp_path)
        assert again.steps == 3
        assert {p.dtype for p in again.parameters()} == {dtype}
        expected, found = module.state_dict(), again.state_dict()
        assert all(torch.equal(expected[n], found[n]) for n in expected)
    module.extra = torch.nn.Linear(2, 2).to(torch.float64)
    module.extra.weight = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"(?s)size mismatch.*extra|extra.*size mismatch"):
        module.save(tmp_path)
