"""Real engines forked by the zygote, with command lines from `arguments.py`: life, death, restart, and KV over NIXL."""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import Engine, Model, NodeContract, Place, RoleName, Transfer
from headrace_runtime.engine import arguments
from local.programs import wait_until
from tests.runtime.processes import free_port

RUNTIME = Path(__file__).parents[2] / "runtime"
KV_BYTES = 128 * 1024**2
PROMPT = [(17 * i) % 4000 + 10 for i in range(3000)]


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


def engine_core(group: int) -> int:
    return next(pid for pid in alive(group) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())


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
        lines = self.ask("/metrics")[1].decode().splitlines()
        pattern = re.compile(rf'^vllm:prompt_tokens_by_source_total{{.*source="{source}".*}} (\S+)$')
        return sum(float(found[1]) for line in lines if (found := pattern.match(line)))


def command(model: Path, place: Place, role: RoleName = "serve") -> arguments.Command:
    contract = NodeContract(
        namespace="test",
        deployment="tiny",
        revision="r1",
        role=role,
        model=Model(source="node:///tiny", path=str(model), served_name="tiny"),
        engine=Engine(
            device="cpu",
            max_model_len=4096,
            kv_cache_bytes=KV_BYTES,
            transfer=None if role == "serve" else Transfer(),
        ),
    )
    return arguments.command(contract, place)


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Place]:
    def make() -> Place:
        return Place(
            name="engine",
            address="127.0.0.1",
            engine_port=free_port(),
            kv_transfer_port=free_port(),
            run_dir=str(tmp_path),
        )

    return make


@pytest.fixture(scope="module")
def warm(engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    folder = tmp_path_factory.mktemp("warm")
    env = command(model("tiny"), Place(name="engine", address="127.0.0.1", run_dir=str(folder))).env
    zygote = Warm(engine_python, folder, dict(env))
    yield zygote
    zygote.close()


def up(warm: Warm, launch: arguments.Command, server: Server, log: str) -> int:
    """Start an engine and wait until it is healthy; prints how long that took."""
    began = time.monotonic()
    group = warm.start(launch, log)
    assert os.getpgid(group) == group, "an engine leads its group by the time that its pid is reported"
    try:
        wait_until("the engine is healthy", lambda: server.healthy() or not alive(group), 120)
        assert alive(group), (warm.folder / log).read_text()[-3000:]
    except BaseException:
        os.killpg(group, signal.SIGKILL)
        raise
    seconds = time.monotonic() - began
    print(f"import {warm.imported} s, engine healthy {seconds:.1f} s after its start")
    return group


def end(warm: Warm, *groups: int) -> None:
    for group in groups:
        os.killpg(group, signal.SIGKILL)
    assert {warm.report(30)["exited"] for _ in groups} == set(groups)


def test_answers_then_dies_whole_with_its_core_then_is_back_in_seconds(
    warm: Warm, model: Callable[[str], Path], place: Callable[[], Place]
) -> None:
    here = place()
    server = Server(here)
    group = up(warm, command(model("tiny"), here), server, "first.log")
    assert server.complete("hello", 4)["usage"]["completion_tokens"] == 4

    os.kill(engine_core(group), signal.SIGKILL)
    ended = warm.report(30)
    assert ended["exited"] == group
    assert ended["status"] != 0, "an engine that lost its core has failed"
    wait_until("the group is gone", lambda: not alive(group), 10)

    began = time.monotonic()
    again = up(warm, command(model("tiny"), here), server, "again.log")
    assert time.monotonic() - began < 20, "a fork of the warm parent imports nothing"
    assert server.complete("hello", 4)["usage"]["completion_tokens"] == 4
    end(warm, again)


def test_engine_that_cannot_start_fails_and_says_why_in_its_log(
    warm: Warm, place: Callable[[], Place], tmp_path: Path
) -> None:
    group = warm.start(command(tmp_path / "no-such-model", place()), "no-model.log")
    ended = warm.report(60)
    assert (ended["exited"], ended["status"] != 0) == (group, True)
    assert "no-such-model" in (warm.folder / "no-model.log").read_text()


def test_decode_takes_the_whole_prompt_from_prefill_over_nixl(
    warm: Warm, model: Callable[[str], Path], place: Callable[[], Place]
) -> None:
    prefill_place, decode_place = place(), place()
    prefill, decode = Server(prefill_place), Server(decode_place)
    groups = (
        up(warm, command(model("tiny"), prefill_place, "prefill"), prefill, "prefill.log"),
        up(warm, command(model("tiny"), decode_place, "decode"), decode, "decode.log"),
    )
    asked = {"do_remote_decode": True, "do_remote_prefill": False}
    handed = prefill.complete(PROMPT, 1, kv_transfer_params=asked)["kv_transfer_params"]
    answer = decode.complete(PROMPT, 16, kv_transfer_params=handed)
    assert decode.prompt_tokens("external_kv_transfer") == len(PROMPT)
    assert decode.prompt_tokens("local_compute") == 0
    assert answer["choices"][0]["text"] == prefill.complete(PROMPT, 16)["choices"][0]["text"]

    # The role is the request's: the decode engine prefills for the other one just as well.
    turned = PROMPT[::-1]
    handed = decode.complete(turned, 1, kv_transfer_params=asked)["kv_transfer_params"]
    before = prefill.prompt_tokens("external_kv_transfer")
    prefill.complete(turned, 4, kv_transfer_params=handed)
    assert prefill.prompt_tokens("external_kv_transfer") - before == len(turned)
    end(warm, *groups)


def test_real_model_says_something_true(warm: Warm, model: Callable[[str], Path], place: Callable[[], Place]) -> None:
    here = place()
    server = Server(here)
    group = up(warm, command(model("smollm2"), here), server, "smollm2.log")
    question = {"role": "user", "content": "What is the capital of France?"}
    status, answer = server.ask("/v1/chat/completions", {"model": "tiny", "messages": [question], "temperature": 0})
    assert status == 200, answer
    assert "Paris" in json.loads(answer)["choices"][0]["message"]["content"]
    end(warm, group)


def test_nothing_outlives_the_zygote(
    engine_python: Path, model: Callable[[str], Path], place: Callable[[], Place], tmp_path: Path
) -> None:
    here = place()
    launch = command(model("tiny"), here)
    warm = Warm(engine_python, tmp_path, dict(launch.env))
    group = up(warm, launch, Server(here), "engine.log")
    assert len(alive(group)) >= 2
    warm.process.kill()
    wait_until("the engine is gone with its parent", lambda: not alive(group), 10)
    warm.close()
