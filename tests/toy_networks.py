"""Networks of a few thousand weights, with every structure the build must handle."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Toy(nn.Module):
    """A stem that folds, a grouped layer, a layer whose BatchNorm does not fold, a dead layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(width)
        self.dead = nn.Conv2d(width, width, 3)
        self.point = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        y = self.grouped(x)
        y = torch.relu(self.bn2(y)) + self.point(y)
        return self.fc(self.last(y).mean(dim=(2, 3)))


def wide() -> Toy:
    return Toy(16)


def huge() -> Toy:
    """Filters of 3.9 MB: more than a small disk holds."""
    return Toy(160)


def fails() -> Toy:
    raise RuntimeError("this constructor always fails")


class Chain(nn.Module):
    """Ten layers of 3x3 filters, eight of them folded: weights of every degenerate kind fit in."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 6, 6, 6, 6, 6, 6, 6, 6]
        self.convs = nn.ModuleList(
            nn.Conv2d(ins, outs, 3, padding=1, bias=False)
            for ins, outs in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.single = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.last = nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return self.last(torch.relu(self.single(x))).mean(dim=(2, 3))


class Tabled(Toy):
    """Beside its filters a table of 4.4 GB, which stands before most of them in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        behind = {name: self._modules.pop(name) for name in ("point", "last", "fc")}
        self.table = nn.Embedding(1_100_000, 1000)
        self._modules |= behind


class OneLogit(Toy):
    """One logit: its first layer answers to random signs, and there is no class to attack."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


def lasting() -> Toy:
    """A network that is made slowly; the file $RFL_LASTING says which process makes one when."""
    log = Path(os.environ["RFL_LASTING"])
    with log.open("a") as f:
        f.write(f"{os.getpid()} begins\n")
    time.sleep(1)
    with log.open("a") as f:
        f.write(f"{os.getpid()} ends\n")
    return Toy(16)
