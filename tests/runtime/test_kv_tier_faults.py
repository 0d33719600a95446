"""A real engine whose disk for KV blocks is sick: read-only, full, taken away, frozen, failing. It serves all the
while, says what is wrong, and uses the disk again once that is mended. The disk is a file system in a file: needs root.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from headrace_runtime.contract import KvDisk
from tests.runtime.kv_tiers import BLOCK, BLOCKS, Node, Run, node, prompt

pytestmark = pytest.mark.timeout(600)

DISK_BYTES = 192 * 1024**2
ANSWER_SECONDS = 30.0
"""However sick the disk: a hang would be longer. Most of it is what a busy machine takes."""

seeds = count(1)


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@dataclass
class Disk:
    """`mount` with a folder in it, and what it is made of."""

    image: Path
    mount: Path

    @property
    def folder(self) -> Path:
        return self.mount / "node"

    def remount(self, *options: str) -> None:
        run("mount", "-o", ",".join(("remount", *options)), self.mount)

    def shrink(self) -> None:
        """What lies behind its first 256 KB cannot be read any more, nor written: the device ends there."""
        os.truncate(self.image, 64 * 4096)
        device = run("losetup", "--noheadings", "--output=NAME", "--associated", self.image)
        run("losetup", "--set-capacity", device.strip())

    def drop_cache(self) -> None:
        """Have what is read next come from the disk."""
        run("sync", "-f", self.mount)
        for file in self.folder.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    folder = tmp_path_factory.mktemp("disk")
    made = Disk(folder / "image", folder / "mount")
    made.mount.mkdir()
    with made.image.open("wb") as image:
        image.truncate(DISK_BYTES)
    try:
        run("mkfs.ext4", "-q", "-F", made.image)
        run("mount", "-o", "loop", made.image, made.mount)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        made.folder.mkdir()
        yield made
    finally:
        subprocess.run(["fsfreeze", "-u", made.mount], check=False, capture_output=True)
        run("umount", "--lazy", made.mount)


@pytest.fixture(scope="module")
def machine(
    engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, disk: Disk
) -> Iterator[Node]:
    # More than the disk has: what it has, and not the limit, is met first.
    kv = KvDisk(path=str(disk.folder), size_bytes=8 * DISK_BYTES)
    with node(engine_python, tmp_path_factory.mktemp("engines"), model("tiny"), kv) as made:
        yield made


@pytest.fixture(scope="module")
def engine(machine: Node, disk: Disk) -> Run:
    """Started while the disk was read-only."""
    disk.remount("ro")
    return machine.start()


def serves(engine: Run) -> None:
    """An unseen prompt is answered, and quickly."""
    began = time.monotonic()
    engine.say(prompt(next(seeds)))
    assert time.monotonic() - began < ANSWER_SECONDS


def is_unwell(engine: Run, *reasons: str) -> None:
    """The disk is used until it is found out."""

    def found() -> bool:
        serves(engine)
        state = engine.state()
        return not state.ready and state.reason in reasons

    engine.until(f"the tier says {' or '.join(reasons)}", lambda _: found(), 120)


def is_well_again(engine: Run) -> None:
    engine.until("the tier is ready again", lambda state: state.ready, 120)
    stored = engine.state().stored

    def stores() -> bool:
        serves(engine)
        return engine.state().stored > stored

    engine.until("blocks are stored again", lambda _: stores(), 120)


def test_an_engine_starts_and_serves_on_a_read_only_disk_and_uses_it_once_it_is_not(engine: Run, disk: Disk) -> None:
    is_unwell(engine, "DiskReadOnly")
    disk.remount("rw")
    is_well_again(engine)


def test_a_full_disk(engine: Run, disk: Disk) -> None:
    filler = disk.mount / "filler"
    filler.touch()
    run("sync", "-f", disk.mount)
    free = os.statvfs(disk.mount)
    run("fallocate", "-l", str((free.f_bavail - 64) * free.f_frsize), filler)
    try:
        is_unwell(engine, "DiskFull")
    finally:
        filler.unlink()
    is_well_again(engine)


def test_a_folder_that_is_deleted_under_the_engine(engine: Run, disk: Disk) -> None:
    for deployment in disk.folder.iterdir():
        if deployment.is_dir():
            shutil.rmtree(deployment)
    serves(engine)
    engine.until("what was there is forgotten", lambda state: state.blocks <= BLOCKS)
    is_well_again(engine)


def test_a_disk_that_is_taken_away(engine: Run, disk: Disk) -> None:
    away = disk.mount / "away"
    disk.folder.rename(away)
    try:
        is_unwell(engine, "DiskGone")
    finally:
        away.rename(disk.folder)
    is_well_again(engine)


def test_a_disk_whose_writes_hang(engine: Run, disk: Disk) -> None:
    run("fsfreeze", "-f", disk.mount)
    try:
        is_unwell(engine, "DiskSlow")
        assert engine.state().dropped > 0
    finally:
        run("fsfreeze", "-u", disk.mount)
    is_well_again(engine)


def test_a_disk_that_answers_with_errors(engine: Run, disk: Disk) -> None:
    known = prompt(next(seeds))
    stored = engine.state().stored
    said = engine.say(known)
    engine.until("its blocks are stored", lambda state: state.stored >= stored + BLOCKS)
    disk.drop_cache()
    disk.shrink()
    before = engine.from_disk()
    engine.forget()
    assert engine.say(known) == said, "what cannot be read is computed"
    assert engine.from_disk() < before + BLOCKS * BLOCK
    is_unwell(engine, "DiskFailing", "DiskReadOnly", "DiskUnmeasurable")
