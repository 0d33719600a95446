"""The model's folder over the life of an agent: what lets an engine start, what takes it out, what a repair does."""

import asyncio
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import Engine, Integrity, Model, NodeContract
from headrace_runtime.node.custody import Custody
from headrace_runtime.node.decide import Verdict
from tests import models

SIGNED = Path(__file__).parents[1] / "cases/signed"


class Kept:
    """A custody at work on a folder."""

    def __init__(self, folder: Path, engine: Engine, **integrity: Any) -> None:
        self.folder = folder
        model = Model(source="node:///m", path=str(folder), served_name="m", integrity=Integrity(**integrity))
        contract = NodeContract(
            namespace="demo", deployment="c", revision="r", role="serve", model=model, engine=engine
        )
        self.custody = Custody(contract, lambda: None, look_again_seconds=0.05)

    async def until(self, condition: Callable[[Custody], object]) -> None:
        async with asyncio.timeout(30):
            while not condition(self.custody):
                await asyncio.sleep(0.01)

    async def started(self) -> None:
        """An engine was let start."""
        await self.until(lambda kept: kept.verdict == "Usable")
        self.custody.engine_started()

    def flip(self, path: str = "model.safetensors") -> None:
        body = bytearray((self.folder / path).read_bytes())
        body[-1] ^= 1
        (self.folder / path).write_bytes(body)


@asynccontextmanager
async def keeping(folder: Path, engine: Engine | None = None, **integrity: Any) -> AsyncIterator[Kept]:
    kept = Kept(folder, engine or Engine(), **integrity)
    task = asyncio.create_task(kept.custody.run())
    try:
        yield kept
    finally:
        kept.custody.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.write(tmp_path / "model")


def refused(reason: str) -> Callable[[Custody], bool]:
    return lambda kept: isinstance(kept.verdict, Verdict) and kept.verdict.reason == reason


async def test_good_weights_are_usable_and_dated(folder: Path) -> None:
    before = time.time()
    async with keeping(folder) as kept:
        await kept.started()
        state = kept.custody.state()
        assert state.verified is True
        assert state.verified_at is not None
        assert before <= state.verified_at <= time.time()
        assert state.notes == ()


async def test_without_a_check_nothing_is_dated(folder: Path) -> None:
    async with keeping(folder, policy="Off", rescan_seconds=0.01) as kept:
        await kept.started()
        assert (kept.custody.state().verified, kept.custody.state().verified_at) == (None, None)


async def test_a_missing_folder_is_looked_for_again(tmp_path: Path) -> None:
    async with keeping(tmp_path / "model") as kept:
        await kept.until(refused("ModelNotFound"))
        models.write(tmp_path / "model")
        await kept.started()


async def test_refused_weights_are_let_in_once_they_are_repaired(folder: Path) -> None:
    digests = {path: hashlib.sha256(body).hexdigest() for path, body in models.FILES.items()}
    async with keeping(folder, files=digests) as kept:
        await kept.started()
    async with keeping(folder, files=digests) as kept:
        kept.flip()
        await kept.until(refused("DigestMismatch"))
        assert kept.custody.state().verified is False
        kept.flip()
        await kept.started()
        assert kept.custody.state().verified is True


async def test_the_right_key_lets_in_what_another_refused(tmp_path: Path) -> None:
    signed = Path(shutil.copytree(SIGNED / "model", tmp_path / "model"))
    shutil.copy(SIGNED / "p256.sig", signed / "model.sig")
    key = Path(shutil.copy(SIGNED / "other.pub", tmp_path / "key"))
    async with keeping(signed, signer_key_file=str(key)) as kept:
        await kept.until(refused("SignatureInvalid"))
        shutil.copy(SIGNED / "p256.pub", key)
        await kept.started()


async def test_a_quiet_rescan_moves_the_date_and_nothing_else(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=0.02) as kept:
        await kept.started()
        first = kept.custody.state()
        await kept.until(lambda kept: kept.state().verified_at != first.verified_at)
        assert kept.custody.state().model_copy(update={"verified_at": first.verified_at}) == first
        assert kept.custody.verdict == "Usable"


async def test_a_flipped_bit_takes_a_running_engine_out_until_it_is_repaired(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=0.02) as kept:
        await kept.started()
        before = time.monotonic()
        kept.flip()
        await kept.until(refused("DigestMismatch"))
        assert before <= kept.custody.refused_at <= time.monotonic()
        assert kept.custody.state().problems[0].startswith("model.safetensors: SHA-256 is ")
        kept.flip()  # while the engine still drains nothing is let in
        await asyncio.sleep(0.2)
        assert refused("DigestMismatch")(kept.custody)
        kept.custody.engine_ended()
        await kept.started()


async def test_repair_is_measured_by_what_was_promised_and_not_by_what_is_there(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=0.02) as kept:
        await kept.started()
        kept.flip()
        await kept.until(refused("DigestMismatch"))
        kept.custody.engine_ended()
        kept.flip("config.json")  # touched, and still not what the first engine was started upon
        await asyncio.sleep(0.3)
        assert refused("DigestMismatch")(kept.custody)


async def test_with_a_warning_a_flipped_bit_is_only_told(folder: Path) -> None:
    async with keeping(folder, policy="Warn", rescan_seconds=0.02) as kept:
        await kept.started()
        kept.flip()
        await kept.until(lambda kept: kept.state().verified is False)
        assert kept.custody.verdict == "Usable"


async def test_a_folder_that_is_away_is_told_and_takes_no_engine_out(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=0.02) as kept:
        await kept.started()
        folder.rename(folder.with_name("away"))
        await kept.until(lambda kept: kept.state().notes)
        assert kept.custody.verdict == "Usable"
        assert kept.custody.state().verified is True
        folder.with_name("away").rename(folder)
        await kept.until(lambda kept: not kept.state().notes)


async def test_an_engine_that_ends_in_doubt_is_followed_by_a_whole_reading(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=0.02) as kept:
        await kept.started()
        (folder / "new.json").touch()
        await kept.until(lambda kept: kept.state().notes)
        kept.custody.engine_ended()
        assert kept.custody.verdict == "Reading", "not even for the moment until the next step"
        await kept.until(refused("DigestMismatch"))
        (folder / "new.json").unlink()
        await kept.started()


async def test_an_engine_that_ends_without_doubt_starts_again_at_once(folder: Path) -> None:
    async with keeping(folder, rescan_seconds=60) as kept:
        await kept.started()
        kept.custody.engine_ended()
        assert kept.custody.verdict == "Usable"


async def test_code_is_told_where_an_engine_runs_it(folder: Path) -> None:
    (folder / "modeling.py").touch()
    async with keeping(folder) as kept:
        await kept.started()
        assert kept.custody.state().notes == ()
    async with keeping(folder, Engine(extra_args={"trust_remote_code": True})) as kept:
        await kept.started()
        assert kept.custody.state().notes == ("the engine runs code from the model's folder: modeling.py",)
