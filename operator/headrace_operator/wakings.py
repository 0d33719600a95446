"""What decisions about sleep look like in the status, and what becomes known of them later. Pure.

They stand in `scaling.lastDecisions` among those about sizes, and are told from them by the names of their inputs.
`plan/sleep.py` makes them, `status.py` tells them; they say nothing of how many engines a load needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from headrace_operator.api.status import ScalingDecision

QUIET: Final = "quiet"
"""How long nobody had asked when it went to sleep."""
FIRST_REQUEST: Final = "first request"
"""When the request came that woke it, to milliseconds: the time of a decision has none."""
NOBODY: Final = "nobody's"
"""In place of that time: it was woken by something else."""
FIRST_ENGINE: Final = "first engine"
"""From the first request until an engine was there."""
ALL_ENGINES: Final = "all engines"
"""The same of all of them."""


def of_sleep(one: ScalingDecision) -> bool:
    """Whether it is a decision to sleep or to wake."""
    return QUIET in one.inputs or FIRST_REQUEST in one.inputs


def first_request(one: ScalingDecision) -> datetime | None:
    """When the request came that woke the deployment. None: no request did, or somebody wrote something else here."""
    said = one.inputs.get(FIRST_REQUEST, NOBODY)
    try:
        at = datetime.fromisoformat(said)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def timed(decisions: Sequence[ScalingDecision], took: Mapping[str, str]) -> Iterator[ScalingDecision]:
    """The decisions, newest first, the last one about sleep with what is known of it by now."""
    last = next(filter(of_sleep, decisions), None)
    for one in decisions:
        yield one.model_copy(update={"inputs": {**one.inputs, **took}}) if took and one is last else one
