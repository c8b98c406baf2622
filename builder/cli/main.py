"""The command line: parse, call one function, print, exit code. Nothing else lives here.

Data go to stdout, words and progress to stderr. Every import of a command is inside it, so that
`--help` is quick and commands that need no torch run without it.
"""

from __future__ import annotations

import io
import sys
from typing import NoReturn

from builder import __version__
from builder.cli import (  # noqa: F401  each registers its commands
    ask,
    bench,
    check,
    look,
    make,
    measure,
    share,
)
from builder.cli.app import app, say
from builder.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, BuilderError

EXTRAS = (
    dict.fromkeys(
        (
            "torch",
            "torchvision",
            "timm",
            "robustbench",
            "safetensors",
            "requests",
            "skimage",
        ),
        "build",
    )
    | dict.fromkeys(("huggingface_hub", "datasets"), "hub")
    | dict.fromkeys(("altair", "vl_convert", "jinja2", "itables"), "report")
    | {"ray": "ray", "obstore": "s3", "fsspec": "s3"}
    | dict.fromkeys(("pyspark", "py4j", "sqlglot"), "spark")
    | {"torchconvquality": "dev"}
)
"""Packages that a base install lacks, and the extra that brings them."""


def main() -> NoReturn:
    """Entry point: run a command, and turn whatever goes wrong into words and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and sys.platform == "win32":
            stream.reconfigure(encoding="utf-8", newline="\n")  # as everywhere else
    try:
        app()
    except BuilderError as e:
        say(f"error: {e}" + (f"\n  {e.hint}" if e.hint else ""))
        sys.exit(e.exit_code)
    except Exception as e:
        package = (e.name or "").split(".")[0] if isinstance(e, ModuleNotFoundError) else ""
        if extra := EXTRAS.get(package):
            say(f"error: this command needs {package}, which is not installed.")
            say(f"  pip install 'robust-filter-lens[{extra}]'")
            sys.exit(EXIT_USAGE)
        what = " ".join(f"{type(e).__name__}: {e}".split())
        say(f"error: a fault of builder {__version__}, not of yours: {what}")
        say("  `builder --debug COMMAND ...` shows where; please report it with that.")
        sys.exit(EXIT_FAILURE)
    sys.exit(EXIT_OK)
