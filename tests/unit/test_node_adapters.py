"""Adapters under a simulated engine: loaded by content, unloaded, tried again, and never in the way of the engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from headrace_runtime.contract import Adapter, AdapterState, Engine, Integrity, Lora, Model, NodeContract, NodeState
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.mounted import ContractFile
from headrace_runtime.node.adapters import RETRY_SECONDS, Adapters, Files, LocateError
from headrace_runtime.node.lora import Change, Routes, changes
from headrace_runtime.node.metrics import StateCollector
from headrace_runtime.node.weights import Progress

names = st.sampled_from(["a", "b", "c"])
paths = st.sampled_from(["~/adapters/1", "~/adapters/2"])


def test_nothing_to_do_for_an_engine_that_serves_what_it_should() -> None:
    assert changes({"a": "~/1"}, {"a": "~/1"}) == []


def test_what_is_not_there_yet_is_left_as_it_is() -> None:
    assert changes({"a": None, "b": None}, {"a": "~/old"}) == []


def test_a_replaced_adapter_is_unloaded_before_it_is_loaded() -> None:
    assert changes({"a": "~/new"}, {"a": "~/old"}) == [Change("a", None), Change("a", "~/new")]


@given(st.dictionaries(names, paths | st.none()), st.dictionaries(names, paths))
def test_changes_lead_to_what_is_wanted_by_calls_that_an_engine_takes(
    wanted: dict[str, str | None], served: dict[str, str]
) -> None:
    now = dict(served)
    for change in changes(wanted, served):
        if change.path is None:
            del now[change.name]
        else:
            assert change.name not in now
            now[change.name] = change.path
    assert now.keys() <= wanted.keys()
    assert all(path is None or now[name] == path for name, path in wanted.items())
    assert changes(wanted, now) == []


@dataclass
class Node:
    """An agent's adapters and its engine."""

    adapters: Adapters
    engine: FakeEngine
    folder: Path
    clock: list[float]

    def write(self, *adapters: Adapter) -> None:
        """The operator names these in the contract."""
        (self.folder / "contract.json").write_text(contract(*adapters).model_dump_json(by_alias=True))

    def adapter(self, name: str, content: str = "weights", integrity: Integrity | None = None) -> Adapter:
        folder = self.folder / "files" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(content)
        return Adapter(name=name, source=f"node:///{name}", path=str(folder), integrity=integrity or Integrity())

    async def settle(self, seconds: float = 0.0) -> dict[str, AdapterState]:
        """Let that much time pass, and everything be done that is due."""
        self.clock[0] += seconds
        self.adapters.look()
        await self.adapters.step()
        async with asyncio.timeout(20):
            while self.adapters.searching:
                await asyncio.sleep(0.01)
                await self.adapters.step()
        await self.adapters.step()  # a reading may have ended in the midst of the last one
        return {state.name: state for state in self.adapters.states()}


def contract(*adapters: Adapter) -> NodeContract:
    return NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", served_name="m", adapters=adapters),
        engine=Engine(lora=Lora()),
    )


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with serving(tmp_path) as node:
        yield node


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Node]:
    engine = FakeEngine(Script(model="m"))
    file = ContractFile(folder / "contract.json", lambda file: NodeContract.model_validate_json(file.read_text()))
    async with engine.serving() as url, aiohttp.ClientSession() as session:
        home = folder / "home"
        home.mkdir()
        clock = [1000.0]
        adapters = Adapters((), file, Routes(session, url), Files(home, locate), lambda: clock[0])
        node = Node(adapters, engine, folder, clock)
        node.write()
        yield node
        node.adapters.close()


def locate(adapter: Adapter, progress: Progress) -> Path:
    if not Path(adapter.path).exists():
        raise LocateError(f"{adapter.source} is not there")
    return Path(adapter.path)


async def test_an_engine_without_adapters_is_left_alone_and_not_held_back(node: Node) -> None:
    assert node.adapters.pending
    assert await node.settle() == {}
    assert (node.engine.adapters.loaded, node.adapters.pending) == ({}, False)


async def test_an_adapter_is_loaded_by_a_path_that_names_its_content(node: Node) -> None:
    node.write(node.adapter("legal"), node.adapter("copy"), node.adapter("other", "other weights"))
    said = await node.settle()
    loaded = node.engine.adapters.loaded
    assert loaded["legal"] == loaded["copy"] == f"~/adapters/{(said['legal'].digest or '').removeprefix('sha256:')}"
    assert loaded["other"] != loaded["legal"]
    link = node.folder / "home" / loaded["legal"].removeprefix("~/")
    assert (link / "adapter_config.json").read_text() == "weights"
    assert all(state.served and not state.problem for state in said.values())


async def test_an_adapter_that_left_the_contract_is_unloaded(node: Node) -> None:
    legal, support = node.adapter("legal"), node.adapter("support")
    node.write(legal, support)
    await node.settle()
    node.write(support)
    assert [*(await node.settle())] == ["support"]
    assert [*node.engine.adapters.loaded] == ["support"]


