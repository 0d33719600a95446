"""Ways to get weights into memory: a real engine says the same whichever it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from headrace_runtime.contract import Engine, Model, NodeContract, Place
from headrace_runtime.engine import arguments
from tests.runtime.engines import KV_BYTES, Server, Warm, end, up
from tests.runtime.processes import free_port

PROMPT = [(17 * i) % 4000 + 10 for i in range(100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loaders")


def launch(
    model: Path, folder: Path, loader: Literal["Auto", "Safetensors", "Streamer"]
) -> tuple[Place, arguments.Command]:
    place = Place(name="engine", address="127.0.0.1", engine_port=free_port(), run_dir=str(folder))
    contract = NodeContract(
        namespace="test",
        deployment="tiny",
        revision="r1",
        role="serve",
        model=Model(source="node:///tiny", path=str(model), served_name="tiny", loader=loader),
        engine=Engine(device="cpu", dtype="float32", max_model_len=1024, kv_cache_bytes=KV_BYTES),
    )
    return place, arguments.command(contract, place)


def test_every_loader_for_cpus_loads_the_same_model(
    engine_python: Path, model: Callable[[str], Path], folder: Path
) -> None:
    said: dict[str, str] = {}
    _, first = launch(model("tiny"), folder, "Auto")
    warm = Warm(engine_python, folder, dict(first.env))
    try:
        for loader in ("Auto", "Safetensors", "Streamer"):
            place, command = launch(model("tiny"), folder, loader)
            server = Server(place)
            group = up(warm, command, server, f"{loader}.log")
            said[loader] = server.complete(PROMPT, 16)["choices"][0]["text"]
            end(warm, group)
    finally:
        warm.close()
    assert said["Auto"]
    assert len(set(said.values())) == 1, said
