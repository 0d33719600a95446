"""Judgements over a journal: lost, answered twice, other tokens, wrong status, time to detect, time until goodput is
back. Pure functions of what clients wrote down.

Words:
 lost        no complete answer: refused, broken off, or never ended.
 duplicated  ended twice, or gave a token again that it had delivered.
 mismatched  complete, and in any other way not the answer of the undisturbed run.
 suffering   a client that waits longer than `patience` for its next token, from the begin of that wait to its end; or
             whose request is lost, from the last sign of life on.
 goodput     the share of open requests that do not suffer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from chaos.journal import Entry, Silence, Strike, Truth

STEP_SECONDS = 0.05
GOODPUT = 0.95
"""Of what it was before the fault: from then on, clients are served again."""
BEFORE_SECONDS = 10.0

Fate = Literal["answered", "lost", "duplicated", "mismatched"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one scenario. Seconds are one per strike, in order."""

    requests: int
    struck: int
    """Requests that were under way in a struck engine at the moment of a strike, or anywhere if none was struck."""
    lost: int
    cut: int
    """Of the lost ones, those whose answer had begun when a strike came: no client can ask for the rest of it."""
    duplicated: int
    mismatched: int
    statuses: dict[int, int]
    """Every status that was not 200, and how often. 0: no answer."""
    detect: tuple[float | None, ...]
    recover: tuple[float, ...]
    whole: tuple[float | None, ...]
    longest_silence: float


def judge(entries: Sequence[Entry], truths: Sequence[Truth], strikes: Sequence[Strike], patience: float) -> Verdict:
    """`truths` by question; `strikes` in order. `patience`: seconds without a token after which a client suffers."""
    fates = [fate(entry, truths[entry.question]) for entry in entries]
    lost = [entry for entry, its in zip(entries, fates, strict=True) if its == "lost"]
    return Verdict(
        requests=len(entries),
        struck=sum(len(touched(entries, strike)) for strike in strikes),
        lost=len(lost),
        cut=sum(_was_cut(entry, strikes) for entry in lost),
        duplicated=fates.count("duplicated"),
        mismatched=fates.count("mismatched"),
        statuses=dict(Counter(entry.status for entry in entries if entry.status != 200)),
        detect=tuple(_since(strike, strike.detected) for strike in strikes),
        recover=recoveries(entries, truths, strikes, patience),
        whole=tuple(_since(strike, strike.whole) for strike in strikes),
        longest_silence=max((end - begin for entry in entries for begin, end in waits(entry, truths)), default=0.0),
    )


def fate(entry: Entry, truth: Truth) -> Fate:
    if not entry.complete:
        return "lost"
    if entry.ends > 1 or entry.finishes > 1 or repeats(entry.text, truth.text):
        return "duplicated"
    if entry.token_ids is not None and truth.token_ids is not None and entry.token_ids != truth.token_ids:
        return "duplicated" if repeats(entry.token_ids, truth.token_ids) else "mismatched"
    return "answered" if entry.text == truth.text else "mismatched"


def repeats(given: Sequence[object], true: Sequence[object]) -> bool:
    """Whether `given` is `true` with a part of it delivered once more, right after it came first."""
    extra = len(given) - len(true)
    same = next((at for at, (one, other) in enumerate(zip(given, true, strict=False)) if one != other), len(true))
    # Up to some place, then again from `extra` before it: what follows the first difference is the same for every such
    # place.
    return 0 < extra <= same and given[same:] == true[same - extra :]


def touched(entries: Sequence[Entry], strike: Strike) -> list[Entry]:
    """The requests open at the strike: those of the struck engine, or all where what was struck is no engine."""
    engines = {entry.engine for entry in entries}
    open_then = [entry for entry in entries if entry.scheduled <= strike.at <= entry.end]
    return [entry for entry in open_then if strike.target not in engines or entry.engine == strike.target]


def waits(entry: Entry, truths: Sequence[Truth]) -> list[Silence]:
    """Its silences, without the time that its first piece takes when nothing is wrong."""
    due = truths[entry.question].first_seconds
    moved = [(begin + due if begin == entry.scheduled else begin, end) for begin, end in entry.silences]
    return [(begin, end) for begin, end in moved if end > begin]


def sufferings(entry: Entry, truths: Sequence[Truth], patience: float) -> list[Silence]:
    """When this client suffered."""
    silences = waits(entry, truths)
    found = [(begin, end) for begin, end in silences if end - begin > patience]
    if not entry.complete:
        last_sign = silences[-1][0] if silences else entry.end
        found.append((last_sign, max(entry.end, last_sign + patience)))
    return found


def recoveries(
    entries: Sequence[Entry], truths: Sequence[Truth], strikes: Sequence[Strike], patience: float
) -> tuple[float, ...]:
    """Seconds from each strike until goodput is at least 95 % of what it was in the ten seconds before the first one,
    and stays there until the next strike. 0: it never fell below."""
    if not strikes:
        return ()
    lives = [_Life(entry.scheduled, entry.end, sufferings(entry, truths, patience)) for entry in entries]
    first = strikes[0].at
    begin = max(first - BEFORE_SECONDS, min((life.begin for life in lives), default=first))
    enough = GOODPUT * _mean([_goodput(_near(lives, begin, first), at) for at in _steps(begin, first)])
    last = max((life.last for life in lives), default=first)
    found = []
    for strike, until in zip(strikes, [*(strike.at for strike in strikes[1:]), last], strict=True):
        near = _near(lives, strike.at, until)
        low = [at for at in _steps(strike.at, until) if _goodput(near, at) < enough]
        found.append(low[-1] + STEP_SECONDS - strike.at if low else 0.0)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Life:
    begin: float
    end: float
    sufferings: list[Silence]

    @property
    def last(self) -> float:
        return max([self.end, *(end for _, end in self.sufferings)])


def _near(lives: Sequence[_Life], begin: float, end: float) -> list[_Life]:
    return [life for life in lives if life.last >= begin and life.begin < end]


def _goodput(lives: Sequence[_Life], at: float) -> float:
    """The share of the requests open at a moment that do not suffer then; 1 when none is open."""
    suffer = sum(any(begin <= at < end for begin, end in life.sufferings) for life in lives)
    if not suffer:
        return 1.0
    still = sum(
        life.begin <= at < life.end or any(begin <= at < end for begin, end in life.sufferings) for life in lives
    )
    return 1.0 - suffer / still


def _steps(begin: float, end: float) -> list[float]:
    return [begin + step * STEP_SECONDS for step in range(max(0, int((end - begin) / STEP_SECONDS)))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _was_cut(entry: Entry, strikes: Sequence[Strike]) -> bool:
    return entry.first is not None and any(entry.first <= strike.at <= entry.end for strike in strikes)


def _since(strike: Strike, moment: float | None) -> float | None:
    return None if moment is None else moment - strike.at
