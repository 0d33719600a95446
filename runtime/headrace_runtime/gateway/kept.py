"""What the client of one live stream has, kept in little memory until the stream is complete.

Bytes as they came, unread, as whole chunks of HTTP: every few kilobytes are deflated, since events repeat each other
(13 to 16 bytes a token are left of 240). Costs 1 µs a token and 8 KB a stream. Filled by `delivery.py` for every
token; read only when a stream has to be resumed.
"""

import zlib

BLOCK_BYTES = 8 * 1024
_WINDOW_BITS = -12
"""Raw deflate with a window of 4 KB: as small as a larger window, and no 256 KB to clear for every block."""
_MEMORY_LEVEL = 4
"""Its tables then take 24 KB. With the usual 8 they take 144, and half of a block's time went into clearing them."""


class Allowance:
    """Memory that all live streams share. `used` counts compressed blocks, in bytes; what is not compressed yet is at
    most `BLOCK_BYTES` and a chunk for each stream."""

    def __init__(self) -> None:
        self.used = 0


class Kept:
    """One stream. `complete` is False once all streams together used `limit` bytes: nothing is kept of it any more."""

    __slots__ = ("_allowance", "_blocks", "_chunks", "_held", "_limit", "_size", "complete")

    def __init__(self, allowance: Allowance, limit: int) -> None:
        self.complete = True
        self._allowance = allowance
        self._limit = limit
        self._blocks: list[bytes] = []
        self._held = 0
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """A whole chunk as it stands in HTTP, head and end included."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > BLOCK_BYTES:
            self._compress()

    def ends_with(self, body: bytes) -> bool:
        """Whether the last chunk's body does, as far as that is known: True where nothing is kept any more."""
        if not self.complete:
            return True
        last = self._chunks[-1:] or [zlib.decompress(block, _WINDOW_BITS) for block in self._blocks[-1:]]
        return bool(last) and last[0].endswith(body + b"\r\n")

    def read(self) -> bytes:
        """The bodies of all chunks. Raises ValueError where not all are there."""
        if not self.complete:
            raise ValueError("there was no memory left to keep the stream")
        blocks = [zlib.decompress(block, _WINDOW_BITS) for block in self._blocks]
        return bodies(b"".join([*blocks, *self._chunks]))

    def release(self) -> None:
        """Give the memory back; nothing can be read after."""
        self.complete = False
        self._allowance.used -= self._held
        self._held = self._size = 0
        self._blocks.clear()
        self._chunks.clear()

    def _compress(self) -> None:
        pieces, self._size = b"".join(self._chunks), 0
        self._chunks.clear()
        if not self.complete:
            return
        deflate = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
        block = deflate.compress(pieces) + deflate.flush()
        if self._allowance.used + len(block) > self._limit:
            self.release()
            return
        self._blocks.append(block)
        self._held += len(block)
        self._allowance.used += len(block)


def chunk(body: bytes) -> bytes:
    """`body`, which is not empty, as one chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def bodies(chunks: bytes) -> bytes:
    """The bodies of whole chunks, joined."""
    found, at = [], 0
    while at < len(chunks):
        begin = chunks.index(b"\r\n", at) + 2
        end = begin + int(chunks[at : begin - 2], 16)
        found.append(chunks[begin:end])
        at = end + 2
    return b"".join(found)
