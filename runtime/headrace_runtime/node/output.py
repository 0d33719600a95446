"""What a program prints: passed on to the agent's own output, where `kubectl logs` shows it, its last lines kept.

A program opens the named pipe by its path, as if it were a log file; the agent reads the other end. So nothing grows on
disk, and a failed engine's last error can be told in the status. Called by `agent.py`, for the engine and the raylet.
"""

import asyncio
import os
import re
import sys
from collections import deque
from pathlib import Path

READ_BYTES = 65536
KEPT_LINES = 200
ERROR = re.compile(r"(?:^|\s)((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt): .+)$")
CAUSE_FOLLOWS = "See root cause above"
MESSAGE_CHARACTERS = 300


class Output:
    """Reader of one named pipe at `path`, made here, readable and writable by this user alone."""

    def __init__(self, path: Path, sink: int | None = None) -> None:
        """`sink`: descriptor that gets every byte; the agent's stderr unless told."""
        self.path = path
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._sink = sys.stderr.fileno() if sink is None else sink
        self._rest = b""
        os.mkfifo(path, 0o600)
        # Open for writing too: without a writer of our own the pipe would end whenever a program does.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def forget(self) -> None:
        """A new program writes from here on."""
        self._read()
        self.lines.clear()

    def last_error(self) -> str:
        """The last line that names a Python exception, shortened; empty if none did.

        vLLM raises a second error in the parent of the process that failed; the first one tells what happened.
        """
        self._read()
        for line in reversed(self.lines):
            if (found := ERROR.search(line)) and CAUSE_FOLLOWS not in line:
                return found[1][:MESSAGE_CHARACTERS]
        return ""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return
            os.write(self._sink, chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self.lines += [line.decode(errors="replace").rstrip() for line in lines]
            self._rest = self._rest[-READ_BYTES:]
