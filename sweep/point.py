"""One scenario played to its end, with one cut or none: the user's edits, the operator's passes, everybody's steps."""

import asyncio
import tempfile
from pathlib import Path

from headrace_operator.state import Look
from sweep.life import Build, Operator
from sweep.oracle import Ending, count, ending_objects
from sweep.proxy import Cut, Proxy, Upstream
from sweep.scenarios import Scenario
from sweep.stage import Client, Stage

TURNS = 25
"""Turns after which a run that is not quiet will never be: the longest clean one takes about ten."""


class Run:
    """One run of one scenario in one namespace."""

    def __init__(self, scenario: Scenario, cut: Cut | None, stage: Stage, proxy: Proxy, operator: Operator) -> None:
        self._scenario = scenario
        self._cut = cut
        self._stage = stage
        self._proxy = proxy
        self._operator = operator
        self._complaints: list[str] = []
        self._deleted = False

    async def play(self) -> Ending:
        """From the start to the silence at the end."""
        if self._scenario.start is not None:
            await self._stage.edit(self._scenario.start)
            await self._settle()
        self._proxy.counting = True
        edits = self._scenario.edits
        for number, edit in enumerate(edits, start=1):
            await self._stage.edit(edit)
            await self._settle(self._scenario.passes if number < len(edits) else None)
        if self._scenario.deleted and not self._deleted:
            await self._delete()
            await self._settle()
        passes = frozenset(self._proxy.listed)
        await self._silence()
        return Ending(
            objects=ending_objects(await self._stage.objects(), self._stage.namespace),
            counts=count(self._proxy.writes),
            writes=tuple(self._proxy.writes),
            passes=passes,
            complaints=tuple(self._complaints),
            struck=self._proxy.struck,
        )

    async def _settle(self, turns: int | None = None) -> None:
        """Turns until nobody has anything to do, or so many. One in which the operator was killed does not count."""
        left = TURNS if turns is None else turns
        while left:
            quiet = await self._turn()
            if quiet is None:
                continue
            if quiet:
                return
            left -= 1
        if turns is None:
            self._complaints.append(
                f"not quiet after {TURNS} turns; last: {', '.join(map(str, self._proxy.writes[-3:]))}"
            )

    async def _turn(self) -> bool | None:
        """A pass and a step. Whether neither had anything to do; None: the operator was killed in the pass."""
        before = self._proxy.seen
        look = await self._pass()
        await self._watch("after pass")
        if look is None:
            return None
        changed = await self._stage.step()
        await self._watch("after the kubelets' step that follows pass")
        return not changed and not look.retry and self._proxy.seen == before

    async def _pass(self) -> Look | None:
        work = asyncio.create_task(self._operator.make_pass(self._stage.ref))
        reached = asyncio.create_task(self._proxy.reached.wait())
        await asyncio.wait({work, reached}, return_when=asyncio.FIRST_COMPLETED)
        if reached.done() and not self._proxy.go_on.is_set():
            if self._scenario.deleted:
                await self._delete()
            self._proxy.go_on.set()
        reached.cancel()
        return await work

    async def _watch(self, when: str) -> None:
        if not self._proxy.counting or not self._scenario.floors:
            return
        if (under := await self._stage.below(self._scenario.floors)) is not None:
            self._complaints.append(f"{under} {when} {self._proxy.passes}")

    async def _delete(self) -> None:
        self._deleted = True
        await self._stage.delete()

    async def _silence(self) -> None:
        """An operator that is started now, and that nothing disturbs, finds nothing to do."""
        await self._operator.close()
        self._proxy.cut = None
        before = len(self._proxy.writes)
        await self._operator.make_pass(self._stage.ref)
        if late := self._proxy.writes[before:]:
            self._complaints.append(f"writes though nothing changed: {', '.join(map(str, late))}")


async def play(
    scenario: Scenario, cut: Cut | None, client: Client, upstream: Upstream, namespace: str, build: Build
) -> Ending:
    """One run, in a namespace that nobody else uses."""
    stage, proxy = Stage(client, namespace), Proxy(upstream, cut=cut)
    await stage.open()
    with tempfile.TemporaryDirectory(prefix="headrace-sweep-") as folder:
        async with proxy.listening():
            operator = Operator(build, proxy, stage.runtime, Path(folder))
            try:
                return await Run(scenario, cut, stage, proxy, operator).play()
            finally:
                await operator.close()
