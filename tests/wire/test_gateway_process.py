"""The gateway's own process: starts from its contract file, says what it does, ends in order."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from headrace_runtime.contract import Admission, Endpoint, FixedDiscovery, GatewayContract, Limit
from headrace_runtime.engine.fake import FakeEngine, Script

pytestmark = pytest.mark.slow

SECRET = "a prompt that nobody else may read"


def gateway_command(contract: GatewayContract, file: Path) -> list[str]:
    """Writes the contract and gives the command line that starts a gateway from it."""
    file.write_text(contract.model_dump_json(by_alias=True))
    place = (f"--contract={file}", "--name=g", "--address=127.0.0.1")
    return [sys.executable, "-m", "headrace_runtime", "gateway", *place]


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@asynccontextmanager
async def gateway(folder: Path, engine: str) -> AsyncIterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """A gateway process that serves; its URL and its output."""
    port, admin_port = free_ports()
    endpoints = (Endpoint(name="e", url=engine, role="serve", revision="r"),)
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name="fake",
        discovery=FixedDiscovery(endpoints=endpoints),
        port=port,
        admin_port=admin_port,
    )
    file, output = folder / "contract.json", folder / "output"
    argv = gateway_command(contract, file)
    with output.open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            await until_healthy(url)
            yield process, url, output
        finally:
            process.kill()


async def until_healthy(url: str) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # it does not listen yet
            await asyncio.sleep(0.05)


async def test_serves_logs_without_the_prompt_and_ends_when_its_streams_have(tmp_path: Path) -> None:
    fake = FakeEngine(Script(itl=0.05))
    document = {"model": "fake", "prompt": SECRET, "max_tokens": 20, "stream": True}
    async with fake.serving() as engine, gateway(tmp_path, engine) as (process, url, output):
        async with aiohttp.ClientSession() as client:
            async with client.post(
                f"{url}/v1/completions", json=document, headers={"x-request-id": "id-1"}
            ) as response:
                await response.content.readany()
                process.send_signal(signal.SIGTERM)
                body = await response.read()
        assert body.endswith(b"data: [DONE]\n\n")
        assert await asyncio.to_thread(process.wait, 10) == 0
    said = output.read_text()
    assert SECRET not in said
    (line,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    expected = {"request_id": "id-1", "status": 200, "outcome": "answered", "stream": True, "decode": "e", "tries": 1}
    assert expected.items() <= line.items()
    assert line["resumed"] == 0
    assert 0 < line["ttft_ms"] < line["duration_ms"]


async def test_idle_it_ends_at_once(tmp_path: Path) -> None:
    async with FakeEngine().serving() as engine, gateway(tmp_path, engine) as (process, _, output):
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 5) == 0
        assert "Traceback" not in output.read_text()


async def until_said(output: Path, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in output.read_text():
            await asyncio.sleep(0.05)


async def test_takes_up_a_changed_contract_and_goes_on_when_the_next_is_bad(tmp_path: Path) -> None:
    async with FakeEngine().serving() as engine, gateway(tmp_path, engine) as (process, url, output):
        file = tmp_path / "contract.json"
        running = GatewayContract.model_validate_json(file.read_bytes())
        nothing_more = Admission(total=Limit(tokens_per_minute=1))
        file.write_text(running.model_copy(update={"admission": nothing_more}).model_dump_json(by_alias=True))
        await until_said(output, "its live fields hold from now on")
        file.write_text("{")
        await until_said(output, "contract.json is not JSON")
        async with aiohttp.ClientSession() as client:
            document = {"model": "fake", "prompt": [1, 2], "max_tokens": 1}
            async with client.post(f"{url}/v1/completions", json=document) as response:
                assert response.status == 429
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_outside_of_a_cluster_watching_pods_is_an_error_that_says_so(tmp_path: Path) -> None:
    port, admin_port = free_ports()
    contract = GatewayContract(namespace="n", deployment="d", served_name="m", port=port, admin_port=admin_port)
    file = tmp_path / "contract.json"
    argv = gateway_command(contract, file)
    done = await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=20, check=False, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == 1
    assert "Service host/port is not set" in done.stderr
