"""A fetch that is killed, at any moment: nothing half is shown, and the next one goes on where it was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.transfer import PIECE_BYTES
from local.programs import wait_until
from tests.wire.model_servers import Files, folder, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PIECES = 4
BODIES = {"model.safetensors": random.Random(3).randbytes(PIECES * PIECE_BYTES - 5), "config.json": b"{}"}


MEASURED = """
import re, resource, sys, time
from pathlib import Path
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
cache = Cache(Path(sys.argv[2]), None)
began, before = time.monotonic(), time.process_time()
fetch(sys.argv[1], cache, Credentials({}), Progress())
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
print(time.monotonic() - began, time.process_time() - before, peak)
"""


@pytest.fixture(scope="module")
def served() -> dict[str, bytes]:
    return folder(BODIES)


@pytest.fixture
def files(served: dict[str, bytes]) -> Files:
    return Files(dict(served))


@pytest.fixture
def server(files: Files) -> Iterator[str]:
    with serving(files) as url:
        yield url


def started(url: str, cache: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "headrace_runtime", "fetch", f"{url}/model/", "--into", str(cache)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(url: str, cache: Path) -> None:
    """Fetch it in the end, and see that it is right."""
    process = started(url, cache)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    path = Path(out.decode().strip())
    assert {file.name: file.read_bytes() for file in path.iterdir()} == BODIES
    left = {entry.name for entry in cache.iterdir()}
    assert left == {path.name, f"{path.name}.lock", f"{path.name}.record.json", "room.lock"}


def shown(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and "." not in path.name]


def test_pieces_that_were_written_are_not_fetched_again(server: str, files: Files, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    last = f"bytes={(PIECES - 1) * PIECE_BYTES}-"
    files.held = lambda asked: asked.startswith(last)
    files.hold.clear()
    process = started(server, cache)

    def journal() -> str:
        return "".join(path.read_text() for path in cache.glob("*.partial/journal"))

    wait_until("all but one piece are written", lambda: journal().count("\np 0") >= PIECES - 1, 120)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert shown(cache) == []
    files.hold.set()
    files.requests.clear()
    finish(server, cache)
    parts = [asked for path, asked, _ in files.requests if path.endswith("safetensors") and asked != "bytes=0-0"]
    assert [asked.startswith(last) for asked in parts] == [True]


def test_kills_at_random_moments_leave_nothing_half(server: str, files: Files, tmp_path: Path) -> None:
    cache, chance = tmp_path / "cache", random.Random(4)
    files.cut_after = 3_000_000
    for _ in range(6):
        process, enough = started(server, cache), files.sent + chance.randrange(40_000_000)
        wait_until("some was sent", lambda: files.sent >= enough or process.poll() is not None, 120, 0.005)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        assert all((path / "model.safetensors").read_bytes() == BODIES["model.safetensors"] for path in shown(cache))
    finish(server, cache)


def test_two_processes_share_one_download_though_the_first_is_killed(server: str, files: Files, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    files.hold.clear()
    first = started(server, cache)
    wait_until("the first downloads", lambda: files.sent > 200_000, 120)
    second = started(server, cache)
    wait_until("the second asks too", lambda: sum("SHA256SUMS" in path for path, _, _ in files.requests) > 1, 120)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=30)
    files.hold.set()
    out, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors.decode()
    held = Cache(cache, None)
    assert str(fetch(f"{server}/model/", held, Credentials({}), Progress())) == out.decode().strip()


def test_a_fetch_takes_little_memory_and_says_how_fast_it_was(server: str, files: Files, tmp_path: Path) -> None:
    words = [sys.executable, "-c", MEASURED, f"{server}/model/", str(tmp_path / "cache")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    seconds, processor, peak = map(float, done.stdout.split())
    size = sum(map(len, BODIES.values()))
    print(f"{size / 1e6 / seconds:.0f} MB/s, {size / 1e6 / processor:.0f} MB for a second of processor, {peak:.0f} MB")
    assert peak < 200


def test_sigterm_ends_a_fetch_and_keeps_what_came(server: str, files: Files, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    files.hold.clear()
    process = started(server, cache)
    wait_until("it downloads", lambda: files.sent > 200_000, 120)
    process.terminate()
    files.hold.set()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the next fetch goes on from here" in errors
    finish(server, cache)
