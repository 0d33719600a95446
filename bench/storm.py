"""One run of `scale`: deployments are made, left alone, edited, rolled, met by an operator that starts anew, deleted.

Every phase puts its figures under the names that the table shows. A phase that does not come to its end raises
RuntimeError with what was there by then.
"""

import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench import programs
from bench.fleet import Fleet, roles
from bench.plane import Audit, Plane
from bench.report import percentile

EDITS = 5
ROLLED = {"env": [{"name": "ROLLED", "value": "yes"}]}
"""An edit of the engines that brings a new revision of them."""
QUIET_SECONDS = 7.0
"""Without a write for so long, the operator has nothing more to say: longer than it waits for what wakes nobody."""
IDLE_SECONDS, SHORT_IDLE_SECONDS, QUICK_IDLE_SECONDS = 600.0, 60.0, 5.0
MANY = 1000
"""From so many objects on, silence is watched for ten minutes."""

Writes = Counter[tuple[str, str, bool]]


class Operator:
    """The operator as a process."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self._port = port

    def cpu(self) -> float:
        return programs.cpu_seconds(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """Its own figures, by name and the values of labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return {
            " ".join((one.name, *one.labels.values())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def reads(self) -> float:
        return sum(n for name, n in self.metrics().items() if name.startswith("headrace_api_calls_total GET "))

    def pass_ms(self, share: float) -> float:
        """A percentile of all passes so far: the upper bound of its bucket."""
        found, name = self.metrics(), "headrace_pass_seconds_bucket "
        buckets = sorted((float(key.removeprefix(name)), n) for key, n in found.items() if key.startswith(name))
        wanted = share * found["headrace_pass_seconds_count"]
        return 1000 * next(bound for bound, count in buckets if count >= wanted)


class Storm:
    """One run over one fleet. `figures` fills as its phases end."""

    def __init__(self, control: Plane, fleet: Fleet, logs: Path, quick: bool) -> None:
        self.figures: dict[str, float] = {}
        self.writes: Writes = Counter()
        """Of the operator, from the first creation until all was quiet."""
        self._control = control
        self._fleet = fleet
        self._logs = logs
        self._audit = Audit(control.audit)
        self._size = len(fleet.keys)
        self._limit = 300 + 0.6 * self._size
        self._idle_seconds = IDLE_SECONDS if self._size >= MANY else SHORT_IDLE_SECONDS
        if quick:
            self._idle_seconds = QUICK_IDLE_SECONDS

    def run(self) -> None:
        self._fleet.open()
        self._floor_while_created()
        with self._operator() as operator:
            self._create(operator)
            self._silence(operator)
            self._edit()
            self._roll(operator)
        self._floor_of_a_start()
        self._restart()

    def _floor_while_created(self) -> None:
        """kopf that does nothing, while as many objects are made."""
        with self._noop() as (process, seen_all):
            cpu, began = programs.cpu_seconds(process.pid), time.time()
            self._fleet.create()
            self.figures["no-op kopf: all made and seen, s"] = seen_all() - began
            self.figures["no-op kopf: processor s while made"] = programs.cpu_seconds(process.pid) - cpu
        self._fleet.delete(self._limit)

    def _create(self, operator: Operator) -> None:
        self._quiet()
        before, cpu, began = self._control.cpu(), operator.cpu(), time.monotonic()
        created = self._fleet.create()
        self._fleet.eyes.until("all are Ready", self._fleet.ready, self._limit)
        took = max(said.at for said in self._fleet.eyes.said.values()) - began
        after, spent = self._control.cpu(), operator.cpu() - cpu
        self.writes = self._quiet()
        figures = self.figures
        figures["created, s"] = created
        figures["all Ready, s"] = took
        figures["operator: processor s until Ready"] = spent
        figures["operator: ms per object"] = 1000 * spent / self._size
        figures["API server: processor s until Ready"] = after["apiserver"] - before["apiserver"]
        figures["all of the control plane: processor s"] = sum(after.values()) - sum(before.values())
        figures["operator: processor s until quiet"] = operator.cpu() - cpu
        figures["operator: peak memory MB"] = peak_mb(operator.process.pid)
        figures["reads per object"] = operator.reads() / self._size
        figures["passes per object"] = operator.metrics()["headrace_pass_seconds_count"] / self._size
        figures["pass: p50 at most, ms"] = operator.pass_ms(0.5)
        figures["pass: p99 at most, ms"] = operator.pass_ms(0.99)

    def _silence(self, operator: Operator) -> None:
        """Nothing changes but what agents count of themselves."""
        self._audit.since()
        cpu, reads, began = operator.cpu(), operator.reads(), time.monotonic()
        time.sleep(self._idle_seconds)  # the silence itself is what is measured
        took = time.monotonic() - began
        self.figures["idle: seconds watched"] = took
        self.figures["idle: writes"] = self._audit.since().total()
        self.figures["idle: operator, millicores"] = 1000 * (operator.cpu() - cpu) / took
        self.figures["idle: reads per minute"] = 60 * (operator.reads() - reads) / took

    def _edit(self) -> None:
        """One edit after the other, each of another object, while nothing else happens."""
        took = [self._fleet.scale(key, 2) for key in self._fleet.keys[1 : 1 + EDITS]]
        self.figures["edit to pod, idle: median ms"] = 1000 * percentile(took, 0.5)
        self.figures["edit to pod, idle: longest ms"] = 1000 * max(took)
        self._fleet.eyes.until("the edits are done", self._fleet.settled, self._limit)
        self._quiet()

    def _roll(self, operator: Operator) -> None:
        """All but one get a new revision of their engines; that one is edited in the middle of it."""
        alone, *others = self._fleet.keys
        cpu, began = operator.cpu(), time.monotonic()
        self._fleet.edit_all(others, engine=ROLLED)
        self.figures["edit to pod while all roll: ms"] = 1000 * self._fleet.scale(alone, 2)
        self._fleet.eyes.until("all have rolled", self._fleet.settled, self._limit)
        self.figures["roll of all: s"] = max(said.at for said in self._fleet.eyes.said.values()) - began
        written = self._quiet()
        self.figures["roll of all: operator ms per object"] = 1000 * (operator.cpu() - cpu) / self._size
        self.figures["roll of all: writes per object"] = _done(written) / len(others)

    def _restart(self) -> None:
        """From the start of the process; an edit that was made while there was no operator waits for it."""
        waiting = self._fleet.keys[-1]
        with self._fleet.expecting(waiting, 3) as seen:
            self._fleet.edit(waiting, roles=roles(3))
            self._audit.since()
            began = time.monotonic()
            with self._operator() as operator:
                self.figures["restart: to the pod of a waiting edit, s"] = seen() - began
                self._until("each has had a pass", lambda: _passes(operator) >= self._size)
                self.figures["restart: each has had a pass, s"] = time.monotonic() - began
                self.figures["restart: operator, processor s"] = operator.cpu()
                self._fleet.eyes.until("the edit is done", self._fleet.settled, self._limit)
                self.figures["restart: writes"] = self._quiet().total()
                self.figures["restart: peak memory MB"] = peak_mb(operator.process.pid)
                self._delete(operator)

    def _delete(self, operator: Operator) -> None:
        self._audit.since()
        cpu = operator.cpu()
        self.figures["delete all: s"] = self._fleet.delete(self._limit)
        self.figures["delete all: operator, processor s"] = operator.cpu() - cpu
        self.figures["delete all: writes"] = self._audit.since().total()

    def _floor_of_a_start(self) -> None:
        """kopf that does nothing is started on the same objects and all their children."""
        began = time.time()
        with self._noop() as (process, seen_all):
            self.figures["no-op kopf: start until all seen, s"] = seen_all() - began
            self.figures["no-op kopf: processor s of a start"] = programs.cpu_seconds(process.pid)
            self.figures["no-op kopf: peak memory MB"] = peak_mb(process.pid)

    @contextmanager
    def _operator(self) -> Iterator[Operator]:
        """One that has answered. RuntimeError: it ends before it is told to."""
        port, log = programs.free_port(), self._logs / "operator.log"
        env = {"KUBECONFIG": str(self._control.operator), "HEADRACE_PORT": str(port)}
        with programs.running([sys.executable, "-m", "headrace_operator", "run"], log, env) as process:
            programs.wait_for(f"http://127.0.0.1:{port}/healthz", process, log)
            yield Operator(process, port)
            if process.poll() is not None:
                raise RuntimeError(f"the operator ended by itself: {log.read_text()[-1500:]}")

    @contextmanager
    def _noop(self) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[], float]]]:
        """kopf that does nothing, and a function that waits until it has seen all objects and says when it had."""
        log = self._logs / "noop.log"

        def seen() -> tuple[int, float]:
            *_, last = log.read_text().splitlines()
            count, _, at = last.partition(" ")
            return int(count), float(at)

        def seen_all() -> float:
            self._until("kopf has seen all", lambda: seen()[0] >= self._size)
            return seen()[1]

        env = {"KUBECONFIG": str(self._control.operator)}
        with programs.running([sys.executable, "-m", "bench.noop"], log, env) as process:
            self._until("kopf has started", lambda: process.poll() is None and bool(log.read_text()))
            yield process, seen_all

    def _quiet(self) -> Writes:
        """Waits until the operator has written nothing for a while; its writes since the last look."""
        written, since, end = self._audit.since(), time.monotonic(), time.monotonic() + self._limit
        while time.monotonic() - since < QUIET_SECONDS:
            if time.monotonic() > end:
                raise RuntimeError(f"the operator still writes after {self._limit:.0f} s: {written}")
            time.sleep(0.2)
            if more := self._audit.since():
                written, since = written + more, time.monotonic()
        return written

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + self._limit
        while not condition():
            self._control.check()
            if time.monotonic() > end:
                raise RuntimeError(f"waited {self._limit:.0f} s in vain: {what}")
            time.sleep(0.05)


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had (proc(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000


def _passes(operator: Operator) -> float:
    return operator.metrics().get("headrace_pass_seconds_count", 0.0)


def _done(writes: Writes) -> int:
    return sum(count for (_, _, ok), count in writes.items() if ok)
