import mmap
from pathlib import Path

import pytest

from headrace_runtime.node.sweep import NotOursError, prepare, sweep


def test_a_run_directory_is_made_and_later_emptied(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    prepare(run_dir)
    (run_dir / "cache").mkdir()
    (run_dir / "cache" / "x").touch()
    (run_dir / "engine.log").touch()
    (run_dir / "link").symlink_to(tmp_path)
    prepare(run_dir)
    assert [entry.name for entry in run_dir.iterdir()] == [".headrace-run-directory"]
    assert tmp_path.is_dir()


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    prepare(tmp_path)


def test_somebodys_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NotOursError, match="choose another --run-dir"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_nothing_to_sweep(tmp_path: Path) -> None:
    (tmp_path / "somebodys").touch()
    assert sweep(tmp_path) == []
    assert (tmp_path / "somebodys").exists()


def test_what_a_living_engine_maps_is_kept_and_what_a_dead_one_left_is_removed(tmp_path: Path) -> None:
    used, left = tmp_path / "vllm_offload_1.mmap", tmp_path / "vllm_offload_2.mmap"
    for path in (used, left):
        path.write_bytes(b"\0" * 4096)
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert sweep(tmp_path) == [left.name]
    assert used.exists()
    assert not left.exists()
