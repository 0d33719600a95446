"""A prefill and a decode engine on NVIDIA GPUs as processes of this machine, KV blocks over NIXL between them.

Needs `HEADRACE_GPU_MODEL`, the folder of a chat model that fits twice on one GPU (two GPUs are used where there are
two), and an interpreter with vLLM, NIXL and the runtime's own dependencies: `HEADRACE_GPU_PYTHON`, or the
`python3` of the PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_runtime.contract import (
    Endpoint,
    Engine,
    FixedDiscovery,
    GatewayContract,
    LocalContract,
    Model,
    NodeContract,
    RoleName,
    Transfer,
)
from tests.runtime.processes import RUNTIME, alive, fetch, seconds_until, tree

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

READY = re.compile(r"^ready in ([\d.]+) s: (http://\S+)$", re.MULTILINE)
READY_SECONDS = 1200
QUESTION = "What is the capital of France? Answer with the name of the city."
LONG_PROMPT = "The rivers of Europe and the cities on them are the subject of this long text. " * 60


def what_is_missing() -> str | None:
    """Why these tests cannot run here, in one sentence, or None."""
    if shutil.which("nvidia-smi") is None or not gpus():
        return "this machine has no NVIDIA GPU"
    if not Path(os.environ.get("HEADRACE_GPU_MODEL", "")).joinpath("config.json").is_file():
        return "HEADRACE_GPU_MODEL does not name a folder with a model"
    needed = "import aiohttp, click, httptools, nixl, orjson, pydantic, vllm"
    if subprocess.run([python(), "-c", needed], capture_output=True, check=False).returncode:
        return f"{python()} cannot `{needed}`: name an interpreter that can in HEADRACE_GPU_PYTHON"
    return None


def gpus() -> list[str]:
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def python() -> str:
    return os.environ.get("HEADRACE_GPU_PYTHON") or "python3"


def deployment() -> LocalContract:
    """One engine of each role. On a single GPU each may use two fifths of its memory."""
    places: dict[RoleName, int] = {"prefill": 0, "decode": len(gpus()) - 1}
    return LocalContract(
        nodes=tuple(
            NodeContract(
                namespace="local",
                deployment="gpu",
                revision="r1",
                role=role,
                model=Model(source="node:///model", served_name="m"),
                engine=Engine(
                    max_model_len=4096,
                    kv_cache_bytes=2 * 1024**3,
                    transfer=Transfer(),
                    extra_args={"gpu-memory-utilization": 0.4, "enforce-eager": True},
                    env={"CUDA_VISIBLE_DEVICES": str(place)},
                ),
                start_seconds=READY_SECONDS,
                drain_seconds=20,
            )
            for role, place in places.items()
        ),
        gateway=GatewayContract(
            namespace="local", deployment="gpu", served_name="m", discovery=FixedDiscovery(endpoints=())
        ),
    )


@dataclass(frozen=True)
class Running:
    url: str
    folder: Path

    def engine(self, role: str) -> str:
        """The address of a role's engine."""
        contract = json.loads((self.folder / "run" / "gateway.json").read_text())
        endpoints = [Endpoint.model_validate(one) for one in contract["discovery"]["endpoints"]]
        return next(one.url for one in endpoints if one.role == role)

    def prompt_tokens(self, role: str) -> dict[str, float]:
        """Tokens of prompts by where their KV blocks came from."""
        text = fetch(f"{self.engine(role)}/metrics")[1].decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        wanted = "vllm:prompt_tokens_by_source_total"
        return {one.labels["source"]: one.value for one in samples if one.name == wanted}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if reason := what_is_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "local.json").write_text(deployment().model_dump_json(by_alias=True))
    model = os.environ["HEADRACE_GPU_MODEL"]
    argv = [python(), "-m", "headrace_runtime", "local", str(folder / "local.json"), "--model", model]
    printed = folder / "printed"
    with printed.open("wb") as file:
        popen = subprocess.Popen(
            [*argv, "--run-dir", str(folder / "run")],
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(RUNTIME)},
        )
    try:
        seconds_until(lambda: popen.poll() is not None or bool(READY.search(printed.read_text())), READY_SECONDS)
        found = READY.search(printed.read_text())
        assert found, printed.read_text()[-5000:]
        print(found[0])
        yield Running(found[2], folder)
    finally:
        family = tree(popen.pid)
        popen.send_signal(signal.SIGINT)
        try:
            popen.wait(60)
        except subprocess.TimeoutExpired:
            popen.kill()
        for pid in alive(family):
            os.kill(pid, signal.SIGKILL)


def test_gpu_engines_know_the_capital_of_france(running: Running) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": "m", "messages": messages, "max_tokens": 256, "temperature": 0}
    status, answer = fetch(f"{running.url}/v1/chat/completions", body, 120)
    assert status == 200, answer
    assert b"Paris" in answer


def test_gpu_decode_computes_no_token_of_a_long_prompt(running: Running) -> None:
    before = running.prompt_tokens("decode")
    body = {"model": "m", "prompt": LONG_PROMPT, "max_tokens": 8, "temperature": 0}
    status, answer = fetch(f"{running.url}/v1/completions", body, 120)
    assert status == 200, answer
    after = running.prompt_tokens("decode")
    tokens = json.loads(answer)["usage"]["prompt_tokens"]
    assert after["external_kv_transfer"] - before.get("external_kv_transfer", 0) == tokens
    assert after.get("local_compute", 0) == before.get("local_compute", 0)
