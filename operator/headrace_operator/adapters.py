"""Which LoRA adapters the engines serve, counted over what their agents say. Pure; called by status, ladders and
reconcile."""

from collections.abc import Iterable, Mapping

from headrace_operator.api.status import AdapterStatus
from headrace_operator.state import Pod
from headrace_runtime.contract import AdapterState

MESSAGE_LENGTH = 300


def adapter_statuses(
    names: Iterable[str], engines: Iterable[Pod], expected: int, pinned: Mapping[str, str]
) -> tuple[AdapterStatus, ...]:
    """One for each of `names`. `pinned`: digests that the first loads found; engines that load for the first time side
    by side pin nothing until they agree."""
    said = [
        (pod.name, {state.name: state for state in pod.agent.adapters}) for pod in engines if pod.live and pod.agent
    ]
    return tuple(_status(name, [(pod, of[name]) for pod, of in said if name in of], expected, pinned) for name in names)


def _status(name: str, said: list[tuple[str, AdapterState]], expected: int, pinned: Mapping[str, str]) -> AdapterStatus:
    digests = {state.digest for _, state in said if state.served}
    digest = pinned.get(name) or (digests.pop() if len(digests) == 1 else None)
    problems = [f"{pod}: {state.problem}" for pod, state in said if state.problem]
    return AdapterStatus(
        name=name,
        digest=digest,
        ready=sum(state.served and state.digest == digest for _, state in said),
        expected=expected,
        message=problems[0][:MESSAGE_LENGTH] if problems else "",
    )
