"""What a build is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from builder.errors import UsageError
from builder.files import cache_folder, pins_file
from builder.release.versions import parse_version


@dataclass(frozen=True)
class Options:
    """What a build is asked for. The first five decide its content.

    Raises:
        UsageError: weights or version of no known form.
    """

    weights: str = "checkpoints"  # or seeded:N
    models: str | None = None
    first_layer: bool = True
    seed: int = 0  # of the perturbations of the first-layer response
    version: str = "0.1.0"
    device: str = "auto"
    jobs: int = 1
    fresh: bool = False
    checkpoints: Path | None = None
    discard_checkpoints: bool = False
    cache: Path = field(default_factory=cache_folder)
    pins: Path = field(default_factory=pins_file)

    def __post_init__(self) -> None:
        parse_version(self.version)
        _ = self.weights_seed

    @property
    def weights_seed(self) -> int | None:
        """N of `seeded:N`; None for checkpoints."""
        kind, _, number = self.weights.partition(":")
        if kind == "checkpoints" and not number:
            return None
        if kind == "seeded" and number.isdecimal():
            return int(number)
        raise UsageError(
            f"--weights is {self.weights!r}; expected 'checkpoints' or 'seeded:N', "
            "N a whole number."
        )
