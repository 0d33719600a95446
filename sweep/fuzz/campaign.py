"""All cases, and all mutants, upon one API server. Called by `command.py` and by the short form among the tests.

First the API server says of every edit whether it takes it, and what it would keep, defaults included. Then its CRD is
replaced by one that lets everything through, as an older one may: what must be refused now has to be refused by the
operator. Each case is two steps, there and back; lanes play their cases side by side. Mutants come one after the other,
since a planted bug is in the whole process, and each meets cases until one notices it.
"""

import asyncio
import copy
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from headrace_operator.api.crd import crd
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.errors import ClusterError
from headrace_operator.state import Object
from sweep.fuzz.cases import Case, base_case, draw
from sweep.fuzz.hints import BASES
from sweep.fuzz.invariants import judge, names_leaf
from sweep.fuzz.lane import Gathered, Lane, Step, lane
from sweep.fuzz.mutants import Mutant
from sweep.oracle import Key
from sweep.stage import CRD, Client, Stage, install, served

PROPAGATION = 60.0
"""Seconds in which the API server must act by a changed CRD."""


@dataclass(frozen=True)
class Violation:
    """What did not hold, and the edit that shows it. `back`: on the way back from it."""

    case: Case
    lines: tuple[str, ...]
    back: bool = False


@dataclass(frozen=True)
class Killed:
    """How a mutant was noticed. `case` None: not at all."""

    mutant: Mutant
    tried: int
    case: Case | None = None
    line: str = ""


@dataclass
class Tally:
    """What was done so far."""

    leaves: set[str] = field(default_factory=set)
    steps: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    tell: Callable[[Violation], object] = lambda _: None

    def add(self, violation: Violation) -> None:
        """Something did not hold."""
        self.violations.append(violation)
        self.tell(violation)


