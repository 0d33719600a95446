"""One request of a trace: when it comes, how long it is, and what its prompt has in common with others."""

from dataclasses import dataclass

from simulator.profile import BLOCK


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a trace. `ids` name the prompt's blocks, the last of which may be part of one; equal ids are equal
    beginnings."""

    at: float
    prompt: int
    output: int
    ids: tuple[int, ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        """The full ones, which others can reuse."""
        return self.ids[: self.prompt // BLOCK]
