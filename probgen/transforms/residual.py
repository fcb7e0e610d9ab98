r"""Planar, radial and Sylvester transforms.

Each adds to :math:`x` a step that depends on few numbers. Planar and Sylvester transforms move
along given directions,

.. math:: y = x + u \, h(w^\top x + b), \qquad y = x + Q R \, h(\tilde R Q^\top x + b),
    \qquad h = \tanh,

radial ones along the ray from a centre,

.. math:: y = x + \frac{\beta}{\alpha + r} (x - c), \qquad r = |x - c|.

By the matrix determinant lemma each Jacobian reduces to one of that few numbers. All are inverted
for any value: projected on the directions, the planar and Sylvester equations become increasing
scalar ones, :math:`t = a + s \, h(k a + b)` with :math:`s k > -1`; the radial equation is a
quadratic in :math:`r`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core import Bijector, increasing_root
from ..core.validation import check_whole

__all__ = ["Planar", "Radial", "Sylvester"]

MARGIN = 1e-3  # how far the Jacobian stays from singular


def tanh_root(target: Tensor, stretch: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    r"""Solves :math:`a + s \tanh(k a + b) = t` for :math:`s k > -1`, with shape :math:`(*)`."""

    def function(a: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(gain * a + offset)
        return a + stretch * h, 1 + stretch * gain * (1 - h.square())

    radius = stretch.detach().abs()
    return increasing_root(function, target, target.detach() - radius, target.detach() + radius)


class Planar(Bijector):
    r"""The planar transform :math:`y = x + u \tanh(w^\top x + b)`.

    The log-determinant is :math:`\log(1 + (1 - h^2) \, w^\top u)`.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        direction: The vector :math:`w`, with shape :math:`(*, D)`.
        scale: The unconstrained vector :math:`\hat u`, with shape :math:`(*, D)`. It is moved
            along :math:`w` so that :math:`w^\top u \ge -1 + 10^{-3}`.
        bias: The offset :math:`b`, with shape :math:`(*)`.

    Raises:
        ValueError: If `direction` and `scale` have different last dimensions.

    Example:
        >>> f = Planar(torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 4.0]), torch.tensor(0.5))
        >>> y = torch.tensor([20.0, -1.0])
        >>> torch.allclose(f(f.inv(y)), y, atol=1e-5)
        True
    """

    def __init__(self, direction: Tensor, scale: Tensor, bias: Tensor) -> None:
        check_sizes(direction=direction, scale=scale)
        batch = torch.broadcast_shapes(direction.shape[:-1], scale.shape[:-1], bias.shape)
        shape = batch + direction.shape[-1:]
        super().__init__(shape, direction=direction, scale=scale, bias=bias)
        product = (direction * scale).sum(-1)
        norm = direction.square().sum(-1)
        floor = norm.clamp_min(torch.finfo(norm.dtype).eps)
        bounded = softplus(product) - 1 + MARGIN
        self.stretch = torch.lerp(product, bounded, norm / floor)  # w.u; exact where w is tiny
        self.u = scale + ((bounded - product) / floor).unsqueeze(-1) * direction
        self.w, self.b = direction, bias

    @classmethod
    def initial(cls, features: int) -> dict[str, Tensor]:
        return {
            "direction": torch.randn(features) / features**0.5,
            "scale": torch.randn(features) / features**0.5,
            "bias": torch.zeros(()),
        }

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh((self.w * x).sum(-1) + self.b)
        return x + self.u * h.unsqueeze(-1), torch.log1p((1 - h.square()) * self.stretch)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        target = (self.w * y).sum(-1)
        a = tanh_root(target, self.stretch, torch.ones_like(self.stretch), self.b)
        h = torch.tanh(a + self.b)
        return y - self.u * h.unsqueeze(-1), torch.log1p((1 - h.square()) * self.stretch)


class Radial(Bijector):
    r"""The radial transform :math:`y = x + \beta (x - c) / (\alpha + r)`, :math:`r = |x - c|`.

    With :math:`g = \beta / (\alpha + r)` the log-determinant is
    :math:`(D - 1) \log(1 + g) + \log(1 + g \, \alpha / (\alpha + r))`.

    References:
        | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
        | https://arxiv.org/abs/1505.05770

    Arguments:
        centre: The point :math:`c`, with shape :math:`(*, D)`.
        radius: The unconstrained radius, with shape :math:`(*)`: :math:`\alpha` is its softplus
            plus :math:`10^{-3}`.
        scale: The unconstrained strength, with shape :math:`(*)`: :math:`\beta / \alpha + 1` is
            its softplus plus :math:`10^{-3}`.

    Example:
        >>> f = Radial(torch.zeros(3), torch.tensor(1.0), torch.tensor(-2.0))
        >>> y = torch.tensor([20.0, -1.0, 0.0])
        >>> torch.allclose(f(f.inv(y)), y, atol=1e-5)
        True
    """

    def __init__(self, centre: Tensor, radius: Tensor, scale: Tensor) -> None:
        batch = torch.broadcast_shapes(centre.shape[:-1], radius.shape, scale.shape)
        super().__init__(batch + centre.shape[-1:], radius=radius, scale=scale)
        self.centre = centre
        self.alpha = softplus(radius) + MARGIN
        self.beta = self.alpha * (softplus(scale) - 1 + MARGIN)

    @classmethod
    def initial(cls, features: int) -> dict[str, Tensor]:
        return {
            "centre": torch.randn(features),
            "radius": torch.zeros(()),
            "scale": torch.full((), 0.54),
        }

    def ladj(self, r: Tensor, features: int) -> Tensor:
        g = self.beta / (self.alpha + r)
        return (features - 1) * torch.log1p(g) + torch.log1p(g * self.alpha / (self.alpha + r))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step = x - self.centre
        r = norm(step)
        g = self.beta / (self.alpha + r)
        return x + g.unsqueeze(-1) * step, self.ladj(r, x.shape[-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        step = y - self.centre
        s = norm(step)
        p, q = s - self.alpha - self.beta, self.alpha * s  # r^2 - p r - q = 0
        root = (p.square() + 4 * q).sqrt()
        r = torch.where(p > 0, (p + root) / 2, 2 * q / (root - p.clamp_max(0)))
        shrink = (self.alpha + r) / (self.alpha + r + self.beta)
        return self.centre + shrink.unsqueeze(-1) * step, self.ladj(r, y.shape[-1])


class Sylvester(Bijector):
    r"""The Sylvester transform :math:`y = x + Q R \tanh(\tilde R Q^\top x + b)`.

    :math:`Q` has :math:`M` orthonormal columns and :math:`R, \tilde R` are upper triangular, so
    the log-determinant is :math:`\sum_i \log(1 + (1 - h_i^2) R_{ii} \tilde R_{ii})`.
    :math:`Q` is the first columns of a product of Householder reflections; without any, that is
    the identity and the transform is the triangular one.

    References:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649

    Arguments:
        vectors: The vectors of the Householder reflections, with shape :math:`(*, H, D)`,
            where :math:`H` may be 0.
        outer: The unconstrained matrix :math:`R`, with shape :math:`(*, M, M)`. Its upper
            triangle is used, the diagonal through a tanh.
        inner: The unconstrained matrix :math:`\tilde R`, likewise.
        bias: The vector :math:`b`, with shape :math:`(*, M)`.

    Raises:
        ValueError: If :math:`M` exceeds :math:`D` or the matrices are not square and equal.

    Example:
        >>> f = Sylvester(
        ...     torch.randn(2, 4), torch.randn(3, 3), torch.randn(3, 3), torch.randn(3)
        ... )
        >>> y = torch.tensor([20.0, -1.0, 0.0, 3.0])
        >>> torch.allclose(f(f.inv(y)), y, atol=1e-4)
        True
    """

    def __init__(self, vectors: Tensor, outer: Tensor, inner: Tensor, bias: Tensor) -> None:
        features, m = vectors.shape[-1], bias.shape[-1]
        if outer.shape[-2:] != (m, m) or inner.shape[-2:] != (m, m) or m > features:
            raise ValueError(
                f"Expected `outer` and `inner` with shape (*, {m}, {m}), that of `bias`, and no "
                f"more than {features} rows, got {tuple(outer.shape)} and {tuple(inner.shape)}."
            )
        batch = torch.broadcast_shapes(
            vectors.shape[:-2], outer.shape[:-2], inner.shape[:-2], bias.shape[:-1]
        )
        super().__init__((*batch, features), vectors=vectors, outer=outer, inner=inner)
        self.q = householder(vectors, m)
        self.outer, self.inner, self.bias = triangle(outer), triangle(inner), bias
        diagonals = (m.diagonal(dim1=-2, dim2=-1) for m in (self.outer, self.inner))
        self.r, self.r_inner = diagonals

    @classmethod
    def initial(
        cls, features: int, width: int | None = None, reflections: int = 0
    ) -> dict[str, Tensor]:
        """Return initial values for :math:`M` = `width`, by default :math:`D`."""
        check_whole(0, reflections=reflections)
        m = features if width is None else width
        return {
            "vectors": torch.randn(reflections, features),
            "outer": torch.randn(m, m) / features**0.5,
            "inner": torch.randn(m, m) / features**0.5,
            "bias": torch.zeros(m),
        }

    def step(self, h: Tensor) -> Tensor:
        return times(self.q, times(self.outer, h))

    def ladj(self, h: Tensor) -> Tensor:
        return torch.log1p((1 - h.square()) * self.r * self.r_inner).sum(-1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(times(self.inner, times(self.q.mT, x)) + self.bias)
        return x + self.step(h), self.ladj(h)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        target = times(self.q.mT, y)
        size = target.shape[-1]
        roots: list[Tensor] = []  # a = Q'x, found from the last entry up
        steps: list[Tensor] = []  # h, likewise
        for i in reversed(range(size)):
            t, offset = target[..., i], self.bias[..., i]
            for j, (a, h) in enumerate(zip(roots, steps), start=i + 1):
                t = t - self.outer[..., i, j] * h
                offset = offset + self.inner[..., i, j] * a
            a = tanh_root(t, self.r[..., i], self.r_inner[..., i], offset)
            roots.insert(0, a)
            steps.insert(0, torch.tanh(self.r_inner[..., i] * a + offset))
        h = torch.stack(steps, -1)
        return y - self.step(h), self.ladj(h)


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Return the matrix times the vector, with shapes :math:`(*, M, D)` and :math:`(*, D)`."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def triangle(matrix: Tensor) -> Tensor:
    """Return the upper triangle, with a diagonal within 1 so that its products exceed -1."""
    diagonal = (1 - MARGIN) * torch.tanh(matrix.diagonal(dim1=-2, dim2=-1))
    return matrix.triu(1) + torch.diag_embed(diagonal)


def householder(reflections: Tensor, columns: int) -> Tensor:
    r"""Return the first columns of :math:`\prod_k (I - 2 v_k v_k^\top / |v_k|^2)`, orthonormal."""
    features = reflections.shape[-1]
    eye = torch.eye(features, columns, dtype=reflections.dtype, device=reflections.device)
    q = eye.expand(*reflections.shape[:-2], features, columns)
    for k in reversed(range(reflections.shape[-2])):
        v = reflections[..., k, :, None]
        q = q - 2 * v * (v.mT @ q) / v.square().sum(-2, keepdim=True).clamp_min(1e-12)
    return q


def norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm, with a zero gradient at zero."""
    square = x.square().sum(-1)
    positive = square > 0
    return torch.where(positive, square.where(positive, torch.ones_like(square)).sqrt(), 0.0)


def check_sizes(**tensors: Tensor) -> None:
    """Raise a ValueError unless all have the same last dimension."""
    if len({t.shape[-1] if t.ndim else None for t in tensors.values()}) > 1:
        names = " and ".join(f"`{name}`" for name in tensors)
        shapes = " and ".join(str(tuple(t.shape)) for t in tensors.values())
        raise ValueError(f"Expected {names} with the same last dimension, got shapes {shapes}.")
