"""One namespace in which edits are played one after the other: the user's edit, the operator's passes, everybody's
steps, until all is quiet; and a record of what was seen and written meanwhile, which `invariants.py` judges.

Every pass has a world of its own, so that an operator which remembers something has it from a planted bug. Only the
client lives as long as the lane.
"""

import contextvars
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from headrace_operator import names
from headrace_operator.cluster import POD
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.errors import ClusterError
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Look, Object
from headrace_operator.testing import DEFAULTS
from sweep.fuzz.cases import Case
from sweep.fuzz.hints import SUMS, SUMS_DATA
from sweep.fuzz.leaves import Spec
from sweep.fuzz.values import WORD
from sweep.oracle import Key, ending_objects
from sweep.stage import Client, Stage

TURNS = 30
"""Turns after which an operator that still writes will never be done."""
TOKEN = "ray-token-5e9a77"
"""Looked for wherever it must not be."""
SECRETS = (TOKEN, WORD)

_told: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("told", default=None)
"""Lines that the operator logged in the step that is played by this task."""


@dataclass(frozen=True)
class Write:
    """One write that the API server took."""

    verb: str
    """`made`, `deleted` or `changed`."""
    kind: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.verb} {self.kind}/{self.name}"


@dataclass(frozen=True)
class Engines:
    """Engines of each role after one pass: those not told to end, and those of them that are ready."""

    live: Mapping[str, int]
    ready: Mapping[str, int]


@dataclass(frozen=True)
class Step:
    """One edit and all that came of it."""

    case: Case
    """What was to come of it: the edit of a leaf, or a base."""
    was: Spec | None
    """The last one that was taken, as the user wrote it. None: there was none."""
    before: tuple[Object, ...]
    after: tuple[Object, ...]
    writes: tuple[Write, ...]
    engines: tuple[Engines, ...]
    told: tuple[str, ...]
    """Events and lines of the log."""
    quiet: bool
    """Whether the operator came to an end: a pass that writes nothing, made by a new one."""
    raised: tuple[str, ...]
    """What its passes ended with that is no answer of the API server."""
    namespace: str
    uid: str
    reference: Mapping[Key, Any] | None = None
    """The objects of a base as a sound operator made them from nothing."""

    @property
    def status(self) -> Object:
        found: Object = self.deployment.get("status", {})
        return found

    @property
    def deployment(self) -> Object:
        return next(obj for obj in self.after if obj["kind"] == names.KIND)

    def children(self, *, before: bool = False) -> dict[Key, Object]:
        """All that somebody made for the deployment, by kind and name; not what the lane itself put there."""
        return {
            (obj["kind"], obj["metadata"]["name"]): obj
            for obj in (self.before if before else self.after)
            if obj["kind"] != names.KIND and obj["metadata"]["name"] not in (SUMS, "kube-root-ca.crt", "default")
        }

    def pods(self, *, before: bool = False) -> list[Object]:
        """The engines that are not told to end."""
        return [pod for pod in self.children(before=before).values() if _live_engine(pod)]


@dataclass
class Record:
    """What is gathered while a step is played."""

    writes: list[Write] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    engines: list[Engines] = field(default_factory=list)


class Recording(KubernetesCluster):
    """The operator's client, with a record of what the API server took from it."""

    record: Record

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
    ) -> Object:
        answer = await super()._call(method, path, query, body, content_type=content_type)
        if method == "GET":
            return answer
        kind, _, rest = path.partition("/namespaces/")[2].partition("/")[2].partition("/")
        if kind == "events" and body is not None:
            self.record.events.append(f"{body['reason']}: {body['message']}")
            return answer
        self.record.writes.append(_write(method, kind, rest, body or {}, answer))
        return answer


def _write(method: str, kind: str, rest: str, body: Object, answer: Object) -> Write:
    meta = answer.get("metadata", {})
    if method == "DELETE":
        name, uid = rest, body.get("preconditions", {}).get("uid", "")
        return Write("deleted", kind, name, uid)
    # What was made by an apply has no history yet, and one that made nothing gives a uid that is known.
    verb = "made" if method == "POST" else "changed"
    return Write(
        verb, f"{kind}/status" if rest.endswith("/status") else kind, meta.get("name", rest), meta.get("uid", "")
    )


