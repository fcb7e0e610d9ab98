"""What several tests of data share."""

import torch
from torch.utils.data import Dataset, IterableDataset

import probgen as pg

QUICK = {"progress": False, "seed": 0}


def small(context=0, features=2):
    return pg.models.MAF(features, context, transforms=1, hidden_features=(8,))


class Counted(Dataset):
    """Items that count how often they are read."""

    def __init__(self, count, make=None):
        self.count, self.reads = count, 0
        self.make = make or (lambda i: torch.randn(2, generator=torch.Generator().manual_seed(i)))

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        assert isinstance(i, int)
        self.reads += 1
        return self.make(i)


class Stream(IterableDataset):
    """Items one after the other, without a length."""

    def __init__(self, count, make=None):
        self.items = Counted(count, make)

    def __iter__(self):
        return (self.items[i] for i in range(self.items.count))


def rounded(x, step):
    return (x / step).round() * step
