"""One agent and a real engine on a model that is fetched: served from the node's cache, and fetched again when a bit of
its copy flips under the engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_runtime.contract import Integrity, NodeState
from headrace_runtime.contract import ModelCache as Cache
from tests import models
from tests.runtime.processes import Process, fetch, node_contract, place, tree

LIMIT = 270.0
"""Seconds that a step may take where others have the processors."""


@pytest.fixture
def source(tmp_path: Path, model: Callable[[str], Path]) -> Iterator[str]:
    """Where the smallest model is served."""
    files = {path.name: path.read_bytes() for path in model("tiny").iterdir() if path.is_file()}
    models.publish(tmp_path / "source", files)
    with models.served(tmp_path / "source") as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.mark.timeout(900)
def test_a_real_engine_serves_a_fetched_model_and_a_fresh_copy_after_a_flipped_bit(
    tmp_path: Path, engine_python: Path, source: str
) -> None:
    contract = node_contract(tmp_path, integrity=Integrity(rescan_seconds=1.0))
    cached = {"source": source, "cache": Cache(path=str(tmp_path / "cache"))}
    contract = contract.model_copy(update={"model": contract.model.model_copy(update=cached)})
    process = Process(engine_python, "node", contract, place(tmp_path, "chat-serve-r1-0"))
    try:
        began = process.seconds_until(lambda state: state.phase == "Ready", LIMIT)
        print(f"ready {began:.1f} s after the agent's start")
        first = process.node()
        assert first.weights.fetched == first.weights.fetch_total == first.weights.bytes_total > 0
        body = {"model": "m", "prompt": "Hello", "max_tokens": 4}
        assert fetch(f"{process.engine_url}/v1/completions", body, 60)[0] == 200

        (file,) = (tmp_path / "cache").rglob("model.safetensors")
        good = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

        def taken_out(state: NodeState) -> bool:
            return state.reason == "DigestMismatch"

        print(f"found {process.seconds_until(taken_out, LIMIT):.1f} s after the bit flipped")
        again = process.seconds_until(
            lambda state: state.phase == "Ready" and state.engine_pid != first.engine_pid, LIMIT
        )
        print(f"ready on a fresh copy {again:.1f} s later")
        assert file.read_bytes() == good
        assert process.node().weights.digest == first.weights.digest
        assert process.node().engine_restarts == 1
        assert first.engine_pid not in tree(process.popen.pid)
    finally:
        process.close()
