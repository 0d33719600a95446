"""Where scenarios run, as `run.py` sees it: a deployment that serves, can be struck, and says how it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from chaos.journal import Truth
from chaos.questions import Shape
from chaos.scenario import Deployment, Scenario


@dataclass(frozen=True)
class Blow:
    """A fault that has just been done."""

    target: str
    """Name of the engine, pod or node."""
    detected: Callable[[], bool]
    """Whether the system says by itself, now, that something is wrong."""
    whole: Callable[[], bool]
    """Whether what was struck serves again, now."""
    at: float
    """When it was done."""
    undo: Callable[[], None] = lambda: None
    """Takes a lasting fault back."""


class World(Protocol):
    """One running deployment. Asking it costs milliseconds; nothing here waits for a recovery."""

    model: str
    url: str
    """The gateway's, or the Service's, for a load that is started by `inside`."""
    vocabulary: int
    answers: dict[Shape, list[Truth]]
    """To the questions of each shape, as far as they were asked while nothing was wrong."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """Makes of a command the one that runs it where `url` can be reached."""

    def targets(self, scenario: Scenario) -> list[str]:
        """The engines that the scenario may strike, by name; one that has no engine for its target has ['']."""

    def strike(self, scenario: Scenario, target: str) -> Blow:
        """Do it now."""

    def planted(self) -> AbstractContextManager[str]:
        """The URL of a gateway that neither tries again nor resumes, before the same engines, while the block runs."""

    def note(self) -> str:
        """What a person should know when a scenario has failed."""


Opened = Callable[[Deployment], AbstractContextManager[World]]
