"""A problem of an object that a user wrote: where, and what to do about it. A value, never an exception."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One thing to mend."""

    path: str
    """The field, as the user wrote it: `spec.roles[0].replicas`."""
    message: str
    """What is wrong and the fix, without the path."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def sentence(problems: Iterable[Problem]) -> str:
    """All problems in one text, for a condition's message: `2 problems: spec.a: …; spec.b: …`."""
    texts = [str(problem) for problem in problems]
    return texts[0] if len(texts) == 1 else f"{len(texts)} problems: " + "; ".join(texts)
