"""The agent's custody of a model that is fetched, from a web server of this machine: damaged copies, refused ones, and
servers that are away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import Integrity, Model, ModelCache, NodeContract
from headrace_runtime.node import weights
from headrace_runtime.node.custody import Custody
from headrace_runtime.node.decide import Verdict
from tests import models


@pytest.fixture
def source(tmp_path: Path) -> Path:
    models.publish(tmp_path / "source")
    return tmp_path / "source"


class Fetched:
    def __init__(self, root: Path, port: int, **integrity: Any) -> None:
        self.place, self.cache = root / "run" / "model", root / "cache"
        self.place.parent.mkdir(exist_ok=True)
        model = {
            "source": f"http://127.0.0.1:{port}/",
            "path": str(self.place),
            "served_name": "m",
            "cache": ModelCache(path=str(self.cache)),
            "integrity": Integrity(**integrity),
        }
        names = {"namespace": "demo", "deployment": "c", "revision": "r", "role": "serve", "engine": {}}
        contract = NodeContract.model_validate({**names, "model": Model.model_validate(model)})
        self.custody = Custody(contract, lambda: None, look_again_seconds=0.05)

    async def until(self, condition: Callable[[Custody], object]) -> None:
        async with asyncio.timeout(40):
            while not condition(self.custody):
                await asyncio.sleep(0.02)

    async def usable(self) -> None:
        await self.until(lambda kept: kept.verdict == "Usable")

    def flip(self) -> None:
        file = self.place / "model.safetensors"
        file.chmod(0o644)
        body = bytearray(file.read_bytes())
        body[-1] ^= 1
        file.write_bytes(body)

    def whole(self) -> bool:
        return all((self.place / path).read_bytes() == body for path, body in models.FILES.items())


@asynccontextmanager
async def fetching(root: Path, port: int, **integrity: Any) -> AsyncIterator[Fetched]:
    fetched = Fetched(root, port, **integrity)
    task = asyncio.create_task(fetched.custody.run())
    try:
        yield fetched
    finally:
        fetched.custody.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refused(reason: str) -> Callable[[Custody], bool]:
    return lambda kept: isinstance(kept.verdict, Verdict) and kept.verdict.reason == reason


async def test_a_model_is_fetched_read_and_linked(tmp_path: Path, source: Path) -> None:
    with models.served(source) as port:
        async with fetching(tmp_path, port) as fetched:
            assert fetched.custody.verdict == "Fetching"
            await fetched.usable()
            state = fetched.custody.state()
            assert (state.verified, state.fetched, state.fetch_total) == (True, state.bytes_total, state.bytes_total)
            assert fetched.whole()


async def test_a_copy_that_is_there_needs_no_server(tmp_path: Path, source: Path) -> None:
    with models.served(source) as port:
        async with fetching(tmp_path, port) as fetched:
            await fetched.usable()
            digest = fetched.custody.state().digest
    async with fetching(tmp_path, port, digest=digest) as fetched:
        await fetched.usable()
        assert fetched.custody.state().digest == digest


async def test_a_damaged_copy_is_thrown_away_and_fetched_again(tmp_path: Path, source: Path) -> None:
    with models.served(source) as port:
        async with fetching(tmp_path, port, rescan_seconds=0.05) as fetched:
            await fetched.usable()
            digest = fetched.custody.state().digest
            fetched.custody.engine_started()
            fetched.flip()
            await fetched.until(refused("DigestMismatch"))
            assert not fetched.whole(), "nothing is removed under a running engine"
            fetched.custody.engine_ended()
            await fetched.usable()
            assert fetched.whole()
        async with fetching(tmp_path, port, digest=digest) as fetched:
            await fetched.usable()
            fetched.flip()
        async with fetching(tmp_path, port, digest=digest) as fetched:
            await fetched.usable()
            assert fetched.whole()


async def test_what_the_source_itself_gives_is_not_fetched_twice(tmp_path: Path, source: Path) -> None:
    with models.served(source) as port:
        async with fetching(tmp_path, port, digest="sha256:" + "0" * 64) as fetched:
            await fetched.until(refused("DigestMismatch"))
            (copy,) = (path for path in fetched.cache.iterdir() if path.is_dir())
            before = copy.stat().st_ino
            await asyncio.sleep(0.3)
            assert copy.stat().st_ino == before
            assert refused("DigestMismatch")(fetched.custody)


async def test_a_fetched_pickle_is_refused(tmp_path: Path, source: Path) -> None:
    models.publish(source, {**models.FILES, "pytorch_model.bin": models.pickled(tmp_path / "loaded")})
    with models.served(source) as port:
        async with fetching(tmp_path, port) as fetched:
            await fetched.until(refused("UnsafeFiles"))
        async with fetching(tmp_path, port, allow_pickle=True) as fetched:
            await fetched.usable()
    assert not (tmp_path / "loaded").exists()


async def test_a_source_that_is_no_model_is_named_until_it_is_one(tmp_path: Path, source: Path) -> None:
    sums = (source / "SHA256SUMS").read_bytes()
    (source / "SHA256SUMS").unlink()
    with models.served(source) as port:
        async with fetching(tmp_path, port) as fetched:
            await fetched.until(refused("FetchFailed"))
            (source / "SHA256SUMS").write_bytes(sums)
            await fetched.usable()


async def test_what_nobody_touched_in_this_boot_is_not_read_where_that_is_trusted(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(path: Path, *_: object, **__: object) -> str:
        raise AssertionError(path)

    with models.served(source) as port:
        async with fetching(tmp_path, port) as fetched:
            await fetched.usable()
            read = fetched.custody.state()
            assert read.verified_at is not None
        with monkeypatch.context() as patched:
            patched.setattr(weights, "file_digest", never)
            async with fetching(tmp_path, port, trust_unchanged="Boot") as fetched:
                await fetched.usable()
                state = fetched.custody.state()
                assert (state.digest, state.verified) == (read.digest, True)
                assert state.verified_at is not None
                assert state.verified_at <= read.verified_at, "nobody has read them since"
        fetched.flip()
        async with fetching(tmp_path, port, trust_unchanged="Boot", digest=read.digest) as fetched:
            await fetched.usable()
            assert fetched.whole(), "a file that was touched is read, and was fetched again"
