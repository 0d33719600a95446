"""Journals spoiled on purpose: what a bug would have left behind. An oracle that passes one of them is worth nothing.

Pure; each spoils one true journal in one way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chaos.journal import Entry, Strike
from chaos.scenario import Oracle

Journal = tuple[Sequence[Entry], Sequence[Strike]]


def _change(journal: Journal, change: Callable[[Entry], Entry]) -> Journal:
    """The longest complete answer, changed."""
    entries, strikes = journal
    chosen = max((entry for entry in entries if entry.complete), key=lambda entry: len(entry.text))
    return [change(entry) if entry is chosen else entry for entry in entries], strikes


def broken_off(journal: Journal) -> Journal:
    """An answer stops half way, without a word."""
    return _change(journal, lambda one: replace(one, text=one.text[: len(one.text) // 2], finishes=0, ends=0))


def refused(journal: Journal) -> Journal:
    """A request is answered with 503."""
    return _change(journal, lambda one: replace(one, status=503, text="", finishes=0, engine="", first=None))


def repeated(journal: Journal) -> Journal:
    """A resumed answer gives its last letters, and tokens, again."""

    def twice(one: Entry) -> Entry:
        half = len(one.text) // 2
        return replace(one, text=one.text[:half] + one.text[half - 3 :])

    return _change(journal, twice)


def skipped(journal: Journal) -> Journal:
    """A resumed answer leaves some letters out."""

    def gap(one: Entry) -> Entry:
        half = len(one.text) // 2
        return replace(one, text=one.text[:half] + one.text[half + 3 :])

    return _change(journal, gap)


def unnoticed(journal: Journal) -> Journal:
    """No part of the system ever said that something was wrong."""
    entries, strikes = journal
    return entries, [replace(strike, detected=None) for strike in strikes]


def never_whole(journal: Journal) -> Journal:
    """What was struck never served again."""
    entries, strikes = journal
    return entries, [replace(strike, whole=None) for strike in strikes]


def stalled(journal: Journal) -> Journal:
    """Everybody who waited when the last fault struck, or asked in the minute after it, waits for a minute."""
    entries, strikes = journal
    at = strikes[-1].at
    stall = [
        replace(entry, end=entry.end + 60.0, silences=((max(at, entry.scheduled), entry.end + 60.0),))
        if entry.end >= at
        else entry
        for entry in entries
    ]
    return stall, strikes


@dataclass(frozen=True)
class Spoil:
    """One way to spoil a journal, and the oracle that must find it."""

    name: str
    spoil: Callable[[Journal], Journal]
    oracle: Oracle


SPOILS = (
    Spoil("an answer broken off", broken_off, "lost"),
    Spoil("a request refused", refused, "lost"),
    Spoil("tokens given twice", repeated, "duplicated"),
    Spoil("tokens left out", skipped, "mismatched"),
    Spoil("the fault never noticed", unnoticed, "detect"),
    Spoil("all clients stalled", stalled, "recover"),
    Spoil("never whole again", never_whole, "whole"),
)
