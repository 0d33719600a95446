"""Which versions engines say that their images hold, where two that must agree do not. Pure.

One revision is one image, unless a tag was moved or the operator's default image changed in between. Engines of
different versions do not take each other's KV blocks, and Ray's nodes join only a head of their own version. Called by
`ladders.py`.
"""

from collections.abc import Iterable

from headrace_operator.state import Pod

FEW = 3
"""Starts of a raylet that may well fail while the head starts too."""


def differing(engines: Iterable[Pod], revision: str) -> str:
    """The versions of vLLM in one revision, if there are several, each with an engine that has it; or nothing."""
    told: dict[str, str] = {}
    for pod in engines:
        if pod.live and pod.revision == revision and pod.agent is not None and pod.agent.engine_version:
            told.setdefault(pod.agent.engine_version, pod.name)
    if len(told) < 2:
        return ""
    return "vLLM " + ", ".join(f"{version} ({pod})" for version, pod in sorted(told.items()))


def strangers_to_ray(engines: Iterable[Pod]) -> str:
    """Engines that try in vain to join Ray with another version than those that have joined; or nothing."""
    states = [(pod.name, pod.agent.ray) for pod in engines if pod.live and pod.agent is not None and pod.agent.ray]
    joined = {ray.version for _, ray in states if ray.joined and ray.version}
    outside = [(pod, ray.version) for pod, ray in states if not ray.joined and ray.restarts >= FEW and ray.version]
    different = sorted((pod, version) for pod, version in outside if joined and version not in joined)
    if not different:
        return ""
    said = ", ".join(f"{pod} has Ray {version}" for pod, version in different[:FEW])
    return f"{said}, those that joined have {', '.join(sorted(joined))}"
