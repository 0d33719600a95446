"""KV blocks on disk with an engine on an NVIDIA GPU: vLLM's own copies between device and host, our store below.

Needs what `test_gpu_local.py` needs. One engine at a time, started and killed by this file; `HEADRACE_GPU_KV` names a
folder on the disk to try, else it is a temporary one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_runtime.contract import Engine, KvDisk, KvState, KvTiers, Model, NodeContract, Place
from headrace_runtime.engine import arguments
from headrace_runtime.kv import report
from tests.gpu.test_gpu_local import python, what_is_missing
from tests.runtime.processes import RUNTIME, fetch, free_port, seconds_until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

READY_SECONDS = 900
PROMPT = 3000
"""Tokens."""
DISK_BYTES = 32 * 1024**3


@dataclass
class Running:
    """One engine, without an agent."""

    place: Place
    popen: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{self.place.address}:{self.place.engine_port}"

    def ask(self, prompt: list[int]) -> str:
        body = {"model": "m", "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
        status, answer = fetch(f"{self.url}/v1/completions", body, 120)
        assert status == 200, answer
        text: str = json.loads(answer)["choices"][0]["text"]
        return text

    def sample(self, name: str, **labels: str) -> float:
        text = fetch(f"{self.url}/metrics")[1].decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    def state(self) -> KvState | None:
        return report.read(Path(self.place.run_dir))

    def kill(self) -> None:
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


@dataclass
class Machine:
    folder: Path
    disk: Path
    stack: ExitStack

    def start(self) -> Running:
        run_dir = self.folder / "run"
        run_dir.mkdir(exist_ok=True)
        report.clear(run_dir)
        place = Place(name="e", address="127.0.0.1", run_dir=str(run_dir), engine_port=free_port())
        tiers = KvTiers(host_bytes=8 * 1024**3, disk=KvDisk(path=str(self.disk), size_bytes=DISK_BYTES))
        contract = NodeContract(
            namespace="local",
            deployment="gpu",
            revision="r1",
            role="serve",
            model=Model(source="node:///model", path=os.environ["HEADRACE_GPU_MODEL"], served_name="m"),
            engine=Engine(
                max_model_len=4096,
                kv_cache_bytes=4 * 1024**3,
                kv_tiers=tiers,
                extra_args={"enforce-eager": True},
            ),
        )
        launch = arguments.command(contract, place, "sha256:" + "ab" * 32)
        log = self.folder / "engine.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [python(), *arguments.SERVE, *launch.argv],
                env={**os.environ, **launch.env, "PYTHONPATH": str(RUNTIME)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        running = Running(place, popen)
        self.stack.callback(lambda: popen.poll() is None and running.kill())

        def healthy() -> bool:
            assert popen.poll() is None, log.read_text()[-5000:]
            return fetch(f"{running.url}/health")[0] == 200

        print(f"healthy {seconds_until(healthy, READY_SECONDS):.1f} s after its start")
        return running


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if reason := what_is_missing():
        pytest.skip(reason)
    disk = Path(os.environ.get("HEADRACE_GPU_KV") or tmp_path / "kv")
    with ExitStack() as stack:
        yield Machine(tmp_path, disk, stack)


def test_gpu_prompt_comes_from_disk_after_the_engine_was_killed(machine: Machine) -> None:
    chance = random.Random()  # on a disk that is kept, an unseen prompt each time
    prompt = [chance.randrange(1000, 20_000) for _ in range(PROMPT)]
    first = machine.start()
    said = first.ask(prompt)
    size = first.sample("vllm:kv_offload_store_bytes_total")
    assert size > 0, "vLLM's own worker has copied nothing to host memory"

    def stored() -> bool:
        state = first.state()
        return state is not None and state.ready and state.stored * 64 >= PROMPT - 64

    seconds_until(stored, 60)
    first.kill()
    second = machine.start()
    assert second.ask(prompt) == said
    tokens = second.sample("vllm:prompt_tokens_cached_by_source_total", source="disk")
    assert tokens == PROMPT // 64 * 64, "blocks of 16 tokens, four of them in one that is stored"
    state = second.state()
    assert state is not None
    assert state.damaged == 0
