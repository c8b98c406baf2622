"""The command line: parse, call one function, print, exit code. Nothing else lives here.

Data go to stdout, words and progress to stderr. Every import of a command is inside it, so that
`--help` is quick and commands that need no torch run without it.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from builder.cli import ask, bench, check, make, share  # noqa: F401  each registers its commands
from builder.cli.app import app, say
from builder.errors import EXIT_OK, EXIT_USAGE, BuilderError

EXTRAS = dict.fromkeys(
    (
        "torch",
        "torchvision",
        "timm",
        "robustbench",
        "safetensors",
        "requests",
        "filelock",
        "skimage",
    ),
    "build",
) | {"huggingface_hub": "hub", "datasets": "hub", "torchconvquality": "dev"}
"""Packages that a base install lacks, and the extra that brings them."""


def main() -> NoReturn:
    """Entry point: run a command, and turn a user's mistake into one message and an exit code."""
    try:
        app()
    except BuilderError as e:
        say(f"error: {e}" + (f"\n  {e.hint}" if e.hint else ""))
        sys.exit(e.exit_code)
    except ModuleNotFoundError as e:
        extra = EXTRAS.get((e.name or "").split(".")[0])
        if extra is None:
            raise
        say(f"error: this command needs {e.name}, which is not installed.")
        say(f"  pip install 'robust-filter-lens[{extra}]'")
        sys.exit(EXIT_USAGE)
    sys.exit(EXIT_OK)
