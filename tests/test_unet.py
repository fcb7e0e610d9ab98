"""Known answers of the U-Net."""

import pytest
import torch

import probgen as pg
from probgen.networks import UNet

SHAPES = {"8": (1, 8, 8), "28": (2, 28, 28), "wide": (3, 8, 16), "signal": (2, 16)}


def build(shape, **options):
    """A small network whose output layer is no longer at zero."""
    net = UNet(shape, **{"channels": (8, 16), **options})
    for p in net.last.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_shapes(shape, batch):
    net = build(shape)
    x, t = torch.randn(*batch, *shape), torch.rand(batch)
    out = net(x, t)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert net.double()(x.double(), t.double()).dtype == torch.float64
    assert net.to("meta")(x.double().to("meta"), t.double().to("meta")).shape == x.shape


@pytest.mark.parametrize("channels", [(8,), (8, 16), (6, 10, 16)])
def test_levels_and_blocks(channels):
    attention = (*[False] * (len(channels) - 1), True)
    net = build((1, 8, 8), channels=channels, blocks=2, attention=attention, heads=2)
    out = net(torch.randn(3, 1, 8, 8), torch.rand(3))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_datum_never_depends_on_another(shape, float64):
    net = build(shape, context=2, attention=(True, True))
    x, t, c = torch.randn(4, *shape), torch.randn(4), torch.randn(4, 2)
    out = net(x, t, c)
    for k in range(4):
        torch.testing.assert_close(net(x[k], t[k], c[k]), out[k], rtol=1e-10, atol=1e-10)
    once = net(x, t[0], c)
    torch.testing.assert_close(once, net(x, t[:1].expand(4), c), rtol=1e-10, atol=1e-10)
    folded = net(x.reshape(2, 2, *shape), t.reshape(2, 2), c.reshape(2, 2, 2))
    torch.testing.assert_close(folded.reshape(x.shape), out, rtol=1e-10, atol=1e-10)


def test_it_starts_at_zero_and_sees_time_context_and_places():
    net = UNet((1, 8, 8), context=2)
    x, t, c = torch.randn(3, 1, 8, 8), torch.rand(3), torch.randn(3, 2)
    assert (net(x, t, c) == 0).all()
    net = build((1, 8, 8), context=2)
    out = net(x, t, c)
    assert (net(x, t + 1, c) - out).abs().max() > 1e-3
    assert (net(x, t, c + 1) - out).abs().max() > 1e-3
    assert (net(x.flip(-1), t, c).flip(-1) - out).abs().max() > 1e-3
    moved = x.clone()
    moved[..., 0, 0] += 1  # attention carries it to the far corner
    assert (net(moved, t, c) - out)[..., -1, -1].abs().min() > 0


def test_dropout_acts_in_training_only():
    net = build((1, 8, 8), dropout=0.5)
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    assert (net(x, t) - net(x, t)).abs().max() > 0
    net.eval()
    assert (net(x, t) == net(x, t)).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 16)])
def test_forward_derivatives_equal_backward_ones(shape, float64):
    net = build(shape, attention=(True, True))
    x, t = torch.randn(2, *shape), torch.rand(2)
    full = torch.autograd.functional.jacobian(lambda y: net(y, t), x)
    vs = torch.randn(3, *x.shape)
    along = torch.func.vmap(lambda v: torch.func.jvp(lambda y: net(y, t), (x,), (v,))[1])(vs)
    wanted = (full.reshape(x.numel(), -1) @ vs.reshape(3, -1).mT).mT.reshape(vs.shape)
    torch.testing.assert_close(along, wanted, rtol=1e-8, atol=1e-8)
    v = vs[0]  # and the gradient of a product in the parameters, as through the divergence

    def forward(y):
        return (torch.func.jvp(lambda y: net(y, t), (y,), (v,))[1] * v).sum()

    def backward(y):
        (found,) = torch.autograd.grad((net(y, t) * v).sum(), y, create_graph=True)
        return (found * v).sum()

    found = [
        torch.autograd.grad(
            f(x.clone().requires_grad_()), list(net.parameters()), allow_unused=True
        )
        for f in (forward, backward)
    ]
    for a, b in zip(*found):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        torch.testing.assert_close(*torch.broadcast_tensors(a, b), rtol=1e-8, atol=1e-8)


def test_it_saves_and_loads(tmp_path):
    net = build((1, 8, 8), context=2, dropout=0.1).eval()
    net.save(tmp_path / "net")
    again = pg.load(tmp_path / "net").eval()
    x, t, c = torch.randn(3, 1, 8, 8), torch.rand(3), torch.randn(3, 2)
    assert (again(x, t, c) == net(x, t, c)).all()


def diffusion():
    torch.manual_seed(0)
    net = UNet((1, 8, 8), channels=(16, 32))
    return pg.distributions.Diffusion(
        pg.diffusion.NetworkDenoiser(net, pg.diffusion.Karras(), (1, 8, 8)),
        pg.diffusion.Heun(4),
        steps=2,
        probes=1,
    )


@torch.no_grad()
def loss(model, x):
    """At times and with noise that are the same for all models."""
    torch.manual_seed(1)
    return model.objective(model, x).mean()


def test_a_diffusion_of_images_learns(tmp_path):
    x = pg.datasets.digits().images.reshape(-1, 1, 8, 8) / 16
    model = diffusion()
    model.initialize(x)
    before = loss(model, x)
    pg.fit(model, x, steps=30, batch_size=64, lr=3e-3, seed=0, progress=False)
    assert loss(model, x) < 0.98 * before  # much of it is noise that cannot be told
    model.freeze()
    assert model().sample((2,)).shape == (2, 1, 8, 8)
    assert torch.isfinite(model().log_prob(x[:2])).all()
    model.save(tmp_path / "model")
    again = pg.load(tmp_path / "model")
    t = torch.tensor(0.5)
    assert (again.score(x[:2], t) == model.score(x[:2], t)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8, 8, 8)}, r"`shape` of \(C, L\) or \(C, H, W\), got \(8, 8, 8, 8\)"),
        ({"shape": 64}, "`shape` of .* got 64"),
        ({"shape": (1, 0, 8)}, r"`shape\[1\]`"),
        ({"shape": (1, 9, 8)}, r"multiples of 2, .* got \(1, 9, 8\)"),
        ({"channels": ()}, "`channels`"),
        ({"channels": (8, -1)}, r"`channels\[1\]`"),
        ({"channels": (8, 18)}, "multiples of 4 heads, got 18"),
        ({"attention": (True,)}, r"`attention` .* got \(True,\)"),
        ({"attention": True}, "`attention` .* got True"),
        ({"blocks": 0}, "`blocks`"),
        ({"heads": 0}, "`heads`"),
        ({"context": -1}, "`context`"),
        ({"embedding": 0}, "`embedding`"),
        ({"dropout": 1.0}, r"`dropout` in \[0, 1\), got 1.0"),
        ({"activation": "sine"}, "activation among .* got 'sine'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{"shape": (1, 8, 8), **options})


def test_bad_calls():
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    with pytest.raises(ValueError, match=r"shape \(\*, 1, 8, 8\), got \(3, 8, 8\)"):
        UNet((1, 8, 8))(x[:, 0], t)
    with pytest.raises(ValueError, match=r"Expected a context, .* got none"):
        UNet((1, 8, 8), context=2)(x, t)
    with pytest.raises(ValueError, match=r"Expected no context, .* got one"):
        UNet((1, 8, 8))(x, t, torch.randn(3, 2))
