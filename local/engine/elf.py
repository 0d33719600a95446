"""Reads what a shared library needs and offers, and writes one whose functions do nothing. Bytes in, bytes out.

Only what `slim.py` needs: ELF64, little-endian, x86-64. Layouts are those of the System V ABI (`Elf64_Ehdr`,
`Elf64_Shdr`, `Elf64_Sym`, `Elf64_Dyn`) and of the LSB's symbol versioning (`Verdef`, `Verneed`), named as in elf.h.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import NamedTuple

SHT_DYNAMIC, SHT_DYNSYM, SHT_GNU_VERNEED, SHT_GNU_VERSYM = 6, 11, 0x6FFFFFFE, 0x6FFFFFFF
DT_NULL, DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 0, 1, 4, 5, 6, 10, 11, 14
DT_VERSYM, DT_VERDEF, DT_VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 1, 2, 0x6474E551
STB_GLOBAL = 1
DEVICE_CODE = (".nv_fatbin", "__nv_relfatbin")
"""Sections with code for GPUs: read by the CUDA runtime when a kernel is launched, never by the processor."""


class Section(NamedTuple):
    """Elf64_Shdr."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    """Of a table: the section with its strings."""
    info: int
    """Of SHT_GNU_VERNEED: the number of its entries."""
    align: int
    entry_size: int


@dataclass(frozen=True)
class Library:
    needed: tuple[str, ...]
    """Names of the libraries it wants loaded beside it (DT_NEEDED)."""
    imports: dict[str, str | None] = field(default_factory=dict)
    """Symbols it cannot do without, each with the version asked for. Weak ones are left out: they may stay absent."""
    exports: frozenset[str] = frozenset()
    device_code: tuple[tuple[int, int], ...] = ()
    """(offset, length) in the file of each section in DEVICE_CODE."""


def read(data: bytes | mmap) -> Library:
    """The dynamic part of one shared library. Raises ValueError for anything but a 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    sections = _sections(data)
    imports, exports = _symbols(data, sections)
    return Library(tuple(_needed(data, sections)), imports, frozenset(exports), tuple(_device_code(data, sections)))


