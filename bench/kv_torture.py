"""Writers of the KV store killed at random points and its files damaged on purpose, while it serves: no wrong block, no
finished block lost, never a byte over the budget.

Three parts on one disk. *Killed*: writers die by SIGKILL, nothing is evicted or damaged, and every block that was
finished has to be there. *Damaged*: bits flip, writes tear, files are cut and deleted under four writers and a reader,
which are killed as well, in a store that has to evict all the time. *Hit*: a store at rest is damaged, and every block
that was not hit has to be there. Beside the second part, the same is done to the common way without a checksum, which
must serve a wrong block: otherwise the damage proved nothing, and the run is void.
"""

import itertools
import mmap
import multiprocessing
import os
import random
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, Protocol

from bench.damage import Damage
from bench.rename_store import RenameStore
from bench.report import Options, Report, at_least, at_most
from headrace_runtime.kv.budget import UnmeasurableError, measure
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.layout import EMPTY
from headrace_runtime.kv.store import Settings, Store
from local.programs import wait_until

BLOCK: Final = 64 * 1024
IDENTITY: Final = "0" * 32
WRITERS: Final = 4
BURST: Final = 5
"""Damages between two moments in which the store is left to itself."""
READY_SECONDS: Final = 60.0
FORK: Final = multiprocessing.get_context("fork")
"""A writer is there in milliseconds, and hundreds of them can die in a minute."""


@dataclass(frozen=True)
class Scale:
    """Of the whole run."""

    kills: int
    """In each of the two parts that kill."""
    damages: int
    keys: int
    """Different blocks; those of the first and third part fit into the budget, a sixth of them in the second."""


FULL: Final = Scale(kills=160, damages=10_500, keys=1200)
QUICK: Final = Scale(kills=12, damages=500, keys=300)


class Arm(Protocol):
    """What is tortured: a store of either kind."""

    def __contains__(self, key: bytes) -> bool: ...
    def put(self, key: bytes, block: bytes, depth: int) -> bool: ...
    def get(self, key: bytes, into: memoryview) -> bool: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


def key_of(number: int) -> bytes:
    return (number + 1).to_bytes(4, "big") * 9


def block_of(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


class Counts:
    """Numbers that processes share and that outlive them: a row for each, which it alone writes."""

    NAMES: Final = ("stored", "served", "wrong", "damaged", "evicted", "samples", "peak", "over")

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * len(self.NAMES) * 8)
        self._rows = rows
        self._mutex = threading.Lock()

    def add(self, row: int, name: str, number: int = 1) -> None:
        with self._mutex:
            self._put(row, name, self._get(row, name) + number)

    def at_least(self, row: int, name: str, number: int) -> None:
        self._put(row, name, max(self._get(row, name), number))

    def total(self, name: str) -> int:
        return sum(self._get(row, name) for row in range(self._rows))

    def _get(self, row: int, name: str) -> int:
        return int(struct.unpack_from("<Q", self._memory, self._at(row, name))[0])

    def _put(self, row: int, name: str, number: int) -> None:
        struct.pack_into("<Q", self._memory, self._at(row, name), number)

    def _at(self, row: int, name: str) -> int:
        return (row * len(self.NAMES) + self.NAMES.index(name)) * 8


@dataclass(frozen=True)
class Scene:
    """One store under torture, and those who use it."""

    folder: Path
    open: Callable[[], Arm]
    keys: int
    counts: Counts

    def journal(self, row: int) -> Path:
        """Numbers of the blocks that a writer was told are finished; what is in it survives the writer."""
        return self.folder.parent / f"finished-{row}"

    def finished(self) -> set[int]:
        found = set()
        for row in range(WRITERS):
            if self.journal(row).exists():
                found |= {number for (number,) in struct.iter_unpack("<I", _whole(self.journal(row).read_bytes(), 4))}
        return found


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def ours(folder: Path, size: int) -> Callable[[], Store]:
    settings = Settings(size, None, BLOCK, verify=True, eviction="Default", on_model_change="Fence", key=None)
    return lambda: Store(folder, IDENTITY, settings)


# Processes


