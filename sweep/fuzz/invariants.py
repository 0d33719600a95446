"""What must hold after every step: small pure functions of what was seen, each of which yields what is wrong in words.

Those of the operator's twelve that need requests, disks, crashes or a second operator are tested elsewhere:
`docs/correctness.md` says where.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.state import Object
from sweep.fuzz.lane import SECRETS, Step
from sweep.fuzz.leaves import Spec
from sweep.oracle import Key, compare, ending_objects
from sweep.stage import NAME

Complaints = Iterator[str]
Invariant = Callable[[Step], Complaints]

TOKEN_SECRET = ("Secret", names.ray_token(NAME))
PAST = frozenset({"good"})
"""Revisions that served once, in the status: where a rollback may go. Memory on purpose."""
PLACES = frozenset({"placement", names.RETURNS_TO, "affinity"})
"""What a deployment knows of its KV blocks, and a new one does not. Memory on purpose."""
HISTORY = frozenset({"ControllerRevision"})
"""Kinds that remember what was: they are not as they were once an edit was taken back."""


def comes_to_an_end(step: Step) -> Complaints:
    """A new operator finds nothing to write once everybody did their part (1)."""
    if not step.quiet:
        yield f"never quiet; last: {', '.join(map(str, step.writes[-3:]))}"


def never_raises(step: Step) -> Complaints:
    """Whatever a user writes, a pass ends with an answer."""
    yield from step.raised


def is_told(step: Step) -> Complaints:
    """The status is of this generation, and says of the edit what must be said of it (1, 5)."""
    generation, observed = step.deployment["metadata"]["generation"], step.status.get("observedGeneration")
    if observed != generation:
        yield f"status.observedGeneration is {observed}, the generation {generation}"
    said = {condition["type"]: condition for condition in step.status.get("conditions", ())}
    stale = [kind for kind, condition in said.items() if condition.get("observedGeneration") != generation]
    if stale:
        yield f"conditions of an older generation: {', '.join(stale)}"
    wanted = {c.ACCEPTED: "True" if taken(step) else "False", c.READY: "True" if _can_be_ready(step) else "False"}
    for kind, status in wanted.items():
        if (found := said.get(kind, {}).get("status")) != status:
            yield f"{kind} is {found}, not {status}: {said.get(kind, {}).get('message')}"


def names_the_field(step: Step) -> Complaints:
    """What is refused is named, so that a user finds it (5)."""
    if taken(step):
        return
    accepted = next((x for x in step.status.get("conditions", ()) if x["type"] == c.ACCEPTED), {"message": ""})
    if not names_leaf(accepted["message"], step.case.leaf):
        yield f"Accepted does not name {step.case.leaf}: {accepted['message'][:200]!r}"


def names_leaf(message: str, leaf: str) -> bool:
    """Whether a message names a leaf, or something above it that is not all of the spec."""
    steps = leaf.replace("[]", "").split(".")
    return any(step in message for step in steps[-3:])


def is_complete(step: Step) -> Complaints:
    """There are as many engines of each role as the spec says, all of one revision, and one head (3)."""
    if not taken(step) or step.case.spec.get("paused"):
        return
    wanted = sizes(step.case.spec)
    engines = Counter(pod["metadata"]["labels"][names.ROLE] for pod in step.pods())
    if +engines != +Counter(wanted):
        yield f"engines {dict(engines)}, not {wanted}"
    revisions = {pod["metadata"]["labels"][names.REVISION] for pod in step.pods()}
    if len(revisions) > 1:
        yield f"engines of {len(revisions)} revisions"
    answered = step.status.get("canary", {}).get("revision")
    if revisions and answered not in revisions:
        yield f"the engines are of {revisions.pop()}, and the last request was answered by {answered}"
    parts = Counter(obj["metadata"].get("labels", {}).get(names.COMPONENT) for obj in _of_kind(step, "Pod"))
    if parts["head"] != 1:
        yield f"{parts['head']} heads"
    found = {key for key, obj in step.children().items() if not _made_by_the_cluster(obj) and key[0] not in HISTORY}
    planned = {key for key in step.case.children if key[0] not in HISTORY} | {TOKEN_SECRET}
    kept = {("PersistentVolumeClaim", names.kv_claim(NAME, slot)) for slot in _slots(step) if _claims(step.case.spec)}
    yield from (f"left over: {'/'.join(key)}" for key in sorted(found - planned - kept))
    yield from (f"missing: {'/'.join(key)}" for key in sorted(planned - found))


def is_owned(step: Step) -> Complaints:
    """Every child names the deployment as its controller, and nothing holds it back when that goes (3)."""
    for (kind, name), obj in step.children().items():
        owners = [owner["uid"] for owner in obj["metadata"].get("ownerReferences", ()) if owner.get("controller")]
        if not _made_by_the_cluster(obj) and owners != [step.uid]:
            yield f"{kind}/{name} is not owned by its deployment"
        if kind != "PersistentVolumeClaim" and obj["metadata"].get("finalizers"):
            yield f"{kind}/{name} has finalizers"


def nothing_twice(step: Step) -> Complaints:
    """What was made is there, what was deleted was there before, and no name was made or deleted twice (4)."""
    before = {obj["metadata"]["uid"] for obj in step.before}
    after = {obj["metadata"]["uid"] for obj in step.after}
    made = {(w.kind, w.name, w.uid) for w in step.writes if w.verb != "deleted" and w.uid and w.uid not in before}
    for kind, name, uid in sorted(made):
        if uid not in after:
            yield f"made and gone again: {kind}/{name}"
    gone = [w for w in step.writes if w.verb == "deleted"]
    for write in gone:
        if write.uid not in before:
            yield f"made and deleted in one step: {write}"
    twice = [uid for uid, times in Counter(w.uid for w in gone).items() if times > 1]
    if twice:
        yield f"deleted {len(twice)} objects twice"


def a_bad_edit_changes_no_child(step: Step) -> Complaints:
    """Of what is refused, nothing is written but the status (5)."""
    if taken(step):
        return
    for (kind, name), differs in _differences(step.children(before=True), step.children()):
        yield f"{kind}/{name} was changed by an edit that is refused: {differs}"


def never_too_few(step: Step) -> Complaints:
    """Ready engines of a role that stays never fall below the smaller of its sizes, less maxUnavailable (6)."""
    for role, (least, _) in _bounds(step).items():
        worst = min((at.ready.get(role, 0) for at in step.engines), default=least)
        if worst < least:
            yield f"{worst} ready engines of {role}, not {least}"


def never_too_many(step: Step) -> Complaints:
    """Engines of a role never pass the larger of its sizes and maxSurge more (6)."""
    for role, (_, most) in _bounds(step).items():
        worst = max((at.live.get(role, 0) for at in step.engines), default=0)
        if worst > most:
            yield f"{worst} engines of {role}, not {most}"


def is_as_before(step: Step) -> Complaints:
    """A spec that comes again makes the objects that it made at first, field by field (2)."""
    if step.reference is None:
        return
    objects = ending_objects(list(step.after), step.namespace)
    for key in sorted(step.reference.keys() | objects.keys()):
        wanted, found = step.reference.get(key), objects.get(key)
        if key[0] in HISTORY or (key[0] == "PersistentVolumeClaim" and wanted is None):
            continue
        left_out = PAST | PLACES if _slots(step) else PAST
        differs = compare(_terse(_without(left_out, wanted)), _terse(_without(left_out, found)), "")
        yield from (f"{'/'.join(key)}{path}: {text}" for path, text in differs[:3])


def _claims(spec: Spec) -> bool:
    """Whether KV blocks are kept in volumes that are claimed."""
    return "claimTemplate" in spec.get("kvCache", {}).get("disk", {}).get("volume", {})


def _slots(step: Step) -> set[str]:
    """Places where KV blocks are kept, which engines of the next revision come back to: memory on purpose."""
    return {place["slot"] for place in step.status.get("kvCache", {}).get("placement", ())}


def _without(fields: frozenset[str], value: Any) -> Any:
    """A value without these fields, wherever they stand."""
    if isinstance(value, dict):
        return {name: _without(fields, part) for name, part in value.items() if name not in fields}
    return [_without(fields, part) for part in value] if isinstance(value, list) else value


def _terse(value: Any) -> Any:
    """A value without what is empty: the API server keeps an empty list, or not, by what was there before."""
    if isinstance(value, dict):
        return {name: part for name in value if (part := _terse(value[name])) not in ({}, [], None)}
    return [_terse(part) for part in value] if isinstance(value, list) else value


def does_what_it_says(step: Step) -> Complaints:
    """A change makes engines anew where they are made from it, and leaves them alone where they are not (2)."""
    if step.case.effect is None or not taken(step):
        return
    kept = {_uid(pod) for pod in step.pods(before=True)} & {_uid(pod) for pod in step.pods()}
    if step.case.effect == "engines" and kept:
        yield f"{len(kept)} engines were not made anew"
    if step.case.effect != "engines" and len(kept) < len(step.pods(before=True)):
        yield "engines were made anew"
    changed = list(_differences(step.children(before=True), step.children(), contents=True))
    if step.case.effect == "objects" and not changed:
        yield "nothing was changed"
    if step.case.effect == "none" and changed:
        yield f"changed: {', '.join('/'.join(key) for key, _ in changed[:3])}"


def keeps_secrets(step: Step) -> Complaints:
    """No secret is in the status, in an Event, in a line of the log, or in the status's old conditions (10)."""
    words = [*SECRETS, *(b64encode(word.encode()).decode() for word in SECRETS)]
    heard = {"the status": json.dumps(step.status), "an Event or a line of the log": "\n".join(step.told)}
    open_ = [obj for (kind, _), obj in step.children().items() if kind not in ("Secret", "Pod", "ControllerRevision")]
    heard["an object"] = json.dumps(open_)
    for place, text in heard.items():
        yield from (f"a secret is in {place}" for word in words if word in text)


