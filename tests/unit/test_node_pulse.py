"""What hangs is told from what is slow: an answer that is due, and whether anything is done for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.node.pulse import Part, Process, Pulse, look
from local.programs import wait_until

TITLES = ["VLLM::EngineCore", "VLLM::Worker_TP0"]


class Engine:
    """Processes by id: a front end and a core, which use the processor when told to."""

    def __init__(self) -> None:
        self.seen: dict[int, Process] = {1: Process("S", 50, "front"), 2: Process("S", 900, "core")}
        self.pulse = Pulse(lambda: dict(self.seen))

    def use(self, pid: int, ticks: int, state: str = "S") -> None:
        self.seen[pid] = Process(state, self.seen[pid].ticks + ticks, self.seen[pid].part)

    def still(self, owing: Part | None, *times: float) -> float:
        return [self.pulse.still(owing, now) for now in times][-1]


def test_nothing_is_due_from_an_idle_engine() -> None:
    engine = Engine()
    assert engine.still(None, 0.0, 60.0) == 0.0


@pytest.mark.parametrize("owing", ["front", "core"])
def test_a_part_that_owes_an_answer_and_does_nothing_is_still(owing: Part) -> None:
    engine = Engine()
    assert engine.still(owing, 10.0, 12.0, 15.5) == 5.5


def test_one_that_computes_a_long_prompt_is_not() -> None:
    engine = Engine()
    for second in range(100):
        engine.use(2, 90)
        assert engine.still("core", float(second)) == 0.0


@pytest.mark.parametrize("state", ["R", "D"])
def test_one_that_waits_for_a_processor_or_a_disk_is_not(state: str) -> None:
    engine = Engine()
    engine.use(2, 0, state)
    assert engine.still("core", 0.0, 60.0) == 0.0


def test_a_front_end_at_work_does_not_speak_for_a_core_that_hangs() -> None:
    engine = Engine()
    engine.still("core", 0.0)
    engine.use(1, 300)
    assert engine.still("core", 5.0) == 5.0


def test_the_time_starts_anew_with_every_answer_and_every_other_process() -> None:
    engine = Engine()
    assert engine.still("core", 0.0, 4.0) == 4.0
    assert engine.still(None, 5.0) == 0.0
    assert engine.still("core", 6.0, 8.0) == 2.0
    engine.seen[3] = Process("S", 0, "core")
    assert engine.still("core", 9.0) == 0.0
    assert engine.still("front", 9.5) == 0.0


def test_a_part_without_a_process_is_no_hang() -> None:
    """Its end is seen otherwise."""
    engine = Engine()
    del engine.seen[2]
    assert engine.still("core", 0.0, 60.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(0, 500)), min_size=1))
@settings(deadline=None)
def test_whoever_used_a_tenth_of_a_processor_all_along_is_never_still_for_a_second(
    turns: list[tuple[float, int]],
) -> None:
    engine, now = Engine(), 0.0
    engine.still("core", now)
    for seconds, more in turns:
        now += seconds
        engine.use(2, int(seconds * 10) + 2 + more)
        assert engine.still("core", now) <= 1.0


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The id of a session whose leader started two processes with vLLM's titles, and each of these another."""
    code = (
        "import subprocess, sys, time\n"
        "compiler = 'import subprocess, time; subprocess.Popen([\\'sleep\\', \\'60\\']); time.sleep(60)'\n"
        f"for title in {TITLES}:\n"
        "    subprocess.Popen([title, '-c', compiler], executable=sys.executable)\n"
        "time.sleep(60)"
    )
    program = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    yield program.pid
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def states(session: int, part: Part) -> Mapping[int, str]:
    return {pid: process.state for pid, process in look(session).items() if process.part == part}


def test_processes_are_told_apart_by_the_titles_above_them_and_a_stopped_one_is_seen(sleeper: int) -> None:
    def whole() -> bool:
        # A process has its parent's title until it has become its own program.
        return len(states(sleeper, "core")) == 4 and set(states(sleeper, "front")) == {sleeper}

    wait_until("all are there", whole, 20)
    stopped = min(states(sleeper, "core"))
    os.kill(stopped, signal.SIGSTOP)
    wait_until("one is stopped", lambda: states(sleeper, "core")[stopped] == "T", 20)


def test_processor_time_is_seen_to_pass() -> None:
    began, own = time.process_time(), os.getsid(0)
    before = look(own)[os.getpid()].ticks
    while time.process_time() - began < 0.1:
        pass
    assert look(own)[os.getpid()].ticks - before >= 8
