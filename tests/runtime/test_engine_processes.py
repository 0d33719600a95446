"""Real engines forked by the zygote, with command lines from `arguments.py`: life, death, restart, and KV over NIXL."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_runtime.contract import Place
from local.programs import wait_until
from tests.runtime.engines import Server, Warm, alive, command, end, up
from tests.runtime.processes import free_port

PROMPT = [(17 * i) % 4000 + 10 for i in range(3000)]


def engine_core(group: int) -> int:
    return next(pid for pid in alive(group) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())


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
    wait_until("the group is gone", lambda: not alive(group), 60)

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
    wait_until("the engine is gone with its parent", lambda: not alive(group), 60)
    warm.close()
