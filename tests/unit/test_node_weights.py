import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace_runtime.contract import Integrity
from headrace_runtime.models.errors import CancelledError
from headrace_runtime.node import weights
from headrace_runtime.node.hashing import file_digest
from headrace_runtime.node.weights import (
    Manner,
    ModelNotFoundError,
    Progress,
    Reading,
    examine,
    folder_digest,
    read,
)
from tests import models

SOURCE = "node:///models/tiny"
DIGESTS = {path: hashlib.sha256(body).hexdigest() for path, body in models.FILES.items()}
SIGNED = Path(__file__).parents[1] / "cases/signed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.write(tmp_path / "model")


def test_good_weights_are_verified(folder: Path) -> None:
    progress = Progress()
    state = read(folder, SOURCE, Integrity(files=DIGESTS, digest=folder_digest(DIGESTS)), progress)
    assert state.verified is True
    assert state.problems == ()
    assert state.digest == folder_digest(DIGESTS)
    assert state.bytes_read == state.bytes_total == progress.bytes_read == sum(map(len, models.FILES.values()))


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
        ("x", "x: a symbolic link to no file"),
    ],
)
def test_a_link_to_anything_else_is_not_followed(folder: Path, target: str, problem: str) -> None:
    (folder.parent / "outside").write_text("secret")
    (folder / "x").symlink_to(target)
    state = read(folder, SOURCE, Integrity(), Progress())
    assert (state.reason, state.problems, state.bytes_read) == ("UnsafeFiles", (problem,), 0)
    assert read(folder, SOURCE, Integrity(policy="Warn"), Progress()).digest == folder_digest(DIGESTS)


def test_a_reading_can_be_cancelled(folder: Path) -> None:
    progress = Progress()
    progress.cancelled.set()
    with pytest.raises(CancelledError):
        read(folder, SOURCE, Integrity(), progress)


def test_pickles_are_refused_and_let_in_where_that_was_asked_for(folder: Path) -> None:
    marker = folder.parent / "loaded"
    (folder / "pytorch_model.bin").write_bytes(models.pickled(marker))
    state = read(folder, SOURCE, Integrity(), Progress())
    assert (state.verified, state.reason, state.digest) == (False, "UnsafeFiles", None)
    assert state.problems[0].startswith("pytorch_model.bin: .bin files are pickles")
    assert read(folder, SOURCE, Integrity(allow_pickle=True), Progress()).verified is True
    assert not marker.exists()


def test_truncated_weights_are_refused_before_anything_is_hashed(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)
    state = read(folder, SOURCE, Integrity(), Progress())
    assert (state.verified, state.reason, state.bytes_read) == (False, "FilesDamaged", 0)
    assert state.problems[0].startswith("model.safetensors: truncated")


def test_with_a_warning_all_that_is_wrong_is_told(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)
    (folder / "x.pt").touch()
    state = read(folder, SOURCE, Integrity(policy="Warn", files=DIGESTS), Progress())
    assert (state.verified, state.reason) == (False, "UnsafeFiles")
    assert [problem.partition(":")[0] for problem in state.problems] == [
        "x.pt",
        "model.safetensors",
        "model.safetensors",
        "x.pt",
    ]


def test_a_name_that_no_status_could_tell_is_refused(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9")).mkdir()
    (folder / os.fsdecode(b"caf\xe9/a.py")).touch()
    state = read(folder, SOURCE, Integrity(), Progress())
    assert state.problems == ("caf\\udce9/a.py: a name that is not UTF-8",)
    assert "udce9" in state.model_dump_json()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_rights_is_named(folder: Path) -> None:
    (folder / "config.json").chmod(0)
    state = read(folder, SOURCE, Integrity(), Progress())
    assert state.problems == ("config.json: cannot be read: Permission denied",)


def test_a_file_that_cannot_be_read_is_named_once_and_gives_no_digest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, progress: Progress, *, past_cache: bool) -> str:
        if path.name == "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return file_digest(path, progress, past_cache=past_cache)

    monkeypatch.setattr(weights, "file_digest", failing)
    state = read(folder, SOURCE, Integrity(files=DIGESTS, digest="sha256:other"), Progress())
    assert (state.digest, state.reason) == (None, "FilesDamaged")
    assert state.problems == ("config.json: cannot be read: Input/output error",)


# ---- signatures


def signed(tmp_path: Path, bundle: str = "p256.sig") -> Path:
    folder = Path(shutil.copytree(SIGNED / "model", tmp_path / "signed"))
    shutil.copy(SIGNED / bundle, folder / "model.sig")
    return folder


def by(key: str = "p256.pub", **more: Any) -> Integrity:
    return Integrity(signer_key_file=str(SIGNED / key), **more)


def test_a_signed_model_is_verified(tmp_path: Path) -> None:
    state = read(signed(tmp_path), SOURCE, by(), Progress())
    assert (state.verified, state.problems) == (True, ())
    assert state.bytes_read == state.bytes_total > 0


