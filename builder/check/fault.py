"""What a check finds wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something that is not as it must be: which check, in which file, what."""

    check: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.path}: {self.message}"
