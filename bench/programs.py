"""Programs that a benchmark starts: an engine, a gateway. They end with the block they are started in, whatever
happens."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """Processors of this machine: one for what is measured, the others for what it is measured with."""

    relay: frozenset[int]
    others: frozenset[int]

    @property
    def all(self) -> frozenset[int]:
        return self.relay | self.others


CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 20.0
RUNTIME = Path(__file__).parents[1] / "runtime"


def free_port() -> int:
    """A port below those that the kernel gives out by itself: it must still be free when an engine binds it, a minute
    later."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


@contextlib.contextmanager
def running(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own while the block lasts; then end all of the session. Output goes to
    `log`. The runtime's package can be imported in it, whichever Python it has."""
    with log.open("wb") as output:
        env = {**os.environ, "PYTHONPATH": str(RUNTIME), **(env or {})}
        program = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            yield program
        finally:
            program.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # what outlasts it is killed, with all it started
                program.wait(STOP_SECONDS)
            _kill_group(program.pid)
            program.wait()


def wait_for(url: str, program: subprocess.Popen[bytes], log: Path, seconds: float = 180.0) -> None:
    """Until `url` answers 200. Raises RuntimeError with the end of the log where it does not, or the program ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and program.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"nothing answers at {url}; the end of {log.name}:\n{tail}")


def cpu_seconds(pid: int) -> float:
    """Processor time of one process so far, user and system (proc(5), fields 14 and 15 of `stat`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def tree_seconds(pid: int) -> float:
    """Processor time so far of a process and of all that it has started and that still runs."""
    try:
        tasks = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        return cpu_seconds(pid) + sum(tree_seconds(int(child)) for task in tasks for child in task.split())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # it has ended since


def busy_seconds() -> float:
    """Processor time of the whole machine so far, with what others on its host took from it (proc(5), `/proc/stat`)."""
    user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / CLOCK_TICKS


def cores() -> Cores:
    """On a machine with one processor, all share it."""
    first, *rest = range(os.cpu_count() or 1)
    return Cores(frozenset({first}), frozenset(rest or {first}))


def pin(pid: int, to: frozenset[int]) -> None:
    """Keep a process (0: this one), with the threads it has and will have, on these processors."""
    for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread has ended since
            os.sched_setaffinity(int(thread.name), to)


def resident_bytes(pid: int) -> int:
    """Memory of one process now (proc(5), second field of `statm`)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all have ended
