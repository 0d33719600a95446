"""Other people's programs that benchmarks are measured against, each in a virtual environment of its own in the cache.

vllm-router (https://github.com/vllm-project/router, Apache-2.0) is the vLLM project's own router, written in Rust.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.programs import free_port, running, wait_for
from local import cache, packages
from local.engine import build

VLLM_ROUTER_LOCK = Path(__file__).with_name("vllm_router.lock")
"""Written by `make lock`."""


@dataclass(frozen=True)
class Peer:
    """A router that runs."""

    url: str
    pid: int


@contextmanager
def vllm_router(folder: Path, options: Sequence[str]) -> Iterator[Peer]:
    """The router with these options beside its own ports, once it answers; for as long as the block runs."""
    port, log = free_port(), folder / "vllm-router.log"
    own = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error")
    with running([str(installed() / "bin" / "vllm-router"), *own, *options], log) as program:
        wait_for(f"http://127.0.0.1:{port}/health", program, log)
        yield Peer(f"http://127.0.0.1:{port}", program.pid)


def installed() -> Path:
    """Its virtual environment, made on the first call: some 130 MB."""
    packages.require(str(build.PYTHON))
    return cache.kept("vllm-router", cache.key(VLLM_ROUTER_LOCK.read_bytes()), _install)


def _install(folder: Path) -> None:
    build.install(folder, VLLM_ROUTER_LOCK)
