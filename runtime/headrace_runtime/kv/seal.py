"""What is done to a block's bytes on their way to the disk and back: a checksum, or AES-GCM, whose tag is one.

Both are bound to a context, the slot, the write and the key they were made for, so that a whole and unharmed block in
the wrong place is as wrong as a flipped bit.
"""

import hashlib
import hmac
import secrets
from mmap import mmap
from struct import Struct
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace_runtime.kv.checksum import block_checksum
from headrace_runtime.kv.layout import CHECKSUM_BYTES, NONCE_BYTES

SECRET_BYTES: Final = 32
_WRITE: Final = Struct("<QQ")


def context(place: bytes, sequence: int, key: bytes, length: int) -> bytes:
    """One write of one slot. `place` is the slot's (`layout.slot_place`)."""
    return place + _WRITE.pack(sequence, length) + key


class Seal(Protocol):
    """Thread-safe; the interpreter's lock is free while a block is read through."""

    def close(self, about: bytes, block: memoryview) -> tuple[memoryview, bytes, bytes]:
        """The bytes to write in place of `block`, their checksum, and a nonce."""

    def landing(self, into: memoryview) -> memoryview:
        """Where the bytes of a block that is wanted in `into` are to be read; as many as `into` has."""

    def opens(self, about: bytes, landed: memoryview, into: memoryview, checksum: bytes, nonce: bytes) -> bool:
        """Whether what landed is what was written. If so the block is in `into`; if not, anything may be."""


class Checksum:
    """Without `verify` nothing is compared, and a changed block is served: for disks that check by themselves."""

    def __init__(self, *, verify: bool) -> None:
        self._verify = verify

    def close(self, about: bytes, block: memoryview) -> tuple[memoryview, bytes, bytes]:
        return block, block_checksum(about, block), bytes(NONCE_BYTES)

    def landing(self, into: memoryview) -> memoryview:
        return into

    def opens(self, about: bytes, landed: memoryview, into: memoryview, checksum: bytes, nonce: bytes) -> bool:
        return not self._verify or block_checksum(about, landed) == checksum


class Encryption:
    """AES-256-GCM, with a random nonce for each write: a secret is good for 2³² of them."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)

    def close(self, about: bytes, block: memoryview) -> tuple[memoryview, bytes, bytes]:
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = memoryview(mmap(-1, len(block) + CHECKSUM_BYTES))  # on pages, as `Extent.write` likes it
        self._cipher.encrypt_into(nonce, block, about, sealed)
        return sealed[: len(block)], bytes(sealed[len(block) :]), nonce

    def landing(self, into: memoryview) -> memoryview:
        return memoryview(bytearray(len(into) + CHECKSUM_BYTES))[: len(into)]

    def opens(self, about: bytes, landed: memoryview, into: memoryview, checksum: bytes, nonce: bytes) -> bool:
        sealed = memoryview(landed.obj)
        sealed[len(landed) :] = checksum
        try:
            self._cipher.decrypt_into(nonce, sealed, about, into)
        except InvalidTag:
            return False
        return True


def secret_name(secret: bytes) -> str:
    """Eight digits that differ between secrets and tell nothing of them: blocks under another are another's blocks."""
    return hmac.new(secret, b"headrace kv folder", hashlib.sha256).hexdigest()[:8]
