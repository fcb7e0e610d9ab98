"""Training on levels, on several processes, and on data of other scales."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import probgen as pg

from .training_cases import QUICK, small
from .training_cases import x as x


def test_discrete_data_under_a_bound():
    x = torch.randint(0, 4, (200, 2))
    continuous = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 4.0)], pg.models.NSF(2))
    noise = pg.distributions.Flow(
        [pg.transforms.Bounded()], pg.models.RealNVP(2, context=2, transforms=2)
    )
    for q in (None, noise):
        flow = pg.distributions.Dequantized(copy.deepcopy(continuous), 4, noise=q, particles=2)
        assert flow.density is flow().density is pg.Density.BOUND
        history = pg.fit(flow, x, steps=60, lr=5e-3, **QUICK)
        assert history.losses[-1] < history.losses[0]
        d = flow()
        assert d.support.check(d.sample((50,))).all()
        assert d.log_prob(torch.tensor([4.0, 0.0])) == -torch.inf
        assert d.expand((5,)).log_prob(x[0]).shape == (5,)
        grid = torch.cartesian_prod(*[torch.arange(4.0)] * 2)
        bound = torch.stack([d.log_prob(grid) for _ in range(200)]).mean(0)
        assert float(bound.exp().sum().detach()) < 1.0
        if q is None:  # many particles make the bound the log probability
            tight = pg.distributions.Dequantized(flow.continuous, 4, particles=5000)()
            assert abs(float(tight.log_prob(grid).exp().sum().detach()) - 1) < 0.02
        svi = flow.model, flow.guide
        loss = pg_loss(svi, x.float())
        assert loss.isfinite()
    with pytest.raises(ValueError, match=r"\(\*, 2\), got \(5, 1\)"):
        d.log_prob(torch.zeros(5, 1))
    wide = pg.distributions.Flow([pg.transforms.NormalCDF(0.0, 16.0)], pg.models.NSF(2))
    for wrong, words in (
        (lambda: pg.distributions.Dequantized(continuous, 1), "`levels`.*got 1"),
        (lambda: pg.distributions.Dequantized(continuous, 2.5), "`levels`.*got 2.5"),
        (
            lambda: pg.distributions.Dequantized(continuous, 4, pg.models.MAF(2, context=2)),
            r"`noise` on \(0, 1\)",
        ),
        (lambda: pg.distributions.Dequantized(wide, 4)(), r"over \[0, 4\), got.*16"),
        (lambda: pg.distributions.Flow([], flow)(), "continuous base, got a Dequantized"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()


def pg_loss(pair, x):
    from pyro.infer import Trace_ELBO

    return Trace_ELBO()(*pair)(x)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch, pyro, probgen as pg
            import torch.distributed as distributed
            torch.set_num_threads(1)
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(0)
            x = torch.randn(61, 2) * 3 + 1
            flow = pg.models.NSF(2, transforms=2, hidden_features=(8,))
            options = dict(steps=12, batch_size=20, seed=0, lr=1e-2, progress=False)
            history = pg.fit(flow, x, validation=0.2, checkpoint=sys.argv[1], **options)
            torch.distributions.normal._standard_normal = lambda shape, dtype, device: (
                torch.zeros(shape, dtype=dtype, device=device)  # each process has its own noise
            )
            bits = (torch.rand(60, 4) < torch.tensor([0.1, 0.3, 0.6, 0.9])).double()
            vae = pg.models.VAE(4, 2, (8,))
            loss = pg.objectives.ELBO(free_bits=0.01, warm_up=0.5)
            pg.fit(vae, bits, objective=loss, **options)
            state = {**flow.state_dict(), **vae.state_dict()}
            if not distributed.is_initialized() or distributed.get_rank() == 0:
                torch.save((state, history.losses), sys.argv[1] + "/result.pt")
            if distributed.is_initialized():
                from torch.nn.parallel import DistributedDataParallel as DDP
                from pyro.infer import Trace_ELBO
                loss = DDP(Trace_ELBO()(flow.model, flow.guide))
                share = x[:60][distributed.get_rank() :: 2]
                flow.zero_grad()
                loss(share, size=60).backward()
                spread = [p.grad.clone() for p in flow.parameters()]
                flow.zero_grad()
                Trace_ELBO()(flow.model, flow.guide)(x[:60]).backward()
                for g, p in zip(spread, flow.parameters()):
                    torch.testing.assert_close(g, p.grad, rtol=1e-9, atol=1e-9)
                options["checkpoint"] = sys.argv[1] + f"/own {distributed.get_rank()}"
                pg.fit(flow, x, **options)
                try:
                    pg.fit(flow, x, **{**options, "steps": 20})
                    sys.exit("a folder of each process's own was taken")
                except ValueError as error:
                    if "one step, got [12, 0]" not in str(error):
                        raise
                distributed.barrier()  # none leaves while another waits for it
            """
        )
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    results = []
    for prefix, name in (([sys.executable], "one"), (command, "two")):
        done = subprocess.run(
            [*prefix, str(script), str(tmp_path / name)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(torch.load(tmp_path / name / "result.pt"))
    (one, losses), (two, others) = results
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(others), rtol=1e-9, atol=1e-9)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9)


