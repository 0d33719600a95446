"""Folders that are complete or absent."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread

import pytest

from local import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    return tmp_path


def write(folder: Path) -> None:
    (folder / "file").write_text("made")


def test_a_folder_is_made_once() -> None:
    first = cache.kept("thing", "key", write)
    assert (first / "file").read_text() == "made"

    def fail(folder: Path) -> None:
        raise AssertionError("made twice")

    assert cache.kept("thing", "key", fail) == first


def test_another_key_is_another_folder() -> None:
    assert cache.kept("thing", "one", write) != cache.kept("thing", "two", write)


def test_a_failed_making_leaves_nothing_and_can_be_tried_again(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.kept("thing", "key", fail)
    assert [entry.name for entry in own_cache.iterdir()] == [".thing.lock"]
    assert (cache.kept("thing", "key", write) / "file").exists()


def test_what_a_killed_making_left_does_not_get_into_the_next(own_cache: Path) -> None:
    left = own_cache / ".thing-key.making"
    left.mkdir()
    (left / "half").touch()
    assert sorted(entry.name for entry in cache.kept("thing", "key", write).iterdir()) == ["file"]


def test_two_who_want_the_same_make_it_once() -> None:
    made: list[Path] = []
    in_the_making, go_on = Event(), Event()

    def slow(folder: Path) -> None:
        made.append(folder)
        in_the_making.set()
        go_on.wait(10)
        write(folder)

    threads = [Thread(target=cache.kept, args=("thing", "key", slow)) for _ in range(2)]
    threads[0].start()
    assert in_the_making.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1


def test_a_key_tells_its_parts_apart() -> None:
    assert cache.key("a", "bc") != cache.key("ab", "c")
    assert cache.key("a", "b") != cache.key("b", "a")
    assert cache.key("a", b"b") == cache.key(b"a", "b")