def _sections(data: bytes | mmap) -> list[Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    return [Section(*struct.unpack_from("<IIQQQQIIQQ", data, table + size * i)) for i in range(count)]


def _text(data: bytes | mmap, strings: Section, at: int) -> str:
    start = strings.offset + at
    return data[start : data.find(b"\0", start)].decode()


def _device_code(data: bytes | mmap, sections: list[Section]) -> Iterator[tuple[int, int]]:
    (names,) = struct.unpack_from("<H", data, 62)
    for section in sections:
        if _text(data, sections[names], section.name) in DEVICE_CODE:
            yield section.offset, section.size


def _needed(data: bytes | mmap, sections: list[Section]) -> Iterator[str]:
    for table in (s for s in sections if s.type == SHT_DYNAMIC):
        for at in range(table.offset, table.offset + table.size, 16):
            tag, value = struct.unpack_from("<QQ", data, at)
            if tag == DT_NEEDED:
                yield _text(data, sections[table.link], value)


def _symbols(data: bytes | mmap, sections: list[Section]) -> tuple[dict[str, str | None], set[str]]:
    imports: dict[str, str | None] = {}
    exports: set[str] = set()
    versions = _needed_versions(data, sections)
    version_of: tuple[int, ...] = ()
    for index in (s for s in sections if s.type == SHT_GNU_VERSYM):
        version_of = struct.unpack_from(f"<{index.size // 2}H", data, index.offset)
    for table in (s for s in sections if s.type == SHT_DYNSYM):
        for i in range(1, table.size // 24):
            at, info, _, section = struct.unpack_from("<IBBH", data, table.offset + 24 * i)
            name = _text(data, sections[table.link], at)
            if section:
                exports.add(name)
            elif info >> 4 == STB_GLOBAL:
                imports[name] = versions.get(version_of[i] & 0x7FFF) if version_of else None
    return imports, exports


def _needed_versions(data: bytes | mmap, sections: list[Section]) -> dict[int, str]:
    """Names of the versions this library asks for, by the number its symbols refer to them with."""
    versions = {}
    for table in (s for s in sections if s.type == SHT_GNU_VERNEED):
        need = table.offset
        for _ in range(table.info):
            _, count, _, first, step = struct.unpack_from("<HHIII", data, need)
            aux = need + first
            for _ in range(count):
                _, _, number, name, hop = struct.unpack_from("<IHHII", data, aux)
                versions[number] = _text(data, sections[table.link], name)
                aux += hop
            need += step
    return versions


def write(soname: str, functions: Mapping[str, str | None], answer: int) -> bytes:
    """A shared library that exports `functions` (name: symbol version, or None) and needs no other.

    A call returns the integer `answer`; a function with "String" or "ErrorName" in its name returns a C string instead.
    The file has no sections, which only linkers and debuggers read: the loader goes by the dynamic table.
    """
    names = sorted(functions)
    versions = [soname, *sorted({version for version in functions.values() if version})]
    strings, at = _string_table([*versions, *names])
    code, text_code = _code(answer)
    layout = _Layout(64 + 56 * 4)
    layout.put(DT_HASH, _hash_table(len(names) + 1))
    start = layout.put(DT_NULL, code)
    layout.put(DT_STRTAB, strings)
    layout.put(DT_VERDEF, _version_definitions(versions, at))
    version_of = [versions.index(functions[name] or soname) + 1 for name in names]
    layout.put(DT_VERSYM, struct.pack(f"<{len(names) + 1}H", 0, *version_of))
    symbols = b"\0" * 24
    for name in names:
        entry = start + (text_code if "String" in name or "ErrorName" in name else 0)
        symbols += struct.pack("<IBBHQQ", at[name], STB_GLOBAL << 4 | 2, 0, 1, entry, text_code)
    layout.put(DT_SYMTAB, symbols)
    sizes = [(DT_SONAME, at[soname]), (DT_STRSZ, len(strings)), (DT_SYMENT, 24), (DT_VERDEFNUM, len(versions))]
    return layout.file(sizes)


class _Layout:
    """A file under construction: headers, then part after part at multiples of 16, the dynamic table last.

    It is loaded as it lies (address = offset), so the place of a part is both.
    """

    def __init__(self, headers: int) -> None:
        self.bytes = bytearray(headers)
        self.places: list[tuple[int, int]] = []

    def put(self, tag: int, part: bytes) -> int:
        self.bytes.extend(b"\0" * (-len(self.bytes) % 16))
        place = len(self.bytes)
        self.bytes.extend(part)
        if tag != DT_NULL:
            self.places.append((tag, place))
        return place

    def file(self, sizes: list[tuple[int, int]]) -> bytes:
        """The whole as one segment that is read and executed; the dynamic table in one that the loader may write."""
        end = len(self.bytes)
        self.bytes.extend(b"\0" * (-end % 4096))
        at = len(self.bytes)
        dynamic = b"".join(struct.pack("<QQ", tag, value) for tag, value in [*sizes, *self.places, (DT_NULL, 0)])
        segments = [
            (PT_LOAD, 5, 0, 0, 0, end, end, 4096),
            (PT_LOAD, 6, at, at, at, len(dynamic), len(dynamic), 4096),
            (PT_DYNAMIC, 6, at, at, at, len(dynamic), len(dynamic), 8),
            (PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),
        ]
        identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        header = identity + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
        header += b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
        self.bytes[: len(header)] = header
        return bytes(self.bytes) + dynamic


def _string_table(texts: list[str]) -> tuple[bytes, dict[str, int]]:
    table, at = bytearray(b"\0"), {}
    for text in texts:
        at[text] = len(table)
        table += text.encode() + b"\0"
    return bytes(table), at


def _code(answer: int) -> tuple[bytes, int]:
    """Two functions, and how far the second stands behind the first: for a number, and for the address of a text."""
    number = (b"\xb8" + struct.pack("<I", answer) + b"\xc3").ljust(16, b"\x90")  # mov eax, answer; ret; nop...
    text = b"\x48\x8d\x05\x09\0\0\0\xc3".ljust(16, b"\x90")  # lea rax, [rip + 9]; ret; nop... (rip is 7 past the start)
    return number + text + b"no such device on this machine\0", len(number)


def _hash_table(symbols: int) -> bytes:
    """DT_HASH with a single bucket, hence one chain through all symbols; looked through a few hundred times in all."""
    chain = [0, *(i + 1 if i + 1 < symbols else 0 for i in range(1, symbols))]
    return struct.pack(f"<{3 + symbols}I", 1, symbols, 1 if symbols > 1 else 0, *chain)


def _version_definitions(versions: list[str], at: dict[str, int]) -> bytes:
    """Verdef and its one Verdaux, for each version; the first names the file itself (VER_FLG_BASE)."""
    table = b""
    for number, version in enumerate(versions, 1):
        following = 28 if number < len(versions) else 0
        table += struct.pack("<HHHHIII", 1, int(number == 1), number, 1, _elf_hash(version), 20, following)
        table += struct.pack("<II", at[version], 0)
    return table


def _elf_hash(text: str) -> int:
    value = 0
    for character in text.encode():
        value = (value << 4) + character
        value = (value ^ (value & 0xF0000000) >> 24) & 0x0FFFFFFF
    return value
