"""Back to the blocks: which slot a new engine takes, and how long it waits for the node where the slot's KV blocks are.
Pure.

Called by `make_plan`. A slot is a place in a role, `decode-0`, to which KV blocks belong that outlive an engine. One
engine has it at a time, of whatever revision; the next that starts takes it over. Where its blocks are is remembered in
the status (`placement`), and nothing else is.

An engine that waits for its node in vain is let go in two steps, so that an operator that is stopped between them
forgets nothing: first the slot's place is dropped from the status, then the pod that still waits for it goes, and its
successor starts anywhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain, count

from headrace_operator import names
from headrace_operator.api.conditions import Reason
from headrace_operator.api.v1alpha1 import ReturnToNode
from headrace_operator.state import Pod

COUNTED = re.compile(r"(?:^|[:,] )[0-9]+ ([^,]*(?:\[[^\]]*\])?[^,]*)")
OTHER_NODE = re.compile(r"didn't match Pod's node affinity|didn't satisfy plugin\(s\) \[[^\]]*NodeAffinity")
CORDONED = "node(s) were unschedulable"


def let_go(pods: Sequence[Pod], placement: Mapping[str, str], back: ReturnToNode) -> list[Pod]:
    """The pods, the first that waits for a node where its blocks no longer are marked as going. One in a pass."""
    for place, pod in enumerate(pods):
        waits = pod.live and not pod.node and pod.returns_to
        if waits and not (back.enabled and placement.get(pod.kv_slot) == pod.returns_to):
            return [*pods[:place], replace(pod, going=True), *pods[place + 1 :]]
    return list(pods)


def places(
    pods: Iterable[Pod], before: Mapping[str, str], room: Mapping[str, int], back: ReturnToNode, now: datetime
) -> dict[str, str]:
    """Where the blocks of each slot are, in order of the slots.

    `room` says how many slots of a role are remembered: those that no engine has, only as far as there is room.
    """
    live = [pod for pod in pods if pod.live and pod.kv_slot]
    found = {pod.kv_slot: pod.node for pod in live if pod.node}
    waiting = {pod.kv_slot: pod for pod in live if not pod.node}
    for slot in sorted(before.keys() - found.keys(), key=_order):
        pod = waiting.get(slot)
        if pod is not None and pod.returns_to and in_vain(pod, back, now):
            continue
        role = _order(slot)[0]
        if pod is not None or sum(_order(other)[0] == role for other in found) < room.get(role, 0):
            found[slot] = before[slot]
    return {slot: found[slot] for slot in sorted(found, key=_order)}


def in_vain(pod: Pod, back: ReturnToNode, now: datetime) -> bool:
    """Whether the pod, which may start on one node only, has waited long enough, or waits for what is not to come."""
    if pod.blocker is None or pod.blocker.reason != Reason.UNSCHEDULABLE:
        return False
    waited = (now - pod.created).total_seconds() if pod.created else 0.0
    return waited >= back.timeout.seconds or out_of_service(pod.blocker.message)


def out_of_service(message: str) -> bool:
    """Whether the scheduler's words say that the one node a pod may start on is gone, or cordoned.

    `0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node affinity/selector. …`
    (kube-scheduler 1.35, `framework/types.go`, `FitError`). The operator has no right to read nodes; words that it does
    not know cost the timeout and nothing else.
    """
    _, told, reasons = message.partition("nodes are available: ")
    why = COUNTED.findall(reasons.split(". ")[0].removesuffix(".")) if told else []
    return bool(why) and all(OTHER_NODE.search(one) or one == CORDONED for one in why)


def vacant(
    role: str, pods: Iterable[Pod], placement: Mapping[str, str], back: ReturnToNode
) -> Iterator[tuple[str, str]]:
    """Slots that new engines of a role take, one after the other, and the node that each is to return to, or "".

    Those with blocks come first, then the lowest numbers. The slot of a pod which is being let go is not among them
    while the pod is there: its volume may be bound to the node that was waited for in vain.
    """
    taken = {pod.kv_slot for pod in pods if pod.live or (pod.returns_to and not pod.node)}
    known = [slot for slot in placement if _order(slot)[0] == role and slot not in taken]
    fresh = (slot for number in count() if (slot := names.kv_slot(role, number)) not in taken and slot not in known)
    for slot in chain(known, fresh):
        yield slot, placement.get(slot, "") if back.enabled else ""


def _order(slot: str) -> tuple[str, int]:
    role, _, number = slot.rpartition("-")
    return role, int(number) if number.isdecimal() else -1
