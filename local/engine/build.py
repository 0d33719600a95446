"""The environment of the engine on CPU, in the user's cache: vLLM, Ray, NIXL and what the agent needs. 2.4 GB.

Built at most once for the same lock file, recipe and Python. Made for Debian's interpreter, so that it also works in a
pod whose image has the same one, mounted read-only under another path: start everything as `bin/python3 -m ...`, never
by the scripts in `bin/`. Called by the command line and by the tests.
"""

import platform
import sys
from pathlib import Path

from local import cache, packages
from local.engine import elf, slim
from local.errors import LocalError
from local.programs import run

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "runtime"
LOCK = HERE / "requirements.lock"
UV_VERSION = "0.13.9"
"""As in the Makefile."""
PYTHON = Path("/usr/bin/python3.11")
LIBNUMA = "/usr/lib/x86_64-linux-gnu/libnuma.so.1"
"""Linked by vLLM's extension for CPUs."""


def python() -> Path:
    """The interpreter of the environment, which is built first where needed (half a minute)."""
    return environment() / "bin" / "python3"


def environment() -> Path:
    """The environment's folder."""
    if platform.machine() != "x86_64":
        raise LocalError(f"the engine on CPU is put together for x86_64 only, and this machine is {platform.machine()}")
    packages.require(str(PYTHON), LIBNUMA)
    recipe = [Path(module.__file__ or "").read_bytes() for module in (slim, elf)]
    build_key = cache.key(LOCK.read_bytes(), *recipe, run(PYTHON, "--version"))
    return cache.kept("engine", build_key, make)


def make(folder: Path) -> None:
    install(folder, LOCK)
    slim.slim(folder / "lib" / "python3.11" / "site-packages")
    # Imports what an engine imports. That proves that the environment works, and leaves the byte code behind: a pod
    # mounts this folder read-only, and would compile for half a minute at each start.
    modules = "import headrace_runtime.engine.zygote as z, ray, nixl, aiohttp, kubernetes; z.import_vllm([])"
    run(folder / "bin" / "python3", "-c", modules, env={"PYTHONPATH": str(RUNTIME), "OMP_NUM_THREADS": "1"})


def install(folder: Path, lock: Path) -> None:
    """A virtual environment in the empty `folder` with exactly what `lock` names, verified by its hashes."""
    run(uv(), "venv", "--quiet", "--relocatable", "--no-python-downloads", "--allow-existing", "-p", PYTHON, folder)
    target = ("--python", folder / "bin" / "python3")
    run(uv(), "pip", "install", "--quiet", "--no-cache", "--no-deps", "--require-hashes", *target, "-r", lock)


def uv() -> Path:
    """The installer, as `make` puts it into the cache; put there now if `make` was not used."""
    folder = cache.root() / f"uv-{UV_VERSION}"
    if not (folder / "bin" / "uv").exists():
        with cache.locked("uv"):
            run(sys.executable, "-m", "venv", folder)
            run(folder / "bin" / "pip", "install", "--quiet", f"uv=={UV_VERSION}")
    return folder / "bin" / "uv"
