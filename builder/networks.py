"""Small CIFAR residual networks, those of the mini zoo among them, by zero-argument functions.

All take images in [0, 1], float (n, 3, 32, 32), and return logits (n, n_classes). Except for
`autoattack_example` they normalise inside, with buffers, as RobustBench's models do: an attack's
eps is then in units of the image, and the state dict alone defines the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)
"""Mean and deviation of CIFAR-10's training pixels per channel, in units of the [0, 1] image."""


class Normalize(nn.Module):
    """(x - mean) / std per channel; `mean` and `std` are buffers, so part of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(CIFAR10_STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Post-activation: ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x)) (He et al., 2015)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(_conv1x1(in_channels, out_channels, stride))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class PreActBlock(nn.Module):
    """Pre-activation: conv(ReLU(BN(conv(ReLU(BN(x)))))) + shortcut (He et al., 2016).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.shortcut = (
            _conv1x1(in_channels, out_channels, stride)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x_act = F.relu(self.bn1(x))
        skip: Tensor = x if self.shortcut is None else self.shortcut(x_act)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(x_act))))
        return skip + out


def _stage(
    block: type[BasicBlock] | type[PreActBlock], depth: int, in_: int, out: int, stride: int
) -> nn.Sequential:
    """`depth` blocks; the first changes the number of channels and the resolution."""
    return nn.Sequential(block(in_, out, stride), *(block(out, out, 1) for _ in range(depth - 1)))


class ResNet(nn.Module):
    """Post-activation CIFAR ResNet-18: four stages of two blocks, `width` to 8 `width` channels."""

    def __init__(self, width: int, *, n_classes: int = 10, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = Normalize() if normalize else nn.Identity()
        self.conv1 = _conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(BasicBlock, 2, width, width, 1)
        self.layer2 = _stage(BasicBlock, 2, width, 2 * width, 2)
        self.layer3 = _stage(BasicBlock, 2, 2 * width, 4 * width, 2)
        self.layer4 = _stage(BasicBlock, 2, 4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


class PreActResNet(nn.Module):
    """Pre-activation CIFAR ResNet-18: four stages of two blocks, `width` to 8 `width` channels."""

    def __init__(self, width: int, *, n_classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.conv1 = _conv3x3(3, width)
        self.layer1 = _stage(PreActBlock, 2, width, width, 1)
        self.layer2 = _stage(PreActBlock, 2, width, 2 * width, 2)
        self.layer3 = _stage(PreActBlock, 2, 2 * width, 4 * width, 2)
        self.layer4 = _stage(PreActBlock, 2, 4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.linear(F.relu(self.bn(out)).mean((2, 3)))
        return logits


class WideResNet(nn.Module):
    """WideResNet-`depth`-`widen`: three pre-activation stages (Zagoruyko & Komodakis, 2016).

    Raises:
        ValueError: depth is not 6 n + 4.
    """

    def __init__(self, depth: int, widen: int, *, n_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth of a WideResNet must be 6 n + 4, not {depth}")
        self.normalize = Normalize()
        self.conv1 = _conv3x3(3, 16)
        self.block1 = _stage(PreActBlock, blocks, 16, 16 * widen, 1)
        self.block2 = _stage(PreActBlock, blocks, 16 * widen, 32 * widen, 2)
        self.block3 = _stage(PreActBlock, blocks, 32 * widen, 64 * widen, 2)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.linear = nn.Linear(64 * widen, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.normalize(x))
        out = self.block3(self.block2(self.block1(out)))
        logits: Tensor = self.linear(F.relu(self.bn(out)).mean((2, 3)))
        return logits


class _PlainBlock(BasicBlock):
    """A BasicBlock with a weightless shortcut: every `stride`-th pixel, zeros for new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.stride = stride
        self.added = out_channels - in_channels
        self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        skip = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(self.bn2(self.conv2(out)) + skip)


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, -56 or -110 for CIFAR with weightless shortcuts (He et al., 2015, 4.2).

    Args:
        depth: 6 n + 2, n blocks in each of three stages of 16, 32 and 64 channels.
    """

    def __init__(self, depth: int, *, n_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(_PlainBlock, blocks, 16, 16, 1)
        self.layer2 = _stage(_PlainBlock, blocks, 16, 32, 2)
        self.layer3 = _stage(_PlainBlock, blocks, 32, 64, 2)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def cifar_resnet20() -> CifarResNet:
    return CifarResNet(20)


def cifar_resnet32() -> CifarResNet:
    return CifarResNet(32)


def cifar_resnet44() -> CifarResNet:
    return CifarResNet(44)


def cifar_resnet56() -> CifarResNet:
    return CifarResNet(56)


def cifar_resnet110() -> CifarResNet:
    return CifarResNet(110)


def autoattack_example() -> ResNet:
    """The full-width ResNet-18 of AutoAttack's example checkpoint; it has no normalisation."""
    return ResNet(64, normalize=False)


def resnet18_w32() -> ResNet:
    return ResNet(32)


def preact_resnet18_w16() -> PreActResNet:
    return PreActResNet(16)


def wide_resnet_10_2() -> WideResNet:
    return WideResNet(10, 2)
