"""What it takes to import torchvision and robustbench of PyPI. Each shim acts only where needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from functools import cache
from importlib import resources
from types import ModuleType

from builder.errors import UsageError


def _define_torchvision_operators() -> None:
    """Declare torchvision::nms and ::qnms.

    PyPI's torchvision is compiled for CUDA; beside a CPU-only torch its C++ operators do not
    load, and its Python half then fails on attaching meta kernels to operators nobody declared.
    Declared without an implementation they let the import through; no network here uses them.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(
                    f"torchvision::{operator}",
                    "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                )


def _alias_autoattack() -> None:
    """robustbench imports `autoattack`; the package it depends on installs `pyautoattack`."""
    if importlib.util.find_spec("autoattack") is None:
        for suffix in ("", ".state"):
            sys.modules[f"autoattack{suffix}"] = importlib.import_module(f"pyautoattack{suffix}")


def _stand_in_for_pkg_resources() -> None:
    """robustbench.loaders imports pkg_resources, which setuptools removed in version 81."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return
    stand_in = types.ModuleType("pkg_resources")

    def resource_filename(package: str, name: str) -> str:
        return str(resources.files(package.rpartition(".")[0] or package) / name)

    stand_in.resource_filename = resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in


@cache
def prepare_imports() -> None:
    """Make a user's module able to import torchvision, timm and robustbench, if installed."""
    if importlib.util.find_spec("torchvision") is not None:
        _define_torchvision_operators()
    if importlib.util.find_spec("robustbench") is not None:
        _alias_autoattack()
        _stand_in_for_pkg_resources()


@cache
def import_torchvision() -> ModuleType:
    """torchvision, also beside a CPU-only torch."""
    _require("torchvision")
    prepare_imports()
    return importlib.import_module("torchvision")


@cache
def import_robustbench() -> ModuleType:
    """robustbench with its model zoo.

    Raises:
        UsageError: the `build` extra is not installed.
    """
    _require("robustbench")
    prepare_imports()
    importlib.import_module("robustbench.model_zoo.models")
    return importlib.import_module("robustbench")


def _require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"this command needs {module}, which is not installed.",
            hint="pip install 'robust-filter-lens[build]'",
        )
