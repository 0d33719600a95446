"""LoRA adapters that a running vLLM engine is given and loses again, as its contract's file says: one process, one
engine, no restart but the one that is forced upon it."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import REPLAY_FIELD, Adapter, AdapterState, Engine, Lora, Model, NodeContract
from local.engine import adapter as lora
from tests.runtime.processes import KV_BYTES, Process, fetch, named, place, seconds_until, tree

PROMPT = [(17 * i) % 4000 + 10 for i in range(300)]
"""More than two of the engine's blocks."""


class Node(Process):
    """An agent whose contract is rewritten under it."""

    def __init__(self, python: Path, contract: NodeContract, folder: Path, model: Path) -> None:
        self.contract, self.model = contract, model
        self.made: dict[str, Adapter] = {}
        super().__init__(python, "node", contract, place(folder, "chat-serve-r1-0"))

    def make(self, name: str, seed: int, rank: int = 8) -> Adapter:
        folder = self.folder / f"{name}-{seed}"
        lora.write(folder, self.model, seed=seed, rank=rank)
        self.made[name] = Adapter(name=name, source=f"node:///{folder.name}", path=str(folder))
        return self.made[name]

    def name_adapters(self, *adapters: Adapter) -> None:
        model = self.contract.model.model_copy(update={"adapters": adapters})
        file = self.folder / f"{self.place.name}.json"
        new = file.with_suffix(".new")
        new.write_text(self.contract.model_copy(update={"model": model}).model_dump_json(by_alias=True))
        new.replace(file)

    def adapters(self) -> dict[str, AdapterState]:
        return {state.name: state for state in self.node().adapters}

    def until_served(self, *names: str) -> None:
        self.seconds_until(lambda state: [one.name for one in state.adapters if one.served] == [*names], 60)

    def ask(self, model: str, tokens: int = 12, **more: Any) -> tuple[int, dict[str, Any]]:
        body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
        status, answer = fetch(f"{self.engine_url}/v1/completions", body, 60)
        return status, json.loads(answer)

    def text(self, model: str) -> str:
        status, answer = self.ask(model)
        assert status == 200, answer
        return str(answer["choices"][0]["text"])

    def prefix_hits(self) -> float:
        """Tokens of prompts that were found in the engine's cache so far."""
        text = fetch(f"{self.engine_url}/metrics")[1].decode()
        return sum(map(float, re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", text, re.MULTILINE)))

    def hits_of(self, model: str) -> float:
        before = self.prefix_hits()
        self.text(model)
        return self.prefix_hits() - before


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, engine_python: Path, model: Callable[[str], Path]) -> Iterator[Node]:
    contract = NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", path=str(model("tiny")), served_name="m"),
        engine=Engine(
            device="cpu", dtype="float32", max_model_len=2048, kv_cache_bytes=KV_BYTES, lora=Lora(max_rank=8)
        ),
    )
    process = Node(engine_python, contract, tmp_path_factory.mktemp("adapters"), model("tiny"))
    try:
        process.seconds_until(lambda state: state.phase == "Ready")
        yield process
    finally:
        process.close()


def test_an_engine_with_room_for_adapters_is_ready_without_any(node: Node) -> None:
    assert node.node().adapters == ()
    assert node.ask("legal")[0] == 404


def test_adapters_come_to_a_running_engine_and_answer_for_themselves(node: Node) -> None:
    pid = node.node().engine_pid
    node.name_adapters(node.make("legal", 1), node.make("support", 2))
    node.until_served("legal", "support")
    texts = {name: node.text(name) for name in ("m", "legal", "support")}
    assert len(set(texts.values())) == 3
    assert {name: node.text(name) for name in texts} == texts
    assert (node.node().engine_pid, node.node().phase) == (pid, "Ready")


def test_an_adapter_never_reads_the_blocks_of_the_model_or_of_another(node: Node) -> None:
    for name in ("m", "legal", "support"):
        assert node.hits_of(name) > 0, "all have asked before"
    digest = node.adapters()["legal"].digest
    assert digest
    node.name_adapters(node.made["legal"], node.made["support"], node.make("copy", 1))
    node.until_served("legal", "support", "copy")
    assert node.adapters()["copy"].digest == digest
    assert node.hits_of("copy") == 0


def test_a_request_with_an_adapter_goes_on_where_another_engine_was_lost(node: Node) -> None:
    whole = node.ask("legal", 12, return_token_ids=True)[1]["choices"][0]
    given = whole["token_ids"][:5]
    status, answer = node.ask("legal", 12, return_token_ids=True, vllm_xargs={REPLAY_FIELD: given})
    assert status == 200
    assert answer["choices"][0]["token_ids"] == whole["token_ids"]


def test_an_adapter_without_room_is_named_and_the_engine_goes_on(node: Node) -> None:
    pid = node.node().engine_pid
    node.name_adapters(node.made["legal"], node.make("wide", 4, rank=64))
    node.seconds_until(lambda _: "wide" in node.adapters() and bool(node.adapters()["wide"].problem), 60)
    assert "rank" in node.adapters()["wide"].problem
    assert (node.node().engine_pid, node.node().phase) == (pid, "Ready")
    assert node.text("legal") != node.text("m")


def test_another_source_of_the_same_name_is_another_adapter(node: Node) -> None:
    before, digest = node.text("legal"), node.adapters()["legal"].digest
    node.name_adapters(node.make("legal", 5))
    node.seconds_until(lambda _: node.adapters()["legal"].served and node.adapters()["legal"].digest != digest, 60)
    assert node.hits_of("legal") == 0
    assert node.text("legal") != before


def test_a_restarted_engine_is_ready_with_its_adapters_only(node: Node) -> None:
    before, pid = node.text("legal"), node.node().engine_pid
    os.kill(named(tree(node.popen.pid), "EngineCore"), signal.SIGKILL)
    node.seconds_until(lambda state: state.engine_pid not in (None, pid))
    seconds_until(lambda: fetch(f"{node.url}/readyz")[0] == 200, 120)
    assert node.text("legal") == before


def test_an_adapter_that_left_the_contract_is_known_no_more(node: Node) -> None:
    node.name_adapters()
    seconds_until(lambda: node.ask("legal")[0] == 404, 60)
    assert node.ask("m")[0] == 200
