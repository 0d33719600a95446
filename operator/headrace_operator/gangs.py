"""Engines over several pods: their pods, rank by rank, seen as one engine. Pure; called by plan, known and status.

All counts of a plan and of a status are engines. An engine is ready only if every rank of it is; one rank that is told
to end, or dead, takes the engine with it, whose other ranks go and whose successor has another name. A rank that is
only missing, as after a pass that was cut off, is made again, and the agents of the others wait for it.
"""

from collections.abc import Iterable
from dataclasses import replace

from headrace_operator.state import Pod


def whole(pods: Iterable[Pod]) -> list[Pod]:
    """One `Pod` for each engine, in the order of first sight: itself, where it has one pod; else its lowest rank with
    what holds for all of them."""
    engines: dict[str, list[Pod]] = {}
    for pod in pods:
        engines.setdefault(pod.engine, []).append(pod)
    return [_together(ranks) if ranks[0].gang else ranks[0] for ranks in engines.values()]


def _together(ranks: list[Pod]) -> Pod:
    first = min(ranks, key=lambda pod: pod.rank)
    return replace(
        first,
        name=first.gang,
        ready=len(ranks) >= first.ranks and all(pod.ready for pod in ranks),
        ready_since=max((pod.ready_since for pod in ranks if pod.ready_since is not None), default=None),
        going=any(pod.going for pod in ranks),
        failed=any(pod.failed for pod in ranks),
        blocker=next((pod.blocker for pod in ranks if pod.blocker is not None), None),
    )
