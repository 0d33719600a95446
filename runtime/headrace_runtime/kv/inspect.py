"""Looks into a folder of KV blocks and changes nothing: what `headrace_runtime kv-inspect` prints.

May be used while engines write: a slot that is being written is left out. Where blocks are encrypted their entries are
read without the key, their data only with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace_runtime.kv import neighbours
from headrace_runtime.kv.budget import measure
from headrace_runtime.kv.disk import Disk
from headrace_runtime.kv.extent import Extent
from headrace_runtime.kv.layout import EMPTY, Entry
from headrace_runtime.kv.seal import Checksum, Encryption, Seal, context, secret_name


@dataclass
class Found:
    """In one extent."""

    name: str
    slots: int = 0
    blocks: int = 0
    data_bytes: int = 0
    damaged_entries: int = 0
    damaged_blocks: int = 0
    verified: int = 0
    """Blocks whose data was read and found right."""
    readable: bool = True
    """False: neither copy of the header is whole."""


@dataclass
class Identity:
    """One identity's folder."""

    name: str
    held: bool
    """Whether an engine has it open."""
    physical: int
    extents: list[Found]


def identities(disk: Disk, folder: Path, key: bytes | None, *, verify: bool) -> Iterator[Identity]:
    """Of the deployment whose folder it is. `key` opens those that were encrypted with it."""
    for path in neighbours.identities(disk, folder):
        seal = _seal(path.name, key) if verify else None
        found = [_extent(disk, file, seal) for file in neighbours.extents(disk, [path])]
        yield Identity(path.name, neighbours.is_held(disk, path), measure(disk, path).physical, found)


def _seal(name: str, key: bytes | None) -> Seal | None:
    """None: its blocks are encrypted, and not with this key."""
    _, _, secret = name.partition("-")
    if not secret:
        return Checksum(verify=True)
    return Encryption(key) if key is not None and secret_name(key) == secret else None


def _extent(disk: Disk, path: Path, seal: Seal | None) -> Found:
    extent = Extent.open(disk, path, path.parent.name)
    if extent is None:
        return Found(path.name, readable=False)
    found = Found(path.name, extent.geometry.slots)
    try:
        for slot in range(extent.geometry.slots):
            if extent.claims.share(slot):
                try:
                    _slot(extent, slot, seal, found)
                finally:
                    extent.claims.unshare(slot)
    finally:
        extent.claims.retire()
    return found


def _slot(extent: Extent, slot: int, seal: Seal | None, found: Found) -> None:
    raw = extent.entry(slot)
    if raw == EMPTY:
        return
    entry = extent.parse(raw, slot)
    if entry is None:
        found.damaged_entries += 1
        return
    found.blocks += 1
    found.data_bytes += entry.length
    if seal is not None:
        good = _is_good(extent, slot, entry, seal)
        found.verified += good
        found.damaged_blocks += not good


def _is_good(extent: Extent, slot: int, entry: Entry, seal: Seal) -> bool:
    into = memoryview(bytearray(entry.length))
    landed = seal.landing(into)
    about = context(extent.place(slot), entry.sequence, entry.key, entry.length)
    return extent.read(slot, landed) and seal.opens(about, landed, into, entry.checksum, entry.nonce)


def described(folder: Path, key: bytes | None, *, verify: bool) -> tuple[list[str], bool]:
    """In words, and whether nothing in it is damaged."""
    lines, is_sound = [], True
    for identity in identities(Disk(), folder, key, verify=verify):
        held = "an engine has it open" if identity.held else "no engine has it open"
        lines.append(f"{identity.name}: {identity.physical} bytes on the disk, {held}")
        for found in identity.extents:
            lines.append(f"  {found.name}: {_words(found)}")
            is_sound &= found.readable and not found.damaged_entries and not found.damaged_blocks
    return lines or ["no KV blocks"], is_sound


def _words(found: Found) -> str:
    if not found.readable:
        return "damaged: no header"
    parts = [f"{found.blocks} of {found.slots} slots hold blocks, {found.data_bytes} bytes, {found.verified} verified"]
    if found.damaged_entries:
        parts.append(f"{found.damaged_entries} damaged entries")
    if found.damaged_blocks:
        parts.append(f"{found.damaged_blocks} damaged blocks")
    return ", ".join(parts)
