"""A running gateway takes up a changed contract and changed keys, as the kubelet writes them, and refuses bad ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import (
    LIVE,
    Admission,
    CanaryShare,
    Endpoint,
    FixedDiscovery,
    GatewayContract,
    GatewayFigures,
    KeyRule,
    Limit,
    live_update,
    without_live,
)
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway import reload
from headrace_runtime.gateway.reload import Live, Reloader
from headrace_runtime.gateway.serve import Gateway
from headrace_runtime.mounted import ContractFile

CONTRACT = GatewayContract(namespace="n", deployment="d", served_name="fake")


def mount(folder: Path, **files: str) -> None:
    """Write all files of a mounted ConfigMap or Secret at once, as the kubelet does: a new folder, and a link to it."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_text(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").replace(folder / "..data")
    for old in folder.iterdir():
        if old.is_symlink() and not old.name.startswith("..") and old.name not in files:
            old.unlink()


class Watched:
    """What a gateway would run by, and what it was told."""

    def __init__(self, folder: Path, contract: GatewayContract = CONTRACT) -> None:
        self.file = folder / "contract.json"
        self.live = Live(contract)
        self.told: list[tuple[str, str]] = []
        file = ContractFile(self.file, lambda file: GatewayContract.model_validate(json.loads(file.read_text())))
        self.reloader = Reloader(self.live, file, lambda what, result: self.told.append((what, result)))

    def write(self, **fields: Any) -> None:
        contract = CONTRACT.model_copy(update=fields)
        mount(self.file.parent, **{self.file.name: contract.model_dump_json(by_alias=True)})


