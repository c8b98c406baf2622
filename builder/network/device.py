"""Where torch works: the CPU, or a CUDA device."""

from __future__ import annotations

from builder.errors import UsageError


def resolve_device(name: str) -> str:
    """`cpu` or `cuda` for auto|cpu|cuda.

    Raises:
        UsageError: unknown name, or no CUDA device where one is asked for.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is {name!r}; expected auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine or this torch has no CUDA device.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
