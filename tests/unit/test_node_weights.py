import hashlib
import subprocess
from pathlib import Path

import pytest

from headrace_runtime.contract import Integrity
from headrace_runtime.node.weights import (
    CancelledError,
    ModelNotFoundError,
    Progress,
    folder_digest,
    read,
)

SOURCE = "node:///models/tiny"
BODIES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "sub/tokenizer.json": b"[]"}
DIGESTS = {path: hashlib.sha256(body).hexdigest() for path, body in BODIES.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for path, body in BODIES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return folder


def test_good_weights_are_verified(folder: Path) -> None:
    progress = Progress()
    state = read(folder, SOURCE, Integrity(files=DIGESTS, digest=folder_digest(DIGESTS)), progress)
    assert state.verified is True
    assert state.problems == ()
    assert state.digest == folder_digest(DIGESTS)
    assert state.bytes_read == state.bytes_total == progress.bytes_read == sum(map(len, BODIES.values()))


def test_the_digest_is_what_sha256sum_gives(folder: Path) -> None:
    listing = "cd $0 && find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    shell = subprocess.run(["bash", "-c", listing, folder], capture_output=True, text=True, check=True)
    assert read(folder, SOURCE, Integrity(), Progress()).digest == f"sha256:{shell.stdout.split()[0]}"


def test_without_a_promise_what_is_found_is_good(folder: Path) -> None:
    assert read(folder, SOURCE, Integrity(), Progress()).verified is True


def test_policy_off_reads_nothing(folder: Path) -> None:
    state = read(folder, SOURCE, Integrity(policy="Off", digest="sha256:other"), Progress())
    assert (state.verified, state.digest, state.bytes_read) == (None, None, 0)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({**DIGESTS, "config.json": "0" * 64}, "config.json: SHA-256 is"),
        ({**DIGESTS, "more.safetensors": "0" * 64}, "more.safetensors: missing"),
        ({k: v for k, v in DIGESTS.items() if k != "config.json"}, "config.json: not in the manifest"),
    ],
)
def test_each_difference_from_the_manifest_is_named(folder: Path, files: dict[str, str], problem: str) -> None:
    state = read(folder, SOURCE, Integrity(files=files), Progress())
    assert state.verified is False
    assert state.problems[0].startswith(problem)


def test_another_digest_than_the_pinned_one_is_a_problem(folder: Path) -> None:
    state = read(folder, SOURCE, Integrity(digest="sha256:" + "0" * 64), Progress())
    assert state.verified is False
    assert "pinned is sha256:000" in state.problems[0]


def test_at_most_ten_problems_are_told(folder: Path) -> None:
    files = {**DIGESTS, **{f"file-{number}": "0" * 64 for number in range(20)}}
    assert len(read(folder, SOURCE, Integrity(files=files), Progress()).problems) == 10


@pytest.mark.parametrize("made", [False, True])
def test_a_missing_or_empty_folder_is_not_found(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "secret-path"
    if made:
        folder.mkdir()
    with pytest.raises(ModelNotFoundError) as error:
        read(folder, SOURCE, Integrity(), Progress())
    assert SOURCE in str(error.value)
    assert "secret-path" not in str(error.value)


def test_a_link_inside_the_folder_counts_as_its_file(folder: Path) -> None:
    (folder / "link.json").symlink_to("config.json")
    files = {**DIGESTS, "link.json": DIGESTS["config.json"]}
    assert read(folder, SOURCE, Integrity(files=files), Progress()).verified is True


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("../outside", "x: a symbolic link that leads out of the model's folder"),
        ("nowhere", "x: a symbolic link to no file"),
        ("sub", "x: a symbolic link to a folder"),
        ("..", "x: a symbolic link to a folder"),
    ],
)
def test_a_link_to_anything_else_is_not_followed(folder: Path, target: str, problem: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "x").symlink_to(target)
    state = read(folder, SOURCE, Integrity(), Progress())
    assert state.problems == (problem,)
    assert state.digest == folder_digest(DIGESTS)


def test_a_reading_can_be_cancelled(folder: Path) -> None:
    progress = Progress()
    progress.cancelled.set()
    with pytest.raises(CancelledError):
        read(folder, SOURCE, Integrity(), progress)
