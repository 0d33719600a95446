import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.node.unsafe import LFS_POINTER, Findings, inspect
from tests.models import pickled, safetensors


def found(folder: Path, name: str, body: bytes) -> Findings:
    (folder / name).write_bytes(body)
    return inspect(folder, [name])


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return out.getvalue()


def header(document: object, body: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_a_whole_model_has_nothing_wrong_with_it(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "1.safetensors"}}).encode()
    (tmp_path / "1.safetensors").write_bytes(safetensors())
    (tmp_path / "m.safetensors.index.json").write_bytes(index)
    assert inspect(tmp_path, ["1.safetensors", "m.safetensors.index.json"]) == Findings()
    others = {"config.json": b"{}", "empty.txt": b"", "merges.txt": b"a b", "words.zip": archive("a.txt")}
    for name, body in others.items():
        assert found(tmp_path, name, body) == Findings()


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl", "a.pickle"])
def test_what_loads_as_a_pickle_is_unsafe_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    assert inspect(tmp_path, [name]).unsafe.keys() == {name}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_found_under_any_name(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "loaded"
    assert found(tmp_path, "model.safetensors", pickled(marker, protocol)).unsafe
    assert found(tmp_path, "notes.txt", pickled(marker, protocol)).unsafe
    assert not marker.exists()


def test_an_archive_with_a_pickle_is_unsafe_under_any_name(tmp_path: Path) -> None:
    assert found(tmp_path, "weights", archive("archive/data.pkl", "archive/data/0")).unsafe
    assert not found(tmp_path, "broken", b"PK\x03\x04 and no more").unsafe


@pytest.mark.parametrize("length", [640, 768, 896, 1024, 1280, 1407])
def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    text = json.dumps({"__metadata__": {"x": ""}}).encode()
    padded = text + b" " * (length - len(text))
    assert found(tmp_path, "m.safetensors", len(padded).to_bytes(8, "little") + padded) == Findings()


def test_a_shorter_file_than_its_header_says_is_truncated(tmp_path: Path) -> None:
    whole = safetensors(b"x" * 1000)

    def says(body: bytes) -> str:
        return found(tmp_path, "m.safetensors", body).damaged["m.safetensors"]

    assert says(whole[:-1]) == f"truncated: its header promises {len(whole)} bytes, the file holds {len(whole) - 1}"
    assert "truncated" in says(whole[:20])
    assert "damaged" in says(whole + b"x")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"short",
        b"\xff" * 100,
        (4).to_bytes(8, "little") + b"{}}}",
        header([]),
        header({"a": 1}),
        header({"a": {"data_offsets": [0]}}),
        header({"a": {"data_offsets": [0, "1"]}}),
        header({"a": {"data_offsets": [0, -1]}}),
        header({"a": {"data_offsets": [0, True]}}),
        (60_000).to_bytes(8, "little") + b"[" * 60_000,
    ],
)
def test_what_is_no_safetensors_file_says_so(tmp_path: Path, body: bytes) -> None:
    assert found(tmp_path, "m.safetensors", body).damaged["m.safetensors"].startswith("no safetensors file: ")


@settings(deadline=None, max_examples=200)
@given(cut=st.integers(0, len(safetensors(b"x" * 300)) - 1))
def test_no_cut_goes_unseen(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    assert found(tmp_path_factory.mktemp("cut"), "m.safetensors", safetensors(b"x" * 300)[:cut]).damaged


def test_a_shard_that_nobody_brought_is_missing(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "../3.safetensors"}}).encode()
    (tmp_path / "1.safetensors").write_bytes(safetensors())
    (tmp_path / "m.safetensors.index.json").write_bytes(index)
    findings = inspect(tmp_path, ["1.safetensors", "m.safetensors.index.json"])
    problem = findings.absent["m.safetensors.index.json"]
    assert problem == "names ../3.safetensors and 1 more, which is not in the folder"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}'])
def test_an_index_that_cannot_be_read_is_damaged(tmp_path: Path, body: bytes) -> None:
    assert found(tmp_path, "m.safetensors.index.json", body).damaged


def test_a_pointer_of_git_lfs_is_no_file(tmp_path: Path) -> None:
    assert "git lfs pull" in found(tmp_path, "m", LFS_POINTER + b"v1\noid sha256:0\n").damaged["m"]


def test_a_file_that_cannot_be_read_is_absent(tmp_path: Path) -> None:
    assert inspect(tmp_path, ["gone.json"]).absent == {"gone.json": "cannot be read: No such file or directory"}


def test_code_is_told_apart(tmp_path: Path) -> None:
    assert found(tmp_path, "modeling.py", b"print()").code == ("modeling.py",)
