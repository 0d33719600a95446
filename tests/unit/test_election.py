"""Who leads: the rules, and the whole election with clocks that drift, answers that are lost, and processes that die.

Time is the test's own: the loop jumps to the moment at which something happens next.
"""

import asyncio
import selectors
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace_operator import election as rules
from headrace_operator import metrics
from headrace_operator.cluster.fake import Call, FakeCluster
from headrace_operator.cluster.fence import Fence
from headrace_operator.election import Claim, Election, Lease, Sight, Term, claim, patience, read, released, see
from headrace_operator.errors import ClusterError, Fenced, Unreachable
from headrace_operator.state import Object

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HELD = Claim("7", "a", 7, "2026-01-01T11:00:00.000000Z", 3)


def test_a_claim_that_does_not_change_was_first_seen_when_it_was() -> None:
    first = see(None, HELD, 10.0)
    assert see(first, HELD, 15.0) == first
    renewed = Claim("8", "a")
    assert see(first, renewed, 15.0) == Sight(renewed, 15.0)


@pytest.mark.parametrize(
    ("seen", "left"),
    [(None, 0.0), (Claim("1", ""), 0.0), (Claim("1", "me"), 0.0), (Claim("1", "other", 7), 4.0)],
    ids=["no Lease", "released", "mine", "another's"],
)
def test_only_anothers_lease_asks_for_patience(seen: Claim | None, left: float) -> None:
    assert patience(Sight(seen, 100.0), "me", 103.0) == left


def test_patience_ends_when_the_lease_was_not_renewed_for_as_long_as_it_says() -> None:
    assert patience(Sight(Claim("1", "other", 7), 100.0), "me", 107.0) <= 0


def test_a_renewal_keeps_when_it_began_and_a_takeover_counts() -> None:
    renewed = claim(HELD, "a", NOON)
    assert (renewed["acquireTime"], renewed["leaseTransitions"]) == (HELD.acquired, 3)
    assert renewed["renewTime"] == "2026-01-01T12:00:00.000000Z"
    taken = claim(HELD, "b", NOON)
    assert (taken["holderIdentity"], taken["leaseTransitions"]) == ("b", 4)
    assert taken["acquireTime"] == taken["renewTime"]


def test_what_is_released_may_be_taken_at_once() -> None:
    lease = {"metadata": {"resourceVersion": "9"}, "spec": released(HELD, NOON)}
    assert patience(Sight(read(lease), 5.0), "b", 5.0) == 0


def test_a_lease_without_a_spec_is_nobodys() -> None:
    found = read({"metadata": {"resourceVersion": "1"}})
    assert found == Claim("1")
    assert read(None) is None


def test_a_leader_stops_before_anybody_else_may_begin() -> None:
    assert rules.DEADLINE_SECONDS * 1.2 < rules.LEASE_SECONDS / 1.1


async def test_a_fence_lets_writes_out_until_its_moment_and_none_after() -> None:
    now = 0.0
    fence = Fence(lambda: now)
    with pytest.raises(Fenced), fence.writing("PATCH x"):
        pass
    fence.open(5.0)
    now = 3.0
    with fence.writing("PATCH x") as seconds:
        assert seconds == 2.0
        assert not await fence.quiet(0.001)
    assert await fence.quiet(1)
    now = 5.0
    with pytest.raises(Fenced), fence.writing("PATCH x"):
        pass


def test_a_closed_fence_does_not_open_again() -> None:
    fence = Fence(lambda: 0.0)
    fence.open(5.0)
    fence.close()
    fence.open(9.0)
    assert fence.seconds == 0


