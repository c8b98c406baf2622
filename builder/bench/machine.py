"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from builder import __version__

LIBRARIES = ("torch", "numpy", "pyarrow", "duckdb", "polars", "datasets", "torchconvquality")


def describe(folder: Path) -> dict[str, str]:
    """The machine, the versions, and how busy it is otherwise.

    Args:
        folder: where the benchmarks write.
    """
    disk = shutil.disk_usage(folder)
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if _linux() else os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "disk": f"{disk.total / 1e9:.0f} GB, {disk.free / 1e9:.0f} GB free",
        "system": f"{platform.system()} {platform.release()}",
        "load": load(),
        "builder": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def load() -> str:
    """Processes that want a core, on average over one and fifteen minutes."""
    one, _, fifteen = os.getloadavg()
    return f"{one:.1f}, {fifteen:.1f} over 15 min"


def _linux() -> bool:
    return hasattr(os, "sched_getaffinity")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
