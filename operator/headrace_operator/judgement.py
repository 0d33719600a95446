"""What a ladder says of a condition, and the rungs that several ladders have. Pure; for `ladders.py` and
`scaling_ladder.py`.
"""

from typing import NamedTuple

from headrace_operator.api.conditions import Reason, Truth
from headrace_operator.known import Known


class Judgement(NamedTuple):
    status: Truth
    reason: str
    message: str


def unknown(known: Known) -> Judgement | None:
    """The rung that stands above all others."""
    if known.observed.failure is not None:
        return Judgement("Unknown", Reason.OBSERVE_FAILED, known.observed.failure)
    if known.wanted is None:
        return Judgement("Unknown", Reason.NOT_OBSERVED, "Nothing was made from a valid spec yet.")
    return None


def nobody_wanted(known: Known) -> Judgement | None:
    """The rung of what can be said of running engines alone."""
    if known.suspended:
        return Judgement("Unknown", Reason.SUSPENDED, "No engine is wanted.")
    return Judgement("Unknown", Reason.ASLEEP, sleeps(known)) if known.asleep else None


def sleeps(known: Known) -> str:
    zero = known.subject.spec.scaling.to_zero if known.subject is not None else None
    quiet = f" for {zero.after}" if zero is not None else ""
    since = known.rest.since
    at = f" since {since:%Y-%m-%dT%H:%M:%SZ}" if since is not None else ""
    wakes = "spec.paused is true: nothing wakes it" if known.paused else "a request waits at the gateway and wakes it"
    return f"No engine runs{at}, as nobody had asked{quiet}; {wakes}."
