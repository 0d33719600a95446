"""How far the engines are with the model's files, counted over what their agents say. Pure; called by ladders."""

from collections.abc import Iterable

from headrace_operator.api.conditions import Reason
from headrace_operator.state import Blocker, Pod
from headrace_runtime.contract import WeightsState

STEP_PERCENT = 10
"""Of a fetch that is told: every new number is a write of the status."""
NOTES_SHOWN = 3


def said(engines: Iterable[Pod]) -> list[tuple[Pod, WeightsState]]:
    """What each live engine's agent says of its weights."""
    return [(pod, pod.agent.weights) for pod in engines if pod.live and pod.agent is not None]


def fetching(engines: Iterable[Pod]) -> str:
    """How many are fetching, and how far the slowest has come where the sources say how much there is; else empty."""
    found = [weights for pod, weights in said(engines) if pod.agent and pod.agent.phase == "FetchingWeights"]
    if not found:
        return ""
    told = f"{len(found)} are fetching it"
    if not all(weights.fetch_total for weights in found):
        return told
    least = min(weights.fetched / weights.fetch_total for weights in found)
    return f"{told}, {int(least * 100) // STEP_PERCENT * STEP_PERCENT} % of it is there"


def refused(engines: Iterable[Pod]) -> list[Blocker]:
    """What is wrong with the files of those that found them wrong, with their nodes: there they must be put right."""
    return [_wrong(pod, weights) for pod, weights in said(engines) if weights.verified is False]


def notes(engines: Iterable[Pod]) -> str:
    """What else should be known of them, as sentences."""
    found = [f" {pod.name}: {note}." for pod, weights in said(engines) for note in weights.notes]
    return "".join(found[:NOTES_SHOWN])


def _wrong(pod: Pod, weights: WeightsState) -> Blocker:
    more = f"; and {len(weights.problems) - 1} more" if len(weights.problems) > 1 else ""
    where = f"{pod.name} on {pod.node}" if pod.node else pod.name
    problem = weights.problems[0] + more if weights.problems else ""
    return Blocker(where, weights.reason or Reason.DIGEST_MISMATCH, problem)
