"""`headrace_runtime local`: prefill, decode and gateway as processes on this machine, from one file."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace_runtime.contract import Endpoint
from tests.runtime.processes import RUNTIME, alive, fetch, seconds_until, tree

EXAMPLE = RUNTIME / "examples" / "local-pd.yaml"
READY = re.compile(r"^ready in ([\d.]+) s: (http://\S+)$", re.MULTILINE)
PROMPT = [(17 * i) % 4000 + 10 for i in range(1000)]


class Local:
    def __init__(self, popen: subprocess.Popen[bytes], folder: Path) -> None:
        self.popen, self.folder = popen, folder

    def printed(self) -> str:
        return (self.folder / "printed").read_text()

    def url(self) -> str:
        found = READY.search(self.printed())
        assert found, self.printed()
        return found[2]

    def endpoint(self, role: str) -> Endpoint:
        contract = json.loads((self.folder / "run" / "gateway.json").read_text())
        endpoints = [Endpoint.model_validate(one) for one in contract["discovery"]["endpoints"]]
        return next(one for one in endpoints if one.role == role)


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, engine_python: Path, model: Callable[[str], Path]
) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp("local")
    argv: list[str | Path] = [engine_python, "-m", "headrace_runtime", "local", EXAMPLE, "--model", model("tiny")]
    argv += ["--run-dir", folder / "run"]
    with (folder / "printed").open("wb") as printed:
        env = {**os.environ, "PYTHONPATH": str(RUNTIME)}
        popen = subprocess.Popen(argv, stdout=printed, stderr=printed, env=env)
    yield Local(popen, folder)
    family = tree(popen.pid)
    popen.kill()
    popen.wait()
    for pid in alive(family):
        os.kill(pid, signal.SIGKILL)


def transferred(engine_url: str) -> dict[str, float]:
    """Prompt tokens by where they came from, of one engine."""
    text = fetch(f"{engine_url}/metrics")[1].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    wanted = "vllm:prompt_tokens_by_source_total"
    return {sample.labels["source"]: sample.value for sample in samples if sample.name == wanted}


def test_it_comes_up_and_says_where(local: Local) -> None:
    seconds_until(lambda: local.popen.poll() is not None or bool(READY.search(local.printed())), 150)
    assert local.popen.poll() is None, local.printed()
    print(local.printed())
    assert fetch(f"{local.url()}/health")[0] == 200
    assert fetch(f"{local.url()}/v1/models")[0] == 200


def test_the_decode_engine_computes_no_token_of_a_long_prompt(local: Local) -> None:
    decode = local.endpoint("decode").url
    before = transferred(decode)
    status, body = fetch(f"{local.url()}/v1/completions", {"model": "tiny", "prompt": PROMPT, "max_tokens": 8})
    assert status == 200, body
    after = transferred(decode)
    assert after["external_kv_transfer"] - before["external_kv_transfer"] == len(PROMPT)
    assert after["local_compute"] == before["local_compute"]


def test_ctrl_c_ends_everything(local: Local) -> None:
    family = tree(local.popen.pid)
    assert len(family) > 8
    local.popen.send_signal(signal.SIGINT)
    assert local.popen.wait(60) == 0
    seconds_until(lambda: not alive(family), 60)
