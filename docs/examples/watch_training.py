"""Train a small network for a few epochs and watch its filters in TensorBoard.

    python docs/examples/watch_training.py --data ~/cifar10 --epochs 5 --out runs/watch
    tensorboard --logdir runs

Without --data it trains on images that it makes itself (SYNTHETIC: coloured stripes at one of ten
angles), so that it runs anywhere; its curve then says nothing about natural images.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from robust_filter_lens import log_summary, measure


def stripes(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """SYNTHETIC images (n, 3, 32, 32) in [0, 1] and labels (n,): the angle of noisy stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=generator)
    angle = (labels * torch.pi / 10).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    phase = torch.rand(n, 1, 1, generator=generator) * 6
    wave = torch.sin((x * angle.cos() + y * angle.sin()) * 0.8 + phase) / 2 + 0.5
    colour = torch.rand(n, 3, 1, 1, generator=generator)
    noise = torch.rand(n, 3, 32, 32, generator=generator)
    return (0.6 * wave[:, None] * colour + 0.4 * noise), labels


def cifar10(folder: str) -> tuple[Tensor, Tensor]:
    """CIFAR-10's training images (n, 3, 32, 32) in [0, 1] and labels, from a folder."""
    from builder.training.images import load_images

    images = load_images(folder, "cifar10", "train")
    return torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)


def network() -> nn.Module:
    """Four convolutions of 3x3, each with a BatchNorm."""
    layers: list[nn.Module] = []
    channels = [3, 32, 64, 128, 128]
    for i, (before, after) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(before, after, 3, stride=1 + (i > 0), padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with CIFAR-10; default: images made here")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("runs/watch"))
    given = parser.parse_args()

    torch.manual_seed(0)
    pixels, labels = cifar10(given.data) if given.data else stripes(given.images)
    pixels, labels = pixels[: given.images], labels[: given.images]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    with SummaryWriter(given.out) as writer:
        log_summary(measure(model, image_size=32), writer, step=0)
        for epoch in range(1, given.epochs + 1):
            model.train()
            for batch in torch.randperm(len(labels)).split(128):
                loss = nn.functional.cross_entropy(model(pixels[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            writer.add_scalar("loss", loss.item(), epoch)
            log_summary(measure(model, image_size=32), writer, step=epoch)
            print(f"epoch {epoch}: loss {loss.item():.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
