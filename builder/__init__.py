"""Robust Filter Lens: every 3x3 filter of robust and standard CNNs, as a dataset.

The folder of the command `builder`. In Python, `import robust_filter_lens`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.release.reader import open_release as open_release

__version__ = "0.1.0"
__distribution__ = "robust-filter-lens"
"""Whose folder this is: `builder-tool` on PyPI installs one of the same name."""


def __getattr__(name: str) -> Any:
    """`builder.open_release`, imported on first use: `builder --help` stays fast."""
    if name == "open_release":
        from builder.release.reader import open_release

        return open_release
    raise AttributeError(f"module 'builder' has no attribute {name!r}")
