"""What a gateway answers at `GET /figures`: what it counted, for whoever decides by it. Never a prompt or a key.

Counts only grow from the process's start on; `start` names that start. Who reads twice takes the difference, and sees
by another `start` that the counts began anew. All of it is optional but the names, so that an older reader's absence of
a field is a zero and not an error.
"""

from typing import Annotated

from pydantic import Field

from headrace_runtime.contract.base import Frozen, RoleName
from headrace_runtime.contract.gateway import CanaryShare
from headrace_runtime.contract.sketch import Sketch

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RoleFigures(Frozen):
    """Engines of one role in one revision."""

    role: RoleName
    revision: str
    requests: Count = 0
    """Times that an engine was asked: tries, and prefills beside their decodes. Without the operator's own question."""
    errors: Count = 0
    """Of these, those that the engine failed, before its first token or after. Another one may have answered."""
    prompts: Count = 0
    """Computed here, of answers whose first token came."""
    prompt_tokens: Count = 0
    """Of these. Text is counted as one token per four bytes."""
    looked_up_tokens: Count = 0
    """Of these, where it was known what the engine holds (PrefixAware)."""
    cached_tokens: Count = 0
    """Of these, what the engine was known to hold."""
    answers: Count = 0
    """Whole streams written here."""
    output_tokens: Count = 0
    """Of these: their events, which are about as many."""
    ttft: Sketch = Sketch()
    """Of streams whose prompt was computed here: from the complete request to the first token, the queue included."""
    itl: Sketch = Sketch()
    """Of streams written here: the mean time between tokens, one sample for each answer."""


class CanaryFigures(Frozen):
    """What was counted before the canary's step that holds now."""

    share: CanaryShare
    seconds: Seconds
    """For which it has held here."""
    before: tuple[RoleFigures, ...] = ()


class GatewayFigures(Frozen):
    """One gateway process."""

    start: str
    seconds: Seconds
    """Since its start."""
    arrivals: Count = 0
    """Requests, as they came."""
    answered: Count = 0
    failed: Count = 0
    """Requests without a first token, by no fault of their own."""
    broken: Count = 0
    """Answers that were lost after their first token."""
    running: Count = 0
    """Requests that engines have now."""
    waiting: Count = 0
    """Requests that wait for their turn now."""
    oldest_wait: Seconds = 0.0
    """How long the one at the head of the queue has waited."""
    roles: tuple[RoleFigures, ...] = ()
    canary: CanaryFigures | None = None
