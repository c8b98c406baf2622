"""What a checkpoint describes: tensors whose numbers are still in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DIMENSIONS = 16
MAX_REPEATED = 1 << 26
"""Most elements of a tensor that repeats those of its storage (an expanded buffer): such a tensor
may be larger than its file, and this bounds what reading it costs."""


class Malformed(Exception):
    """The bytes are not what a checkpoint may hold; the text says why.

    Args:
        hint: what to do about it, where there is something better than fetching it again.
    """

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat run of `numel` elements of `dtype`, `skip` elements into the bytes called `key`."""

    key: str
    dtype: Any  # torch.dtype
    numel: int
    skip: int = 0

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a storage")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a checkpoint describes it; its numbers are still in the file.

    `offset` and `stride` count elements, as in torch. Elements may repeat (stride 0, as after
    `expand`). Negative layouts, and those that leave the storage, are refused at construction.
    """

    storage: Storage
    dtype: Any  # torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            raise Malformed("a tensor's shape and stride differ in length, or are too long")
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise Malformed("a tensor's shape, stride or offset is no natural number")
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if self.numel and self.offset + last >= self.storage.numel:
            raise Malformed("a tensor reaches beyond its storage")
        if self.repeats and self.numel > MAX_REPEATED:
            raise Malformed(f"a tensor repeats its storage to more than {MAX_REPEATED:,} elements")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def repeats(self) -> bool:
        """Whether it has more elements than its storage: some stand for several of its own."""
        return self.numel > self.storage.numel

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a tensor")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor that is there, but of a kind whose numbers are no weights or cannot be read.

    `what` completes "is ...": "a quantised tensor".
    """

    what: str

    def __setstate__(self, state: object) -> NoReturn:
        raise Malformed("it alters a tensor")


Leaf = StoredTensor | Unreadable
