"""Deterministic pseudo-random weights of the right shapes: a rehearsal at full scale, no download.

Nothing here is a trained network; a release built so says `"weights": "seeded:N"` everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class SeededState(Mapping[str, "torch.Tensor"]):
    """A state dict whose tensors are made when asked for, each from (seed, model_id, name).

    Convolutions and linear layers are normal with the variance of He et al. 2015; BatchNorm
    scales and running variances are uniform in [0.5, 1.5]; everything else is small and positive.

    Args:
        model: the network, on the meta device.
        model_id: distinguishes models of one architecture.
        seed: the N of `--weights seeded:N`.
    """

    def __init__(self, model: nn.Module, model_id: str, seed: int) -> None:
        self._state = model.state_dict(keep_vars=True)
        # Tensors registered under two names (members of an ensemble) get one value.
        first: dict[int, str] = {}
        self._seed_of = {
            name: f"{seed}/{model_id}/{first.setdefault(id(t), name)}"
            for name, t in self._state.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        like = self._state[name]
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        digest = hashlib.sha256(self._seed_of[name].encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        value = torch.empty(like.shape, dtype=torch.float32)
        if like.dim() >= 2 and name.endswith("weight"):
            deviation = math.sqrt(2 / max(1, like[0].numel()))
            return value.normal_(0, deviation, generator=generator)
        if name.endswith(("bias", "running_mean")):
            return value.normal_(0, 0.1, generator=generator)
        return value.uniform_(0.5, 1.5, generator=generator)
