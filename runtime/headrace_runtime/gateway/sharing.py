"""Who shares KV blocks with whom: the `cache_salt` of a request. Pure; called by `flow.py`.

Engines hash a prompt's first block together with its salt, so that prompts of two salts have no block in common, on the
device, on the host or on disk. With `kv_sharing: Key` the salt follows from the key's name: it stays the same when the
key itself is replaced, and tells nothing of it. A client's own salt parts that key's blocks further, and cannot meet
another key's, whatever it is.
"""

import hashlib
from typing import Final

import orjson

from headrace_runtime.contract import GatewayContract
from headrace_runtime.gateway import errors

LONGEST: Final = 128
_FORBIDDEN: Final = frozenset("@/\\\0")


def salt_of(contract: GatewayContract, key: str, own: bool, given: object) -> str:
    """64 hex digits. `key`: its name; `own`: it is the gateway's; `given`: the client's `cache_salt`. Raises
    RequestError (400) for one that an engine would refuse."""
    if given is not None and not _acceptable(given):
        raise errors.malformed(
            f"`cache_salt` must be text of 1 to {LONGEST} characters without `@`, `/`, `\\` and NUL.", "cache_salt"
        )
    parts = ("headrace", contract.namespace, contract.deployment, own, key, given)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def _acceptable(salt: object) -> bool:
    return isinstance(salt, str) and 0 < len(salt) <= LONGEST and _FORBIDDEN.isdisjoint(salt)
