"""Lets tokens gather before the event loop looks at its sockets again, as network cards do with their interrupts.

An engine writes the tokens of one step one after another. A loop that wakes for each spends more on waking than on
relaying, and on a full machine takes that time from the engine. Measured with 32 streams before vLLM on 2 cores: 1.92
ms of processor time per request of 64 tokens without, 1.67 ms with. A token waits half a millisecond at most, and
only while several streams are relayed; when many tokens come at once anyway, nothing waits.
"""

import time
from collections.abc import Callable

PAUSE_SECONDS = 0.0005
STREAMS = 8
"""With fewer there is little to gather, and their tokens pass at once."""
ENOUGH = 16
"""Tokens read in one turn of the loop that are a gathering already."""

Later = Callable[[Callable[[], None]], object]


class Pacer:
    """One per event loop. `later` runs a function in the loop's next turn, before it looks at its sockets."""

    def __init__(self, later: Later, sleep: Callable[[float], None] = time.sleep) -> None:
        self.streams = 0
        """Answers being relayed now."""
        self._later = later
        self._sleep = sleep
        self._read = 0

    def token(self) -> None:
        """One was read and handed on: called for each."""
        if self.streams < STREAMS:
            return
        self._read += 1
        if self._read == 1:
            self._later(self._pause)

    def _pause(self) -> None:
        """Blocks the loop on purpose; what is to be sent was given to the sockets before."""
        read, self._read = self._read, 0
        if read < ENOUGH:
            self._sleep(PAUSE_SECONDS)