INVARIANTS: tuple[Invariant, ...] = (
    comes_to_an_end,
    never_raises,
    is_told,
    names_the_field,
    is_complete,
    is_owned,
    nothing_twice,
    a_bad_edit_changes_no_child,
    never_too_few,
    never_too_many,
    is_as_before,
    does_what_it_says,
    keeps_secrets,
)


def judge(step: Step) -> list[str]:
    """Everything that is wrong, each with the invariant that says so."""
    return [f"{invariant.__name__}: {line}" for invariant in INVARIANTS for line in invariant(step)]


def taken(step: Step) -> bool:
    """Whether the operator must act on the edit."""
    return step.case.taken


def sizes(spec: Spec) -> dict[str, int]:
    """Engine pods that each role shall have, as a user would read it: an engine may be spread over several."""
    roles = spec.get("roles") or [{"name": "serve"}]
    return {role["name"]: 0 if spec.get("suspend") else _engines(role) * _pods(spec, role) for role in roles}


def _engines(role: Object) -> int:
    """A role with bounds keeps within them the one engine of its base: nobody asks anything, and nobody scales it."""
    bounds = role.get("scaling")
    size: int = role.get("replicas", 1) if bounds is None else min(bounds["max"], max(bounds.get("min", 1), 1))
    return size


