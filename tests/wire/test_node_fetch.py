"""An agent's model from its source: fetched, verified, put where the engine finds it, fetched again when need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_runtime.contract import Integrity, Model, ModelCache, NodeContract
from headrace_runtime.contract.node import Engine
from headrace_runtime.models import http
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
from headrace_runtime.node import custody as custodies
from headrace_runtime.node.custody import Custody
from headrace_runtime.node.decide import Verdict
from tests.wire.model_servers import Files, folder, serving

BODIES = {"config.json": b"{}", "tokenizer.json": b"t" * 2_000_000}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(custodies, "LOOK_SECONDS", 0.01)


@pytest.fixture
def files() -> Files:
    return Files(folder(BODIES))


@pytest.fixture
def server(files: Files) -> Iterator[str]:
    with serving(files) as url:
        yield url


@asynccontextmanager
async def keeping(url: str, place: Path, size: int | None = None, digest: str | None = None) -> AsyncIterator[Custody]:
    cache = ModelCache(path=str(place / "cache"), size_bytes=size)
    integrity = Integrity(digest=digest)
    source = f"{url}/model/"
    model = Model(source=source, path=str(place / "model"), served_name="m", cache=cache, integrity=integrity)
    contract = NodeContract(namespace="demo", deployment="c", revision="r", role="serve", model=model, engine=Engine())
    custody = Custody(contract, lambda: None, look_again_seconds=0.05)
    task = asyncio.create_task(custody.run())
    try:
        yield custody
    finally:
        custody.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_model_is_fetched_verified_and_stands_where_the_engine_looks(
    server: str, files: Files, tmp_path: Path
) -> None:
    files.hold.clear()
    async with keeping(server, tmp_path) as custody:
        assert custody.verdict == "Fetching"
        await until(lambda: custody.state().fetched > 0)
        assert 0 < custody.state().fetched < custody.state().fetch_total == 2_000_002
        files.hold.set()
        await until(lambda: custody.verdict == "Usable")
        state = custody.state()
        assert (state.fetched, state.fetch_total, state.verified) == (2_000_002, 2_000_002, True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == BODIES


async def test_a_fetch_that_failed_is_told_and_tried_again(server: str, files: Files, tmp_path: Path) -> None:
    missing = files.bodies.pop("model/SHA256SUMS")
    async with keeping(server, tmp_path) as custody:
        await until(lambda: isinstance(custody.verdict, Verdict))
        assert isinstance(custody.verdict, Verdict)
        assert custody.verdict.reason == "FetchFailed"
        assert "answered 404" in custody.verdict.message
        files.hold.clear()
        files.bodies["model/SHA256SUMS"] = missing
        await until(lambda: custody.verdict == "Fetching")
        files.hold.set()
        await until(lambda: custody.verdict == "Usable")


async def test_a_cache_that_is_too_small_is_said_to_be(server: str, tmp_path: Path) -> None:
    async with keeping(server, tmp_path, size=1_000_000) as custody:
        await until(lambda: isinstance(custody.verdict, Verdict))
        assert isinstance(custody.verdict, Verdict)
        assert custody.verdict.reason == "CacheTooSmall"
        assert str(tmp_path) not in custody.verdict.message


async def test_a_damaged_copy_is_fetched_again(server: str, files: Files, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", None)
    copy = fetch(f"{server}/model/", cache, Credentials({}), Progress())
    async with keeping(server, tmp_path / "first") as custody:
        await until(lambda: custody.verdict == "Usable")
        digest = custody.state().digest
    (copy / "tokenizer.json").chmod(0o644)
    (copy / "tokenizer.json").write_bytes(b"T" * 2_000_000)
    cache.release(copy)
    files.sent = 0
    async with keeping(server, tmp_path, digest=digest) as custody:
        await until(lambda: custody.verdict == "Usable")
    assert files.sent > 2_000_000
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == BODIES


async def test_a_model_in_use_is_not_removed_while_its_agent_lives(server: str, files: Files, tmp_path: Path) -> None:
    files.bodies.update(folder({"config.json": b"x" * 2_000_000}, "other"))
    async with keeping(server, tmp_path, size=3_000_000) as custody:
        await until(lambda: custody.verdict == "Usable")
        other = Cache(tmp_path / "cache", 3_000_000)
        with pytest.raises(Exception, match=r"2\.0 MB of that is in use"):
            await asyncio.to_thread(fetch, f"{server}/other/", other, Credentials({}), Progress())
        assert (tmp_path / "model" / "config.json").read_bytes() == b"{}"


async def test_an_agent_that_leaves_ends_its_fetch(server: str, files: Files, tmp_path: Path) -> None:
    files.hold.clear()
    async with keeping(server, tmp_path) as custody:
        await until(lambda: custody.state().fetched > 0)
        custody.cancel()
        files.hold.set()
    assert not (tmp_path / "model").exists()
