"""What a user registers, edits and saves."""

import copy
import dataclasses
import pickle
from abc import abstractmethod

import pyro
import pytest
import torch
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_
from torch import nn

import probgen as pg


@pg.register
class Net(nn.Module):
    """A network of a user, of values, times and contexts."""

    def __init__(self, inputs, outputs, width=8, *, act=None):
        super().__init__()
        self.width, self.act = width, nn.SiLU() if act is None else act
        self.layer, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)

    def forward(self, x, t=None, context=None):
        return self.last(self.act(self.layer(x)))


class Twice(Net):
    """A subclass, which need not be registered."""

    def forward(self, x, t=None, context=None):
        return 2 * super().forward(x)


class Plain(nn.Module):
    """A network that is not registered."""

    def __init__(self, inputs=2):
        super().__init__()
        self.layer = nn.Linear(inputs, 1)

    def forward(self, x, context=None):
        return self.layer(x).squeeze(-1)


def energy(network):
    return pg.distributions.Energy(network, 2)


def densities(module, x):
    torch.manual_seed(0)
    with torch.no_grad():
        return module().log_prob(x)


def check(module, folder, x=None, **options):
    """Saved and loaded, the module is the same."""
    x = torch.randn(5, 2) if x is None else x
    module.save(folder)
    again = pg.load(folder, **options)
    assert torch.equal(densities(again, x), densities(module, x))
    return again


@pytest.mark.parametrize("cls", [Net, Twice])
def test_a_network_of_a_user(cls, tmp_path):
    module = energy(nn.Sequential(cls(2, 1, act=nn.Tanh()), nn.Flatten(-2)))
    again = check(module, tmp_path)
    assert type(again.network[0]) is cls
    edm = pg.models.EDM(2, network=cls(2, 2, 5), sampler=pg.diffusion.Heun(2), solver_steps=2)
    edm.denoiser.network.act = nn.ReLU()
    again = check(edm, tmp_path)
    assert isinstance(again.denoiser.network.act, nn.ReLU)
    pg.fit(edm, torch.randn(9, 2), steps=1, checkpoint=tmp_path / "run", progress=False)
    for copied in (copy.deepcopy(edm), pickle.loads(pickle.dumps(edm))):
        check(copied, tmp_path)


@pytest.mark.parametrize("network", [Plain(), nn.Sequential(Plain())])
def test_an_unregistered_network_is_refused_at_once(network, tmp_path):
    said = r"(?s)`network` of Energy.*test_register.Plain.*`@pg.register` above `class Plain`"
    with pytest.raises(TypeError, match=said):
        energy(network).save(tmp_path / "a")
    with pytest.raises(TypeError, match=said):
        pg.fit(energy(network), torch.randn(9, 2), steps=1, checkpoint=tmp_path / "a")
    flow = pg.models.MAF(2, transforms=1)
    flow.extra = Plain()
    with pytest.raises(TypeError, match=r"`extra` of MAF to be a module"):
        flow.save(tmp_path / "a")
    assert not (tmp_path / "a" / "model.json").exists()


@pytest.mark.parametrize("value", [lambda x: x, torch.tanh, object(), {1, 2}])
def test_what_has_no_name_is_refused(value, tmp_path):
    with pytest.raises(TypeError, match=r"`act` of Net to be what can be saved.*@pg.register"):
        energy(Net(2, 1, act=value)).save(tmp_path)
    flow = pg.models.MAF(2, transforms=1)
    flow.extra = value
    with pytest.raises(TypeError, match=r"`extra` of MAF to be what can be saved"):
        flow.save(tmp_path)


def test_a_class_of_another_package_is_registered_by_a_call(tmp_path):
    class Other(Plain):
        pass

    early = energy(Other())
    assert pg.register(Other) is Other
    assert pg.register(Other) is Other
    check(energy(Other()), tmp_path)
    with pytest.raises(TypeError, match="before it is built"):
        early.save(tmp_path)


def test_a_module_that_cannot_be_rebuilt_is_built_by_the_user(tmp_path):
    network = pg.register(Plain())
    module = energy(network)
    with pytest.raises(pg.CheckpointError, match=r"got 'Plain'.*modules=\{'Plain': ...\}"):
        check(module, tmp_path)
    check(module, tmp_path, modules={"Plain": Plain})
    with pytest.raises(pg.CheckpointError, match="size mismatch"):
        pg.load(tmp_path, modules={"Plain": lambda: Plain(3)})
    first = pg.distributions.DiagonalNormal(2)
    other = energy(pg.register(Plain(), name="b"))
    pg.distributions.ProductOfExperts([first, module, other]).save(tmp_path)
    pg.load(tmp_path, modules={"Plain": Plain, "b": Plain})
    other = energy(pg.register(Plain()))
    with pytest.raises(TypeError, match=r"a second module 'Plain'.*name="):
        pg.distributions.ProductOfExperts([first, module, other]).save(tmp_path)
    with pytest.raises(TypeError, match="Expected a class of modules or a module to register"):
        pg.register(lambda x: x)


def test_a_class_that_cannot_be_imported_is_given_by_the_user(tmp_path):
    def define():
        @pg.register
        class Local(Plain):
            pass

        return Local

    from probgen.core.registry import MODULES

    cls = define()
    module = energy(cls(2))
    name = next(n for n, c in MODULES.items() if c is cls)
    module.save(tmp_path)
    del MODULES[name]
    with pytest.raises(pg.CheckpointError, match=r"Local.*Import the module that defines it"):
        pg.load(tmp_path)
    for key in (name, "Local"):
        again = pg.load(tmp_path, modules={key: cls})
        assert type(again.network) is cls