class Campaign:
    """One API server, and what it keeps of every edit."""

    def __init__(self, client: Client, kubeconfig: Path, jobs: int, seed: int) -> None:
        self._client = client
        self._kubeconfig = kubeconfig
        self._jobs = jobs
        self._seed = seed
        self._kept: dict[str, Object] = {}
        self._references: dict[str, Mapping[Key, Any]] = {}

    async def ask(self, chosen: Sequence[Case]) -> list[Violation]:
        """What the API server says of every edit, by its CRD."""
        stage = Stage(self._client, "default")
        bases = [base_case(base) for base in BASES]
        room = asyncio.Semaphore(self._jobs * 2)

        async def one(case: Case) -> Violation | None:
            obj = _whole(case)
            async with room:
                try:
                    self._kept[case.name] = await stage.served(obj)
                except ClusterError as error:
                    self._kept[case.name] = obj
                    return _refusal(case, error)
            return None if case.served else Violation(case, ("the API server takes it",))

        found = await asyncio.gather(*(one(case) for case in [*bases, *chosen]))
        return [violation for violation in found if violation is not None]

    async def loosen(self) -> None:
        """From now on the API server takes everything."""
        path = f"/apis/{CRD.api_version}/{CRD.plural}/{crd()['metadata']['name']}"
        body = copy.deepcopy(await self._client.call("GET", path))
        for version in body["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema.pop("x-kubernetes-validations", None)
            schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        await self._client.call("PUT", path, body)
        nonsense = _whole(base_case("split")) | {"spec": {"nonsense": 1}}
        async with asyncio.timeout(PROPAGATION):
            while not await self._takes(nonsense):  # noqa: ASYNC110 - the API server tells nobody
                await asyncio.sleep(0.05)

    async def _takes(self, obj: Object) -> bool:
        try:
            kept = await Stage(self._client, "default").served(obj)
        except ClusterError:
            return False
        return bool(kept["spec"] == obj["spec"])

    async def run(self, chosen: Sequence[Case], tally: Tally, done: Callable[[], object] = lambda: None) -> None:
        """Plays the cases; `done` is called when one begins."""
        start = monotonic()
        queue = self._queue(chosen)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._jobs, len(queue))):
                group.create_task(self._work(queue, tally, done))
        tally.seconds = monotonic() - start

    async def kill(self, mutant: Mutant, chosen: Sequence[Case]) -> Killed:
        """Plays cases against a planted bug until one notices it: at first those of the leaves where it bites."""
        near = [case for case in chosen if mutant.bites(case)]
        tried = 0
        for batch in (near, [case for case in chosen if case not in near]):
            tally = Tally()
            with mutant.planted():
                await self._until(batch, tally, mutant.cluster)
            tried += len(tally.leaves)
            if tally.violations:
                first = tally.violations[0]
                return Killed(mutant, tried, first.case, first.lines[0])
        return Killed(mutant, tried)

    async def _until(self, chosen: Sequence[Case], tally: Tally, operator: type[KubernetesCluster]) -> None:
        queue = self._queue(chosen)

        async def one() -> None:
            while queue and not tally.violations:
                await self._lane(queue, tally, operator, lambda: None)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._jobs, len(queue))):
                group.create_task(one())

    def _queue(self, chosen: Iterable[Case]) -> list[Case]:
        """Those of one base beside each other, since to change the base is a step of its own."""
        return sorted(chosen, key=lambda case: (case.base, draw(self._seed, case.name)))

    async def _work(self, queue: list[Case], tally: Tally, done: Callable[[], object]) -> None:
        while queue:
            await self._lane(queue, tally, KubernetesCluster, done)

    async def _lane(
        self, queue: list[Case], tally: Tally, operator: type[KubernetesCluster], done: Callable[[], object]
    ) -> None:
        """Plays cases in one namespace, until there are none or something did not hold."""
        async with lane(self._client, self._kubeconfig, f"fuzz-{secrets.token_hex(4)}", operator) as made:
            base = ""
            while queue:
                case = queue.pop(0)
                if case.base != base:
                    base = case.base
                    if not await self._base(made, base_case(base), tally):
                        queue[:] = [other for other in queue if other.base != base]  # nothing of it can be judged
                        return
                done()
                if not await self._there_and_back(made, case, tally):
                    return
            if left := await made.end():
                names = ", ".join(f"{obj['kind']}/{obj['metadata']['name']}" for obj in left)
                tally.add(Violation(base_case(base), (f"nothing_is_left: {names}",)))

    async def _base(self, made: Lane, case: Case, tally: Tally) -> bool:
        step = await made.play(case, self._kept[case.name], self._references.get(case.base))
        fine = self._judge(step, tally)
        if fine:
            self._references.setdefault(case.base, made.objects())
        return fine

    async def _there_and_back(self, made: Lane, case: Case, tally: Tally) -> bool:
        tally.leaves.add(case.leaf)
        back = base_case(case.base)
        there = await made.play(case, self._kept[case.name])
        if not self._judge(there, tally):
            return False
        return self._judge(await made.play(back, self._kept[back.name], self._references[case.base]), tally, case)

    def _judge(self, step: Step, tally: Tally, back_from: Case | None = None) -> bool:
        tally.steps += 1
        if found := judge(step):
            tally.add(Violation(back_from or step.case, tuple(found), back_from is not None))
        return not found


def _whole(case: Case) -> Object:
    return BASES[case.base].build() | {"spec": case.spec}


def _refusal(case: Case, error: ClusterError) -> Violation | None:
    """What is wrong with a refusal of the API server."""
    if case.served:
        return Violation(case, (f"the API server refuses it: {error.message[:300]}",))
    if not names_leaf(error.message, case.leaf):
        return Violation(case, (f"the API server does not name the field: {error.message[:300]}",))
    return None


@asynccontextmanager
async def campaign(kubeconfig: Path, jobs: int, seed: int) -> AsyncIterator[Campaign]:
    """A campaign upon an empty API server, whose CRD it changes."""
    logger, handler = logging.getLogger("headrace_operator"), Gathered()
    passed_on = logger.propagate
    logger.addHandler(handler)
    logger.propagate = (
        False  # what it says is heard by the steps; most of it is about edits that are refused on purpose
    )
    try:
        async with await Client.connect(kubeconfig=kubeconfig) as client:
            await install(client)
            async with asyncio.timeout(PROPAGATION):
                while not await served(client):  # noqa: ASYNC110 - the API server tells nobody
                    await asyncio.sleep(0.05)
            yield Campaign(client, kubeconfig, jobs, seed)
    finally:
        logger.removeHandler(handler)
        logger.propagate = passed_on
