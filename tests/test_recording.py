"""Recorded log densities: the same numbers, without the layers."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.mcmc import potential
from tests.chains import check_chains, scan


class Scope:
    """A fresh tensor that is changed in place, constants and what depends on the argument."""

    def __call__(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            matrix = torch.zeros(3, 3)
            matrix[0] = 2.0

            def one(u):
                w = torch.zeros_like(u)
                w[1] = u[0] * 2
                w[2] += w[1]
                factor = torch.linalg.cholesky(torch.diag_embed(u.exp()) + torch.eye(3))
                chosen = u[torch.tensor([0, 0, 1])].prod()
                return (matrix @ u).sum() + w.square().sum() + factor.sum() + chosen

            value = torch.func.vmap(one)(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return {"value": value.detach(), "gradient": gradient, "constant": matrix.detach()}


def test_a_recording_gives_each_result_alone():
    from probgen.mcmc.pyro.graph import record

    function = Scope()
    recording = record(function, torch.randn(4, 3))
    x = torch.randn(4, 3)
    exact, found = function(x), recording(x)
    for name in exact:
        torch.testing.assert_close(found[name], exact[name])
        assert torch.equal(recording(x, name)[name], found[name])
        assert torch.equal(recording(x.mT.contiguous().mT, name)[name], found[name])
    assert recording.size("constant") < recording.size("value") < recording.size("gradient")
    found["constant"].zero_()  # which is a copy
    assert torch.equal(recording(x, "constant")["constant"], exact["constant"])


OPERATIONS = {
    "slices": lambda u: u[:3].sum() * u[-2:].prod() + u[::2].sum() + u[1:-1].exp().sum(),
    "ellipsis": lambda u: (u.reshape(2, 3)[..., -1:] * u.reshape(2, 3)[:1]).sum(),
    "indices": lambda u: u[torch.tensor([0, 0, -1])].prod() + u[[1, 2]].sum() + u[u.argmax()],
    "masks": lambda u: u[torch.tensor([True, False, True, True, False, False])].square().sum(),
    "branches": lambda u: torch.where(u > 0, u, u.exp()).sum() + u.clamp(-0.5, 0.5).sum(),
    "orders": lambda u: u.sort().values[2] + u.flip(0)[0] + u.roll(2)[0] + u.topk(2).values.sum(),
    "scans": lambda u: u.cumsum(0).square().sum() + u.cumprod(0).sum() + u.logcumsumexp(0).sum(),
    "algebra": lambda u: (u.reshape(2, 3) @ u.reshape(3, 2)).diagonal().sum() + u.outer(u).trace(),
    "einsum": lambda u: torch.einsum("ij,ik->jk", u.reshape(2, 3), u.reshape(2, 3).exp()).sum(),
    "solve": lambda u: torch.linalg.solve(torch.eye(6) * 3 + u.outer(u), u).sum(),
    "factor": lambda u: torch.linalg.cholesky(torch.eye(6) + u.outer(u)).logdet(),
    "triangle": lambda u: torch.linalg.solve_triangular(
        torch.eye(6) + torch.ones(6, 6).tril(), u[:, None], upper=False).sum(),
    "eigen": lambda u: torch.linalg.eigvalsh(u.outer(u) + torch.arange(6.0).diag()).exp().sum(),
    "splits": lambda u: sum(k * part.prod() for k, part in enumerate(u.split([1, 2, 3]))),
    "chunks": lambda u: torch.stack(u.chunk(3), 1).unbind(1)[1].sum() + torch.cat([u, u])[7],
    "norms": lambda u: u.norm() + u.softmax(0)[0] + u.log_softmax(0)[1] + u.logsumexp(0) + u.std(),
    "special": lambda u: torch.lgamma(u.exp()).sum() + torch.erf(u).sum() + torch.i0(u).sum(),
    "convolution": lambda u: torch.conv1d(u[None, None], torch.ones(1, 1, 3)).exp().sum(),
    "scatter": lambda u: torch.zeros(4).scatter_add(0, torch.tensor([0, 1, 1, 2, 3, 3]), u).prod(),
    "constants": lambda u: (u * 1 + 0) ** 1 @ torch.ones(6) + torch.zeros(3).sum() * u[0],
    "halves": lambda u: (u.double() * 2).float().sum() + (u > 0).float() @ u + u.sign().sum(),
    "strides": lambda u: u.reshape(3, 2).mT.reshape(-1).cumsum(0)[3] + u.unfold(0, 3, 1).prod(1)[0],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_replayed(name):
    from probgen.mcmc.pyro.graph import record

    log_density = potential(lambda: pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1)))

    def function(x):
        return log_density.slopes(OPERATIONS[name], x)

    torch.manual_seed(0)
    recording = record(function, torch.randn(5, 6))
    for x in (torch.randn(5, 6), torch.randn(6, 5).mT):
        exact, found = function(x), recording(x)
        for key in exact:
            torch.testing.assert_close(found[key], exact[key])
            torch.testing.assert_close(recording(x, key)[key], exact[key])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: {"y": x * float(x.sum())}, "depends on values"),
        (lambda x: {"y": x[x > 0]}, "depends on values"),
        (lambda x: {"y": x.add_(1)}, None),
    ],
)
def test_what_cannot_be_recorded_is_refused(function, message):
    from probgen.mcmc.pyro.graph import record

    outside = torch.zeros(3)
    if message is None:
        function, message = (lambda x: {"y": outside.add_(x)}), "changes a tensor that was there"
    with pytest.raises(RuntimeError, match=message):
        record(function, torch.ones(3))


def runge_kutta(steps=40):
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))
    z = pyro.sample("start", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1))

    def slope(z):
        return torch.stack([(rate[0] - z[1]) * z[0], (z[0] - rate[1]) * z[1]])

    path = []
    for _ in range(steps):
        half = z + 0.05 * slope(z)
        z = z + 0.1 * slope(half) / torch.tensor(1.0)
        path.append((z.square() + 1e-3).sqrt() - 0.5 * z[:1].clamp(min=1e-3))
    pyro.sample("y", dist.Normal(torch.stack(path), 1.0).to_event(2), obs=torch.ones(steps, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_loop_is_replayed_on_arrays(dtype, monkeypatch):
    from probgen.mcmc import arrays
    from probgen.mcmc.pyro import replay

    torch.set_default_dtype(dtype)
    try:
        log_density = potential(runge_kutta)
        x = torch.randn(16, 4) / 4
        log_density.value_and_gradient(x)
        check_chains(log_density, x)
        (recording,) = log_density.recorded.values()
        assert arrays.pays(x, recording.needed(("gradient",)))
        assert not arrays.pays(x[:1].expand(100000, 4), recording.lines)
        found = recording(x)
        assert {value.dtype for value in found.values()} == {dtype}
        monkeypatch.setattr(replay, "pays", lambda *_: False)
        recording.programs.clear()
        for name, value in recording(x).items():
            torch.testing.assert_close(found[name], value)
        x[0, 0] = 1e6  # which numpy would warn of
        assert not bool(torch.isfinite(log_density(x)[0]))
        assert bool(torch.isfinite(log_density(x)[1:]).all())
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_is_not_recorded_if_torch_has_no_dispatch_modes(monkeypatch):
    from probgen.mcmc.pyro import evaluation

    def fails(*_):
        raise RuntimeError("gone")

    monkeypatch.setattr(evaluation, "record", fails)
    log_density = potential(scan)
    for _ in range(3):
        check_chains(log_density, torch.randn(4, 2))
    assert list(log_density.recorded.values()) == [None]


def test_a_short_run_loads_no_compiler():
    import subprocess
    import sys

    code = """
import sys, torch, pyro, pyro.distributions as dist
from probgen.mcmc import run
def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)
run(model, torch.randn(8), warmup=5, draws=5, progress=False)
print([name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
