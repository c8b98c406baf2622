"""Robust Filter Lens: every 3x3 filter of robust and standard CNNs, as a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.reader import open_release as open_release

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`builder.open_release`, imported on first use: `builder --help` stays fast."""
    if name == "open_release":
        from builder.reader import open_release

        return open_release
    raise AttributeError(f"module 'builder' has no attribute {name!r}")
