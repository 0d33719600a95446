"""Sets of engines as bits, and how far each of them holds a path, for all at once. Pure; called by `prefix.py`.

Steps that double, and halving where engines fell behind in one: engines drop a prompt's blocks from its end, so that
one which holds a place holds those before it. Where it does not, it is taken to hold more than it does.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from headrace_runtime.gateway.blocks import Path

K = TypeVar("K")


def reach(path: Path, sources: Sequence[Mapping[int, int]], engines: int) -> list[tuple[int, int]]:
    """Of these engines (bits): groups of them, and the tokens up to where each group holds the path in any of the
    sources. Who holds nothing is in none."""

    def holders(place: int) -> int:
        key, held = path[place][0], 0
        for source in sources:
            held |= source.get(key, 0)
        return held

    reached: list[tuple[int, int]] = []

    def settle(low: int, high: int, engines: int) -> None:
        """Engines that hold place `low` and not `high`."""
        while engines and high - low > 1:
            middle = (low + high) // 2
            beyond = engines & holders(middle)
            settle(middle, high, beyond)
            engines, high = engines & ~beyond, middle
        if engines and low >= 0:
            reached.append((engines, path[low][1]))

    alive, low, step, last = engines, -1, 1, len(path) - 1
    while alive and low < last:
        high = min(low + step, last)
        beyond = alive & holders(high)
        settle(low, high, alive & ~beyond)
        alive, low, step = beyond, high, 2 * step
    if alive and low >= 0:
        reached.append((alive, path[low][1]))
    return reached


def bits(engines: int) -> Iterator[int]:
    """The numbers of the engines."""
    while engines:
        lowest = engines & -engines
        yield lowest.bit_length() - 1
        engines ^= lowest


def give(holders: dict[K, int], key: K, bits: int) -> None:
    holders[key] = holders.get(key, 0) | bits


def take(holders: dict[K, int], key: K, bit: int) -> None:
    """This engine has the block no longer."""
    left = holders.get(key, 0) & ~bit
    if left:
        holders[key] = left
    else:
        holders.pop(key, None)
