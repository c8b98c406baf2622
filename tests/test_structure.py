"""The floor plan holds: imports follow docs/rooms.py room by room, torch behind its wall."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import DATA, GROUND, ROOMS

import builder

PACKAGE = Path(builder.__file__).parent
HEAVY = {"torch", "torchvision", "timm", "robustbench"}


def imports(path: Path) -> Iterator[str]:
    """Dotted names a module imports, at the top or inside functions, those for types included."""
    gc.disable()  # CPython 3.11 fails to parse when a garbage collection runs callbacks meanwhile
    tree = ast.parse(path.read_text())
    gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "builder":
                yield from (f"builder.{a.name}" for a in node.names)
            else:
                yield node.module


def rooms_read(path: Path) -> set[str]:
    """Modules and folders at the top of builder/ that a module imports."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("builder.")}
    return found - {"__version__"}


def test_every_folder_and_every_module_of_the_ground_floor_is_on_the_plan():
    folders = {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert folders == set(ROOMS)
    assert all(not list((PACKAGE / room).glob("*/*.py")) for room in ROOMS), "a room in a room"
    modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(GROUND) | (set(DATA) - {"zoo"})


def test_the_plan_itself_has_no_way_back():
    for plan in (GROUND, {name: room.reads for name, room in ROOMS.items()}):
        above: set[str] = set()
        for name, reads in plan.items():
            assert set(reads) <= above, f"{name} reads what comes after it"
            above.add(name)
    for name, room in ROOMS.items():
        if not room.torch and name != "cli":  # which imports inside its commands
            assert not [r for r in room.reads if ROOMS[r].torch], f"{name} reads over the wall"


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_the_plan_says_and_nothing_else(name: str):
    found = {p: rooms_read(p) - set(GROUND) - {name} for p in (PACKAGE / name).glob("*.py")}
    for path, read in found.items():
        assert read <= set(ROOMS[name].reads), path
    assert set.union(*found.values()) == set(ROOMS[name].reads), "the plan allows too much"


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_floor_carries_no_room(name: str):
    assert rooms_read(PACKAGE / f"{name}.py") == set(GROUND[name])


@pytest.mark.parametrize("name", [*ROOMS, *GROUND])
def test_the_wall_keeps_torch_on_its_side(name: str):
    inside = (PACKAGE / name).glob("*.py") if name in ROOMS else [PACKAGE / f"{name}.py"]
    heavy = {p for p in inside if {n.split(".")[0] for n in imports(p)} & HEAVY}
    if name in ROOMS and ROOMS[name].torch:
        assert heavy, f"{name} needs no torch: its place is on the other side"
    else:
        assert not heavy


def test_no_code_hides_in_an_init_file():
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree), room
