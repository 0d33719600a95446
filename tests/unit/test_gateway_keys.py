"""The folder of API keys."""

import hashlib
from pathlib import Path

import pytest

from headrace_runtime.gateway import keys

HASH = hashlib.sha256(b"sk-2").hexdigest()


def test_an_empty_folder_holds_no_key(tmp_path: Path) -> None:
    assert keys.read(tmp_path) == {}


def test_a_key_is_found_by_itself_whether_it_is_given_plain_or_hashed(tmp_path: Path) -> None:
    (tmp_path / "team-a").write_text("sk-1\n")
    (tmp_path / "team-b").write_text(f"sha256:{HASH}\n")
    (tmp_path / "..data").mkdir()
    found = keys.read(tmp_path)
    assert [found.get(keys.digest(key)) for key in ("sk-1", "sk-2", "sk-3", HASH)] == ["team-a", "team-b", None, None]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"sha256:12", "64 hexadecimal digits"),
        (b"x" * 5000, "too long"),
        (b"sk-1", "the same key as a"),
    ],
)
def test_a_file_that_holds_no_key_is_named_and_costs_the_others_nothing(content: bytes, problem: str) -> None:
    found, problems = keys.parse({"a": b"sk-1", "b": content})
    assert list(found.values()) == ["a"]
    assert len(problems) == 1
    assert problems[0].startswith("b: ")
    assert problem in problems[0]


def test_nothing_of_a_key_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("sk-secret")
    (tmp_path / "c").write_text("sha256:secret")
    keys.read(tmp_path)
    assert "secret" not in caplog.text
    assert caplog.text.count("WARNING") == 2
