"""Which engines take another role instead of being ended while others are started: pods in, pods out. Pure.

Called by `make_plan`. The role of an engine is its pod's label and nothing else: with NIXL it is each request that says
whether it is a prefill or a decode, so that only the gateway's routes change, and what an engine computes goes on.
Nothing is remembered: who has which role follows from the labels, how many shall have it from the spec.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from headrace_operator.state import Pod


def labelled(pods: Iterable[Pod], sizes: Mapping[str, int]) -> list[Pod]:
    """The pods in the roles that their labels name. One whose label names no role of the spec, because somebody took
    or changed it, has the role it was made for."""
    return [replace(pod, role=pod.home) if pod.role not in sizes and pod.home in sizes else pod for pod in pods]


def change_roles(pods: Sequence[Pod], revision: str, sizes: Mapping[str, int], floors: Mapping[str, int]) -> list[Pod]:
    """The pods after every change of role that brings the roles' sizes nearer; as they are where there is none.

    Only live pods of the wanted revision change. A ready one goes only while its role keeps `floors` ready engines; one
    that is not ready takes nothing from anybody.
    """
    now = {pod.name: pod for pod in pods}
    while (change := _next_change([*now.values()], revision, sizes, floors)) is not None:
        pod, role = change
        now[pod.name] = replace(pod, role=role)
    return [*now.values()]


def _next_change(
    pods: Sequence[Pod], revision: str, sizes: Mapping[str, int], floors: Mapping[str, int]
) -> tuple[Pod, str] | None:
    engines = {role: [p for p in pods if p.role == role and p.live and p.revision == revision] for role in sizes}
    short = [role for role in sizes if len(engines[role]) < sizes[role]]
    for role in sizes:
        if short and len(engines[role]) > sizes[role]:
            found = sorted(_may_leave(engines[role], floors.get(role, 0)), key=lambda pod: _rank(pod, short[0]))
            if found:
                return found[0], short[0]
    return None


def _may_leave(engines: Sequence[Pod], floor: int) -> Iterator[Pod]:
    ready = sum(pod.ready for pod in engines)
    return (pod for pod in engines if not pod.ready or ready > floor)


def _rank(pod: Pod, role: str) -> tuple[bool, bool, int]:
    """Ready ones first, since they serve at once; then those whose names already say the role; then the youngest."""
    return not pod.ready, pod.home != role, -pod.index
