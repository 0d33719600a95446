"""What the agents of one engine's pods tell each other: a rank asks rank 0's agent, `POST /gang`, a few times a second.

A *life* is one run of the engine over all of its pods, from its start to the end of every part. Its id is made by rank
0, and no id comes twice: a part is started for one life and belongs to no other.
"""

from pydantic import Field

from headrace_runtime.contract.base import Frozen
from headrace_runtime.contract.state import Phase


class RankReport(Frozen):
    """How one rank above 0 is."""

    rank: int = Field(ge=1)
    pod: str
    phase: Phase
    willing: bool
    """It has all that it needs, runs nothing, and would start its part at once."""
    runs: str = ""
    """The life that its running part belongs to. Empty: nothing of an engine is left there."""
    left: str = ""
    """The life whose part ended there last."""
    why: str = ""
    """How that part ended."""


class GangOrder(Frozen):
    """What rank 0 answers."""

    phase: Phase
    """Of rank 0."""
    life: str = ""
    """The life that every rank's part shall belong to. Empty: no part shall run."""
    address: str = ""
    port: int = 0
    """Where the workers of this life meet."""
    ready: bool = False
    """The engine of this life has given a token."""
