import hashlib
import os
import time
from pathlib import Path

import pytest

from headrace_runtime.node.hashing import CHUNK_BYTES, CancelledError, Progress, bytes_per_second, file_digest


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize(
    "size", [0, 1, 4095, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]
)
def test_the_digest_is_sha256_whatever_the_size_and_the_way(tmp_path: Path, size: int, past_cache: bool) -> None:
    body = os.urandom(size)
    (tmp_path / "file").write_bytes(body)
    progress = Progress()
    assert file_digest(tmp_path / "file", progress, past_cache=past_cache) == hashlib.sha256(body).hexdigest()
    assert progress.bytes_read == size


def test_a_file_system_without_reads_past_the_cache_is_read_through_it() -> None:
    body = Path("/proc/self/cmdline")  # a file of a kind that has none
    assert file_digest(body, Progress(), past_cache=True) == hashlib.sha256(body.read_bytes()).hexdigest()


def test_a_rate_holds_a_reading_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    asked: list[float] = []

    class Waits:
        def wait(self, seconds: float) -> bool:
            asked.append(seconds)
            return False

        def is_set(self) -> bool:
            return False

    progress = Progress(rate=4.0, cancelled=Waits(), clock=lambda: 100.0)  # type: ignore[arg-type]
    file_digest(tmp_path / "file", progress)
    progress.add(2)
    assert asked == [10 / 4, 12 / 4]


@pytest.mark.parametrize("rate", [None, 1.0])
def test_a_reading_ends_when_it_is_cancelled(tmp_path: Path, rate: float | None) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    progress = Progress(rate=rate)
    progress.cancelled.set()
    with pytest.raises(CancelledError):
        file_digest(tmp_path / "file", progress)


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    for past_cache in (False, True):
        with pytest.raises(FileNotFoundError):
            file_digest(tmp_path / "gone", Progress(), past_cache=past_cache)


@pytest.mark.slow
def test_reading_a_file_costs_less_of_a_core_than_hashing_it(tmp_path: Path) -> None:
    body = os.urandom(128 << 20)
    (tmp_path / "file").write_bytes(body)
    began = time.thread_time()
    hashlib.sha256(body).digest()
    alone = len(body) / (time.thread_time() - began)
    speed = max(bytes_per_second(tmp_path / "file") for _ in range(3))
    print(f"SHA-256, bytes per second of one core: {speed:.2e} of a cached file, {alone:.2e} of memory")
    assert speed > alone / 2


def test_an_empty_file_has_no_speed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="empty"):
        bytes_per_second(tmp_path / "file")
