"""The runner's end of the load: starts it, keeps its journal as it grows, and answers where requests are under way."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chaos.journal import Entry, Truth
from chaos.load import REQUEST_SECONDS, Plan

REPOSITORY = Path(__file__).resolve().parent.parent
Inside = Callable[[Sequence[str]], list[str]]
"""Makes of a command the one that runs it where the deployment can be reached."""


class Load:
    """A load under way. Its reading thread is the only writer."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._entries: list[Entry] = []
        self._began: dict[str, tuple[str, float]] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def entries(self) -> list[Entry]:
        """What has ended so far."""
        with self._changed:
            return list(self._entries)

    def streaming(self, engine: str = "") -> int:
        """How many answers are under way, of one engine or of all."""
        with self._changed:
            return sum(engine in ("", its) for its, _ in self._began.values())

    def wait(self, what: str, condition: Callable[[], bool], limit: float) -> None:
        """Returns once `condition` holds, looked at whenever the journal grows. TimeoutError: not within `limit`
        seconds, or the load has ended."""
        with self._changed:
            held = self._changed.wait_for(lambda: condition() or self._process.poll() is not None, limit)
        if not held or not condition():
            raise TimeoutError(f"waited in vain until {what}")

    def wait_for_answers(self, count: int, limit: float = 120.0) -> None:
        """So many more answers than now."""
        wanted = len(self._entries) + count
        self.wait(f"{count} more requests have ended", lambda: len(self._entries) >= wanted, limit)

    def next_due(self, rate: float, chosen: Callable[[int], bool]) -> float:
        """When the next request is due whose number is `chosen`; some request must have ended."""
        with self._changed:
            last = self._entries[-1]
        number, now = int(last.id.rpartition("-")[2]), time.monotonic()
        began = last.scheduled - number / rate
        numbers = itertools.count(int((now - began) * rate) + 1)
        return began + next(number for number in numbers if chosen(number)) / rate

    def stop(self) -> list[Entry]:
        """No new requests; what is under way ends. The whole journal."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait(REQUEST_SECONDS + 30.0)
        self._thread.join()
        if status:
            raise RuntimeError(f"the load ended with status {status}")
        return self._entries

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._changed:
                if first := said.get("first"):
                    self._began[first["id"]] = (first["engine"], first["at"])
                else:
                    entry = entry_of(said["entry"])
                    self._began.pop(entry.id, None)
                    self._entries.append(entry)
                self._changed.notify_all()


def entry_of(fields: dict[str, object]) -> Entry:
    """From its JSON."""
    ids, silences = fields["token_ids"], fields["silences"]
    assert isinstance(silences, list)
    changed = {"token_ids": tuple(ids) if isinstance(ids, list) else None, "silences": tuple(map(tuple, silences))}
    return Entry(**{**fields, **changed})  # type: ignore[arg-type] # JSON of our own


@contextmanager
def loading(plan: Plan, inside: Inside) -> Iterator[Load]:
    """A load that runs while the block does."""
    command = inside([sys.executable, "-m", "chaos.load"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(plan.to_line())
            process.stdin.flush()
            yield Load(process)
        finally:
            process.kill()


def truths(plan: Plan, inside: Inside) -> list[Truth]:
    """The answer to each question, asked a few at a time while nothing is wrong. Raises RuntimeError where one
    does not come whole."""
    with loading(plan, inside) as load:
        load.wait("each question is answered once", lambda: len(load.entries()) == len(plan.questions), 300.0)
        entries = load.stop()
    failed = [entry for entry in entries if not entry.complete]
    if failed:
        raise RuntimeError(f"undisturbed, {len(failed)} of {len(entries)} questions failed: {failed[0].error}")
    ordered = sorted(entries, key=lambda entry: entry.question)
    return [Truth(one.text, one.token_ids, (one.first or one.end) - one.scheduled) for one in ordered]