def _pods(spec: Spec, role: Object) -> int:
    """Pods of one engine of a role."""
    pods: int = role.get("parallelism", {}).get("pods") or spec.get("parallelism", {}).get("pods", 1)
    return pods


def _can_be_ready(step: Step) -> bool:
    """Everything answers: nothing is refused, and not all is scaled away."""
    return taken(step) and not step.case.spec.get("suspend")


def _bounds(step: Step) -> dict[str, tuple[int, int]]:
    """Fewest ready and most live engines of each role that was there and stays."""
    if not taken(step) or step.was is None or step.case.spec.get("suspend") or step.was.get("suspend"):
        return {}
    old, new, rollout = sizes(step.was), sizes(step.case.spec), step.case.spec.get("rollout", {})
    surge, unavailable = rollout.get("maxSurge", 1), rollout.get("maxUnavailable", 0)
    # While an engine of two pods makes room for one of one, each counts with all its pods.
    pods = max(_pods(spec, role) for spec in (step.was, step.case.spec) for role in spec.get("roles") or [{}])
    return {
        role: (max(0, min(old[role], new[role]) - unavailable), max(old[role], new[role] + surge * pods))
        for role in old.keys() & new.keys()
    }


def _of_kind(step: Step, kind: str) -> list[Object]:
    return [obj for (of, _), obj in step.children().items() if of == kind]


def _made_by_the_cluster(obj: Object) -> bool:
    return any(owner["kind"] == "ReplicaSet" for owner in obj["metadata"].get("ownerReferences", ()))


def _uid(obj: Object) -> str:
    uid: str = obj["metadata"]["uid"]
    return uid


def _differences(
    before: Mapping[Key, Object], after: Mapping[Key, Object], *, contents: bool = False
) -> Iterator[tuple[Key, str]]:
    """Children that are not the same any more: not the same version or, with `contents`, not the same words."""
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        if key[0] in HISTORY and contents:
            continue
        if one is None or other is None:
            yield key, "gone" if other is None else "new"
        elif contents and (found := compare(_words(one), _words(other), "")):
            yield key, ": ".join(found[0])
        elif not contents and one["metadata"]["resourceVersion"] != other["metadata"]["resourceVersion"]:
            found = compare(_words(one), _words(other), "")
            yield key, ": ".join(found[0]) if found else "written for nothing"


def _words(obj: Object) -> Object:
    """An object without what every write changes."""
    meta = {k: v for k, v in obj["metadata"].items() if k not in ("resourceVersion", "managedFields", "generation")}
    return {k: v for k, v in obj.items() if k != "status"} | {"metadata": meta}
