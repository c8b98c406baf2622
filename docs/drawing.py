"""The drawing of the rooms: who reads whom, from docs/rooms.py, as SVG."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rooms import ROOMS

PACKAGE = Path(__file__).parent.parent / "builder"

STEP_X, STEP_Y, BOX_X, BOX_Y, TOP = 32, 34, 96, 24, 20
"""Pixels from room to room, of a room's box, and around all."""

INK, PAPER, TORCH, PLAIN, LINE = "#222", "#fff", "#D55E00", "#0072B2", "#888"
"""Vermilion and blue of Okabe and Ito: with torch, and without."""


def draw_rooms() -> str:
    """Rooms down the diagonal in the order of the flow. A dot left of a room, below another: it
    reads that one. No dot right of the diagonal: nothing runs back; what a room is stands there."""
    names = list(ROOMS)
    ends = [STEP_X * i + BOX_X + 7 * len(_about(name)) for i, name in enumerate(names)]
    width, height = max(ends) + 2 * TOP, STEP_Y * len(names) + 2 * TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{TOP} 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>The rooms of builder/ and which of them each reads</title>",
        f'<rect x="-{TOP}" width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    for row, name in enumerate(names):
        room, y = ROOMS[name], TOP + STEP_Y * row + BOX_Y // 2
        colour = TORCH if room.torch else PLAIN
        columns = sorted(names.index(read) for read in room.reads)
        if columns:
            x = _middle(columns[0])
            parts.append(f'<path d="M{x} {y}H{STEP_X * row}" stroke="{LINE}" fill="none"/>')
        readers = [i for i, other in enumerate(names) if name in ROOMS[other].reads]
        if readers:
            end = TOP + STEP_Y * readers[-1] + BOX_Y // 2
            line = f"M{_middle(row)} {y + BOX_Y // 2}V{end}"
            parts.append(f'<path d="{line}" stroke="{LINE}" fill="none"/>')
        box = f'x="{STEP_X * row}" y="{y - BOX_Y // 2}" width="{BOX_X}" height="{BOX_Y}"'
        parts.append(f'<rect {box} rx="4" fill="{colour}"/>')
        x = STEP_X * row + BOX_X // 2
        parts.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle" fill="{PAPER}">{name}</text>')
        x = STEP_X * row + BOX_X + 10
        parts.append(f'<text x="{x}" y="{y + 4}" fill="{INK}">{escape(_about(name))}</text>')
    for row, name in enumerate(names):
        y = TOP + STEP_Y * row + BOX_Y // 2
        parts += [
            f'<circle cx="{_middle(names.index(read))}" cy="{y}" r="4" fill="{INK}"/>'
            for read in ROOMS[name].reads
        ]
    return "\n".join([*parts, "</svg>", ""])


def _middle(row: int) -> int:
    """Where the line down from a room runs."""
    return STEP_X * row + STEP_X // 2


def _about(name: str) -> str:
    """The first sentence of a room's docstring."""
    text = (PACKAGE / name / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    return text.strip().splitlines()[0]
