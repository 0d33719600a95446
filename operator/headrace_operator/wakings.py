"""What decisions about sleep look like in the status, and what becomes known of them later. Pure.

They stand in `scaling.lastDecisions` among those about sizes, and are told from them by the names of their inputs.
`plan/sleep.py` makes them, `status.py` tells them; they say nothing of how many engines a load needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from headrace_operator.api.status import ScalingDecision

QUIET: Final = "quiet"
"""How long nobody had asked when it went to sleep."""
HELD: Final = "first request held"
"""How long the first request had waited when it woke the deployment."""
NOBODY: Final = "nobody"
"""In place of that time: it was woken by something else."""
FIRST_ENGINE: Final = "first engine"
"""From the first request until an engine was there."""
ALL_ENGINES: Final = "all engines"
"""The same of all of them."""


def of_sleep(one: ScalingDecision) -> bool:
    """Whether it is a decision to sleep or to wake."""
    return QUIET in one.inputs or HELD in one.inputs


def timed(decisions: Sequence[ScalingDecision], took: Mapping[str, str]) -> Iterator[ScalingDecision]:
    """The decisions, newest first, the last one about sleep with what is known of it by now."""
    last = next(filter(of_sleep, decisions), None)
    for one in decisions:
        yield one.model_copy(update={"inputs": {**one.inputs, **took}}) if took and one is last else one