def use(scene: Scene, row: int, seed: int) -> None:
    """Two threads that read what is there, compare it, and write what is not, until they are killed."""
    arm = scene.open()
    journal = os.open(scene.journal(row), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    threads = [threading.Thread(target=_use, args=(scene, arm, row, seed + each, journal)) for each in range(2)]
    for thread in threads:
        thread.start()
    damaged = evicted = 0
    while True:
        time.sleep(0.02)
        arm.refresh()
        if isinstance(arm, Store):
            state = arm.state()
            scene.counts.add(row, "damaged", state.damaged - damaged)
            scene.counts.add(row, "evicted", state.evicted - evicted)
            damaged, evicted = state.damaged, state.evicted


def _use(scene: Scene, arm: Arm, row: int, seed: int, journal: int) -> None:
    chance, into = random.Random(seed), memoryview(bytearray(BLOCK))
    while True:
        number = chance.randrange(scene.keys)
        if key_of(number) in arm:
            serve(scene, arm, number, into, row)
        elif row < WRITERS and arm.put(key_of(number), block_of(number), depth=number % 50):
            os.write(journal, struct.pack("<I", number))
            scene.counts.add(row, "stored")


def serve(scene: Scene, arm: Arm, number: int, into: memoryview, row: int) -> bool:
    if not arm.get(key_of(number), into):
        return False
    scene.counts.add(row, "served")
    if into != block_of(number):
        scene.counts.add(row, "wrong")
    return True


def readable_of(scene: Scene, store: Store, numbers: Iterable[int]) -> int:
    """How many can be read. A store that finds the disk slow, on a busy machine, is asked again when it does not."""
    into, found = memoryview(bytearray(BLOCK)), 0
    for number in numbers:
        if serve(scene, store, number, into, 0):
            found += 1
        elif not store.state().ready:
            wait_until("the disk to be quick enough", partial(_is_ready, store), READY_SECONDS)
            found += serve(scene, store, number, into, 0)
    return found


def _is_ready(store: Store) -> bool:
    store.refresh()
    return store.state().ready


def watch(scene: Scene, row: int, limit: int) -> None:
    """Measures the folder without a pause. A sum is of several moments: only one that is too large twice running is."""
    disk = Disk()
    while True:
        try:
            used = measure(disk, scene.folder).physical
            if used > limit:
                used = min(used, measure(disk, scene.folder).physical)
        except UnmeasurableError:
            continue  # a folder that is being made
        scene.counts.add(row, "samples")
        scene.counts.at_least(row, "peak", used)
        if used > limit:
            scene.counts.add(row, "over")


def _started(target: Callable[..., None], *args: object) -> BaseProcess:
    process = FORK.Process(target=_mortal, args=(target, *args), daemon=True)
    process.start()
    return process


def _mortal(target: Callable[..., None], *args: object) -> None:
    """Ended by SIGTERM at once, whatever its threads do: the benchmark's own handler is not for it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    target(*args)


@contextmanager
def company(scene: Scene, limit: int | None) -> Iterator[list[BaseProcess]]:
    """Writers, a reader and, where there is a limit, who watches it; killed in the end."""
    seeds = itertools.count(1, 1000)
    running = [_started(use, scene, row, next(seeds)) for row in range(WRITERS + 1)]
    watching = [] if limit is None else [_started(watch, scene, WRITERS + 1, limit)]
    try:
        yield running
    finally:
        for process in running + watching:
            process.kill()
            process.join()


def kill_one(scene: Scene, running: list[BaseProcess], chance: random.Random) -> None:
    """Another takes its place, and its row of the counts."""
    row = chance.randrange(WRITERS)
    os.kill(running[row].pid or 0, signal.SIGKILL)
    running[row].join()
    running[row] = _started(use, scene, row, chance.randrange(2**32))


# The three parts


@dataclass(frozen=True)
class Outcome:
    """Of one part."""

    name: str
    counts: Counts
    kills: int = 0
    damages: int = 0
    finished: int = 0
    readable: int = 0
    limit: int = 0

    @property
    def kept(self) -> float:
        return self.readable / self.finished if self.finished else 0.0

    def row(self) -> list[str]:
        total = self.counts.total
        kept = f"{self.readable} of {self.finished}" if self.finished else ""
        peak = f"{total('peak') / self.limit:.3f}" if self.limit else ""
        return [
            self.name, str(self.kills), str(self.damages), str(total("stored")), str(total("served")),
            str(total("wrong")), str(total("damaged")), kept, peak,
        ]  # fmt: skip


def killed(folder: Path, scale: Scale) -> Outcome:
    """Nothing is evicted: there is room for all."""
    limit, chance = 2 * scale.keys * BLOCK, random.Random(1)
    open_arm = ours(folder / "store", limit)
    scene = Scene(folder / "store", open_arm, scale.keys, Counts(WRITERS + 2))
    with company(scene, limit) as running:
        for _ in range(scale.kills):
            time.sleep(chance.uniform(0.0, 0.1))
            kill_one(scene, running, chance)
    after, finished = open_arm(), scene.finished()
    readable = readable_of(scene, after, finished)
    after.close()
    return Outcome("writers killed", scene.counts, scale.kills, 0, len(finished), readable, limit)


def damaged(name: str, folder: Path, open_arm: Callable[[], Arm], scale: Scale, limit: int | None) -> Outcome:
    """Kills and damage are spread over the same time."""
    chance = random.Random(2)
    scene = Scene(folder, open_arm, scale.keys, Counts(WRITERS + 2))
    damage = Damage(scene.folder, chance)
    every = scale.damages // scale.kills
    kills = 0
    with company(scene, limit) as running:
        deadline = time.monotonic() + READY_SECONDS
        while scene.counts.total("stored") < scale.keys // 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        while sum(damage.done.values()) < scale.damages:
            for strike in range(every):
                damage.strike()
                if strike % BURST == 0:
                    time.sleep(chance.uniform(0.0, 0.01))
            kill_one(scene, running, chance)
            kills += 1
    return Outcome(name, scene.counts, kills, sum(damage.done.values()), limit=limit or 0)


def hit(folder: Path, scale: Scale) -> Outcome:
    """Damage at rest, of which it is known what it hit."""
    chance = random.Random(3)
    open_arm = ours(folder / "store", 2 * scale.keys * BLOCK)
    scene = Scene(folder / "store", open_arm, scale.keys, Counts(1))
    arm = open_arm()
    stored = [number for number in range(scale.keys) if arm.put(key_of(number), block_of(number), depth=0)]
    arm.close()
    places = {path: _places(path) for path in scene.folder.rglob("*.kv")}
    damage, harmed = Damage(scene.folder, chance), set()
    for turn in range(scale.damages // 20):
        struck = damage.strike("torn write" if turn % 4 == 0 else "bit flipped")
        assert struck is not None
        path, begin, end = struck
        harmed |= {key for first, last, key in places[path] if first < end and begin < last}
    whole = [number for number in stored if key_of(number) not in harmed]
    after = open_arm()
    readable = readable_of(scene, after, whole)
    readable_of(scene, after, set(stored) - set(whole))
    scene.counts.add(0, "damaged", after.state().damaged)
    after.close()
    return Outcome("hit at rest", scene.counts, 0, sum(damage.done.values()), len(whole), readable)


def _places(path: Path) -> list[tuple[int, int, bytes]]:
    """Of each block in an extent: where its data and where its entry lie."""
    extent = Extent.open(Disk(), path, IDENTITY)
    assert extent is not None
    found = []
    for slot in range(extent.geometry.slots):
        raw = extent.entry(slot)
        entry = extent.parse(raw, slot) if raw != EMPTY else None
        if entry is not None:
            data, table = extent.geometry.slot_at(slot), extent.geometry.entry_at(slot)
            found += [(data, data + entry.length, entry.key), (table, table + len(raw), entry.key)]
    extent.claims.retire()
    return found


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory(prefix="headrace-kv-torture-") as name:
        return torture(Path(name), QUICK if options.quick else FULL)


def torture(folder: Path, scale: Scale) -> Report:
    limit = scale.keys * BLOCK // 6
    fewer = replace(scale, kills=max(1, scale.kills // 10), damages=scale.damages // 10)
    for part in ("killed", "damaged", "common", "hit"):
        (folder / part).mkdir()
    evicting, common = folder / "damaged" / "store", folder / "common" / "store"
    parts = [
        killed(folder / "killed", scale),
        damaged("damaged, evicting", evicting, ours(evicting, limit), scale, limit),
        damaged("common way, damaged", common, partial(RenameStore, common), fewer, None),
        hit(folder / "hit", scale),
    ]
    return report(scale, parts)


def report(scale: Scale, parts: list[Outcome]) -> Report:
    by_kill, by_damage, common, at_rest = parts
    own = [by_kill, by_damage, at_rest]
    found = Report("kv-torture", "the store of KV blocks, killed and damaged on purpose", COLUMNS)
    found.rows = [part.row() for part in parts]
    found.checks = [
        at_most("wrong blocks served", sum(part.counts.total("wrong") for part in own), 0),
        at_least("finished blocks readable after the kills", by_kill.kept, 0.99),
        at_least("blocks that damage did not hit readable", at_rest.kept, 0.99),
        at_most("measurements above the budget", sum(part.counts.total("over") for part in own), 0),
        at_least("wrong blocks that the common way served (else void)", common.counts.total("wrong"), 1),
        at_least("writers killed", by_kill.kills + by_damage.kills, 2 * scale.kills),
        at_least("damages", by_damage.damages, scale.damages),
        at_least("damaged blocks that were found", by_damage.counts.total("damaged"), scale.damages // 100),
        at_least("blocks evicted", by_damage.counts.total("evicted"), 100),
        at_most("blocks damaged by kills alone", by_kill.counts.total("damaged"), 0),
        at_most("blocks evicted where there was room for all", by_kill.counts.total("evicted"), 0),
    ]
    samples = sum(part.counts.total("samples") for part in own)
    found.notes = [f"the folders were measured {samples} times; peak is the share of the budget"]
    return found


COLUMNS: Final = ("", "kills", "damages", "stored", "served", "wrong", "found damaged", "readable after", "peak")
