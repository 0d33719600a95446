"""Sizes over time as an SVG, which every browser shows: a panel for each role, a line for each run, steps between.

Written by hand, so that the operator's image needs no plotting library; the same runs give the same bytes. Pure; called
by `replay.py`.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from headrace_operator.commands.replaying import Run, Sizes

WIDE: Final = 900
HIGH: Final = 180
"""Pixels of a panel."""
LEFT: Final = 40
TOP: Final = 24
COLOURS: Final = ("#444444", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's, which colour-blind people can tell apart."""
FONT: Final = 'font-family="sans-serif" font-size="12"'
NEED: Final = "#999999"


def drawn(runs: Sequence[Run], needs: Sequence[Sizes | None]) -> str:
    """The document. What is needed is dashed; its line breaks where it is not known."""
    roles = list(dict.fromkeys(role for run in runs for step in run.steps for role in step.sizes))
    start = runs[0].steps[0].at
    times = [(step.at - start).total_seconds() for step in runs[0].steps]
    high = TOP + len(roles) * (HIGH + TOP) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{high}" {FONT}>',
        f'<rect width="{WIDE}" height="{high}" fill="white"/>',
        *_legend([*(run.name for run in runs), "needed"]),
    ]
    for place, role in enumerate(roles):
        lines: list[list[int | None]] = [[step.sizes.get(role) for step in run.steps] for run in runs]
        lines.append([None if needed is None else needed.get(role) for needed in needs])
        parts += _panel(role, times, lines, TOP + place * (HIGH + TOP) + TOP)
    end = runs[0].steps[-1].at
    parts.append(f'<text x="{LEFT}" y="{high - 6}">{start:%Y-%m-%d %H:%M:%SZ}</text>')
    parts.append(f'<text x="{WIDE - 10}" y="{high - 6}" text-anchor="end">{end:%Y-%m-%d %H:%M:%SZ}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = LEFT
    for place, name in enumerate(names):
        yield f'<line x1="{x}" y1="12" x2="{x + 20}" y2="12" {_stroke(place, len(names))}/>'
        yield f'<text x="{x + 25}" y="16">{escape(name)}</text>'
        x += 45 + 7 * len(name)


def _panel(role: str, times: Sequence[float], lines: Sequence[Sequence[int | None]], top: int) -> Iterator[str]:
    most = max([1, *(value for line in lines for value in line if value is not None)])
    yield f'<text x="4" y="{top - 6}">{escape(role)}</text>'
    for tick in range(0, most + 1, max(1, -(-most // 6))):
        y = _y(tick, most, top)
        yield f'<line x1="{LEFT}" y1="{y}" x2="{WIDE - 10}" y2="{y}" stroke="#e5e5e5"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
    for place in reversed(range(len(lines))):
        points = _steps(times, lines[place], most, top)
        yield f'<path d="{points}" fill="none" {_stroke(place, len(lines))}/>'


def _steps(times: Sequence[float], values: Sequence[int | None], most: int, top: int) -> str:
    """A size holds until the next moment."""
    found: list[str] = []
    before: int | None = None
    for time, value in zip(times, values, strict=True):
        if value == before and time != times[-1]:
            continue
        x = LEFT + (WIDE - 10 - LEFT) * time / max(1.0, times[-1])
        if before is not None:
            found.append(f"H{x:.1f}")
        if value is not None and value != before:
            found.append(f"{'M' + format(x, '.1f') + ' ' if before is None else 'V'}{_y(value, most, top)}")
        before = value
    return "".join(found)


def _y(value: int, most: int, top: int) -> float:
    return round(top + HIGH * (1 - value / most), 1)


def _stroke(place: int, count: int) -> str:
    if place == count - 1:
        return f'stroke="{NEED}" stroke-width="1.5" stroke-dasharray="4 3"'
    return f'stroke="{COLOURS[place % len(COLOURS)]}" stroke-width="{3 if place == 0 else 1.8}"'
