"""One extent: a file with slots for KV blocks, opened. Says what lies where, and who may touch it (`claims`).

Knows no block by its key (that is `index.py`) and decides nothing. A slot's bytes are written by its owner only, its
data before its entry; everybody reads with `pread`, never through a mapping: a file that is cut under a mapping ends
the process, under `pread` it is a short read.
"""

import errno
import os
import re
import secrets
from pathlib import Path
from typing import Final, Self

from headrace_runtime.kv.claims import Claims, own_whole
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.layout import (
    EMPTY,
    ENTRY_BYTES,
    PAGE,
    USE_BYTES,
    Entry,
    Geometry,
    Header,
    Use,
    pack_entry,
    pack_header,
    pack_use,
    slot_place,
    slot_seed,
    unpack_entry,
    unpack_header,
)

NAME: Final = re.compile(r"[0-9a-f]{32}\.kv")
UNFINISHED: Final = ".new-"
"""What the name of an extent begins with that is being made: what is left of it is removed."""


class Extent:
    """Made by `create` or `open`; `claims.retire()` closes it."""

    def __init__(self, disk: Disk, file: int, header: Header, scope: str) -> None:
        self._disk = disk
        self._file = file
        self._direct = disk.open_direct(file)
        self._id = header.extent
        self._scope = scope
        self.name = f"{header.extent.hex()}.kv"
        self.geometry = header.geometry
        self.claims = Claims(file, self._close)

    @classmethod
    def create(cls, disk: Disk, folder: Path, geometry: Geometry, scope: str) -> Self:
        """Allocated whole and empty. Only the holder of the node's lock may call it (`budget.py`)."""
        header = Header(secrets.token_bytes(16), geometry)
        name = f"{header.extent.hex()}.kv"
        unfinished = folder / f"{UNFINISHED}{name}"
        file = disk.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            disk.allocate(file, geometry.file_bytes)
            page = memoryview(pack_header(header))
            disk.write(file, page, geometry.copy_at)
            disk.write(file, page, 0)
            disk.sync(file)  # blocks may be lost with the power of a node, but never all of an extent for its header
            disk.rename(unfinished, folder / name)
        except OSError:
            disk.close(file)
            disk.unlink(unfinished)
            raise
        return cls(disk, file, header, scope)

    @classmethod
    def open(cls, disk: Disk, path: Path, scope: str) -> Self | None:
        """None: both copies of the header are damaged, nothing in the file can be read."""
        file = disk.open(path, os.O_RDWR)
        try:
            size = disk.stat(file).st_size
            for offset in (0, max(0, size - PAGE)):
                page = bytearray(PAGE)
                disk.read(file, memoryview(page), offset)
                header = unpack_header(bytes(page))
                if header is not None and path.name == f"{header.extent.hex()}.kv":
                    return cls(disk, file, header, scope)
        except OSError:
            disk.close(file)
            raise
        disk.close(file)
        return None

    def place(self, slot: int) -> bytes:
        return slot_place(self._scope, self._id, slot)

    def entry(self, slot: int) -> bytes:
        """As it is on the disk; fewer bytes than an entry has where the file is cut."""
        return self._bytes(self.geometry.entry_at(slot), ENTRY_BYTES)

    def parse(self, raw: bytes, slot: int) -> Entry | None:
        return unpack_entry(raw, slot_seed(self.place(slot)))

    def write_entry(self, slot: int, entry: Entry) -> bytes:
        raw = pack_entry(entry, slot_seed(self.place(slot)))
        self._disk.write(self._file, memoryview(raw), self.geometry.entry_at(slot))
        return raw

    def clear_entry(self, slot: int) -> None:
        self._disk.write(self._file, memoryview(EMPTY), self.geometry.entry_at(slot))

    def write_use(self, slot: int, use: Use, sequence: int) -> None:
        self._disk.write(self._file, memoryview(pack_use(use, sequence)), self.geometry.use_at(slot))

    def tables(self) -> tuple[bytes, bytes]:
        """All entries and all records of use; padded with zeros where the file is cut."""
        entries, uses = self.geometry.slots * ENTRY_BYTES, self.geometry.slots * USE_BYTES
        return (
            self._bytes(PAGE, entries).ljust(entries, b"\0"),
            self._bytes(self.geometry.uses_at, uses).ljust(uses, b"\0"),
        )

    def read(self, slot: int, into: memoryview) -> bool:
        """The first bytes of the slot, into the caller's own memory. False: the file ends before."""
        return self._disk.read(self._file, into, self.geometry.slot_at(slot)) == len(into)

    def write(self, slot: int, data: memoryview) -> None:
        """Past the kernel's memory where the caller's lies on pages: then an error or a wait of the disk is seen here,
        and blocks that the engine has in memory anyway take no more of it."""
        offset = self.geometry.slot_at(slot)
        if self._direct is not None and len(data) % PAGE == 0:
            try:
                self._disk.write(self._direct, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return
        self._disk.write(self._file, data, offset)

    def stat(self) -> os.stat_result:
        return self._disk.stat(self._file)

    def whole(self) -> bool:
        """False: it was cut, or removed. Then nothing may be written: it would take bytes that nobody counts."""
        now = self.stat()
        return now.st_nlink > 0 and now.st_size >= self.geometry.file_bytes

    def _close(self, file: int) -> None:
        if self._direct is not None:
            self._disk.close(self._direct)
        self._disk.close(file)

    def _bytes(self, offset: int, size: int) -> bytes:
        raw = bytearray(size)
        return bytes(raw[: self._disk.read(self._file, memoryview(raw), offset)])


def remove(disk: Disk, path: Path) -> bool:
    """Give an extent's bytes back to the disk, at once, whoever has it open. False: one of its blocks is in use.

    It is emptied before its name goes: bytes of a file without a name are on the disk, and in no folder's sum.
    """
    file = disk.open(path, os.O_RDWR)
    try:
        if not own_whole(file):
            return False
        disk.truncate(file)
        disk.unlink(path)
        return True
    finally:
        disk.close(file)
