"""Real engines without an agent: forked by a warm zygote, with command lines from `arguments.py`, asked over HTTP."""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import Engine, Model, NodeContract, Place, RoleName, Transfer
from headrace_runtime.engine import arguments
from local.programs import wait_until
from tests.runtime.processes import RUNTIME

KV_BYTES = 128 * 1024**2


def alive(group: int) -> list[int]:
    """Processes of a group that run. Those that ended and wait for an init to notice do not."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


class Warm:
    """A zygote, and what this test asks of it. Reports are read with a deadline."""

    def __init__(self, python: Path, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.errors = (folder / "zygote.log").open("wb")
        self.process = subprocess.Popen(
            [python, *arguments.ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,  # else `select` knows nothing of a second report that came with the first
            env={**os.environ, "PYTHONPATH": str(RUNTIME), **env},
        )
        self.imported = self.report(120)["ready"]

    def report(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            pytest.fail(f"no report within {seconds} s: {(self.folder / 'zygote.log').read_text()[-2000:]}")
        report: dict[str, Any] = json.loads(self.process.stdout.readline())
        return report

    def start(self, command: arguments.Command, log: str) -> int:
        assert self.process.stdin
        start = {"argv": command.argv, "env": dict(command.env), "log": str(self.folder / log)}
        self.process.stdin.write(json.dumps({"start": start}).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.report(10)["started"])

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        self.errors.close()


class Server:
    """An engine's HTTP."""

    def __init__(self, place: Place) -> None:
        self.address = (place.address, place.engine_port)

    def ask(self, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def healthy(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False

    def complete(self, prompt: object, tokens: int, **more: object) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        status, answer = self.ask("/v1/completions", body)
        assert status == 200, answer
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def prompt_tokens(self, source: str) -> float:
        """`vllm:prompt_tokens_by_source_total` for one source."""
        return self._counted("prompt_tokens_by_source", source)

    def cached_tokens(self, source: str) -> float:
        """Tokens of prompts that were not computed: `vllm:prompt_tokens_cached_by_source_total` for one source."""
        return self._counted("prompt_tokens_cached_by_source", source)

    def _counted(self, name: str, source: str) -> float:
        lines = self.ask("/metrics")[1].decode().splitlines()
        pattern = re.compile(rf'^vllm:{name}_total{{.*source="{source}".*}} (\S+)$')
        return sum(float(found[1]) for line in lines if (found := pattern.match(line)))


def command(
    model: Path, place: Place, role: RoleName = "serve", weights: str | None = None, **engine: Any
) -> arguments.Command:
    """What starts an engine that serves `tiny`, whichever model that is. `engine`: fields of the contract's engine."""
    transfer = None if role == "serve" else Transfer()
    fields = {"max_model_len": 4096, "kv_cache_bytes": KV_BYTES, "transfer": transfer, **engine}
    contract = NodeContract(
        namespace="test",
        deployment="tiny",
        revision="r1",
        role=role,
        model=Model(source="node:///tiny", path=str(model), served_name="tiny"),
        engine=Engine(device="cpu", **fields),
    )
    return arguments.command(contract, place, weights)


def up(warm: Warm, launch: arguments.Command, server: Server, log: str) -> int:
    """Start an engine and wait until it is healthy; prints how long that took."""
    began = time.monotonic()
    group = warm.start(launch, log)
    assert os.getpgid(group) == group, "an engine leads its group by the time that its pid is reported"
    try:
        wait_until("the engine is healthy", lambda: server.healthy() or not alive(group), 120)
        assert alive(group), (warm.folder / log).read_text()[-3000:]
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        raise
    seconds = time.monotonic() - began
    print(f"import {warm.imported} s, engine healthy {seconds:.1f} s after its start")
    return group


def end(warm: Warm, *groups: int) -> None:
    for group in groups:
        os.killpg(group, signal.SIGKILL)
    assert {warm.report(30)["exited"] for _ in groups} == set(groups)
