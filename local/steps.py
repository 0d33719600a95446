"""Says what a command is doing, and how long each step took, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console


class Steps:
    """The progress lines of one command. On a terminal the running step turns a spinner."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._began = monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Shows `what` while the block runs, then a line with its seconds; nothing is said of a block that raises."""
        began = monotonic()
        with self._console.status(what):
            yield
        self._console.print(f"[green]{monotonic() - began:7.1f} s[/]  {what}")

    def say(self, sentence: str) -> None:
        self._console.print(f"           {sentence}")

    def total(self, what: str) -> None:
        self._console.print(f"[bold]{monotonic() - self._began:7.1f} s  {what}[/]")
