"""Paths that lead to a folder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_runtime.node.link import point


def test_a_place_leads_to_the_folder_it_was_last_pointed_at(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for folder in (tmp_path / "one", tmp_path / "two"):
        point(place, folder)
        assert place.readlink() == folder


def test_pointing_again_at_the_same_folder_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        point(tmp_path / "model", tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").readlink() == tmp_path / "one"


def test_many_may_point_one_place_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(point, tmp_path / "model", tmp_path / "one") for _ in range(400)]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_in_the_way_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OSError, match="model"):
        point(tmp_path / "model", tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
