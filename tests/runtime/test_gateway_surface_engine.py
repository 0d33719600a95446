"""The cases of OpenAI's own client, before a gateway and a real engine with a model that was trained."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest

from bench.programs import free_port, running, wait_for
from headrace_runtime.contract import Endpoint, Engine, FixedDiscovery, GatewayContract, Model, NodeContract, Place
from headrace_runtime.engine.arguments import CPU, SERVE, command
from headrace_runtime.gateway.serve import Gateway
from local.engine import build, models
from tests.surface import CASES, REAL_CASES, Case

MODEL = "smollm2"


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("engine")
    place = Place(name="e", address="127.0.0.1", engine_port=free_port(), run_dir=str(folder))
    contract = NodeContract(
        namespace="n",
        deployment="d",
        revision="r",
        role="serve",
        model=Model(source="node:///m", path=str(models.folder() / MODEL), served_name=MODEL),
        engine=Engine(
            device=CPU,
            max_model_len=2048,
            kv_cache_bytes=256 * 1024**2,
            extra_args={"enable-auto-tool-choice": True, "tool-call-parser": "hermes"},
        ),
    )
    launch = command(contract, place)
    url = f"http://127.0.0.1:{place.engine_port}"
    with running([str(build.python()), *SERVE, *launch.argv], folder / "engine.log", launch.env) as program:
        wait_for(f"{url}/health", program, folder / "engine.log")
        yield url


@asynccontextmanager
async def before(engine_url: str) -> AsyncIterator[str]:
    """A gateway before this engine; gives its URL."""
    endpoints = (Endpoint(name="e", url=engine_url, role="serve", revision="r"),)
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name=MODEL,
        discovery=FixedDiscovery(endpoints=endpoints),
        access_log=False,
        drain_seconds=0.0,
        port=0,
        admin_port=0,
    )
    gateway = Gateway(contract)
    async with gateway.running():
        async with asyncio.timeout(30):
            while not (gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots())):
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{gateway.port}"


@pytest.mark.parametrize("case", [*CASES, *REAL_CASES], ids=lambda case: case.__name__)
async def test_openais_client_gets_what_it_asks_for(case: Case, engine_url: str) -> None:
    async with before(engine_url) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            await case(client, MODEL)
