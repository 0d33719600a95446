"""Agents of one engine's pods: all parts begin together, and all end together. The clock is a number."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Backoff, Engine, GangOrder, Model, NodeContract, Parallelism, Place, RankReport
from headrace_runtime.engine.arguments import Meeting
from headrace_runtime.node.decide import Decision, EngineSeen, GangSeen, Seen, Verdict, decide
from headrace_runtime.node.gang import REFUSED_SECONDS, SILENT_SECONDS, Follower, Leader, StrayRankError, fit

ADDRESS = ("10.0.0.7", 29501)
LEADER = GangSeen(leads=True)
RANK = GangSeen(leads=False)
RUNS = EngineSeen(started_at=0.0, ready_at=10.0)


def contract(pods: int = 2) -> NodeContract:
    return NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", served_name="m"),
        engine=Engine(parallelism=Parallelism(tensor=pods, pods=pods)),
        backoff=Backoff(base_seconds=5, max_restarts=2),
        drain_seconds=60,
    )


def decided(seen: Seen, now: float = 20.0) -> Decision:
    return decide(replace(seen, weights="Usable"), now, contract())


# ---- what one agent does --------------------------------------------------------------------------------------------


def test_an_engine_that_has_its_pod_alone_waits_for_nobody() -> None:
    assert decided(Seen()).act == "Start"


@pytest.mark.parametrize("gang", [LEADER, RANK])
def test_a_part_is_started_when_the_others_are_there(gang: GangSeen) -> None:
    missing = decided(Seen(gang=replace(gang, missing="waits for rank 1, which is not heard")))
    assert missing == Decision("Stay", "Waiting", "RanksMissing", "waits for rank 1, which is not heard")
    assert decided(Seen(gang=gang)).act == "Start"


def test_rank_0_counts_a_lost_rank_as_a_failure_of_the_engine() -> None:
    lost = Seen(engine=RUNS, gang=replace(LEADER, lost="rank 1 began anew"))
    assert decided(lost) == Decision("Kill", "BackOff", "RankLost", "rank 1 began anew")


def test_a_rank_ends_its_part_and_counts_nothing() -> None:
    assert decided(Seen(engine=RUNS, gang=replace(RANK, lost="rank 0 ended its part"))).phase == "Waiting"
    died = decided(Seen(engine=replace(RUNS, ended="ended by SIGKILL"), gang=RANK))
    assert (died.act, died.phase, died.reason) == ("Kill", "Waiting", "EngineFailed")


def test_rank_0_waits_out_its_backoff_and_its_budget_before_it_looks_for_the_others() -> None:
    failed = Verdict("RankLost", "rank 1: ended by SIGKILL")
    gone = replace(LEADER, missing="waits for rank 1, which is not heard")
    waits = decided(Seen(failures=1, failed_at=19.0, failure=failed, gang=gone))
    assert (waits.phase, waits.reason) == ("BackOff", "RankLost")
    assert decided(Seen(failures=1, failed_at=1.0, failure=failed, gang=gone)).reason == "RanksMissing"
    spent = decided(Seen(failures=3, failed_at=1.0, failure=failed, gang=LEADER))
    assert (spent.phase, spent.reason) == ("Failed", "RestartBudgetSpent")


def test_a_rank_that_leaves_has_the_streams_end_first() -> None:
    leaving = replace(LEADER, leaving_for=3.0)
    busy = decided(Seen(engine=RUNS, gang=leaving))
    assert (busy.act, busy.phase, busy.reason) == ("Stay", "Draining", "RankLost")
    assert decided(Seen(engine=replace(RUNS, quiet_seconds=5.0), gang=leaving)).act == "Terminate"
    assert decided(Seen(engine=RUNS, gang=replace(leaving, leaving_for=60.0))).act == "Terminate"


def test_an_agent_that_is_to_leave_does_so_once_its_engine_has_lost_a_rank() -> None:
    for gang in (LEADER, RANK):
        lost = decided(Seen(engine=RUNS, draining_at=19.0, gang=replace(gang, lost="rank 0 does not answer")))
        assert (lost.act, lost.phase) == ("Kill", "Draining")
        assert decided(Seen(draining_at=19.0, gang=gang)).act == "Leave"


# ---- what they tell each other --------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Line:
    """Carries reports to a leader, as long as there is one."""

    def __init__(self, leader: Leader | None) -> None:
        self.leader = leader
        self.error: Exception = TimeoutError()

    async def ask(self, report: RankReport) -> GangOrder:
        if self.leader is None:
            raise self.error
        return self.leader.answer(RankReport.model_validate_json(report.model_dump_json(by_alias=True)))


class Two:
    """Rank 0 and rank 1, which look often, with a clock that moves when told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.leader = Leader(2, ADDRESS, self.clock)
        self.line = Line(self.leader)
        self.rank = self.begin_rank()

    def begin_rank(self) -> Follower:
        self.rank = Follower(1, "chat-serve-r1-0-r1", self.line.ask, self.clock)
        return self.rank

    async def started(self) -> str:
        """A life that both ranks are in; its id."""
        self.rank.note("Waiting", ready=False, willing=True)
        await self.rank.report()
        assert self.leader.seen(self.clock.now).missing == ""
        self.leader.begin()
        await self.rank.report()
        assert self.rank.seen(self.clock.now) == RANK
        self.rank.begin()
        self.rank.note("StartingEngine", ready=False, willing=False)
        await self.rank.report()
        return self.rank._runs

    def pass_time(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(self.clock.now + 1.0, until)
            self.leader.seen(self.clock.now)
            self.rank.seen(self.clock.now)

    @property
    def lost(self) -> tuple[str, str]:
        return self.leader.seen(self.clock.now).lost, self.rank.seen(self.clock.now).lost

    @property
    def missing(self) -> tuple[str, str]:
        return self.leader.seen(self.clock.now).missing, self.rank.seen(self.clock.now).missing


async def test_nobody_begins_before_all_were_heard_and_are_willing() -> None:
    two = Two()
    assert two.missing == ("waits for rank 1, which is not heard", "waits for rank 0, which does not answer")
    two.rank.note("VerifyingWeights", ready=False, willing=False)
    await two.rank.report()
    assert two.missing == (
        "waits for rank 1, which is in phase VerifyingWeights",
        "waits for rank 0, which is in phase Waiting",
    )
    two.rank.note("Waiting", ready=False, willing=True)
    await two.rank.report()
    assert two.missing[0] == ""


async def test_a_rank_is_told_where_to_meet_and_when_the_engine_is_ready() -> None:
    two = Two()
    life = await two.started()
    assert life
    assert two.rank.meeting == two.leader.meeting == Meeting(*ADDRESS, life)
    assert not await two.rank.healthy(1)
    two.leader.note("Ready", ready=True, willing=False)
    await two.rank.report()
    assert await two.rank.healthy(1)
    assert two.lost == ("", "")


async def test_a_part_that_ended_ends_the_other_with_its_reason() -> None:
    two = Two()
    await two.started()
    two.rank.end("the engine ended by SIGKILL")
    await two.rank.report()
    assert two.lost[0] == "rank 1: the engine ended by SIGKILL"
    assert "waits for rank 0" in two.missing[1], "it does not take up a life that it has left"


async def test_the_end_of_rank_0s_part_ends_the_others() -> None:
    two = Two()
    await two.started()
    two.leader.end("the engine ended with exit code 1")
    await two.rank.report()
    assert two.lost == ("", "rank 0 ended its part")
    assert not await two.rank.healthy(1)
    assert two.missing[0] == "waits for rank 1, which is in phase StartingEngine", "its part has yet to end"


async def test_no_two_lives_are_alike() -> None:
    two = Two()
    lives = set()
    for _ in range(3):
        lives.add(await two.started())
        two.leader.end("")
        two.rank.end("")
    assert len(lives) == 3


async def test_an_agent_that_was_started_anew_belongs_to_no_life() -> None:
    two = Two()
    await two.started()
    again = two.begin_rank()
    again.note("VerifyingWeights", ready=False, willing=False)
    await again.report()
    assert two.lost[0] == "rank 1 began anew"
    anew = Leader(2, ADDRESS, two.clock)
    two = Two()
    await two.started()
    two.line.leader = anew
    await two.rank.report()
    assert two.lost[1] == "rank 0 ended its part"


async def test_silence_is_a_loss_after_a_while_and_not_before() -> None:
    two = Two()
    await two.started()
    two.line.leader = None
    two.pass_time(SILENT_SECONDS - 1)
    await two.rank.report()
    assert two.lost == ("", "")
    two.pass_time(2)
    assert two.lost == (f"rank 1 was not heard for {SILENT_SECONDS:g} s", "rank 0 does not answer")


async def test_an_agent_that_was_kept_from_running_has_lost_nobody() -> None:
    two = Two()
    await two.started()
    two.clock.now += 10 * SILENT_SECONDS
    assert two.lost == ("", "")
    two.line.leader = None
    two.pass_time(SILENT_SECONDS + 1)
    assert two.lost == (f"rank 1 was not heard for {SILENT_SECONDS:g} s", "rank 0 does not answer")


async def test_a_port_where_nobody_listens_is_a_loss_sooner() -> None:
    two = Two()
    await two.started()
    two.line.leader, two.line.error = None, ConnectionRefusedError(111, "refused")
    await two.rank.report()
    assert two.lost[1] == ""
    two.pass_time(REFUSED_SECONDS + 1)
    await two.rank.report()
    assert two.lost[1] == "rank 0 does not answer"
    two.line.leader = two.leader
    await two.rank.report()
    assert two.lost[1] == ""


async def test_a_rank_that_leaves_keeps_its_part_until_rank_0_has_ended_its_own() -> None:
    two = Two()
    await two.started()
    two.rank.note("Draining", ready=True, willing=False)
    await two.rank.report()
    assert two.leader.seen(two.clock.now).leaving_for == 0.0
    two.pass_time(2)
    assert two.leader.seen(two.clock.now).leaving_for == 2.0
    load = await two.rank.load(1)
    assert load
    assert (load.requests, load.kv_used) == (0, 1), "its cut requests are not counted twice"
    two.leader.end("")
    await two.rank.report()
    assert two.lost[1] == "rank 0 ended its part"


def test_a_rank_that_the_engine_does_not_have_is_refused() -> None:
    leader = Leader(2, ADDRESS, Clock())
    with pytest.raises(StrayRankError, match="has 2 pods, and none of rank 2"):
        leader.answer(RankReport(rank=2, pod="stray", phase="Waiting", willing=True))


def test_a_place_that_does_not_fit_the_contract_is_refused_by_the_flag_to_change() -> None:
    here = Place(name="chat-serve-r1-0", address="10.0.0.7")
    assert fit(contract(1), here) is False
    assert fit(contract(2), here) is True
    with pytest.raises(StrayRankError, match=r"--rank 2: engine\.parallelism\.pods of the contract is 2"):
        fit(contract(2), here.model_copy(update={"rank": 2, "leader": "a:1"}))
    with pytest.raises(StrayRankError, match="--leader: rank 1 needs HOST:PORT"):
        fit(contract(2), here.model_copy(update={"rank": 1}))


# ---- the same agents through any order of events -----------------------------------------------------------------


class Agent:
    """What `node/agent.py` does in a step, with a part that exists on paper."""

    def __init__(self, gang: Leader | Follower, clock: Clock) -> None:
        self.gang, self.clock = gang, clock
        self.engine: EngineSeen | None = None
        self.failures, self.failed_at = 0, 0.0
        self.decision = Decision("Stay", "Waiting")

    def step(self) -> None:
        now = self.clock.now
        seen = Seen(
            weights="Usable",
            engine=self.engine,
            failures=self.failures,
            failed_at=self.failed_at,
            failure=Verdict("EngineFailed", "it ended") if self.failures else None,
            gang=self.gang.seen(now),
        )
        self.decision = decision = decide(seen, now, ENDLESS)
        if decision.act == "Start":
            self.gang.begin()
            self.engine = EngineSeen(started_at=now)
        elif decision.act == "Kill":
            self.engine = None
            self.gang.end(decision.message)
            if decision.phase == "BackOff":
                self.failures, self.failed_at = self.failures + 1, now
        ready = self.engine is not None and self.engine.ready_at is not None
        self.failures = 0 if ready else self.failures
        willing = decision.reason == "RanksMissing" and decision.act == "Stay"
        self.gang.note(decision.phase, ready=ready, willing=willing)

    def part_ends(self) -> None:
        self.engine = self.engine and replace(self.engine, ended="ended by SIGKILL")


ENDLESS = contract().model_copy(update={"backoff": Backoff(base_seconds=1, max_seconds=2, max_restarts=1000)})


class Pods:
    """Two pods, whose engine gives a token once both parts of one life run."""

    def __init__(self) -> None:
        self.two = Two()
        self.first = Agent(self.two.leader, self.two.clock)
        self.second = Agent(self.two.rank, self.two.clock)
        self.cut = False

    async def do(self, event: str) -> None:
        two = self.two
        if event == "the first pod dies":
            two.leader = Leader(2, ADDRESS, two.clock)
            self.first = Agent(two.leader, two.clock)
        elif event == "the second pod dies":
            self.second = Agent(two.begin_rank(), two.clock)
        elif event == "the first part ends":
            self.first.part_ends()
        elif event == "the second part ends":
            self.second.part_ends()
        elif event == "the network":
            self.cut = not self.cut
        elif event == "a long time":
            two.pass_time(SILENT_SECONDS + 1)
        elif event == "nobody runs":
            two.clock.now += 10 * SILENT_SECONDS
        two.line.leader = None if self.cut else two.leader
        await self.round()

    async def round(self) -> None:
        two = self.two
        two.clock.now += 0.3
        await two.rank.report()
        if await two.rank.healthy(1) and not self.cut:
            assert self.whole, "who was just told is ready in the life of rank 0 only"
        before = self.first.engine
        self.first.step()
        if before is None and self.first.engine is not None and not self.cut:
            assert self.second.engine is None, "no life begins before the other part of the last one has ended"
        self.second.step()
        if self.whole and self.first.engine and self.first.engine.ready_at is None:
            self.first.engine = replace(self.first.engine, ready_at=two.clock.now)
        if await two.rank.healthy(1) and self.second.engine:
            self.second.engine = replace(self.second.engine, ready_at=two.clock.now)

    @property
    def whole(self) -> bool:
        return bool(self.two.rank._runs) and self.two.rank._runs == self.two.leader._life


EVENTS = (
    "nothing",
    "the first pod dies",
    "the second pod dies",
    "the first part ends",
    "the second part ends",
    "the network",
    "a long time",
    "nobody runs",
)


@given(st.lists(st.sampled_from(EVENTS), max_size=25))
@settings(deadline=None)
def test_whatever_happens_both_parts_are_of_one_life_in_the_end(events: list[str]) -> None:
    async def run() -> None:
        pods = Pods()
        for event in events:
            await pods.do(event)
        pods.cut = False
        for _ in range(200):
            await pods.do("nothing")
        assert pods.whole
        assert [agent.decision.phase for agent in (pods.first, pods.second)] == ["Ready", "Ready"]

    asyncio.run(run())