# The whole election, in time that is made up.


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop that waits for nothing: its clock jumps to the next moment at which something is due."""

    def __init__(self) -> None:
        super().__init__(_Jumps(self))
        self.moment = 0.0

    def time(self) -> float:
        return self.moment


class _Jumps(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        # Nothing to wait for and nothing due would be a test that hangs.
        assert timeout is not None or found
        if not found:
            # A clock that does not stand still where a sum of floats would round to what it was.
            self._loop.moment += max(timeout or 0.0, 1e-6)
        return found


def play(story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(story)


def moment() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """One operator's API server, behind a network that is slow and loses requests and answers as the dice say."""

    dice: Random
    trouble: float = 0.0
    lag: float = 0.0
    """Seconds that every answer takes."""
    down: bool = False
    store: FakeCluster = field(default_factory=FakeCluster)
    landed: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def apply(self, obj: Object) -> Object:
        def landing() -> Coroutine[Any, Any, Object]:
            return self._kept(obj)

        kept: Object = await self._through(landing)
        return kept

    async def _kept(self, obj: Object) -> Object:
        meta = obj["metadata"]
        current = self.store.objects.get(("Lease", meta["namespace"], meta["name"]))
        if current is None or current["metadata"]["resourceVersion"] != meta["resourceVersion"]:
            raise rules.Conflict("PATCH lease", 409, "Conflict", "the object has been modified")
        plain = obj | {"metadata": {k: v for k, v in meta.items() if k != "resourceVersion"}}
        return await self.store.apply(plain)

    async def create_once(self, obj: Object) -> bool:
        made: bool = await self._through(lambda: self.store.create_once(obj))
        return made

    async def get(self, kind: Any, namespace: str, name: str) -> Object | None:
        found: Object | None = await self._through(lambda: self.store.get(kind, namespace, name))
        return found

    async def _through(self, landing: Any) -> Any:
        """The request arrives some time later, whether or not its sender still waits for the answer."""
        dice = self.dice

        async def arrive() -> Any:
            await asyncio.sleep(self._delay())
            if self.down or dice.random() < self.trouble / 4:
                raise Unreachable("lease", 0, "ClientError", "")
            answer = await landing()
            await asyncio.sleep(self.lag + self._delay())
            if dice.random() < self.trouble / 4:
                raise Unreachable("lease", 0, "ClientError", "the answer was lost")
            return answer

        task = asyncio.ensure_future(arrive())
        self.landed.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _delay(self) -> float:
        """Seconds on the way: next to none, or in trouble more than anybody waits for, or nearly."""
        slow = (0.2, 1.0, 1.9, 3.0, 6.0) if self.dice.random() < self.trouble else (0.0, 0.01, 0.05)
        return self.dice.choice(slow)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self.landed.discard(task)
        if not task.cancelled():
            task.exception()


@dataclass
class Operator:
    """One process: it stands, leads for a while, and resigns, dies or goes on, as the dice say."""

    server: Server
    name: str
    rate: float = 1.0
    offset: float = 0.0
    terms: list[tuple[Term, float]] = field(default_factory=list)
    """With the moment at which each was won, in true time."""

    def clock(self) -> float:
        return self.offset + self.rate * moment()

    def true(self, local: float) -> float:
        return (local - self.offset) / self.rate

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.rate)

    def election(self) -> Election:
        identity = f"{self.name}-{len(self.terms)}"
        lease = Lease(self.server, "system", "headrace", identity)  # type: ignore[arg-type]
        return Election(lease, self.clock, self.sleep)

    async def win(self, election: Election | None = None) -> Term:
        term = await (election or self.election()).win()
        self.terms.append((term, moment()))
        return term

    async def live(self, until: float) -> None:
        dice, election = self.server.dice, self.election()
        while moment() < until:
            term = await self.win(election)
            await term.__aenter__()
            await asyncio.sleep(dice.uniform(0, 12))
            if dice.random() < 0.4:
                await term.resign()
            elif term._renewing is not None:
                term._renewing.cancel()  # killed, or held up for longer than its term
                election = self.election()
            await asyncio.sleep(dice.uniform(0, 15))  # long enough, mostly, for a slower one to be next


@contextmanager
def watching(operators: list[Operator]) -> Iterator[None]:
    """Fails where two may write in the same moment."""
    fences: list[tuple[str, float, float]] = []
    opened = Fence.open

    def noted(fence: Fence, until: float) -> None:
        opened(fence, until)
        owner = next(o for o in operators if fence._clock == o.clock)
        fences.append((owner.name, moment(), owner.true(until)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fence, "open", noted)
        closed = Fence.close

        def shut(fence: Fence) -> None:
            owner = next(o for o in operators if fence._clock == o.clock)
            closed(fence)
            # What was open further than now is open no more.
            fences[:] = [(n, a, min(b, moment()) if n == owner.name and a <= moment() else b) for n, a, b in fences]

        patch.setattr(Fence, "close", shut)
        yield
    assert fences
    for one, begin, end in fences:
        for other, start, stop in fences:
            apart = one == other or end <= start + 1e-4 or stop <= begin + 1e-4
            assert apart, f"{one} could write from {begin:.3f} to {end:.3f}, {other} from {start:.3f} to {stop:.3f}"


SLOW, QUICK = (0.9, 1.8), (1.1, 0.0)
"""Rate of the clock, and seconds to each answer: who hears late and counts slowly, before who does neither."""


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    ways=st.lists(st.tuples(st.sampled_from([0.9, 1.0, 1.1]), st.sampled_from([0.0, 1.8])), min_size=2, max_size=3),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
)
@example(seed=1, ways=[SLOW, QUICK], trouble=0.0)
@example(seed=2, ways=[QUICK, SLOW], trouble=0.0)
@example(seed=3, ways=[SLOW, QUICK, SLOW], trouble=0.0)
def test_there_are_never_two_writers_whatever_clocks_and_network_do(
    seed: int, ways: list[tuple[float, float]], trouble: float
) -> None:
    dice, store = Random(seed), FakeCluster()
    servers = [Server(dice, trouble, lag, store=store) for _, lag in ways]
    operators = [Operator(servers[n], chr(97 + n), rate, offset=1000.0 * n) for n, (rate, _) in enumerate(ways)]

    async def story() -> None:
        async with asyncio.timeout(300):
            await asyncio.gather(*(operator.live(until=60.0) for operator in operators))

    with watching(operators):
        play(story())


