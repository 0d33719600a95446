"""Adapters that an agent fetches from a web server of this machine and gives to a simulated engine."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest

from headrace_runtime.contract import Adapter, AdapterState, Model, ModelCache
from headrace_runtime.engine.fake import FakeEngine
from headrace_runtime.node.adapters import Adapters, Files
from headrace_runtime.node.copies import Copies
from headrace_runtime.node.lora import Routes
from headrace_runtime.node.serve import locate
from headrace_runtime.node.weights import folder_digest

FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": (2).to_bytes(8, "little") + b"{}"}
DIGESTS = {path: hashlib.sha256(body).hexdigest() for path, body in FILES.items()}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "web" / "legal"
    folder.mkdir(parents=True)
    for path, body in FILES.items():
        (folder / path).write_bytes(body)
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {path}\n" for path, digest in DIGESTS.items()))
    with served(tmp_path / "web") as url:
        yield url


def copies_in(cache: Path) -> Copies:
    """Those of the adapters of a model that is mounted."""
    return Copies(Model(source="node:///m", served_name="m", cache=ModelCache(path=str(cache))))


async def settled(tmp_path: Path, adapter: Adapter, engine: FakeEngine, copies: Copies | None) -> AdapterState:
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        adapters = Adapters((adapter,), None, Routes(session, engine.url), Files(tmp_path, partial(locate, copies)))
        await adapters.step()
        while adapters.searching:
            await asyncio.sleep(0.01)
            await adapters.step()
        (state,) = adapters.states()
        adapters.close()
        return state


async def test_an_adapter_is_fetched_into_the_nodes_cache_and_loaded_from_there(tmp_path: Path, url: str) -> None:
    copies = copies_in(tmp_path / "cache")
    engine = FakeEngine()
    async with engine.serving():
        state = await settled(tmp_path, Adapter(name="legal", source=f"{url}/legal/"), engine, copies)
    assert (state.served, state.digest, state.problem) == (True, folder_digest(DIGESTS), "")
    link = tmp_path / engine.adapters.loaded["legal"].removeprefix("~/")
    assert link.resolve().is_relative_to(tmp_path / "cache")
    assert (link / "adapter_config.json").read_bytes() == FILES["adapter_config.json"]


@pytest.mark.parametrize("cached", [True, False])
async def test_an_adapter_that_cannot_be_fetched_is_named(tmp_path: Path, url: str, cached: bool) -> None:
    copies = copies_in(tmp_path / "cache") if cached else None
    engine = FakeEngine()
    async with engine.serving():
        state = await settled(tmp_path, Adapter(name="support", source=f"{url}/support/"), engine, copies)
    assert not state.served
    assert ("404" if cached else "no cache to fetch it into") in state.problem
    assert engine.adapters.loaded == {}
