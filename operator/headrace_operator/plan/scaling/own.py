"""What becomes of an own policy's answer, and what stands in its place where there is none. Pure.

An answer is a wish: `taken` refuses what makes no sense and grants the rest within `bounds.allowed`. It has that from a
process that it does not trust, so that everything in it is looked at. Called by `policies.py`, by the simulator and by
the kit.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from headrace_operator.api.conditions import Reason
from headrace_operator.plan.scaling.bounds import allowed, swaps
from headrace_operator.plan.scaling.inputs import Answer, Ask, Decision, Model, number, sane
from headrace_operator.plan.scaling.policy import decide

VERDICTS: Final = frozenset(
    {Reason.SIZED, Reason.FIGURES_MISSING, Reason.TARGET_OUT_OF_REACH, Reason.CAP_TOO_SMALL, Reason.POLICY_FAILED}
)
"""What an answer may give as the reason of the condition ScalingActive."""
TEXT: Final = 500
MOST_INPUTS: Final = 32
UNSAID: Final = "It gave no reason."


class NonsenseError(ValueError):
    """Such an answer cannot be meant. The text says why."""


def taken(name: str, ask: Ask, answer: Answer) -> Answer:
    """The answer of the policy of this name, as far as it may have what it wants. NonsenseError where it is none.

    A role that is not in `sizes` keeps its size. A model that was not fitted leaves the one that was learnt before.
    Message and inputs say whose they are.
    """
    ask = sane(ask)
    known = [role.name for role in ask.roles]
    for role, size in answer.sizes.items():
        if role not in known:
            raise NonsenseError(f"sizes has a role that there is not; there are: {', '.join(known)}")
        if size < 0:
            raise NonsenseError(f"the size of {role} is negative")
    if answer.verdict not in VERDICTS:
        raise NonsenseError(f"the verdict is none of {', '.join(sorted(VERDICTS))}")
    sizes = allowed(answer.sizes, ask)
    return Answer(
        sizes,
        answer.verdict,
        f"{name}: {_text(answer.message) or UNSAID}",
        _decisions(ask, sizes, answer),
        {"policy": name} | {_text(key): _text(said) for key, said in [*answer.inputs.items()][: MOST_INPUTS - 1]},
        answer.model if _learnt(answer.model) else ask.model,
        name,
    )


def fenced(name: str, policy: Callable[[Ask], Answer]) -> Callable[[Ask], Answer]:
    """The policy as the operator would follow it, where it runs without one. What it raises is the caller's."""
    return lambda ask: taken(name, ask, policy(sane(ask)))


def instead(name: str, ask: Ask, cause: str, *, lately: bool) -> Answer:
    """The built-in policy's answer, where the own one has none for this cause (a clause that follows its name).

    `lately`: it had one not long ago. Then no role gets smaller only because it fails now: what it knew, the built-in
    policy may not know.
    """
    answer = decide(ask)
    message = f"{name} {cause}. Sized by the built-in policy: {answer.message}"
    if lately:
        ask = sane(ask)
        sizes = allowed({role.name: max(role.size, answer.sizes[role.name]) for role in ask.roles}, ask)
        answer = replace(answer, sizes=sizes, decisions=_decisions(ask, sizes, answer))
    return replace(answer, verdict=Reason.POLICY_FAILED, message=message)


def _decisions(ask: Ask, sizes: Mapping[str, int], answer: Answer) -> tuple[Decision, ...]:
    """One for each size that changes, with the policy's reason."""
    said = {one.role: one.reason for one in answer.decisions}
    swap = swaps(sizes, ask)
    return tuple(
        Decision(role.name, role.size, sizes[role.name], _reason(said.get(role.name), role.name, sizes, answer), swap)
        for role in ask.roles
        if sizes[role.name] != role.size
    )


def _reason(said: str | None, role: str, sizes: Mapping[str, int], answer: Answer) -> str:
    reason = _text(said or "") or UNSAID
    wanted = answer.sizes.get(role, sizes[role])
    return reason if wanted == sizes[role] else f"{reason} It wanted {min(wanted, 10**9)}."


def _learnt(model: Model) -> bool:
    return model.fitted and all(number(value) is not None for value in vars(model).values())


def _text(said: str) -> str:
    return " ".join(said.split())[:TEXT]
