"""A damaged copy in the node's cache is removed under those who hold it, once, and never the better one after it."""

from pathlib import Path

import pytest

from headrace_runtime.models.cache import Cache
from tests import models

KEY = "0" * 32


def made(cache: Cache, body: bytes = b"whole") -> None:
    with cache.making(KEY) as making:
        assert making is not None
        making.reserve(len(body), 0)
        models.write(making.empty_tree(), {"model.safetensors": body})
        making.commit("https://there/", {"model.safetensors": "0" * 64}, 1.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache", None)
    made(cache)
    return cache


def held(cache: Cache) -> Path:
    folder = cache.hold(KEY)
    assert folder is not None
    return folder


def test_it_is_gone_and_can_be_made_again(cache: Cache) -> None:
    cache.discard(held(cache))
    assert cache.hold(KEY) is None
    assert list(cache.records()) == []
    made(cache, b"better")
    assert (held(cache) / "model.safetensors").read_bytes() == b"better"


def test_who_else_runs_on_it_keeps_what_it_has_open(cache: Cache) -> None:
    other = Cache(cache.path, None)
    with (held(other) / "model.safetensors").open("rb") as mapped:
        cache.discard(held(cache))
        assert mapped.read() == b"whole"
    made(cache, b"better")
    assert held(cache).is_dir()


def test_of_two_who_find_it_damaged_the_second_removes_nothing(cache: Cache) -> None:
    other = Cache(cache.path, None)
    theirs = held(other)
    cache.discard(held(cache))
    made(cache, b"better")
    other.discard(theirs)
    assert (held(cache) / "model.safetensors").read_bytes() == b"better"


def test_what_is_not_held_is_left_alone(cache: Cache) -> None:
    cache.discard(cache.path / KEY)
    assert held(cache).is_dir()
