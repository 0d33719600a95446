"""Plain text for terminals: tables, columns and numbers as people read them. Pure; the operator's image has no library
for it, and needs none for this little."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

SHORT: Final = 18
"""Characters of a value that has others beside it."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()


def columns(pairs: Sequence[tuple[str, str]], wide: int, indent: int = 0) -> Iterator[str]:
    """Names and values side by side, as many to a line as have room. A long value has a line of its own, at the end."""
    name = max((len(key) for key, _ in pairs), default=0)
    short = [(key, said) for key, said in pairs if len(said) <= SHORT]
    value = max((len(said) for _, said in short), default=0)
    each = max(1, (wide - indent) // (name + value + 4))
    rows = [short[start : start + each] for start in range(0, len(short), each)]
    for row in (*rows, *([pair] for pair in pairs if pair not in short)):
        cells = (f"{key.ljust(name)}  {said.ljust(value)}" for key, said in row)
        yield (" " * indent + "  ".join(cells)).rstrip()


def few(value: float) -> str:
    """Three figures, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 or value == 0 else f"{value:.2e}"


def ago(time: timedelta) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `4 d 2 h`. A moment in the future (a clock that is behind) is now."""
    seconds = max(0, int(time.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"