def test_after_a_kill_the_next_leads_within_eight_seconds_and_after_a_resignation_within_one() -> None:
    server = Server(Random(1))
    a, b = Operator(server, "a"), Operator(server, "b", offset=500.0)

    async def story() -> None:
        term = await a.win()
        await term.__aenter__()
        standby = asyncio.create_task(b.win())
        await asyncio.sleep(30)
        assert not standby.done()
        assert term._renewing is not None
        term._renewing.cancel()
        killed = moment()
        next_term = await standby
        assert 2 < moment() - killed < rules.LEASE_SECONDS + 1
        await next_term.__aenter__()
        standby = asyncio.create_task(a.win())
        await asyncio.sleep(5)
        resigned = moment()
        await next_term.resign()
        await standby
        assert moment() - resigned < 1

    play(story())


def test_a_leader_that_is_left_alone_renews_every_two_seconds_and_reads_nothing() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        async with await a.win() as term:
            server.store.calls.clear()
            await asyncio.sleep(60)
            assert not term.lost.is_set()
            assert {call.verb for call in server.store.calls} == {"patch"}
            assert 25 <= len(server.store.calls) <= 30

    play(story())


def test_a_leader_that_reaches_no_server_stops_in_time_and_leads_again_when_it_is_back() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        election = a.election()
        term = await a.win(election)
        await term.__aenter__()
        await asyncio.sleep(10)
        server.down = True
        gone = moment()
        await term.lost.wait()
        assert moment() - gone <= rules.DEADLINE_SECONDS + 0.1
        with pytest.raises(Fenced), term.fence.writing("PATCH x"):
            pass
        again = asyncio.create_task(a.win(election))
        await asyncio.sleep(60)
        server.down = False
        back = moment()
        await again
        assert moment() - back < 1

    play(story())


def test_a_renewal_that_gets_no_answer_is_tried_again_in_time() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        async with await a.win() as term:
            held = asyncio.Event()
            through = server._through

            async def swallowed(landing: Any) -> Any:
                server._through = through  # type: ignore[method-assign]
                await held.wait()

            server._through = swallowed  # type: ignore[method-assign]
            await asyncio.sleep(20)
            assert not term.lost.is_set()

    play(story())


def test_the_metric_says_who_works() -> None:
    server = Server(Random(1))

    async def story() -> None:
        term = await Operator(server, "a").win()
        assert metrics.LEADER._value.get() == 0
        async with term:
            assert metrics.LEADER._value.get() == 1
        assert metrics.LEADER._value.get() == 0

    play(story())


def test_a_lease_that_somebody_else_took_is_lost_at_the_next_renewal() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        async with await a.win() as term:
            lease = server.store.objects["Lease", "system", "headrace"]
            server.store.put(lease | {"spec": lease["spec"] | {"holderIdentity": "thief"}})
            await asyncio.sleep(2.5)
            assert term.lost.is_set()
        assert server.store.objects["Lease", "system", "headrace"]["spec"]["holderIdentity"] == "thief"

    play(story())


def test_a_note_that_somebody_writes_on_the_lease_costs_no_term() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        async with await a.win() as term:
            lease = server.store.objects["Lease", "system", "headrace"]
            server.store.put(lease | {"metadata": lease["metadata"] | {"annotations": {"note": "mine"}}})
            await asyncio.sleep(20)
            assert not term.lost.is_set()

    play(story())


def test_one_whose_last_write_does_not_end_lets_the_lease_run_out() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    async def story() -> None:
        term = await a.win()
        await term.__aenter__()
        with term.fence.writing("PATCH x"):
            await term.resign()
        assert server.store.objects["Lease", "system", "headrace"]["spec"]["holderIdentity"] == "a-0"

    play(story())


def test_an_error_that_nobody_thought_of_ends_the_term_and_is_told() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    def surprise(call: Call) -> None:
        raise RuntimeError("surprise")

    async def story() -> None:
        async with await a.win() as term:
            server.store.before = surprise
            await term.lost.wait()
            assert term.fence.seconds == 0

    play(story())


def test_a_standby_without_the_right_to_look_keeps_trying() -> None:
    server = Server(Random(1))
    a = Operator(server, "a")

    def forbidden(call: Call) -> None:
        raise ClusterError("GET lease", 403, "Forbidden", "leases is forbidden")

    async def story() -> None:
        server.store.before = forbidden
        standby = asyncio.create_task(a.win())
        await asyncio.sleep(60)
        assert not standby.done()
        server.store.before = lambda call: None
        await standby

    play(story())
