"""From a contract to an open store: which folder, which settings, which key. Called by `engine/kvtier.py`."""

import base64
from pathlib import Path

from headrace_runtime.contract import KvDisk
from headrace_runtime.kv.keeper import Refused
from headrace_runtime.kv.store import Settings, Store, StoreError


def open_store(disk: KvDisk, deployment: str, identity: str, block_bytes: int) -> Store:
    """The store of one identity. `deployment` names its folder on the node. Raises Refused."""
    settings = Settings(
        size_bytes=disk.size_bytes,
        node_size_bytes=disk.node_size_bytes,
        block_bytes=block_bytes,
        verify=disk.verify == "Always",
        eviction=disk.eviction,
        on_model_change=disk.on_model_change,
        key=None if disk.key_file is None else read_key(Path(disk.key_file)),
    )
    try:
        return Store(Path(disk.path) / deployment, identity, settings)
    except StoreError as error:
        raise Refused(error.reason, error.message) from error


def read_key(file: Path) -> bytes:
    """Base64, with or without a line's end. Raises Refused, which quotes nothing of it."""
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused("KeyMissing", "kvCache.disk.encryption: the Secret's key cannot be read") from error
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused("KeyMissing", "kvCache.disk.encryption: the Secret's key is not base64") from error
