"""Engines that are forked from one warm parent (`engine/zygote.py`), killed, and forked again: seconds in place of the
better part of a minute, where a benchmark restarts engines and their start is not what it measures."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.engines import RUNTIME
from headrace_runtime.engine.arguments import ZYGOTE, Command
from headrace_runtime.node.sweep import sweep
from local.engine import build


class Parent:
    """Speaks the parent's protocol: an order in, a report out. `env` is what all its engines have in common."""

    def __init__(self, log: Path, env: Mapping[str, str], modules: tuple[str, ...]) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(build.python()), *ZYGOTE, *modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": RUNTIME, **env},
            )

    def fork(self, command: Command, log: Path) -> int:
        """An engine's first process, which leads a group of its own."""
        assert self._process.stdin
        order = {"argv": command.argv, "env": dict(command.env), "log": str(log)}
        self._process.stdin.write(json.dumps({"start": order}).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._report("started")["started"])

    def kill(self, group: int) -> None:
        """SIGKILL to all of an engine; returns once it is gone."""
        os.killpg(group, signal.SIGKILL)
        while self._report("exited")["exited"] != group:
            continue  # one that ended by itself before
        sweep()

    def close(self) -> None:
        """End it and its engines, and what they leave in shared memory."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        sweep()

    def _report(self, kind: str) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            report: dict[str, Any] = json.loads(line)
            if kind in report:
                return report
        raise RuntimeError("the engines' parent ended; its log says why")


@contextmanager
def parent(log: Path, env: Mapping[str, str], modules: tuple[str, ...] = ()) -> Iterator[Parent]:
    """It and all its engines end with the block."""
    made = Parent(log, env, modules)
    try:
        yield made
    finally:
        made.close()
