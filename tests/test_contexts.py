"""Contexts of every structure: vectors, images, tuples and dicts."""

import pytest
import torch

from probgen.core import contexts

SHAPES = {
    "vector": ((3,), lambda b: torch.randn(*b, 3)),
    "image": ((1, 8, 8), lambda b: torch.randn(*b, 1, 8, 8)),
    "tuple": (((3,), (1, 4, 4)), lambda b: (torch.randn(*b, 3), torch.randn(*b, 1, 4, 4))),
    "dict": (
        {"a": (2,), "b": (4, 4)},
        lambda b: {"b": torch.randn(*b, 4, 4), "a": torch.randn(*b, 2)},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_values_agree(name):
    shape, build = SHAPES[name]
    assert contexts.shape_of(shape) == shape
    c = build((5, 2))
    contexts.check(c, shape, "Thing", torch.zeros(1))
    assert contexts.batch_of(c, shape) == (5, 2)
    flat = contexts.flatten(c, shape)
    assert flat.shape == (5, 2, contexts.size_of(shape))
    chosen = contexts.index(c, torch.tensor([3, 0]))
    assert torch.equal(contexts.flatten(chosen, shape), flat[[3, 0]])
    wide = contexts.expand_context(build(()), shape, (7,))
    assert contexts.batch_of(wide, shape) == (7,)
    contexts.check(wide, shape, "Thing")
    double = contexts.map_context(torch.Tensor.double, c)
    with pytest.raises(TypeError, match="dtype of the parameters"):
        contexts.check(double, shape, "Thing", torch.zeros(1))
    nan = contexts.map_context(lambda t: t * torch.nan, c)
    with pytest.raises(ValueError, match="nan or inf"):
        contexts.check(nan, shape, "Thing")
    with pytest.raises(ValueError, match="no context"):
        contexts.check(c, None, "Thing")
    with pytest.raises(ValueError, match="got none"):
        contexts.check(None, shape, "Thing")
    with pytest.raises(TypeError, match=r"Expected .* tensor"):
        contexts.check([1.0], shape, "Thing")


def test_a_vector_is_not_copied():
    c = torch.randn(4, 3)
    assert contexts.flatten(c, (3,)) is c


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "x", (), (0,), {}, {"a": 0}, {1: 2}, ((1, "x"),)])
def test_shapes_that_are_none_are_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="Expected `context`"):
        contexts.shape_of(wrong)


@pytest.mark.parametrize(
    ("context", "shape"),
    [
        (torch.zeros(3, 2), (3,)),
        (torch.tensor(1.0), (1,)),
        (torch.zeros(8, 8), (1, 8, 8)),
        ((torch.zeros(3),), ((3,), (2,))),
        ((torch.zeros(3), torch.zeros(3)), ((3,), (2,))),
        ((torch.zeros(4, 3), torch.zeros(5, 2)), ((3,), (2,))),
        ({"a": torch.zeros(2), "c": torch.zeros(2)}, {"a": (2,), "b": (2,)}),
    ],
)
def test_contexts_of_other_shapes_are_refused(context, shape):
    with pytest.raises(ValueError, match=r"Expected .* got"):
        contexts.check(context, shape, "Thing")
