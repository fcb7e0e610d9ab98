"""Ising models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.validation import check_number
from ...mcmc import Checkerboard, GraphGibbs, colours
from ...mcmc.kernels.lattice import bonds, log_partition_torus
from ..supports import readable
from .boltzmann import SMALL, BinaryEnergy, check_weights, states, symmetric

__all__ = ["Ising"]


class Ising(BinaryEnergy):
    r"""The Ising model: spins on a lattice, or on any graph.

    .. math:: p(x) = \frac{1}{Z} \exp \Bigl( K \sum_{\langle i j \rangle} x_i x_j
        + \sum_i b_i x_i \Bigr), \qquad x_i = \pm 1

    On a two-dimensional torus without field :math:`Z` is Kaufman's, exact for any size; up to 20
    spins are enumerated. Else it is unnormalised, and :meth:`estimate` anneals. An image is
    restored by fields that say what each pixel was seen as.

    References:
        | Kaufman, "Crystal statistics. II. Partition function evaluated by spinor analysis", 1949,
          https://doi.org/10.1103/PhysRev.76.1232
        | Geman & Geman, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration
          of images", 1984, https://doi.org/10.1109/TPAMI.1984.4767596

    Arguments:
        shape: The shape of the lattice, of any number of dimensions.
        coupling: The coupling :math:`K`, in units of the temperature; or the couplings of all pairs
            of spins, with shape :math:`(N, N)`, which make it any graph.
        periodic: Whether opposite borders of the lattice are neighbours.
        field: The fields :math:`b`, a number or a tensor that broadcasts to the lattice.
        steps: The number of sweeps of a draw. Near :math:`K = 0.44` chains of a large square
            lattice need thousands.

    Raises:
        ValueError: If couplings are not symmetric, connect a spin with itself or do not fit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> ising = Ising(shape=(32, 32), coupling=0.3, periodic=True).freeze()
        >>> float(ising.log_partition()) / 1024
        0.79055...
        >>> x = ising().sample((64,))
        >>> gap = ising.energy(x).mean() - ising.mean_energy()
        >>> abs(float(gap)) < 4 * float(ising.energy(x).std()) / 8
        True
    """

    def __init__(
        self,
        shape: Sequence[int],
        coupling: float | Tensor = 0.44,
        periodic: bool = True,
        field: float | Tensor = 0.0,
        steps: int = 100,
    ) -> None:
        if isinstance(shape, int):
            shape = (shape,)
        super().__init__(tuple(shape), -1, steps)
        self.periodic = periodic
        self.units = math.prod(self.event_shape)
        for name, value in (("coupling", coupling), ("field", field)):
            if not isinstance(value, Tensor):
                check_number(**{name: value})
        pairs = torch.as_tensor(coupling, dtype=torch.get_default_dtype()).detach().clone()
        self.graph = pairs.ndim == 2
        if self.graph:
            check_weights(pairs, self.units)
        elif pairs.numel() != 1:
            raise ValueError(
                f"Expected `coupling` to be a number or to have shape {(self.units,) * 2}, got "
                f"{tuple(pairs.shape)}."
            )
        if periodic and not self.graph and min(self.event_shape) < 2:
            raise ValueError(
                f"Expected a periodic lattice of at least 2 spins each way, got "
                f"{tuple(self.event_shape)}."
            )
        b = torch.as_tensor(field, dtype=pairs.dtype).detach()
        try:
            b.expand(self.event_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected `field` that broadcasts to {tuple(self.event_shape)}, got "
                f"{tuple(b.shape)}."
            ) from None
        self.free = not bool((b != 0).any())  # of fields, which then are not learned either
        self.coupling = nn.Parameter(pairs if self.graph else pairs.reshape(1))
        if not self.free:
            self.field = nn.Parameter(b.reshape(b.shape or (1,)).clone())
        halves = self.event_shape if periodic else self.event_shape[-1:]
        self.board = not self.graph and all(n % 2 == 0 for n in halves)
        self.torus = self.free and periodic and not self.graph and len(self.event_shape) == 2
        if self.torus and any(n % 2 for n in self.event_shape):
            self.torus = bool(pairs > 0)  # a repulsion that borders frustrate is not Kaufman's
        self.tractable = self.torus or self.units <= SMALL
        self.coloured: tuple[Tensor, list[Tensor]] | None = None

    @property
    def weight(self) -> Tensor:
        """The couplings of all pairs, with shape :math:`(N, N)`."""
        if self.graph:
            return symmetric(self.coupling)
        return self.coupling * neighbours(self.event_shape, self.periodic, self.coupling)

    @property
    def fields(self) -> Tensor:
        """The fields, with the shape of the lattice."""
        b = self.coupling.new_zeros(()) if self.free else self.field
        return b.expand(self.event_shape)

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x.to(self.coupling.dtype)
        return self.value(x, self.coupling, None if self.free else self.field)

    def value(self, x: Tensor, coupling: Tensor, field: Tensor | None) -> Tensor:
        dims = len(self.event_shape)
        if self.graph:
            flat = x.flatten(-dims)
            value = (flat @ (symmetric(coupling) / 2) * flat).sum(-1)
        else:
            value = coupling.reshape(()) * bonds(x, dims, self.periodic)
        return value if field is None else value + (x * field).flatten(-dims).sum(-1)

    def flip_gains(self, x: Tensor) -> Tensor:
        dims, x = len(self.event_shape), x.to(self.coupling.dtype)
        if self.graph:
            heard = (x.flatten(-dims) @ self.weight).reshape(x.shape)
        else:
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (near,) = torch.autograd.grad(bonds(y, dims, self.periodic).sum(), y)
            heard = self.coupling * near
        return self.turn(x) * (heard + self.fields)

    def transition(self, beta: float = 1.0) -> Checkerboard | GraphGibbs:
        b = (beta * self.fields + (1 - beta) * self.field_of_base).detach()
        if self.board:
            flat = self.free and beta == 1
            k = beta * self.coupling.detach()
            return Checkerboard(self.event_shape, k, 0.0 if flat else b, self.periodic)
        return GraphGibbs(beta * self.weight.detach(), b.flatten(), -1, self.groups)

    def initial(self, count: int, context: Tensor | None = None) -> Tensor:
        """Where chains start: without a field all spins of a chain are aligned at low temperatures.

        Chains that start at random freeze into stripes there, which sweeps do not leave. Low is
        below the critical temperature of the mean field, at :math:`2 d |K| = 1`, above which
        chains forget their start.
        """
        x = super().initial(count, context)
        if len(self.chains) or not self.free or self.graph:
            return x
        k, dims = self.coupling.detach(), len(self.event_shape)
        parity = sum(
            torch.arange(n, device=x.device).reshape([-1] + [1] * (dims - 1 - i))
            for i, n in enumerate(self.event_shape)
        )
        stagger = torch.where(k < 0, 1.0 - 2 * (parity % 2), 1.0).to(x)
        sign = 2 * torch.randint(2, (count, *[1] * dims), device=x.device).to(x) - 1
        return torch.where(2 * dims * k.abs() > 1, sign * stagger, x)

    @property
    def groups(self) -> list[Tensor] | None:
        """Spins that are drawn together: those of a colour of the graph as it is now."""
        like = self.coupling.detach()
        if like.device.type == "meta":
            return None
        if not self.graph:
            like = neighbours(self.event_shape, self.periodic, like)  # whatever the coupling
        pattern = symmetric(like) != 0
        if self.coloured is None or not torch.equal(self.coloured[0], pattern):
            self.coloured = pattern, colours(pattern)
        return self.coloured[1]

    def exact_log_partition(self) -> Tensor:
        return self.log_z_of(self.coupling, None if self.free else self.field)

    def log_z_of(self, coupling: Tensor, field: Tensor | None) -> Tensor:
        if self.torus:
            m, n = self.event_shape
            value = log_partition_torus(m, n, coupling)[0].reshape(())
            if readable(value) and bool(value.isnan()):
                raise ValueError(
                    f"Expected a coupling of at least 0 on a torus with odd sides, where the exact "
                    f"solution holds, got {float(coupling.detach()):.4g} on "
                    f"{tuple(self.event_shape)}. "
                    f"Build Ising with it, and estimate the partition function."
                )
            return value
        shape = self.event_shape
        parts = [
            self.value(x.reshape(-1, *shape), coupling, field).double().logsumexp(0)
            for x in states(self.units, -1, self.coupling)
        ]
        return torch.stack(parts).logsumexp(0)

    def mean_energy(self) -> Tensor:
        r"""Return the mean of :meth:`energy`, of all spins together, exactly.

        It is :math:`-\partial \log Z / \partial s` where :math:`s = 1` multiplies couplings and
        fields.

        Raises:
            ValueError: If the partition function is not known exactly.
        """
        if not self.tractable:
            raise ValueError(
                f"Expected a torus of two dimensions without field, or up to {SMALL} spins, got "
                f"{tuple(self.event_shape)}. Take the mean of .energy over draws."
            )
        with torch.enable_grad():
            one = torch.ones((), dtype=torch.double, device=self.coupling.device).requires_grad_()
            field = None if self.free else self.field.detach() * one
            log_z = self.log_z_of(self.coupling.detach() * one, field)
            return -torch.autograd.grad(log_z, one)[0]


def neighbours(shape: Sequence[int], periodic: bool, like: Tensor) -> Tensor:
    """How often each two sites of a lattice are neighbours, with shape :math:`(N, N)`."""
    n = math.prod(shape)
    index = torch.arange(n, device=like.device).reshape(tuple(shape))
    near = like.new_zeros(n, n)
    for axis, size in enumerate(shape):
        last = size if periodic else size - 1
        here = index.narrow(axis, 0, last).flatten()
        there = index.roll(-1, axis).narrow(axis, 0, last).flatten()
        near.index_put_((here, there), near.new_ones(()), accumulate=True)
    return near + near.mT