async def test_a_new_source_takes_the_names_place_once_it_was_read(node: Node) -> None:
    node.write(node.adapter("legal"))
    before = (await node.settle())["legal"]
    moved = node.adapter("legal-2", "new weights").model_copy(update={"name": "legal"})
    node.write(moved)
    after = (await node.settle())["legal"]
    assert after.served
    assert after.digest != before.digest
    assert node.engine.adapters.loaded == {"legal": f"~/adapters/{(after.digest or '').removeprefix('sha256:')}"}


async def test_a_restarted_engine_is_held_back_until_it_has_them_again_read_anew(node: Node) -> None:
    legal = node.adapter("legal")
    node.write(legal)
    await node.settle()
    node.engine.adapters.loaded.clear()
    node.adapters.engine_started()
    (Path(legal.path) / "adapter_config.json").write_text("other bytes meanwhile")
    assert node.adapters.pending
    digest = (await node.settle())["legal"].digest or ""
    assert (node.adapters.pending, node.engine.adapters.loaded) == (
        False,
        {"legal": f"~/adapters/{digest.removeprefix('sha256:')}"},
    )


async def test_what_was_read_before_a_restart_says_nothing_of_the_engine_after_it(node: Node) -> None:
    node.write(node.adapter("legal"))
    await node.settle()
    node.adapters.engine_started()
    assert node.adapters.states() == (AdapterState(name="legal"),)


@pytest.mark.parametrize(("policy", "served"), [("Enforce", False), ("Warn", True)])
async def test_other_bytes_than_were_pinned_are_refused_or_told(node: Node, policy: str, served: bool) -> None:
    integrity = Integrity.model_validate({"policy": policy, "digest": f"sha256:{'0' * 64}"})
    node.write(node.adapter("legal", integrity=integrity), node.adapter("support"))
    said = await node.settle()
    assert (said["legal"].served, said["support"].served) == (served, True)
    assert "pinned is sha256:000" in said["legal"].problem
    assert not node.adapters.pending


async def test_a_pickle_is_refused(node: Node) -> None:
    legal = node.adapter("legal")
    (Path(legal.path) / "adapter_model.bin").write_bytes(b"\x80\x04.")
    node.write(legal)
    said = await node.settle()
    assert not said["legal"].served
    assert said["legal"].problem.startswith("adapter_model.bin: ")


async def test_a_missing_folder_is_named_and_found_once_it_is_there(node: Node) -> None:
    missing = Adapter(name="legal", source="node:///legal", path=str(node.folder / "files" / "legal"))
    node.write(missing)
    assert (await node.settle())["legal"] == AdapterState(name="legal", problem="node:///legal is not there")
    assert not node.adapters.pending
    node.adapter("legal")
    assert not (await node.settle(RETRY_SECONDS / 2))["legal"].served
    assert (await node.settle(RETRY_SECONDS))["legal"].served


async def test_an_engine_that_refuses_is_asked_again_later_and_its_words_name_no_path(node: Node) -> None:
    node.write(node.adapter("legal"))
    node.engine.adapters.refuses = f"LoRA rank 64 in {node.folder}/home/adapters is greater than max_lora_rank 16."
    said = (await node.settle())["legal"]
    assert said.problem == "the engine refused it: LoRA rank 64 in ~/adapters is greater than max_lora_rank 16."
    assert not node.adapters.pending
    node.engine.adapters.refuses = ""
    assert not (await node.settle(RETRY_SECONDS / 2))["legal"].served
    assert (await node.settle(RETRY_SECONDS))["legal"] == said.model_copy(update={"served": True, "problem": ""})


async def test_a_contract_that_cannot_be_read_changes_nothing(node: Node) -> None:
    node.write(node.adapter("legal"))
    await node.settle()
    (node.folder / "contract.json").write_text(json.dumps({"kind": "Node", "nonsense": True}))
    assert (await node.settle())["legal"].served
    assert [*node.engine.adapters.loaded] == ["legal"]


async def test_adapters_that_somebody_loaded_by_hand_are_taken_away(node: Node) -> None:
    node.engine.adapters.loaded["stranger"] = "/tmp/stranger"
    await node.settle()
    assert node.engine.adapters.loaded == {}


async def test_an_engine_that_gives_no_answer_is_no_engine_without_adapters(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        adapters = Adapters((), None, Routes(session, "http://127.0.0.1:1"), Files(tmp_path, locate))
        await adapters.step()
    assert adapters.pending


def test_metrics_tell_which_adapters_are_served() -> None:
    said = (AdapterState(name="legal", served=True), AdapterState(name="support", problem="is not there"))
    state = NodeState(pod="p", role="serve", revision="r", phase="Ready", adapters=said)
    registry = CollectorRegistry()
    registry.register(StateCollector(lambda: state))
    values = {
        name: registry.get_sample_value("headrace_node_adapter_served", {"adapter": name})
        for name in ("legal", "support")
    }
    assert values == {"legal": 1.0, "support": 0.0}
