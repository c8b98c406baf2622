"""`python -m robust_filter_lens`, and the command `robust-filter-lens`: the same as `builder`."""

from __future__ import annotations

import sys
from typing import NoReturn

from robust_filter_lens import _import


def main() -> NoReturn:
    """Run a command, where `builder` is ours."""
    try:
        run = _import("builder.cli.main").main
    except ImportError as e:
        sys.exit(f"error: {e}")
    sys.exit(run())


if __name__ == "__main__":
    main()
