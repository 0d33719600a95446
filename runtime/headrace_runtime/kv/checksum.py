"""The checksum of a block: XXH3, 128 bits, over where it lies, its key and its data. Pure.

Measured beside CRC-32C and BLAKE3 before it was chosen (docs/kv-cache.md). It finds what disks, cables and crashes do;
it is no proof against a person who may write the disk: for that there is `seal.py`.
"""

from xxhash import xxh3_64_intdigest, xxh3_128_digest


def block_checksum(context: bytes, data: memoryview) -> bytes:
    """16 bytes. `context` says which write of which slot and which key it is (`seal.context`): the bytes of another are
    as wrong as changed ones. Releases the interpreter's lock while it reads `data`."""
    return xxh3_128_digest(data, xxh3_64_intdigest(context))
