"""Which engines that were told to go answer on for a while, because nobody else would. Pure.

Called by reconcile once the plan is made. The operator never ends an engine that its role cannot spare; others do: an
eviction, a node that is drained, `kubectl delete pod`. Such an engine is asked to stay until its successor is ready,
again in every pass, and its agent leaves by itself soon after nobody asks (`node/decide.py`). What it is asked to rests
on nothing but what is seen now: sizes of zero, as those of a suspended deployment, need nobody.
"""

from collections.abc import Iterable, Iterator

from headrace_operator.gangs import whole
from headrace_operator.state import Plan, Pod


def needed_still(plan: Plan, engines: Iterable[Pod], unavailable: int) -> tuple[Pod, ...]:
    """Leaving engines of each role that has fewer ready ones than a rollout may leave it, as many as it lacks.

    `unavailable`: engines of a role that a rollout may take. Those of the plan's revision come first. An engine over
    several pods is not among them: its ranks end together, and one that is evicted cannot wait for the others.
    """
    there = whole(engines)
    return tuple(pod for role, size in plan.sizes.items() for pod in _of_role(plan, there, role, size - unavailable))


def _of_role(plan: Plan, engines: list[Pod], role: str, fewest: int) -> Iterator[Pod]:
    mine = [pod for pod in engines if pod.role == role]
    lacking = max(0, fewest - sum(pod.ready and pod.live for pod in mine))
    able = [pod for pod in mine if _may_stay(pod)]
    yield from sorted(able, key=lambda pod: (pod.revision != plan.revision, pod.name))[:lacking]


def _may_stay(pod: Pod) -> bool:
    """Whether its engine has answered, and runs: before its agent hears that it is to go, and until it is ended."""
    agent = pod.agent
    if agent is None or not pod.going or pod.failed or pod.gang:
        return False
    return agent.phase in ("Ready", "Draining") and agent.engine_pid is not None and agent.ready_seconds is not None
