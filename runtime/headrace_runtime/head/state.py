"""What the head answers at `GET /state`: Ray's own state and what the fleet last reported."""

from typing import Literal

from headrace_runtime.contract import Frozen, Phase

HeadPhase = Literal["Starting", "Ready", "Restarting", "Failed"]


class SupervisorState(Frozen):
    """One engine's supervisor actor."""

    pod: str
    actor: str | None = None
    """None while the actor does not answer: its node is away, or it is being started."""
    phase: Phase | None = None
    """The engine's, as the actor last heard it from the agent; None when the agent does not answer it."""


class FleetState(Frozen):
    nodes: int = 0
    """Living nodes of the Ray cluster, the head included."""
    supervisors: tuple[SupervisorState, ...] = ()


class HeadState(Frozen):
    pod: str
    phase: HeadPhase
    message: str = ""
    ray_version: str | None = None
    ray_restarts: int = 0
    fleet: FleetState | None = None
    """None until the fleet has reported, and when it has not for a while."""
