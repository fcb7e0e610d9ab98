"""Energy-based models: throughput against numba, numpy and scikit-learn, and exact likelihoods.

Run with numba installed besides, on one thread:

    OMP_NUM_THREADS=1 python benchmarks/energy.py

Times are CPU time, medians of interleaved rounds; only ratios are to be compared.
"""

import time
import warnings

import numba
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import BernoulliRBM
from torch import nn
from torch.optim import Adam

import probgen as pg
from probgen import mcmc
from probgen.objectives import ContrastiveDivergence

torch.set_num_threads(1)
warnings.simplefilter("ignore")


def medians(functions, rounds=15):
    """The median CPU time of each function, in seconds, all called in turn in each round."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


@numba.njit(fastmath=True)
def numba_sweeps(x, table, sweeps):
    chains, n, m = x.shape
    for _ in range(sweeps):
        for c in range(chains):
            for colour in range(2):
                for i in range(n):
                    up, down = (i - 1) % n, (i + 1) % n
                    for j in range((i + colour) & 1, m, 2):
                        left, right = (j - 1) % m, (j + 1) % m
                        h = x[c, up, j] + x[c, down, j] + x[c, i, left] + x[c, i, right]
                        x[c, i, j] = 1 if np.random.random() < table[(h + 4) >> 1] else -1


def numpy_sweeps(x, coupling, rng, board, sweeps):
    for _ in range(sweeps):
        for colour in board:
            h = np.roll(x, 1, 1) + np.roll(x, -1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 2)
            p = 1 / (1 + np.exp(-2 * coupling * h.astype(np.float32)))
            new = np.where(rng.random(x.shape, dtype=np.float32) < p, 1, -1).astype(np.int8)
            x[:] = np.where(colour, new, x)


def spins():
    print("Gibbs sampling of a torus, millions of spins per second")
    print("| chains x lattice | probgen | numba | numpy | probgen / numba |\n|---|---|---|---|---|")
    coupling, rng = 0.44, np.random.default_rng(0)
    table = 1 / (1 + np.exp(-2 * coupling * np.arange(-4, 5, 2)))
    for chains, n in ((1, 64), (1, 256), (64, 32), (64, 64), (16, 256)):
        sweeps = max(10, 2_000_000 // (chains * n * n))
        start = np.where(rng.random((chains, n, n)) < 0.5, 1, -1).astype(np.int8)
        kernel = pg.models.Ising((n, n), coupling).transition()
        a, b, c = torch.from_numpy(start.astype(np.float32)), start.copy(), start.copy()
        parity = np.add.outer(np.arange(n), np.arange(n)) % 2
        board = [parity == 0, parity == 1]
        found = medians(
            {
                "probgen": lambda a=a, k=kernel, s=sweeps: k.move(a, s),
                "numba": lambda b=b, s=sweeps: numba_sweeps(b, table, s),
                "numpy": lambda c=c, o=board: numpy_sweeps(c, coupling, rng, o, 1),
            }
        )
        total = chains * n * n / 1e6
        speed = {k: total * (1 if k == "numpy" else sweeps) / v for k, v in found.items()}
        print(
            f"| {chains} x {n}^2 | {speed['probgen']:.0f} | {speed['numba']:.0f} | "
            f"{speed['numpy']:.0f} | {speed['probgen'] / speed['numba']:.2f} |"
        )


def data():
    x = torch.tensor(load_digits().data / 16 > 0.5).float()
    return x[:1437], x[1437:]


def bare_loop(rbm, x, batch, epochs):
    """Torch's own loop about the same loss: what autograd and Adam alone take."""
    loss, optimizer = ContrastiveDivergence(persistent=True), Adam(rbm.parameters(), fused=True)
    rbm.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for chosen in order.split(batch):
            optimizer.zero_grad()
            loss(rbm, x[chosen], None).mean().backward()
            optimizer.step()


def machines(epochs=100):
    print("\nRestricted Boltzmann machine of digits, persistent chains, milliseconds per epoch")
    print("| batch | hidden | probgen | bare loop | scikit-learn, float64 | float32 | ratios |")
    print("|---|---|---|---|---|---|---|")
    x, _ = data()
    single, double = x.numpy(), x.double().numpy()
    for batch in (100, 256, 500, 1437):
        for hidden in (64, 256):

            def ours(hidden=hidden, batch=batch):
                pg.fit(
                    pg.models.RBM(64, hidden),
                    x,
                    objective=ContrastiveDivergence(persistent=True),
                    epochs=epochs,
                    batch_size=batch,
                    progress=False,
                )

            def bare(hidden=hidden, batch=batch):
                bare_loop(pg.models.RBM(64, hidden), x, batch, epochs)

            def theirs(values, hidden=hidden, batch=batch):
                BernoulliRBM(hidden, batch_size=batch, n_iter=epochs).fit(values)

            found = medians(
                {
                    "probgen": ours,
                    "bare": bare,
                    "float64": lambda f=theirs: f(double),
                    "float32": lambda f=theirs: f(single),
                }
            )
            ms = {k: 1e3 * v / epochs for k, v in found.items()}
            print(
                f"| {batch} | {hidden} | {ms['probgen']:.1f} | {ms['bare']:.1f} | "
                f"{ms['float64']:.1f} | {ms['float32']:.1f} | "
                f"{ms['probgen'] / ms['float64']:.2f}, {ms['bare'] / ms['float64']:.2f} |"
            )