@pytest.mark.parametrize(
    ("harm", "reason", "says"),
    [
        (
            lambda folder: (folder / "model.sig").unlink(),
            "SignatureInvalid",
            "there is no model.sig beside the weights",
        ),
        (lambda folder: (folder / "model.sig").write_text("{"), "SignatureInvalid", "no bundle of model-signing"),
        (lambda folder: shutil.copy(SIGNED / "shards.sig", folder / "model.sig"), "SignatureInvalid", "whole files"),
        (lambda folder: (folder / "config.json").write_text("{}"), "DigestMismatch", "config.json: SHA-256 is"),
        (lambda folder: (folder / "sub/tokenizer.json").unlink(), "DigestMismatch", "sub/tokenizer.json: missing"),
        (lambda folder: (folder / "a.py").touch(), "DigestMismatch", "a.py: not in the signed list"),
    ],
)
def test_what_is_not_as_it_was_signed_is_refused(
    tmp_path: Path, harm: Callable[[Path], object], reason: str, says: str
) -> None:
    folder = signed(tmp_path)
    harm(folder)
    state = read(folder, SOURCE, by(), Progress())
    assert (state.verified, state.reason) == (False, reason)
    assert says in state.problems[0]


def test_what_the_signer_ignored_may_be_there(tmp_path: Path) -> None:
    folder = signed(tmp_path, "ignoring.sig")
    models.write(folder, {"drafts/note.txt": b"any", ".gitattributes": b"any"})
    assert read(folder, SOURCE, by(), Progress()).verified is True


@pytest.mark.parametrize(("key", "says"), [("other.pub", "another key"), ("gone.pub", "key cannot be read: No such")])
def test_another_key_or_none_verifies_nothing(tmp_path: Path, key: str, says: str) -> None:
    state = read(signed(tmp_path), SOURCE, by(key), Progress())
    assert (state.verified, state.reason, state.bytes_read) == (False, "SignatureInvalid", 0)
    assert says in state.problems[0]
    assert str(SIGNED) not in state.problems[0]


def test_signature_manifest_and_pinned_digest_must_all_hold(tmp_path: Path) -> None:
    folder = signed(tmp_path)
    state = read(folder, SOURCE, by(digest="sha256:" + "0" * 64), Progress())
    assert "pinned is sha256:000" in state.problems[0]
    assert read(folder, SOURCE, by(digest=read(folder, SOURCE, by(), Progress()).digest), Progress()).verified is True


# ---- read again


def again(folder: Path, first: Reading, integrity: Integrity | None = None) -> Reading:
    manner = Manner(earlier=first.digests, background=True)
    return examine(folder, SOURCE, integrity or Integrity(), Progress(), manner)


def test_nothing_changed_since_the_first_reading(folder: Path) -> None:
    first = examine(folder, SOURCE, Integrity(), Progress())
    second = again(folder, first)
    assert (second.problems, second.state, second.digests) == ((), first.state, first.digests)


def test_a_flipped_bit_since_the_first_reading_is_a_change(folder: Path) -> None:
    first = examine(folder, SOURCE, Integrity(), Progress())
    flip(folder / "model.safetensors")
    (problem,) = again(folder, first, Integrity(digest=first.state.digest)).problems
    assert (problem.reason, problem.changes) == ("DigestMismatch", True)
    assert problem.message.startswith("model.safetensors: SHA-256 is ")


def test_what_is_gone_or_new_is_no_change_of_what_was_loaded(folder: Path) -> None:
    first = examine(folder, SOURCE, Integrity(), Progress())
    (folder / "config.json").unlink()
    (folder / "new.json").touch()
    found = again(folder, first).problems
    assert [problem.message for problem in found] == ["config.json: missing", "new.json: not in the first reading"]
    assert not any(problem.changes for problem in found)


def test_a_pickle_that_is_new_or_a_key_that_is_another_is_no_change_of_what_was_loaded(tmp_path: Path) -> None:
    folder = signed(tmp_path, "ignoring.sig")
    first = examine(folder, SOURCE, by(), Progress())
    models.write(folder, {"drafts/x.bin": b""})
    second = again(folder, first, by("other.pub"))
    assert {problem.reason for problem in second.problems} == {"UnsafeFiles", "SignatureInvalid", "DigestMismatch"}
    assert not any(problem.changes for problem in second.problems)
    (folder / "model.safetensors").write_bytes(models.pickled(tmp_path / "loaded"))
    assert any(problem.changes for problem in again(folder, first, by("other.pub")).problems)


def test_a_file_that_several_lists_name_is_told_of_once(folder: Path) -> None:
    promised = Integrity(files=DIGESTS, digest=folder_digest(DIGESTS))
    first = examine(folder, SOURCE, promised, Progress())
    flip(folder / "model.safetensors")
    (problem,) = again(folder, first, promised).problems
    assert "in the manifest it is" in problem.message


def test_a_warning_that_was_given_is_given_again(folder: Path) -> None:
    warned = Integrity(policy="Warn", digest="sha256:" + "0" * 64)
    first = examine(folder, SOURCE, warned, Progress())
    assert again(folder, first, warned).state.problems == first.state.problems != ()


def test_files_that_are_trusted_are_not_read(folder: Path) -> None:
    first = examine(folder, SOURCE, Integrity(), Progress())
    flip(folder / "model.safetensors")
    trusting = examine(folder, SOURCE, Integrity(), Progress(), Manner(trusted=first.digests))
    assert trusting.state.digest == first.state.digest


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
