"""Semantic versions of a data set: patch, other bytes; minor, more; major, a changed value."""

from __future__ import annotations

from builder.errors import UsageError

BUMPS = ("none", "patch", "minor", "major")
"""Kinds of change, the smallest first."""


def parse_version(text: str) -> tuple[int, int, int]:
    """(major, minor, patch) of "1.2.3" or "v1.2.3".

    Raises:
        UsageError: another form.
    """
    parts = text.removeprefix("v").split(".")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() for p in parts):
        raise UsageError(f"{text!r} is no version; expected MAJOR.MINOR.PATCH, e.g. 1.0.0.")
    major, minor, patch = map(int, parts)
    return major, minor, patch


def next_version(old: str, bump: str) -> str:
    """The lowest version above `old` that a bump allows.

    Before 1.0.0 a major change raises the minor number, as semantic versioning has it.
    """
    major, minor, patch = parse_version(old)
    if bump == "major" and major > 0:
        return f"{major + 1}.0.0"
    if bump in ("major", "minor"):
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + (bump == 'patch')}"