def test_an_abstract_class_cannot_be_built():
    @pg.register
    class Base(nn.Module):
        @abstractmethod
        def forward(self, x):
            pass

        @property
        @abstractmethod
        def size(self):
            pass

    class Half(Base):
        size = 3

    class Whole(Half):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match=r"Half.*abstract method.*forward"):
        Half()
    with pytest.raises(TypeError, match=r"Base.*abstract methods.*forward.*size"):
        Base()
    assert Whole()(1) == 1
    for cls in (pg.LazyDistribution, pg.LazyTransform, pg.diffusion.Denoiser):
        with pytest.raises(TypeError, match="abstract"):
            cls()


def test_pyro_makes_modules_of_ours(tmp_path):
    x = torch.randn(5, 2)
    options = {"transforms": 1, "hidden_features": (8,)}
    flow = PyroModule[pg.models.NSF](2, **options)
    assert isinstance(flow, pg.models.NSF)
    assert pyro.poutine.trace(lambda: flow().log_prob(x)).get_trace().nodes
    assert type(check(flow, tmp_path, x)) is pg.models.NSF
    flow = pg.models.NSF(2, **options)
    before = densities(flow, x)
    to_pyro_module_(flow)
    assert isinstance(flow, PyroModule)
    assert torch.equal(densities(flow, x), before)
    assert torch.equal(densities(check(flow, tmp_path, x), x), before)
    assert torch.equal(densities(copy.deepcopy(flow), x), before)


LAYERS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.SiLU(), nn.Linear(3, 2)),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(-1, (1, 2, 2)),
        nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular"),
        nn.GroupNorm(2, 4, affine=False),
        nn.GELU("tanh"),
        nn.ConvTranspose2d(4, 2, 2, stride=2, output_padding=1),
        nn.BatchNorm2d(2, momentum=0.3),
        nn.AvgPool2d(2),
        nn.Dropout(0.25),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Flatten(),
    ),
    "lists": lambda: nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 3)}), nn.LayerNorm(3)]),
    "recurrent": lambda: nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
    "embedding": lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.LeakyReLU(0.3)),
    "of ours": lambda: nn.Sequential(pg.networks.MLP(4, 3, hidden_features=(5,)), nn.Identity()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_torch(name, tmp_path):
    layers = LAYERS[name]().eval()
    module = pg.core.as_lazy(pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
    module.layers = layers  # added to a module that has none
    again = check(module, tmp_path).layers
    assert repr(again) == repr(layers)
    if name not in ("lists", "embedding"):
        x = torch.randn(4, 4)
        for a, b in zip(layers(x), again(x), strict=True):
            torch.testing.assert_close(a, b)


def test_layers_that_do_not_keep_their_arguments_are_refused(tmp_path):
    layer = nn.TransformerEncoderLayer(4, 2)
    with pytest.raises(TypeError, match="TransformerEncoderLayer"):
        energy(nn.Sequential(layer)).save(tmp_path)


def test_a_prior_that_was_replaced(tmp_path):
    vae = pg.models.VAE(4, 2, (8,), "normal")
    vae.prior = pg.models.NSF(2, transforms=1, hidden_features=(8,)).freeze()
    vae.samples = 50
    x = torch.randn(5, 4)
    again = check(vae, tmp_path, x)
    assert again.samples == 50
    assert not any(p.requires_grad for p in again.prior.parameters())
    again.prior.base = pg.distributions.StudentT(2)
    again.likelihood.network = pg.networks.MLP(2, 4, hidden_features=(3,))
    again.posterior = copy.deepcopy(again.posterior)
    third = check(again, tmp_path, x)
    assert isinstance(third.prior.base, pg.distributions.StudentT)
    third.prior = vae.prior
    check(copy.deepcopy(third), tmp_path, x)
    del third.samples
    third.save(tmp_path)
    assert "samples" not in vars(pg.load(tmp_path))


def test_a_part_in_two_places(tmp_path):
    flow = pg.models.MAF(2, transforms=3, hidden_features=(8,))
    flow.transforms[-1] = flow.transforms[1]
    again = check(flow, tmp_path)
    assert again.transforms[-1] is again.transforms[1]
    flow.transforms = flow.transforms[:2]
    assert len(check(flow, tmp_path).transforms) == 2
    flow.transforms.append(pg.transforms.ActNorm(2))
    assert len(check(flow, tmp_path).transforms) == 3


def test_settings_of_a_user(tmp_path):
    @pg.register
    @dataclasses.dataclass(frozen=True)
    class Setting:
        size: int = 3
        scale: float = float("inf")

    flow = pg.models.MAF(2, transforms=1)
    flow.setting, flow.kinds = Setting(4), {"a": (torch.float64, torch.Size([2])), "b": [1, None]}
    again = check(flow, tmp_path)
    assert again.setting == Setting(4)
    assert again.kinds == flow.kinds
    assert type(again.kinds["a"][1]) is torch.Size


def test_what_the_constructor_does_not_give_is_refused(tmp_path):
    flow = pg.models.MAF(2, transforms=1)
    flow.base.register_buffer("more", torch.zeros(3))
    with pytest.raises(TypeError, match=r"base\.more"):
        flow.save(tmp_path)
    flow = pg.models.MAF(2, transforms=1)
    flow.transforms[0].double()
    with pytest.raises(TypeError, match=r"all of one floating-point type, got torch.float64"):
        flow.save(tmp_path)
    flow = pg.models.MAF(2, transforms=1)
    with torch.no_grad():
        next(flow.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match=r"Expected finite numbers in `.*`, got nan"):
        flow.save(tmp_path)
    assert not list(tmp_path.iterdir())