def test_says_nothing_while_nothing_changes(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write()
    watched.reloader.look()
    watched.write()
    watched.reloader.look()
    assert (watched.told, watched.live.contract) == ([], CONTRACT)


def test_takes_up_live_fields_and_keeps_all_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(tmp_path)
    admission = Admission(queue_length=7)
    watched.write(admission=admission, max_retries=9, served_name="other", port=1)
    watched.reloader.look()
    assert watched.live.contract == CONTRACT.model_copy(update={"admission": admission, "max_retries": 9})
    assert watched.told == [("contract", "changed")]
    assert "only a new process takes up" in caplog.text


@pytest.mark.parametrize(
    "bad",
    ["{", "{}", '{"kind": "Gateway", "unknown": 1}', "", "[" * 100_000],
    ids=["cut", "empty", "other", "none", "deep"],
)
def test_refuses_a_bad_contract_once_and_takes_up_a_good_one_after_it(
    tmp_path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    mount(tmp_path, **{"contract.json": bad})
    watched.reloader.look()
    watched.reloader.look()
    assert (watched.told, watched.live.contract) == ([("contract", "refused")], CONTRACT)
    assert "what held before goes on" in caplog.text
    watched.write(max_retries=9)
    watched.reloader.look()
    assert (watched.told[1:], watched.live.contract.max_retries) == ([("contract", "changed")], 9)


def test_a_contract_that_vanishes_changes_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(max_retries=9)
    watched.reloader.look()
    (tmp_path / "..data").unlink()
    watched.reloader.look()
    assert (watched.told[1:], watched.live.contract.max_retries) == ([("contract", "refused")], 9)


def test_a_plain_file_is_looked_at_too(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.file.write_text(CONTRACT.model_copy(update={"max_retries": 9}).model_dump_json(by_alias=True))
    watched.reloader.look()
    assert watched.live.contract.max_retries == 9


def test_keys_come_and_go(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    watched = Watched(tmp_path, CONTRACT.model_copy(update={"keys_folder": str(keys)}))
    watched.write()
    for names in ({"a", "b"}, {"b", "c"}, set[str]()):
        mount(keys, **{name: f"sk-{name}" for name in names})
        watched.reloader.look()
        assert set(watched.live.keys.values()) == names
    assert watched.told == [("keys", "changed")] * 3


def test_a_folder_of_keys_that_is_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(tmp_path, CONTRACT.model_copy(update={"keys_folder": str(tmp_path / "none")}))
    watched.reloader.look()
    assert ("keys", "refused") in watched.told
    assert "No such file" in caplog.text


def test_every_live_field_is_a_field_and_comes_from_the_new_contract() -> None:
    assert GatewayContract.model_fields.keys() >= LIVE
    written = CONTRACT.model_copy(update={"admission": Admission(queue_length=7), "port": 1})
    assert live_update(CONTRACT, written).admission == written.admission
    assert live_update(CONTRACT, written).port == CONTRACT.port
    assert without_live(written) == CONTRACT.model_copy(update={"port": 1})


# In a gateway


@dataclass
class World:
    gateway: Gateway
    engine: FakeEngine
    client: aiohttp.ClientSession
    folder: Path

    async def ask(self, key: str) -> int:
        url = f"http://127.0.0.1:{self.gateway.port}/v1/completions"
        document = {"model": "fake", "prompt": [1], "max_tokens": 2}
        async with self.client.post(url, json=document, headers={"authorization": f"Bearer {key}"}) as answer:
            await answer.read()
            return answer.status

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.registry.get_sample_value(name, labels) or 0.0

    def write(self, **fields: Any) -> None:
        written = self.gateway._live.contract.model_copy(update=fields)
        mount(self.folder, **{"contract.json": written.model_dump_json(by_alias=True)})


async def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """A gateway that looks at its files again soon. Its keys are in `keys`, its contract is in `contract`."""
    keys, contract = folder / "keys", folder / "contract"
    keys.mkdir()
    contract.mkdir()
    mount(keys, a="sk-a")
    async with AsyncExitStack() as stack:
        engine = FakeEngine(Script())
        url = await stack.enter_async_context(engine.serving())
        value = CONTRACT.model_copy(
            update={
                "discovery": FixedDiscovery(endpoints=(Endpoint(name="e", url=url, role="serve", revision="r"),)),
                "keys_folder": str(keys),
                "access_log": False,
                "drain_seconds": 1.0,
                "port": 0,
                "admin_port": 0,
            }
        )
        mount(contract, **{"contract.json": value.model_dump_json(by_alias=True)})
        file = ContractFile(
            contract / "contract.json", lambda file: GatewayContract.model_validate_json(file.read_bytes())
        )
        gateway = Gateway(value, file=file)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: any(slot.routable for slot in gateway.fleet.slots()))
        yield World(gateway, engine, client, contract)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.02)


async def test_a_key_that_is_rotated_counts_from_then_on_and_no_request_is_lost(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.engine.become(ttft=0.3)
        under_way = asyncio.create_task(w.ask("sk-a"))
        await until(lambda: w.engine.running)
        mount(tmp_path / "keys", b="sk-b")
        await until(lambda: w.metric("headrace_gateway_reloads_total", what="keys", result="changed") == 2)
        assert (await w.ask("sk-a"), await w.ask("sk-b"), await under_way) == (401, 200, 200)
        assert w.metric("headrace_gateway_api_keys") == 1


async def test_limits_hold_from_the_moment_they_are_written(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert [await w.ask("sk-a") for _ in range(3)] == [200, 200, 200]
        w.write(admission=Admission(keys={"a": KeyRule(limits=Limit(requests_per_minute=1))}))
        await until(lambda: w.metric("headrace_gateway_reloads_total", what="contract", result="changed") == 1)
        assert [await w.ask("sk-a") for _ in range(2)] == [200, 429]
        mount(w.folder, **{"contract.json": "{"})
        await until(lambda: w.metric("headrace_gateway_reloads_total", what="contract", result="refused") == 1)
        assert await w.ask("sk-a") == 429
        w.write(admission=Admission())
        await until(lambda: w.metric("headrace_gateway_reloads_total", what="contract", result="changed") == 2)
        assert await w.ask("sk-a") == 200


async def test_those_who_wait_go_once_a_limit_is_lifted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.write(admission=Admission(total=Limit(max_concurrent=1)))
        await until(lambda: w.gateway._live.contract.admission.total.max_concurrent == 1)
        w.engine.become(fault="stall")
        held = asyncio.create_task(w.ask("sk-a"))
        await until(lambda: w.engine.running)
        waiting = asyncio.create_task(w.ask("sk-a"))
        await until(lambda: w.metric("headrace_gateway_queue_length") == 1)
        w.engine.become(fault="none")
        w.write(admission=Admission())
        assert await waiting == 200
        held.cancel()


async def test_a_step_of_a_canary_is_counted_from_the_moment_it_is_taken_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert await w.ask("sk-a") == 200
        for taken, share in enumerate((10, 50), 1):
            w.write(canary=CanaryShare(revision="r", percent=share, step=str(taken)))
            await until(
                lambda n=taken: w.metric("headrace_gateway_reloads_total", what="contract", result="changed") == n
            )
            assert await w.ask("sk-a") == 200
            url = f"http://127.0.0.1:{w.gateway.admin_port}/figures"
            async with w.client.get(url) as answer:
                told = GatewayFigures.model_validate_json(await answer.read())
            assert told.canary is not None
            assert (told.canary.share.percent, told.canary.share.step) == (share, str(taken))
            assert [one.requests for one in told.canary.before] == [taken]
            assert [one.requests for one in told.roles] == [taken + 1]
