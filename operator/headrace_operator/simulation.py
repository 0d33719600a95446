"""`headrace plan --simulate`: the whole way from one spec to another, in a cluster in memory, as a table of counts.

The operator's own passes run against it, with kubelets that make everything ready between two of them. What is shown
is what the operator would do where every engine starts, and no client asks anything; it says nothing of how long that
takes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from headrace_operator import names
from headrace_operator.api.conditions import PROGRESSING
from headrace_operator.state import Object
from headrace_operator.testing import Sample, Scene

PASSES = 2000
"""Many more than any rollout takes: the largest role has a thousand engines, and each takes a pass or two."""
WAIT = timedelta(seconds=30)
"""How far the clock goes on where a pass has nothing to do but to wait."""
WAITS = 200
"""Of a rollout with a canary, whose steps take their time."""
FEW_WAITS = 4
"""Of any other: whoever decides about sizes asks for figures for ever."""
Group = tuple[str, str]
"""Role and revision."""


@dataclass(frozen=True)
class Row:
    """What there is after one pass that changed engines, or the share of a canary."""

    number: int
    ready: Mapping[Group, int]
    there: Mapping[Group, int]
    created: int
    ended: int
    share: int | None = None
    """Percent of the requests that a canary gets from now on; None where it gets no more than before."""


@dataclass(frozen=True)
class Path:
    """All of the way."""

    rows: tuple[Row, ...]
    outcome: str
    """Reason and message of `Progressing` in the end."""

    @property
    def groups(self) -> list[Group]:
        """Every role and revision on the way, in the order in which revisions appear."""
        found = list(dict.fromkeys(group for row in self.rows for group in row.there))
        order = list(dict.fromkeys(revision for _, revision in found))
        return sorted(found, key=lambda group: (order.index(group[1]), group[0] != "prefill"))


async def simulate(wanted: Object, before: Object | None = None, others: Iterable[Object] = ()) -> Path:
    """The way from nothing, or from a deployment that is whole, to another spec. `others` are objects that specs name,
    such as ConfigMaps. AssertionError: it does not come to rest."""
    sample = awake(wanted)
    scene = Scene(awake(before) if before is not None else sample)
    for obj in others:
        scene.cluster.put({**obj, "metadata": {**obj["metadata"], "namespace": scene.ref.namespace}})
    rows: list[Row] = []
    if before is not None:
        await _settle(scene)
        scene.edit(sample)  # takes the spec alone
        rows.append(_row(scene, 0, scene.pods()))
    rows += await _settle(scene)
    rows.append(_row(scene, rows[-1].number + 1 if rows else 1, scene.pods()))
    said = scene.judged(PROGRESSING)
    return Path(tuple(rows), f"{said['reason']}: {said['message']}")


def awake(document: Object) -> Sample:
    """The deployment as if somebody asked: it does not go to sleep."""
    spec = document["spec"]
    if "toZero" not in (spec.get("scaling") or {}):
        return Sample.of(document)
    scaling = {field: value for field, value in spec["scaling"].items() if field != "toZero"}
    return Sample.of({**document, "spec": {**spec, "scaling": scaling}})


async def _settle(scene: Scene) -> list[Row]:
    rows: list[Row] = []
    waits, most = 0, WAITS if "canary" in (scene.object["spec"].get("rollout") or {}) else FEW_WAITS
    for number in range(1, PASSES):
        before, share, writes = scene.pods(), _share(scene), len(scene.cluster.writes)
        look = await scene.reconcile()
        grown = _share(scene) if _share(scene) > share else None
        if scene.pods() != before or grown is not None:
            rows.append(replace(_row(scene, number, before), share=grown))
        if scene.kubelet() or len(scene.cluster.writes) != writes:
            waits = 0
        elif look.seconds is None or waits == most:
            return rows
        else:
            waits += 1
            scene.clock += WAIT
    raise AssertionError(f"no rest after {PASSES} passes")


def _share(scene: Scene) -> int:
    """Percent of the requests that a canary gets; 0 where there is none."""
    revision = scene.status.get("revision") or {}
    return int((revision.get("canary") or {}).get("share", 0))


def _row(scene: Scene, number: int, before: list[str]) -> Row:
    ready: Counter[Group] = Counter()
    there: Counter[Group] = Counter()
    for name in scene.pods():
        obj = scene.cluster.objects["Pod", scene.ref.namespace, name]
        labels = obj["metadata"]["labels"]
        group = labels[names.ROLE], labels[names.REVISION]
        there[group] += 1
        ready[group] += "status" in obj
    now = scene.pods()
    return Row(number, ready, there, len({*now} - {*before}), len({*before} - {*now}))


def table(path: Path) -> Iterator[str]:
    """The rows in words: ready and all engine pods of each role and revision after each pass that changed some, and in
    the end."""
    heads = [f"{role} {revision}" for role, revision in path.groups]
    yield "  ".join(["pass", *heads, "ready", "pods", "done"])
    for row in path.rows:
        cells = [f"{row.ready[group]}/{row.there[group]}" if row.there[group] else "-" for group in path.groups]
        told = ", ".join(f"{verb} {count}" for verb, count in (("created", row.created), ("ended", row.ended)) if count)
        told += f"{', ' if told else ''}canary gets {row.share} %" if row.share is not None else ""
        line = [f"{row.number:>4}", *(f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True))]
        yield "  ".join([*line, f"{sum(row.ready.values()):>5}", f"{sum(row.there.values()):>4}", told]).rstrip()
    yield path.outcome
