import hashlib
import os
from pathlib import Path

import pytest

from headrace_runtime.models import record
from headrace_runtime.models.record import File, Record, Stamp

BODY = b"weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in ("a.safetensors", "sub/b.json"):
        (folder / path).write_bytes(BODY)
    return folder


def made(folder: Path) -> Record:
    digest = hashlib.sha256(BODY).hexdigest()
    files = {path: File(digest, Stamp.of(folder / path)) for path in ("a.safetensors", "sub/b.json")}
    return Record("hf://owner/name@0", "boot", files, 1.0)


def test_a_record_is_read_as_it_was_written_and_lies_beside_the_folder(folder: Path) -> None:
    record.write(folder, made(folder))
    assert record.read(folder) == made(folder)
    assert {path.name for path in folder.parent.iterdir()} == {"model", "model.record.json"}


def test_files_that_nobody_touched_are_trusted(folder: Path) -> None:
    assert set(record.unchanged(folder, made(folder), "boot")) == {"a.safetensors", "sub/b.json"}


@pytest.mark.parametrize("boot", ["other", ""])
def test_nothing_is_trusted_after_a_new_start_of_the_machine(folder: Path, boot: str) -> None:
    assert record.unchanged(folder, made(folder), boot) == {}


def test_a_changed_file_is_not_trusted_though_its_size_and_mtime_are_put_back(folder: Path) -> None:
    before, file = made(folder), folder / "a.safetensors"
    stat = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert set(record.unchanged(folder, before, "boot")) == {"sub/b.json"}


def test_a_replaced_and_a_missing_file_are_not_trusted(folder: Path) -> None:
    before = made(folder)
    (folder / "sub/b.json").unlink()
    (folder / "new").write_bytes(BODY)
    (folder / "new").replace(folder / "a.safetensors")
    assert record.unchanged(folder, before, "boot") == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 1}'])
def test_a_damaged_record_counts_as_none(folder: Path, text: str) -> None:
    record.path_of(folder).write_text(text)
    assert record.read(folder) is None


def test_there_is_no_record_where_none_was_written(folder: Path) -> None:
    assert record.read(folder) is None
