"""A picture of figures that should be equal, as SVG: measured across, simulated upwards, both logarithmic. Pure."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

SIDE: Final = 300
"""Pixels of one panel; around it, room for the numbers."""
LEFT, TOP, BELOW = 56, 34, 44
COLORS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")

Points = Mapping[str, Sequence[tuple[float, float]]]
"""(measured, simulated), both above 0, by what is told apart by colour."""


def scatter(panels: Mapping[str, Points]) -> str:
    """One panel beside the other, each with the line on which both are equal."""
    width, height = len(panels) * (SIDE + LEFT) + 16, SIDE + TOP + BELOW + 24
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for index, (title, points) in enumerate(panels.items()):
        parts += _panel(title, points, names, LEFT + index * (SIDE + LEFT))
    for index, name in enumerate(names):
        x, y = LEFT + 120 * index, TOP + SIDE + BELOW + 10
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{_color(index)}"/><text x="{x + 8}" y="{y}">')
        parts.append(f"{escape(name)}</text>")
    return "".join([*parts, "</svg>\n"])


def _panel(title: str, points: Points, names: Sequence[str], left: float) -> list[str]:
    values = [value for pairs in points.values() for pair in pairs for value in pair]
    low, high = math.log10(min(values, default=0.1)) - 0.1, math.log10(max(values, default=1.0)) + 0.1

    def at(value: float) -> float:
        return SIDE * (math.log10(value) - low) / (high - low)

    bottom = TOP + SIDE
    parts = [
        f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
        f'<line x1="{left}" y1="{bottom}" x2="{left + SIDE}" y2="{TOP}" stroke="#888" stroke-dasharray="4"/>',
        f'<text x="{left + SIDE / 2}" y="{bottom + 34}" text-anchor="middle">measured</text>',
        f'<text transform="translate({left - 42},{TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">simulated</text>',
    ]
    for tick in _ticks(low, high):
        parts.append(f'<text x="{left + at(tick):.0f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{left - 6}" y="{bottom - at(tick) + 4:.0f}" text-anchor="end">{tick:g}</text>')
    for name, pairs in points.items():
        color = _color(names.index(name))
        parts += [
            f'<circle cx="{left + at(measured):.1f}" cy="{bottom - at(simulated):.1f}" r="4" fill="{color}"/>'
            for measured, simulated in pairs
        ]
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]
