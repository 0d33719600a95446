"""Real programs, scripted in a line: started, watched, and ended with everything they started."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_runtime.node.keeper import Keeper
from headrace_runtime.node.process import Children, Program
from headrace_runtime.node.sessions import members

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
# Nobody in it asks for a death signal: a child in the same process group, and one in its own, as those of Ray are.
FAMILY = [
    sys.executable,
    "-c",
    "import os, subprocess, sys, time\n"
    "for group in (None, 0):\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], process_group=group)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)",
]
AGENT = """
import asyncio, sys
from headrace_runtime.node.process import Children
FAMILY = [sys.executable, "-c", "import os, time; os.fork(); time.sleep(600)"]
async def main():
    children = Children()
    children.guard()
    program = children.start(FAMILY)
    print(program.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


@pytest.fixture
async def children() -> Children:
    children = Children()
    children.adopt_orphans()
    return children


async def family(children: Children) -> Program:
    told, tell = os.pipe()
    program = children.start(FAMILY, stdout=tell)
    os.close(tell)
    with os.fdopen(told) as lines:
        assert await asyncio.to_thread(lines.readline) == "up\n"
    return program


async def test_an_exit_is_told_in_words(children: Children) -> None:
    program = children.start([sys.executable, "-c", "raise SystemExit(3)"])
    assert await program.ended == "ended with exit code 3"
    assert await program.kill()


async def test_a_program_that_is_killed_is_told_by_its_signal(children: Children) -> None:
    program = children.start(SLEEPER)
    assert await program.kill()
    assert await program.ended == "ended by SIGKILL"


async def test_a_whole_session_ends_even_after_its_leader(children: Children) -> None:
    program = await family(children)
    assert len(members(program.pid)) == 3
    os.kill(program.pid, signal.SIGKILL)
    await program.ended
    assert len(members(program.pid)) == 2
    assert await program.kill()
    assert members(program.pid) == set()


async def test_terminate_asks_the_leader_alone(children: Children) -> None:
    program = await family(children)
    program.terminate()
    assert await program.ended == "ended by SIGTERM"
    assert len(members(program.pid)) == 2
    assert await program.kill()


async def test_orphans_are_reaped(children: Children) -> None:
    script = "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(0.2)\nelse:\n    print(pid, flush=True)\n"
    told, tell = os.pipe()
    program = children.start([sys.executable, "-c", script], stdout=tell)
    os.close(tell)
    orphan = int(await asyncio.to_thread(os.read, told, 20))
    await program.ended
    while Path(f"/proc/{orphan}").exists():
        await asyncio.sleep(0.02)


async def test_a_program_that_is_not_there_is_an_error_at_once(children: Children) -> None:
    with pytest.raises(OSError, match="No such file"):
        children.start(["/nowhere/engine"])


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True) as agent:
        yield agent
        agent.kill()


def test_nothing_outlives_an_agent_that_is_killed(agent: subprocess.Popen[str]) -> None:
    assert agent.stdout
    child = int(agent.stdout.readline())
    wait_until(lambda: len(members(child)) == 2)
    agent.kill()
    wait_until(lambda: not members(child), 2.0)


async def test_a_kept_program_starts_again_and_stops_for_good(children: Children) -> None:
    starts: list[float] = []
    keeper = Keeper(children, "sleeper", SLEEPER, dict(os.environ), before=lambda: starts.append(time.monotonic()))
    running = asyncio.create_task(keeper.run())
    while not keeper.runs:
        await asyncio.sleep(0.02)
    program = keeper._program
    assert program
    await program.kill()
    while len(starts) < 2:
        await asyncio.sleep(0.02)
    assert keeper.restarts == 1
    running.cancel()
    await keeper.stop()
    assert not keeper.runs
