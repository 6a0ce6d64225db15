"""Draws docs/assets/rooms.svg: the subpackages of metricbus and the imports between them.

The subpackages ("rooms") appear in the order of the layers contract in pyproject.toml. An arrow is
an import that no other path implies. Every arrow points down, which `make lint` checks.
"""

from __future__ import annotations

import sys
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, GAP = 650, 26, 10  # pixels
# Width of the shortest arrow, and the extra width for each box that an arrow passes, in pixels.
BEND, BEND_PER_BOX = 26, 11


def room_imports(rooms: list[str]) -> dict[str, set[str]]:
    """Return the rooms that each room imports, without imports that a longer path implies."""
    graph = grimp.build_graph("metricbus", cache_dir=None)
    for room in rooms:
        graph.squash_module(f"metricbus.{room}")
    direct = {
        room: (set(rooms) - {room})
        & {
            module.removeprefix("metricbus.")
            for module in graph.find_modules_directly_imported_by(f"metricbus.{room}")
        }
        for room in rooms
    }
    reachable: dict[str, set[str]] = {}
    # Imports point down, so the rooms below are complete when a room is visited.
    for room in reversed(rooms):
        reachable[room] = direct[room].union(*(reachable[below] for below in direct[room]))
    return {
        room: {
            below
            for below in direct[room]
            if not any(below in reachable[other] for other in direct[room])
        }
        for room in rooms
    }


def purpose(room: str) -> str:
    """Return the first line of the room's docstring."""
    path = ROOT / "src" / "metricbus" / room
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    first_line = source.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    return first_line.rstrip(".").replace("`", "")


def svg(rooms: list[str], imports: dict[str, set[str]]) -> str:
    """Return the picture: a box for each room and an arc for each import."""
    top = {room: 8 + number * (HEIGHT + GAP) for number, room in enumerate(rooms)}
    parts = []
    for room, y in top.items():
        style = 'fill="#eef3fb"' if room.startswith("_") else 'fill="#fdf3e1"'
        parts.append(
            f'<rect x="8" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4" {style} '
            'stroke="#8aa0bf"/>'
            f'<text x="18" y="{y + 17}"><tspan font-weight="bold">{escape(room)}</tspan>'
            f'<tspan fill="#444">  {escape(purpose(room))}</tspan></text>'
        )
    right = 8 + WIDTH
    for room, below in imports.items():
        for other in sorted(below, key=rooms.index):
            y0, y1 = top[room] + HEIGHT * 0.65, top[other] + HEIGHT * 0.35
            x = right + BEND + BEND_PER_BOX * (rooms.index(other) - rooms.index(room) - 1)
            parts.append(
                f'<path d="M{right} {y0:.0f} C{x} {y0:.0f} {x} {y1:.0f} {right + 5} {y1:.0f}" '
                'fill="none" stroke="#5577aa" marker-end="url(#head)"/>'
            )
    width, height = right + BEND + BEND_PER_BOX * len(rooms), 8 + len(rooms) * (HEIGHT + GAP)
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5577aa"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{head}\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    names = [room.strip() for layer in layers for room in layer.split(":")]
    sys.stdout.write(svg(names, room_imports(names)))
