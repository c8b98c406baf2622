"""Robust Filter Lens in Python: every 3x3 filter of robust and standard CNNs.

    >>> import robust_filter_lens as rfl
    >>> release = rfl.open_release("out/mini")            # a folder, or
    >>> release = rfl.open_release("org/name", "v0.1.0")  # the Hub, at a tag
    >>> release.table("models", columns=["model_id", "n_filters"])
    >>> release.sql("select dataset, count(*) as models from models group by dataset")
    >>> for batch in release.filters("cifar10-robust-*", view="folded"):
    ...     batch.filters                                 # (n, 3, 3) float32
    >>> data = rfl.ReleaseDataset(release, "layer")       # for DataLoader; this needs torch
    >>> measured = rfl.measure(model, dataset="cifar10")  # a torch.nn.Module; this needs torch
    >>> measured.summary, measured.layers, measured.compare()

The code behind these names lies in the folder `builder`, and is imported when a name is first used.
Another package on PyPI, `builder-tool`, installs a folder and a command of that name, too. Where
its files have taken the place of ours, this still works: `import robust_filter_lens`,
`__version__`, `dir()` and `help()`. Any other name raises an ImportError that says what is wrong,
and so does the command `robust-filter-lens`. Installed after `builder-tool`, everything of ours
works, and nothing of theirs.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.compare.comparison import Comparison
    from builder.compare.measurement import Measurement
    from builder.errors import BuilderError, NetworkError, UsageError
    from builder.loading.dataset import ReleaseDataset
    from builder.measure.callbacks import lightning_callback, log_summary, trainer_callback
    from builder.measure.target import measure
    from builder.release.reader import FilterBatch, Release, open_release, to_array

__all__ = [
    "BuilderError",
    "Comparison",
    "FilterBatch",
    "Measurement",
    "NetworkError",
    "Release",
    "ReleaseDataset",
    "UsageError",
    "__version__",
    "lightning_callback",
    "log_summary",
    "measure",
    "open_release",
    "to_array",
    "trainer_callback",
]

__version__ = metadata.version("robust-filter-lens")

_HOME = {
    "BuilderError": "builder.errors",
    "NetworkError": "builder.errors",
    "UsageError": "builder.errors",
    "Comparison": "builder.compare.comparison",
    "Measurement": "builder.compare.measurement",
    "measure": "builder.measure.target",
    "lightning_callback": "builder.measure.callbacks",
    "log_summary": "builder.measure.callbacks",
    "trainer_callback": "builder.measure.callbacks",
    "FilterBatch": "builder.release.reader",
    "Release": "builder.release.reader",
    "ReleaseDataset": "builder.loading.dataset",
    "open_release": "builder.release.reader",
    "to_array": "builder.release.reader",
}
"""Where each public name lives."""


def _import(module: str) -> ModuleType:
    """A module of our folder `builder`.

    Raises:
        ImportError: that folder is not there, or another package's.
    """
    try:
        import builder

        found = getattr(builder, "__distribution__", None)
        where = builder.__file__ or f"the remains of one in {list(builder.__path__)}"
    except Exception as e:  # another package's code: whatever that raises
        found, where = None, f"one that does not import ({e})"
    if found != "robust-filter-lens":
        raise ImportError(
            f"robust_filter_lens needs the folder `builder` that it was installed with, and finds "
            f"{where}: another package (builder-tool?) was installed over it. Give each an "
            "environment of its own, and run: pip install --force-reinstall robust-filter-lens"
        )
    return importlib.import_module(module)


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
