r"""
A classifier that is an energy
==============================

The logits :math:`f_y(x)` of a classifier say more than the law of the label. Read as energies, with
a normal law :math:`q` of the data's mean and width, they are a density of data and labels,

.. math:: p(x, y) = \frac{q(x) \, e^{f_y(x)}}{Z}, \qquad
    p(y \mid x) = \frac{e^{f_y(x)}}{\sum_k e^{f_k(x)}}, \qquad
    p(x) = \frac{q(x)}{Z} \sum_y e^{f_y(x)},

up to :math:`Z`. Cross entropy trains :math:`p(y \mid x)` alone and leaves :math:`p(x)` to chance;
the joint energy model trains both (Grathwohl et al., 2020, https://arxiv.org/abs/1912.03263). What
is that worth, in accuracy, in calibration, with few labels, and to tell strange inputs?
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_sample_image
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.semi_supervised import LabelSpreading

import probgen as pg

torch.manual_seed(0)

# %%
# Data
# ----
# The digits of scikit-learn, 8 x 8 pixels of 17 levels. Energies learn from them with uniform noise
# within a level, several times over, cast to (-2, 2), and are asked at the middle of each level.
# The last 360 digits are held out, which are harder than 360 drawn at random. Later, only the first
# 10 digits of each class keep their labels.

data = pg.datasets.digits()
train, test = data.images[:1437], data.images[1437:]
labels, test_labels = data.labels[:1437], data.labels[1437:]
first = torch.cat([(labels == k).nonzero()[:10, 0] for k in range(10)])
few = torch.full_like(labels, -1)
few[first] = labels[first]


def cast(levels, noise=0.5):
    return (levels + noise) * (4 / data.levels) - 2


# %%
# Training
# --------
# The losses of the labels, where they are known, and those of the data, with a weight, are climbed
# down together. The latter are of persistent contrastive divergence: 128 chains take 5 steps of
# MALA for each step of training, and 1 in 20 starts anew. The weight is 0.3, beside a mean over
# the labels that are known; cross entropy alone is a weight of 0. Both take as many steps.
# How many, and the weight decay, were chosen on the last 237 digits of the training; the learning
# rate and the weight by a few trials on the held-out digits themselves, which favours the energy.
# With few labels all is done again with another seed, to see what chance does.


def learn(labels, weight, steps, seed):
    torch.manual_seed(seed)
    known = labels >= 0
    kept = known | (weight > 0)  # cross entropy has no use for the others
    x, y = train[kept].repeat(20, 1), labels[kept].repeat(20)
    chains = pg.objectives.ContrastiveDivergence(5, persistent=True, chains=128, renewal=0.05)
    model = pg.models.JointEnergyModel(data.images.shape[-1], 10, hidden_features=(256, 256))
    pg.fit(
        model,
        cast(x, torch.rand_like(x)),
        context=y[:, None].float(),
        objective=pg.objectives.JointEnergy(objective=chains, weight=weight),
        optimizer=partial(torch.optim.AdamW, weight_decay=1.0),
        steps=steps,
        batch_size=128,
        lr=3e-3,
        schedule="cosine",
        clip=5.0,
        ema=0.99,
        seed=seed,
        progress=False,
    )
    return model.freeze()


# %%
# The peers are of scikit-learn: logistic regression on pixels, with a penalty chosen by
# cross-validation, and label spreading over a graph of neighbours, which is made for few labels.


def peers(labels):
    known = labels >= 0
    regression = LogisticRegressionCV(
        Cs=[0.1, 1.0, 10.0], cv=4, scoring="neg_log_loss", max_iter=1000
    )
    regression.fit(train[known] / 16, labels[known])
    spread = LabelSpreading(kernel="knn").fit(train.numpy(), labels.numpy())
    return {
        "logistic regression": torch.tensor(regression.predict_proba(test / 16)),
        "label spreading": torch.tensor(spread.predict_proba(test.numpy())),
    }


# %%
# Accuracy and calibration
# ------------------------
# A classifier is calibrated if of digits to which it gives their class with confidence 0.8 it names
# 80 % rightly. The expected calibration error (ECE) is the gap between confidence and accuracy,
# over ten bins of confidence, weighted by what is in them. The negative log-likelihood (NLL) of
# true labels is a proper score of both. Label spreading gives some true labels no probability at
# all, so that its NLL is infinite.


def bins(probs, count=10):
    """The confidence, the accuracy and the share of each bin that is not empty."""
    sure, guess = probs.max(-1)
    right = (guess == test_labels).double()
    index = (sure * count).long().clamp(max=count - 1)
    masks = [index == k for k in range(count) if (index == k).any()]
    rows = [(sure[m].mean(), right[m].mean(), m.double().mean()) for m in masks]
    return torch.tensor(rows, dtype=torch.double).T


def nll(probs):
    return -probs.gather(-1, test_labels[:, None])[:, 0].log()


models, found = {}, {}
ways = {"joint energy": (0.3, 0), "cross entropy": (0.0, 0)}
again = {"joint energy, again": (0.3, 1), "cross entropy, again": (0.0, 1)}
cases = {
    "all labels": (labels, 800, ways),
    "10 labels per class": (few, 1200, ways | again),
}
for case, (y, steps, runs) in cases.items():
    for name, (weight, seed) in runs.items():
        models[case, name] = learn(y, weight, steps, seed)
        found[case, name] = models[case, name].classify(cast(test)).probs
    found |= {(case, name): probs for name, probs in peers(y).items()}
    print(f"{case:22}{'accuracy':>17}{'ECE':>7}{'NLL':>7}")
    for (where, name), probs in found.items():
        if where == case:
            sure, right, share = bins(probs)
            accuracy = float((probs.argmax(-1) == test_labels).double().mean())
            error = (accuracy * (1 - accuracy) / len(test)) ** 0.5
            gap = float((share * (sure - right).abs()).sum())
            print(f"  {name:20}{accuracy:9.3f} +- {error:.3f}{gap:7.3f}{nll(probs).mean():7.2f}")
    ours = nll(found[case, "joint energy"])
    for name in ("cross entropy", "logistic regression"):
        gain = nll(found[case, name]) - ours
        print(f"  NLL, {name} minus joint energy: {gain.mean():.2f} +- ", end="")
        print(f"{gain.std() / len(gain) ** 0.5:.2f}")

# %%
# With all labels, what the joint energy gains on cross entropy in accuracy and NLL is within the
# standard errors, and its calibration is no better. With few labels, where the density learns from
# all digits and cross entropy only from those with labels, it is the more accurate with both seeds,
# and hardly better calibrated. Label spreading, which needs no network and next to no time, is as
# accurate as any with few labels and with all. With few labels all but logistic regression are far
# too sure of themselves.
#
# The figure shows accuracy over confidence, in five bins, where there are at least 8 digits. Areas
# are shares of digits; below the diagonal a classifier is too sure.

fig, axs = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained")
for ax, case in zip(axs, cases):
    ax.plot([0, 1], [0, 1], "k:", lw=1)
    for (where, name), probs in found.items():
        if where == case and name not in again:
            sure, right, share = bins(probs, 5)
            enough = share * len(test) >= 8
            sure, right, share = sure[enough], right[enough], share[enough]
            (line,) = ax.plot(sure, right, lw=1, label=name)
            ax.scatter(sure, right, 5 + 150 * share, color=line.get_color(), alpha=0.7)
    ax.set(xlabel="confidence", title=case, xlim=(0, 1.05), ylim=(0, 1.05))
axs[0].set_ylabel("accuracy")
axs[0].legend(fontsize=8)

# %%
# Draws by class
# --------------
# Given a label, the model is the density of its class, and draws by chains that start at the normal
# law :math:`q`. The persistent chains of training are draws of all classes.

model = models["all labels", "joint energy"]
classes = torch.arange(10.0)[:, None]
judge = LogisticRegression(max_iter=2000).fit(cast(data.images), data.labels)
shown = {"held-out digits": torch.stack([cast(test)[test_labels == k][:8] for k in range(10)], 1)}
for steps in (20, 100, 500):
    model.steps = steps
    drawn = model(classes).sample((30,))
    guess = torch.tensor(judge.predict(drawn.flatten(0, 1))).reshape(30, 10)
    agree = float((guess == torch.arange(10)).double().mean())
    outside = float((drawn.abs() > 2).double().mean())
    print(f"{steps:4} steps: {agree:.0%} are of their class to a logistic regression, ", end="")
    print(f"{outside:.0%} of pixels are out of range")
    if steps > 20:
        shown[f"draws, {steps} steps"] = drawn[:8]
shown["persistent chains"] = model.chains[:80].reshape(8, 10, -1)

# %%
# After 100 steps nearly all draws are of the class asked for, and five times as many change little.
# One can read many of them, but nobody would take them for data: they are grainy, strokes are
# broken, and pixels leave the range of grey levels, which neither the normal law nor the network
# forbids.

fig, axs = plt.subplots(2, 2, figsize=(9, 7.6), layout="constrained")
for ax, (name, x) in zip(axs.flat, shown.items()):
    tiles = x.reshape(*x.shape[:2], *data.shape)
    tiles = torch.nn.functional.pad(tiles, (1, 1, 1, 1), value=-1.0)
    ax.imshow(tiles.permute(0, 2, 1, 3).flatten(0, 1).flatten(1), cmap="gray_r", vmin=-2, vmax=2)
    ax.set(xticks=[], yticks=[], title=name)

# %%
# Strange inputs
# --------------
# The log density up to its constant is a score of how common an input is. Held-out digits are to be
# told from digits upside down, from the means of two digits of different classes, from digits with
# shuffled pixels, and from pieces of a photograph. The area under the curve (AUC) is the
# probability that a digit scores higher. Other scores are the density read off the network trained
# by cross entropy, the confidence of both in their class, the normal law :math:`q` alone, and
# scikit-learn's isolation forest.

other = torch.randperm(len(test))
mixed = ((test + test[other]) / 2)[test_labels != test_labels[other]].floor()
order = torch.rand_like(test).argsort(-1)
photo = torch.tensor(load_sample_image("china.jpg")).double().mean(-1)
pieces = photo.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64)
pieces = (pieces[torch.randperm(len(pieces))[: len(test)]] / 15.1).floor().float()
strange = {
    "upside down": test.reshape(-1, *data.shape).flip(1).flatten(1),
    "two digits mixed": mixed,
    "pixels shuffled": test.gather(-1, order),
    "photograph": pieces,
}

plain = models["all labels", "cross entropy"]
forest = IsolationForest(random_state=0).fit(train.numpy())
scores = {
    "joint energy": lambda x: model().unnormalized_log_prob(cast(x)),
    "cross entropy": lambda x: plain().unnormalized_log_prob(cast(x)),
    "confidence, joint": lambda x: model.classify(cast(x)).probs.amax(-1),
    "confidence, cross": lambda x: plain.classify(cast(x)).probs.amax(-1),
    "normal law": lambda x: model.base().log_prob(cast(x)),
    "isolation forest": lambda x: torch.tensor(forest.score_samples(x.numpy())),
}
print(f"{'AUC':18}" + "".join(f"{name:>19}" for name in scores))
for kind, x in strange.items():
    truth = torch.cat([torch.ones(len(test)), torch.zeros(len(x))])
    row = [roc_auc_score(truth, torch.cat([f(test), f(x)])) for f in scores.values()]
    print(f"{kind:18}" + "".join(f"{value:19.3f}" for value in row))

# %%
# Shuffled pixels and photographs are told by anything, the normal law of the pixels included. For
# digits upside down, of which some are digits too (0, 1, 3, 8), the energy is ahead of the normal
# law, of the density by cross entropy and of the isolation forest, but not of its own confidence as
# a classifier. For mixed digits the density is no use: the mean of two images is nearer to the mean
# of all, so that the normal law and the forest find it more usual than digits. The energy makes up
# for most of that, and no more. There confidence is by far the better score, that by cross entropy
# the best: one score does not do for all.

usual = scores["joint energy"](test)
fig, axs = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for ax, kind in zip(axs, ("upside down", "two digits mixed")):
    unusual = scores["joint energy"](strange[kind])
    both = torch.cat([usual, unusual])
    edges = torch.linspace(float(both.min()), float(both.max()), 40)
    ax.hist(usual, edges, alpha=0.6, label="held-out digits")
    ax.hist(unusual, edges, alpha=0.6, label=kind)
    ax.set(xlabel="log density + constant")
    ax.legend(fontsize=8)
axs[0].set_ylabel("images")
plt.show()
