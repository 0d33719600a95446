"""The zygote's protocol as the agent speaks it, with a scripted program in the zygote's place."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from headrace_runtime.engine.arguments import Command
from headrace_runtime.node.launch import LaunchError, ZygoteLauncher
from headrace_runtime.node.process import Children

# Forks a sleeper per order, names it once it leads a session of its own, and tells when it ended, as engine/zygote.py.
SCRIPT = """
import ctypes, json, os, signal, sys, time
def say(**words): os.write(1, json.dumps(words).encode() + b"\\n")
if os.environ.get("BROKEN"):
    raise SystemExit(4)
say(ready=0.1)
def reap(*_):
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        say(exited=pid, status=os.waitstatus_to_exitcode(status))
signal.signal(signal.SIGCHLD, reap)
me = os.getpid()
for line in sys.stdin:
    order = json.loads(line)["start"]
    grouped, group = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(group)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        with open(order["log"], "a") as log:
            log.write(" ".join(order["argv"]) + " " + order["env"]["GREETING"])
        time.sleep(600)
    os.close(group)
    os.read(grouped, 1)
    os.close(grouped)
    say(started=pid)
"""
COMMAND = Command(("model", "--port=8000"), {"GREETING": "hello"})


@pytest.fixture
async def children() -> Children:
    children = Children()
    children.adopt_orphans()
    return children


def launcher(children: Children, **env: str) -> ZygoteLauncher:
    return ZygoteLauncher(children, [sys.executable, "-c", SCRIPT], env)


async def test_an_engine_is_forked_with_its_words_and_environment(children: Children, tmp_path: Path) -> None:
    zygote = launcher(children)
    await zygote.warm()
    engine = await zygote.launch(COMMAND, tmp_path / "log")
    while "hello" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        await asyncio.sleep(0.02)
    assert (tmp_path / "log").read_text() == "model --port=8000 hello"
    assert await engine.kill()
    assert await engine.ended == "ended by SIGKILL"
    await zygote.close()


async def test_the_second_engine_comes_from_the_same_parent(children: Children, tmp_path: Path) -> None:
    zygote = launcher(children)
    first = await zygote.launch(COMMAND, tmp_path / "log")
    parent = zygote._zygote
    await first.kill()
    await first.ended
    second = await zygote.launch(COMMAND, tmp_path / "log")
    assert zygote._zygote is parent
    assert second.pid != first.pid
    await zygote.close()


async def test_an_engine_ends_with_its_parent_and_the_next_gets_a_new_one(children: Children, tmp_path: Path) -> None:
    zygote = launcher(children)
    engine = await zygote.launch(COMMAND, tmp_path / "log")
    assert zygote._zygote
    os.kill(zygote._zygote.program.pid, signal.SIGKILL)
    assert await engine.ended == "ended with its parent"
    assert await engine.kill()
    another = await zygote.launch(COMMAND, tmp_path / "log")
    assert another.pid != engine.pid
    await zygote.close()


async def test_a_parent_that_cannot_import_the_engine_is_told(children: Children, tmp_path: Path) -> None:
    zygote = launcher(children, BROKEN="1")
    with pytest.raises(LaunchError, match="the engine's parent ended with exit code 4"):
        await zygote.launch(COMMAND, tmp_path / "log")
    await zygote.close()


async def test_to_close_what_was_never_warm_is_nothing(children: Children) -> None:
    await launcher(children).close()
