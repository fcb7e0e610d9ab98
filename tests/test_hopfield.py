"""Associative memories against what is known of them."""

import copy
import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import probgen as pg
from probgen.models import HopfieldNetwork, ModernHopfield


def patterns(count, units):
    return 1.0 - 2.0 * torch.randint(2, (count, units)).to(torch.get_default_dtype())


def memory(count, units, **options):
    x = patterns(count, units)
    network = HopfieldNetwork(units, **options)
    network.store(x)
    return network, x


def flipped(x, share):
    return x * (1.0 - 2.0 * (torch.rand_like(x) < share).to(x.dtype))


def test_no_single_update_raises_the_energy(float64):
    torch.manual_seed(0)
    for beta in (math.inf, 2.0):
        network, _ = memory(200, 1000, beta=beta)
        network.bias.normal_(0, 0.1)
        x = patterns(3, 1000) * (1.0 if beta == math.inf else 0.9)
        field, last = network.field(x), network.energy(x)
        for i in torch.randperm(1000):
            new = network.answer(field[:, i], x[:, i])
            field = field + (new - x[:, i])[:, None] * network.weight[i]
            x[:, i] = new
            energy = network.energy(x)
            assert (energy <= last + 1e-9).all()
            last = energy
        energies = network.energy(network.trajectory(x, 10))
        assert (energies[1:] <= energies[:-1] + 1e-9).all()


def test_all_at_once_lowers_the_two_step_function(float64):
    torch.manual_seed(0)
    network, _ = memory(200, 1000)
    network.bias.normal_(0, 0.1)
    states = network.trajectory(patterns(3, 1000), 30, synchronous=True)
    a, b = states[1:], states[:-1]
    value = -(a * (b @ network.weight)).sum(-1) - ((a + b) * network.bias).sum(-1)
    assert (value[1:] <= value[:-1] + 1e-9).all()


@pytest.mark.parametrize("load", [0.15, 0.2, 0.3])
def test_errors_of_one_step_are_those_of_a_normal_noise(load):
    torch.manual_seed(0)
    units, wrong, total = 1000, 0, 0
    for _ in range(3 if load > 0.25 else 12):
        network, x = memory(round(load * units) + 1, units)
        wrong += int((network.together(x) != x).sum())
        total += x.numel()
    exact = math.erfc(1 / math.sqrt(2 * load)) / 2
    assert abs(wrong / total / exact - 1) < 0.05


def test_memory_breaks_down_at_its_capacity():
    torch.manual_seed(0)
    overlaps = {}
    for load in (0.12, 0.2):
        network, x = memory(round(600 * load), 600)
        found = network.recall(x, 30)
        overlaps[load] = float((found * x).mean())
    assert overlaps[0.12] > 0.97
    assert overlaps[0.2] < 0.6


def test_few_patterns_are_recalled_from_noise():
    torch.manual_seed(0)
    network, x = memory(int(1000 / (4 * math.log(1000))), 1000)
    assert torch.equal(network.recall(flipped(x, 0.1)), x)


def test_learning_stores_more_than_hebbs_rule():
    torch.manual_seed(0)
    x = patterns(30, 60)
    hebb, learned = HopfieldNetwork(60), HopfieldNetwork(60)
    hebb.store(x)
    learned.learn(x, steps=300)
    assert not torch.equal(hebb.together(x), x)
    assert torch.equal(learned.together(x), x)
    assert torch.equal(learned.weight, learned.weight.mT)
    assert not learned.weight.diagonal().any()


def test_the_modern_update_is_attention_and_lowers_the_energy(float64):
    torch.manual_seed(0)
    xi, x = torch.randn(20, 8), torch.randn(5, 8)
    network = ModernHopfield(xi, beta=0.7)
    attention = scaled_dot_product_attention(x, xi, xi, scale=0.7)
    torch.testing.assert_close(network.recall(x), attention, rtol=0, atol=1e-6)
    energies = network.energy(network.trajectory(x, 50))
    assert (energies[1:] <= energies[:-1] + 1e-9).all()


def test_they_save_load_copy_and_move(tmp_path, unchecked):
    network, x = memory(3, 20, beta=3.0)
    modern = ModernHopfield(torch.randn(5, 4))
    for k, (module, state) in enumerate(((network, x), (modern, torch.randn(2, 4)))):
        module.save(tmp_path / str(k))
        for again in (pg.load(tmp_path / str(k)), copy.deepcopy(module)):
            assert torch.equal(again.energy(state), module.energy(state))
        assert module.double().energy(state.double()).dtype == torch.float64
        assert module.to("meta").energy(state.to("meta").double()).shape == state.shape[:1]


def test_bad_input_is_refused():
    network = HopfieldNetwork(3)
    ring = torch.ones(3, 3) - torch.eye(3)
    network.couple(ring, torch.ones(3))
    for wrong, words in (
        (lambda: HopfieldNetwork(0), "`units`"),
        (lambda: HopfieldNetwork(3, beta=0.0), "`beta`"),
        (lambda: network.couple(torch.ones(2, 2)), r"`weight` with shape \(3, 3\)"),
        (lambda: network.couple(torch.ones(3, 3)), "no self-connections"),
        (lambda: network.couple(ring.triu()), "symmetric weights"),
        (lambda: network.store(torch.ones(3)), r"\(P, 3\), got \(3,\)"),
        (lambda: network.store(torch.ones(2, 4)), r"\(P, 3\), got \(2, 4\)"),
        (lambda: network.store(torch.zeros(2, 3)), "values -1 and 1, got 0"),
        (lambda: network.recall(2 * torch.ones(3)), r"in \[-1, 1\], got 2"),
        (lambda: ModernHopfield(torch.ones(3)), r"\(P, D\), got \(3,\)"),
        (lambda: ModernHopfield(torch.ones(2, 3), beta=-1.0), "`beta`"),
        (lambda: ModernHopfield(torch.ones(2, 3)).recall(torch.ones(4)), r"\(\*, 3\), got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            wrong()
