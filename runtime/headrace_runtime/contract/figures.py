"""What a gateway answers at `GET /figures`: what it counted, for whoever decides by it. Never a prompt or a key.

Counts only grow from the process's start on; `start` names that start. Who reads twice takes the difference, and sees
by another `start` that the counts began anew. All of it is optional but the names, and what a reader does not know it
passes over: gateways and operators of different versions understand each other. A number that cannot be true makes the
whole answer none.
"""

from typing import Annotated

from pydantic import ConfigDict, Field

from headrace_runtime.contract.base import Frozen, RoleName
from headrace_runtime.contract.gateway import CanaryShare
from headrace_runtime.contract.sketch import Sketch

Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=2**53, allow_inf_nan=False)]


class _Told(Frozen):
    model_config = ConfigDict(extra="ignore")


class RoleFigures(_Told):
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
    """Whole ones written here whose length is known."""
    output_tokens: Count = 0
    """Of these. A stream's are its events, which are about as many."""
    ttft: Sketch = Sketch()
    """Of streams whose prompt was computed here: from the complete request to the first token, the queue included."""
    itl: Sketch = Sketch()
    """Of streams among these: the mean time between tokens, one sample for each answer."""


class CanaryFigures(_Told):
    """What was counted before the canary's step that holds now."""

    share: CanaryShare
    seconds: Seconds
    """For which it has held here."""
    before: tuple[RoleFigures, ...] = ()


class DemandFigures(_Told):
    """What is asked of the deployment, and how far it is done. Counted are requests that engines would compute: without
    those that have no key, cannot be read or are above their key's own rate, and without the operator's own question.
    A request that finds the queue full counts: more engines would have taken it."""

    requests: Count = 0
    """As they came."""
    prompt_tokens: Count = 0
    """Of all these. Text is counted as one token per four bytes."""
    prompts: Sketch = Sketch()
    """Lengths of all these, in thousands of tokens."""
    unanswered: Seconds = 0.0
    """How long the oldest one that has no first token yet has been here, in the queue or at an engine; 0: there is
    none. One that an engine answers in one piece has no first token: it counts until an engine has it."""
    writing: Seconds = 0.0
    """From first tokens to the ends of answers, all added up: the mean number of answers under way is its growth in a
    second."""
    idle: Seconds = 0.0
    """For how long none has been here at all; 0 while one is."""


class GatewayFigures(_Told):
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
    holds: Count = 0
    """Requests that may wait here while there is no engine; 0: they are refused."""
    roles: tuple[RoleFigures, ...] = ()
    canary: CanaryFigures | None = None
    demand: DemandFigures | None = None
    """None: this gateway does not tell."""
