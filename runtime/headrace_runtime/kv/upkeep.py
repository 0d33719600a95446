"""What a store looks after about once a second: what others wrote, what was used, what it takes, whether it is well.

`Store.refresh` calls it, from one thread at a time. Nothing here is needed for a right answer: an index that is out of
date costs a miss.
"""

import errno
import os

from headrace_runtime.kv import neighbours
from headrace_runtime.kv.common import MEASURE_SECONDS, Common
from headrace_runtime.kv.health import Part
from headrace_runtime.kv.index import Place, Slot
from headrace_runtime.kv.layout import PAGE, Geometry, Use, charge
from headrace_runtime.kv.survey import Survey


class Upkeep:
    def __init__(self, common: Common, survey: Survey) -> None:
        self._c = common
        self._survey = survey
        self._used: dict[Slot, Place] = {}
        self._identity: tuple[int, int] | None = None
        """Device and inode of the folder that was opened."""
        self._device: int | None = None
        """That the node's folder was on at first."""
        self._measure_at = float("-inf")

    def note_use(self, place: Place) -> None:
        """To be written down at the next turn. Memory only."""
        self._used[place.extent, place.slot] = place

    def turn(self) -> None:
        common = self._c
        if not self._is_there():
            self._leave()
            if not common.attempt("write", self._enter):
                return
        common.see_to("read", self._survey.look)
        common.see_to("write", self._write_uses)
        common.see_to("write", self._survey.empty_litter)
        if common.ticks() >= self._measure_at:
            self._measure_at = common.ticks() + MEASURE_SECONDS
            common.see_to("grow", self._measure)
        for extent in common.index.extents():
            extent.claims.expire(common.ticks())
        for part in common.health.unwell():
            self._probe(part)

    def close(self) -> None:
        """What was used is written down, and every file closed."""
        self._c.see_to("write", self._write_uses)
        self._leave()

    # The folder

    def _is_there(self) -> bool:
        """Whether the folder that was opened still is: it may be deleted under us, or the disk be taken away."""
        try:
            now = self._c.folder.stat()
        except OSError:
            return False
        return self._c.held is not None and self._identity == (now.st_dev, now.st_ino)

    def _enter(self) -> None:
        common = self._c
        self._find_node_folder()
        common.disk.make_folder(common.root)
        with common.budget.lock():
            common.disk.make_folder(common.folder)
            common.held = neighbours.hold(common.disk, common.folder)
            neighbours.sweep(common.disk, common.folder)
        found = common.folder.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._c.full_until = float("-inf")
        self._measure_at = float("-inf")

    def _find_node_folder(self) -> None:
        """Made if it is missing when the store is opened first. Later that, or another disk in its place, means that
        the disk was taken away: what is written there then would fill the disk below it."""
        node = self._c.root.parent
        if self._device is None:
            node.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._device = node.stat().st_dev
        elif node.stat().st_dev != self._device:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def _leave(self) -> None:
        common = self._c
        self._survey.forget()
        if common.held is not None:
            common.disk.close(common.held)
            common.held = None

    # Uses and bytes

    def _write_uses(self) -> None:
        """For the other processes, and for the next. A slot that is shared keeps its extent from being removed."""
        while self._used:
            _, place = self._used.popitem()
            if place.extent.claims.share(place.slot):
                try:
                    place.extent.write_use(place.slot, Use(place.used, place.uses), place.entry.sequence)
                finally:
                    place.extent.claims.unshare(place.slot)

    def _measure(self) -> None:
        """Also gives back what is too much: the budget may be smaller than it was."""
        common, budget = self._c, self._c.budget
        if common.settings.on_model_change == "Wipe":
            with budget.lock():
                neighbours.wipe_others(common.disk, common.root, common.folder)
        if budget.room() < 0 or budget.node_room() < 0:
            with budget.lock():
                while (budget.room() < 0 or budget.node_room() < 0) and self._give_back():
                    pass
        common.bytes_used = budget.used()

    def _give_back(self) -> bool:
        disk, root, own, settings = self._c.disk, self._c.root, self._c.folder, self._c.settings
        if self._c.budget.room() < 0 and neighbours.identity_gives_way(disk, root, own, settings.size_bytes):
            return True
        if settings.node_size_bytes and neighbours.deployment_gives_way(disk, root, settings.node_size_bytes):
            return True
        return neighbours.remove_one(disk, [own])

    def _probe(self, part: Part) -> None:
        if self._c.attempt(part, self._find_free if part == "grow" else self._there_and_back):
            self._survey.try_again()

    def _find_free(self) -> None:
        """An extent could be added: it is known what there is, and the disk has room."""
        self._c.budget.node_room()
        self._c.bytes_used = self._c.budget.used()
        least = charge(Geometry(self._c.settings.block_bytes, 1).file_bytes)
        if self._c.disk.free_bytes(self._c.folder) < least:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._c.full_until = float("-inf")

    def _there_and_back(self) -> None:
        """A page to the disk and back, past the kernel's memory: what only a disk that is well can do."""
        disk, page = self._c.disk, bytearray(PAGE)
        file = disk.open(self._c.folder / neighbours.HELD, os.O_RDWR)
        try:
            disk.write(file, memoryview(page), 0)
            disk.sync(file)
            disk.forget(file)
            disk.read(file, memoryview(page), 0)
        finally:
            disk.close(file)
