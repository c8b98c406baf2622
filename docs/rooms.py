"""The rooms of builder/ in the order of the flow, and what each may import: the one floor plan.

tests/test_structure.py holds the code to it; drawing.py draws it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """A folder of builder/.

    Attributes:
        reads: the rooms it may import, all of them above it in ROOMS. The ground floor is open to
            everyone.
        torch: whether it may import torch, inside its functions or at its top.
    """

    reads: tuple[str, ...] = ()
    torch: bool = False


GROUND: dict[str, tuple[str, ...]] = {
    "errors": (),
    "schema": ("errors",),
    "files": (),
    "progress": (),
    "csvfile": ("errors",),
    "tables": (),
    "secrets": (),
    "workers": ("errors", "progress"),
    "store": ("errors", "files", "secrets"),
    "hub": ("errors", "schema", "secrets", "store"),
}
"""Modules at the top of builder/ and what they import of each other."""

ROOMS: dict[str, Room] = {
    "cohort": Room(),
    "release": Room(),
    "paper": Room(reads=("cohort", "release")),
    "compare": Room(reads=("cohort", "release", "paper")),
    "sources": Room(reads=("cohort",), torch=True),
    "network": Room(reads=("cohort", "sources"), torch=True),
    "robustbench": Room(reads=("cohort", "sources", "network"), torch=True),
    "metrics": Room(reads=("release", "network"), torch=True),
    "first_layer": Room(reads=("sources",), torch=True),
    "measure": Room(
        reads=("cohort", "compare", "sources", "network", "metrics", "first_layer"), torch=True
    ),
    "training": Room(reads=("cohort", "sources", "network", "first_layer"), torch=True),
    "building": Room(
        reads=("cohort", "release", "paper", "sources", "network", "metrics", "first_layer"),
        torch=True,
    ),
    "loading": Room(reads=("release",), torch=True),
    "sql": Room(reads=("cohort", "release")),
    "tasks": Room(reads=("release",)),
    "check": Room(reads=("release", "sql")),
    "report": Room(reads=("release", "sql")),
    "publish": Room(reads=("release", "sql", "check", "report")),
    "bench": Room(
        reads=("cohort", "release", "sources", "network", "metrics", "building", "sql", "check"),
        torch=True,
    ),
    "cli": Room(
        reads=(
            *(
                "cohort",
                "release",
                "paper",
                "compare",
                "network",
                "robustbench",
                "measure",
                "training",
                "building",
            ),
            *("sql", "tasks", "check", "report", "publish", "bench"),
        ),
    ),
}
"""Every folder with code, from the left of the flow to the right."""

DATA = ("networks", "zoo")
"""Names that released cohorts contain: the mini zoo's networks and weights."""
