"""What `kv-inspect` tells of a folder of KV blocks."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace_runtime.__main__ import main
from headrace_runtime.kv.store import Settings, Store

BLOCK = 20 * 1024
KEY = bytes(range(32))


def stored(root: Path, key: bytes | None, blocks: int) -> Store:
    settings = Settings(1024 * 1024, None, BLOCK, verify=True, eviction="LRU", on_model_change="Fence", key=key)
    store = Store(root / "ns_chat", "0" * 32, settings, ticks=lambda: 0.0)
    for number in range(blocks):
        assert store.put(b"key %d" % number, bytes([number]) * BLOCK, depth=0)
    return store


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    store = stored(tmp_path, None, 4)
    yield store
    store.close()


def inspected(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["kv-inspect", *map(str, arguments)])
    return result.exit_code, result.output


def test_an_empty_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    assert inspected(tmp_path) == (0, "no KV blocks\n")


def test_tells_what_is_there_while_an_engine_uses_it_and_changes_nothing(plain: Store, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.kv")}
    code, said = inspected(tmp_path / "ns_chat")
    assert code == 0
    assert "an engine has it open" in said
    assert f"4 of 6 slots hold blocks, {4 * BLOCK} bytes, 4 verified" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.kv")} == before
    plain.close()
    assert "no engine has it open" in inspected(tmp_path / "ns_chat")[1]


def test_finds_what_is_damaged(plain: Store, tmp_path: Path) -> None:
    [file] = tmp_path.rglob("*.kv")
    whole = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(whole.index(bytes([1]) * BLOCK))
        opened.write(b"x")
        opened.seek(whole.index(b"key 2"))
        opened.write(b"x")
    code, said = inspected(tmp_path / "ns_chat")
    assert code == 1
    assert "2 verified, 1 damaged entries, 1 damaged blocks" in said
    assert "3 of 6 slots hold blocks" in inspected(tmp_path / "ns_chat", "--no-verify")[1]
    file.write_bytes(bytes(100))
    assert "damaged: no header" in inspected(tmp_path / "ns_chat")[1]


def test_verifies_encrypted_blocks_with_their_key_alone(tmp_path: Path) -> None:
    stored(tmp_path, KEY, 3).close()
    (tmp_path / "key").write_bytes(base64.b64encode(KEY))
    (tmp_path / "other").write_bytes(base64.b64encode(KEY[::-1]))
    assert "3 verified" in inspected(tmp_path / "ns_chat", "--key-file", tmp_path / "key")[1]
    for arguments in ([], ["--key-file", tmp_path / "other"]):
        code, said = inspected(tmp_path / "ns_chat", *arguments)
        assert code == 0
        assert "3 of 6 slots hold blocks" in said
        assert "0 verified" in said


def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("§")
    code, said = inspected(tmp_path, "--key-file", tmp_path / "key")
    assert code == 2
    assert "--key-file" in said
