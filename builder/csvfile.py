"""CSV files with a header line: read whole and checked, or refused in one message."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from builder.errors import UsageError


def read_csv(
    path: Path, required: Sequence[str] = (), optional: Sequence[str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """The rows of a UTF-8 CSV, at least one, each with its place ("FILE: row 7") for messages.

    Text is stripped; lines without any are skipped. Columns come in any order, and any may be there
    besides the required ones where `optional` is None. A row's number is that of its last line.

    Raises:
        UsageError: unreadable, no CSV, wrong columns, a row of another length, or no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f, strict=True)
            lines = [(reader.line_num, [text.strip() for text in line]) for line in reader]
    except (OSError, UnicodeError, csv.Error) as e:
        why = "it is no UTF-8 text" if isinstance(e, UnicodeError) else e
        raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or why}.") from e
    (_, header), *rows = [line for line in lines if any(line[1])] or [(1, [])]
    allowed = header if optional is None else [*required, *optional]
    faults = {
        "missing": [c for c in required if c not in header],
        "unknown": [c for c in header if c not in allowed],
        "repeated": sorted({c for c in header if header.count(c) > 1}),
    }
    if any(faults.values()):
        said = "; ".join(f"{k} column(s) {', '.join(map(repr, v))}" for k, v in faults.items() if v)
        also = f"; optional: {', '.join(optional)}" if optional else ""
        raise UsageError(f"{path}: {said}.", hint=f"required: {', '.join(required)}{also}.")
    wrong = [f"row {n}: expected {len(header)} fields, found {len(r)}" for n, r in rows
             if len(r) != len(header)]  # fmt: skip
    if wrong or not rows:
        raise UsageError(f"{path}: {wrong[0] if wrong else 'no rows below the header'}.")
    return [(f"{path}: row {n}", dict(zip(header, row, strict=True))) for n, row in rows]