def likelihoods(epochs=500, hidden=16):
    print(f"\nExact test log-likelihood of digits, {hidden} hidden units, {epochs} epochs, nats")
    print("| seed | probgen | scikit-learn, rate 0.1 | 0.01 | 0.001 |\n|---|---|---|---|---|")
    train, test = data()
    for seed in range(3):
        torch.manual_seed(seed)
        rbm = pg.models.RBM(64, hidden)
        pg.fit(
            rbm,
            train,
            objective=ContrastiveDivergence(persistent=True),
            epochs=epochs,
            batch_size=100,
            lr=0.01,
            schedule="cosine",
            seed=seed,
            progress=False,
        )
        values = [float(rbm.freeze()().log_prob(test).mean())]
        for rate in (0.1, 0.01, 0.001):
            peer = BernoulliRBM(hidden, learning_rate=rate, n_iter=epochs, random_state=seed)
            peer.fit(train.numpy())
            theirs = pg.models.RBM(64, hidden).freeze()
            theirs.weight.copy_(torch.tensor(peer.components_.T))
            theirs.hidden_bias.copy_(torch.tensor(peer.intercept_hidden_))
            theirs.visible_bias.copy_(torch.tensor(peer.intercept_visible_))
            values.append(float(theirs().log_prob(test).mean()))
        print(f"| {seed} | " + " | ".join(f"{v:.2f}" for v in values) + " |")


def partitions():
    print("\nlog Z by annealing less that by enumeration, with standard errors")
    print("| model | annealed importance sampling | sequential Monte Carlo | from the model |")
    print("|---|---|---|---|")
    torch.manual_seed(0)
    train, _ = data()
    rbm = pg.models.RBM(64, 16)
    pg.fit(rbm, train, epochs=50, batch_size=100, lr=0.01, progress=False)
    cases = {
        "Ising, 4 x 4, K = 0.4407": pg.models.Ising((4, 4), 0.4407),
        "Ising, 32 x 32, K = 0.3": pg.models.Ising((32, 32), 0.3),
        "RBM, 64-16, of digits": rbm,
    }
    for name, module in cases.items():
        exact = float(module.log_partition())
        a = module.estimate(1000, temperatures=1000)
        b = module.estimate(1000, mcmc.smc)
        print(
            f"| {name} | {a.log_z - exact:+.4f} +- {a.se:.4f} (effective {a.ess:.0f}) | "
            f"{b.log_z - exact:+.4f} +- {b.se:.4f} | "
            f"{a.upper - exact:+.4f} +- {a.upper_se:.4f} (effective {a.upper_ess:.0f}) |"
        )


def langevin():
    print("\nLangevin steps over gradients alone, of a convolutional energy of images")
    print("| images | ULA | MALA |\n|---|---|---|")
    for batch, size in ((64, 28), (16, 64)):
        torch.manual_seed(0)
        model = pg.models.EnergyModel((1, size, size), hidden_features=(32, 64, 64))
        for p in model.parameters():
            nn.init.normal_(p.data, std=0.05)
        x = torch.randn(batch, 1, size, size)
        target = model.target(None)

        def gradients(x=x, target=target):
            for _ in range(5):
                y = x.detach().requires_grad_()
                torch.autograd.grad(target(y).sum(), y)

        def steps(kernel, x=x, target=target):
            state = kernel.init(x, target)
            for _ in range(4):  # and the gradient of the start
                state, _ = kernel.step(state, target)

        found = medians(
            {
                "gradient": gradients,
                "ULA": lambda f=steps: f(mcmc.ULA(1e-3)),
                "MALA": lambda f=steps: f(mcmc.MALA(1e-3)),
            }
        )
        print(
            f"| {batch} of {size} x {size} | {found['ULA'] / found['gradient']:.2f} | "
            f"{found['MALA'] / found['gradient']:.2f} |"
        )


if __name__ == "__main__":
    print(f"torch {torch.__version__}, numba {numba.__version__}\n")
    spins()
    machines()
    likelihoods()
    partitions()
    langevin()
