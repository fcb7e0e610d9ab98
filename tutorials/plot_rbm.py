r"""
Restricted Boltzmann machines and belief networks
=================================================

A restricted Boltzmann machine joins visible units :math:`v` to hidden units :math:`h`, all 0 or 1,
without connections within a layer:

.. math:: p(v, h) = \frac{1}{Z} \exp \bigl( b^\top v + c^\top h + v^\top W h \bigr), \qquad
    p(v) = \frac{e^{-F(v)}}{Z}, \quad
    F(v) = -b^\top v - \sum_j \log \bigl( 1 + e^{(W^\top v + c)_j} \bigr).

:math:`Z` sums over the :math:`2^{16}` states of 16 hidden units, so that here the likelihood is
exact, and ways of training that never see it can be compared by it.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import BernoulliRBM

import probgen as pg
from probgen.objectives import ContrastiveDivergence

torch.manual_seed(0)

# %%
# Data
# ----
# The digits of scikit-learn, 8 x 8 pixels, black or white at half of their range. The last 360 are
# held out.

data = pg.datasets.digits()
pixels = (data.images > 8).float()
train, test = pixels[:1437], pixels[1437:]
labels, test_labels = data.labels[:1437], data.labels[1437:]

# %%
# Four ways to train
# ------------------
# The gradient of the log-likelihood needs draws of the model. Contrastive divergence takes them
# after 1 or 10 steps of Gibbs sampling from the data (CD-1, CD-10). Persistent chains go on from
# where they stood (PCD), and parallel tempering exchanges them with hotter ones (PT). Any callable
# is an objective, so one may look at the exact likelihood on the way. Chains that persist lag
# behind weights that change fast: they catch up as the learning rate falls.

ways = {
    "CD-1": ContrastiveDivergence(),
    "CD-10": ContrastiveDivergence(steps=10),
    "PCD": ContrastiveDivergence(persistent=True),
    "PT": ContrastiveDivergence(persistent=True, betas=(0.25, 0.5, 0.75, 1.0)),
}
epochs, batch = 150, 50
per_epoch = -(-len(train) // batch)


def scores(machine):
    with torch.no_grad():
        return machine().log_prob(test)


def score(machine):
    return float(scores(machine).mean())


def watched(objective, curve):
    count = itertools.count()

    def loss(module, x, context=None):
        if next(count) % (10 * per_epoch) == 0:
            curve.append(score(module))
        return objective(module, x, context)

    return loss


machines, curves = {}, {}
for name, objective in ways.items():
    machine, curve = pg.models.RBM(visible=64, hidden=16), []
    pg.fit(
        machine,
        train,
        objective=watched(objective, curve),
        epochs=epochs,
        batch_size=batch,
        lr=0.02,
        schedule="cosine",
        ema=0.99,
        seed=0,
        progress=False,
    )
    machines[name], curves[name] = machine.freeze(), [*curve, score(machine)]

# %%
# The peer is scikit-learn's machine, with as many hidden units and epochs: its weights, put into
# one of ours, give its exact likelihood. It is trained at its default learning rate, 0.1, and at
# three others, of which the best on the held-out digits counts, in its favour.

peers = []
rates = (0.1, 0.05, 0.02, 0.01)
for rate in rates:
    theirs = BernoulliRBM(16, learning_rate=rate, n_iter=epochs, random_state=0).fit(train)
    machine = pg.models.RBM(visible=64, hidden=16)
    with torch.no_grad():
        machine.weight.copy_(torch.tensor(theirs.components_.T))
        machine.visible_bias.copy_(torch.tensor(theirs.intercept_visible_))
        machine.hidden_bias.copy_(torch.tensor(theirs.intercept_hidden_))
    peers.append(scores(machine))

print("exact log-likelihood of a held-out digit, nats")
for name, machine in machines.items():
    print(f"  {name:22} {score(machine):7.2f}")
for rate, value in zip(rates, peers):
    print(f"  scikit-learn, {rate:<8} {float(value.mean()):7.2f}")
default, best = peers[0], max(peers, key=torch.mean)
print("gain over scikit-learn")
for name, machine in machines.items():
    gains = [scores(machine) - peer for peer in (default, best)]
    found = [f"{float(g.mean()):+.2f} +- {float(g.std()) / len(g) ** 0.5:.2f}" for g in gains]
    print(f"  {name:6} at its default rate {found[0]}, at its best {found[1]}")

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, curve in curves.items():
    ax.plot([10 * k for k in range(len(curve))], curve, "o-", ms=3, label=name)
ax.axhline(float(best.mean()), color="k", ls="--", lw=1, label="scikit-learn, best rate")
ax.axhline(float(default.mean()), color="k", ls=":", lw=1, label="scikit-learn, default")
ax.set(xlabel="epochs", ylabel="exact log-likelihood / nat", ylim=(-24, -17.5))
ax.legend(ncols=2, loc="lower right")

# %%
# What hidden units look for: their weights, red where ink speaks for them and blue where it speaks
# against.

rbm = machines["PT"]
fig, axs = plt.subplots(2, 8, figsize=(8, 2.2), layout="constrained")
high = float(rbm.weight.abs().max())
for ax, weight in zip(axs.flat, rbm.weight.T):
    ax.imshow(weight.reshape(data.shape), cmap="RdBu_r", vmin=-high, vmax=high)
    ax.set(xticks=[], yticks=[])

# %%
# The partition function by annealing
# -----------------------------------
# Larger machines have no exact :math:`Z`. Annealed importance sampling goes from independent
# pixels to the model, which bounds :math:`\log Z` from below in expectation, and back, which bounds
# it from above. Here the truth is known.

found = rbm.estimate(chains=500, temperatures=torch.linspace(0, 1, 1001))
truth = float(rbm.log_partition())
print(f"log Z: exact {truth:.3f}; from below {found.log_z:.3f} +- {found.se:.3f}, ", end="")
print(f"from above {found.upper:.3f} +- {found.upper_se:.3f}")

# %%
# A deep belief network
# ---------------------
# One more layer: a machine of 16 and 16 units draws :math:`h_1`, and the first machine's way down
# draws the pixels from it. Greedy training, the default, fits one pair of layers after the other,
# and the up-down algorithm then trains all together. A sum over all states gives the exact
# likelihood. A network too large for it has the bound of importance sampling, ``log_marginal``.
# With a first hidden layer as small as this one, the network does no better than the best machines
# above.


def say(name):
    with torch.no_grad():
        exact = float(network.exact_log_prob(test).mean())
        bound = float(network.log_marginal(test, samples=100).value.mean())
    print(f"{name}: exact {exact:.2f}, bound {bound:.2f}")


network = pg.models.DeepBeliefNetwork([64, 16, 16])
options = {"batch_size": batch, "schedule": "cosine", "seed": 0, "progress": False}
pg.fit(network, train, epochs=150, lr=0.02, **options)
print(f"its first machine alone: {score(network.machines[0]):.2f}")
say("greedy")
pg.fit(network, train, objective=pg.objectives.UpDown(), epochs=60, lr=0.005, **options)
say("up-down")


def mosaic(x):
    tiles = torch.nn.functional.pad(x.reshape(5, 6, *data.shape), (1, 1, 1, 1), value=0.3)
    return tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)


shown = {
    "held-out digits": test[:30],
    "draws of the machine": rbm().sample((30,)),
    "draws of the network": network().sample((30,)),
}
fig, axs = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
for ax, (name, x) in zip(axs, shown.items()):
    ax.imshow(mosaic(x), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=name)

# %%
# Features for a classifier
# -------------------------
# The means of 128 hidden units replace the pixels in a logistic regression, whose penalty is
# chosen by cross-validation. Our machine, trained by CD-1, and scikit-learn's, at its defaults, go
# 40 times through the data. On 360 digits the two are not told apart.

machine = pg.models.RBM(visible=64, hidden=128)
pg.fit(
    machine,
    train,
    objective=ContrastiveDivergence(),
    epochs=40,
    batch_size=20,
    lr=0.02,
    seed=0,
    progress=False,
)
machine.freeze()
theirs = BernoulliRBM(128, n_iter=40, random_state=0).fit(train)
inputs = {
    "pixels": (train, test),
    "probgen's machine": (machine.features(train), machine.features(test)),
    "scikit-learn's machine": (theirs.transform(train), theirs.transform(test)),
}
for name, (a, b) in inputs.items():
    classifier = LogisticRegressionCV(Cs=[0.1, 1.0, 10.0, 100.0], cv=4, max_iter=1000)
    accuracy = classifier.fit(a, labels).score(b, test_labels)
    error = (accuracy * (1 - accuracy) / len(test)) ** 0.5
    print(f"{name:23} accuracy {accuracy:.3f} +- {error:.3f}")

# %%
# Anomalies
# ---------
# One digit is left out of the training. A machine of 64 hidden units has no exact :math:`Z`, but
# the free energy needs none to say which of two images is the less likely. How well does it tell
# held-out digits of the class left out from the others? The area under the curve (AUC) is the
# probability that one of the former scores higher than one of the latter. The peer is
# scikit-learn's isolation forest, on the same pixels, and on grey ones, which say more.

rows = []
for k in range(10):
    kept, new = labels != k, test_labels == k
    machine = pg.models.RBM(visible=64, hidden=64)
    pg.fit(
        machine,
        train[kept],
        objective=ContrastiveDivergence(persistent=True),
        epochs=60,
        batch_size=100,
        lr=0.01,
        schedule="cosine",
        seed=0,
        progress=False,
    )
    row = [roc_auc_score(new, machine.freeze().free_energy(test))]
    for x in (pixels, data.images):
        forest = IsolationForest(random_state=0).fit(x[:1437][kept].numpy())
        row.append(roc_auc_score(new, -forest.score_samples(x[1437:].numpy())))
    rows.append(row)
rows = np.array(rows)
names = ("free energy", "isolation forest", "isolation forest, grey")
print("left out" + "".join(f"{name:>24}" for name in names))
for k, row in enumerate(rows):
    print(f"{k:8}" + "".join(f"{value:24.2f}" for value in row))
print(f"{'mean':>8}" + "".join(f"{value:24.2f}" for value in rows.mean(0)))
ahead = (rows[:, :1] > rows[:, 1:]).sum(0)
print(f"the free energy is ahead for {ahead[0]} classes of 10, for {ahead[1]} of 10 if grey")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for j, name in enumerate(names):
    ax.bar(np.arange(10) + 0.27 * (j - 1), rows[:, j], 0.25, label=name)
ax.axhline(0.5, color="k", lw=1, ls=":")
ax.set(xlabel="digit left out", ylabel="AUC", xticks=range(10), ylim=(0, 1.3))
ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
ax.legend(ncols=3, loc="upper center", fontsize=8)
plt.show()