class Gathered(logging.Handler):
    """Log lines of the operator, kept for the step that is played."""

    def emit(self, record: logging.LogRecord) -> None:
        told = _told.get()
        if told is not None:
            told.append(record.getMessage())


@asynccontextmanager
async def lane(
    client: Client, kubeconfig: Path, namespace: str, operator: type[KubernetesCluster]
) -> AsyncIterator["Lane"]:
    """A lane in a new namespace."""
    recording = cast(type[Recording], type("Recording", (Recording, operator), {}))
    async with await recording.connect(kubeconfig=kubeconfig) as cluster:
        made = Lane(Stage(client, namespace), cluster)
        await made.open()
        yield made


class Lane:
    """A namespace, its InferenceDeployment, and the operator's client."""

    def __init__(self, stage: Stage, cluster: Recording) -> None:
        self.stage = stage
        self._cluster = cluster
        self._now: tuple[Object, ...] = ()
        self._spec: Spec | None = None
        cluster.record = Record()

    async def open(self) -> None:
        """Makes the namespace, and what the user has in it."""
        await self.stage.open()
        sums = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SUMS}}
        await self.stage.put(sums | {"data": SUMS_DATA})

    async def play(self, case: Case, obj: Object, reference: Mapping[Key, Any] | None = None) -> Step:
        """One edit to its end. `obj` is what the user applies; ClusterError: the API server refuses it."""
        told: list[str] = []
        token = _told.set(told)
        record = self._cluster.record = Record()
        if self._now:
            await self.stage.replace(obj["spec"])
        else:
            await self.stage.apply(obj)
        try:
            quiet = await self._settle(record)
        finally:
            _told.reset(token)
        before, was = self._now, self._spec
        self._now = tuple(await self.stage.objects())
        self._spec = case.spec if case.taken else was
        return Step(
            case, was, before, self._now, tuple(record.writes), tuple(record.engines),
            (*record.events, *told), quiet, tuple(record.raised), self.stage.namespace, self.stage.ref.uid, reference,
        )  # fmt: skip

    async def end(self) -> list[Object]:
        """Deletes the deployment and gives what is left once everybody did their part: nothing, it should be."""
        self._cluster.record = record = Record()
        await self.stage.delete()
        await self._settle(record)
        left = await self.stage.objects()
        return [obj for obj in left if obj["metadata"]["name"] not in (SUMS, "kube-root-ca.crt", "default")]

    def objects(self) -> dict[Key, Any]:
        """The objects at the end of the last step, without what no two runs share."""
        return ending_objects(list(self._now), self.stage.namespace)

    async def _settle(self, record: Record) -> bool:
        for _ in range(TURNS):
            before = len(record.writes)
            if record.raised:
                return False
            look = await self._pass(record)
            if len(record.writes) > before:
                record.engines.append(engines(await self.stage.pods()))
            if not await self.stage.step() and not look.retry and len(record.writes) == before:
                return True
        return False

    async def _pass(self, record: Record) -> Look:
        """One pass of an operator that was started just now. An error is an answer, as in `worker.py`."""
        world = World(self._cluster, self.stage.runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: TOKEN)
        try:
            return await reconcile(world, self.stage.ref)
        except ClusterError as error:
            logging.getLogger("headrace_operator.fuzz").warning("%s", error)
        except Exception as error:  # whatever it is, it is the operator's, and the step tells of it
            record.raised.append(f"{type(error).__name__}: {error}")
        return Look(retry=True)


def engines(pods: list[Object]) -> Engines:
    """How many of each role there are."""
    found = [pod for pod in pods if _live_engine(pod)]
    ready = [pod for pod in found if any(_is_ready(c) for c in pod["status"].get("conditions", ()))]
    role = names.ROLE
    return Engines(
        Counter(pod["metadata"]["labels"][role] for pod in found),
        Counter(pod["metadata"]["labels"][role] for pod in ready),
    )


def _live_engine(obj: Object) -> bool:
    meta = obj["metadata"]
    is_engine = obj["kind"] == POD.kind and meta.get("labels", {}).get(names.COMPONENT) == "engine"
    return is_engine and "deletionTimestamp" not in meta


def _is_ready(condition: Object) -> bool:
    return bool(condition["type"] == "Ready" and condition["status"] == "True")