def test_contexts_may_be_on_any_scale():
    torch.manual_seed(0)
    c = torch.randn(500, 1)
    x = c + 0.3 * torch.randn(500, 1)
    values = []
    for scale, shift in ((1.0, 0.0), (1000.0, 5e4)):
        torch.manual_seed(1)
        flow = pg.models.MAF(1, context=1, transforms=1, hidden_features=(16,))
        pg.fit(flow, x, context=shift + scale * c, steps=150, lr=1e-2, seed=0, progress=False)
        values.append(flow(shift + scale * c).log_prob(x).mean())
    assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), abs=0.02)


def test_a_fit_to_data_of_another_scale_warns(x):
    flow = small()
    pg.fit(flow, x, steps=1, **QUICK)
    pg.fit(flow, x[:50] + 1.0, steps=1, **QUICK)
    for other in (x + 1000.0, x * 50.0):
        with pytest.warns(pg.ScaleWarning, match="another scale.*feature 0"):
            pg.fit(flow, other, steps=1, **QUICK)


@pytest.mark.parametrize("shape", [(2,), (10, 1), (10, 3)])
def test_start_needs_data_of_the_right_shape(shape):
    with pytest.raises(ValueError, match=r"`x` with shape \(N, 2\), got"):
        small().initialize(torch.zeros(shape))


def test_a_flow_as_base_keeps_the_scale_of_its_contexts():
    inner = pg.models.MAF(2, context=1, transforms=1, hidden_features=(8,))
    inner.initialize(torch.randn(50, 2), 100 + torch.randn(50, 1))
    outer = pg.distributions.Flow([pg.transforms.Affine(torch.zeros(2), torch.zeros(2))], inner)
    c, x = torch.tensor([101.0]), torch.randn(2)
    torch.testing.assert_close(outer(c).log_prob(x), inner(c).log_prob(x))


def test_a_state_without_the_scale_of_contexts_is_refused():
    flow = pg.models.MAF(2, context=1, transforms=1, hidden_features=(8,))
    state = flow.state_dict()
    del state["context_standardizer.parts.0.shift"]
    with pytest.raises(RuntimeError, match="Missing key"):
        flow.load_state_dict(state)


def test_an_interrupted_step_leaves_no_trace_in_buffers(tmp_path):
    """A codebook that moves with its averages goes on as if nobody had interrupted it."""
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    options = {"steps": 8, "batch_size": 20, "seed": 0, "progress": False}

    def build():
        torch.manual_seed(0)
        return pg.models.VQVAE((1, 4, 4), codes=4, code_features=2, channels=(4,), ema=0.9)

    whole, cut = build(), build()
    expected = pg.fit(whole, x, **options).losses
    calls = []

    def interrupt(fraction):
        calls.append(fraction)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        pg.fit(cut, x, checkpoint=tmp_path, schedule=interrupt, **options)
    history = pg.fit(build(), x, checkpoint=tmp_path, schedule=interrupt, **options)
    assert history.losses == expected
