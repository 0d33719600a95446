"""From a contract to vLLM's `--kv-transfer-config`: NIXL between engines, host memory and disk below them. Pure.

Called by `arguments.py`. One connector stands alone; two go under vLLM's MultiConnector, which takes a prompt's blocks
from the first that has some, and gives new ones to both. What each of our modules adds to vLLM is in the module.
"""

import json
from collections.abc import Mapping
from typing import Any

from headrace_runtime.contract import Engine, KvDisk, KvTiers, NodeContract, Place, RoleName, Transfer
from headrace_runtime.kv.identity import settings_digest

NIXL_MODULE = "headrace_runtime.engine.nixl"
OFFLOADING_MODULE = "headrace_runtime.engine.kvconnector"
SPEC_MODULE = "headrace_runtime.engine.kvspec"
TIER_MODULE = "headrace_runtime.engine.kvtier"
HASHING = "sha256_cbor"
"""How a block's key is made. vLLM's default hashes Python's own encoding of the tokens, which another version of Python
may write in another way; this one is the same in every process."""
GPU_BLOCKS_PER_CHUNK = 4
"""64 tokens with vLLM's usual blocks of 16: 8 MiB of an 8B model, a quarter of the lookups, and at most 63 tokens of a
prompt computed that the disk could have had. Blocks on CPU have 128 tokens already."""

KV_ROLES: Mapping[RoleName, str] = {"prefill": "kv_producer", "decode": "kv_consumer", "serve": "kv_consumer"}
"""What vLLM wants to be told (`kv_both` is deprecated for NIXL). It decides only who may use context parallelism: each
request says which side it is on, and an engine answers both kinds, so a role can change without a restart."""


def transfer_config(
    contract: NodeContract, place: Place, weights: str | None, engine_id: str | None = None
) -> str | None:
    """The option's value. `weights`: their digest; without it nothing is kept on disk. `engine_id`: of an engine over
    several pods, whose parts must not each choose their own. None: no connector at all."""
    engine = contract.engine
    connectors = []
    if engine.transfer is not None:
        connectors.append(_nixl(engine.transfer, contract.role) | ({"engine_id": engine_id} if engine_id else {}))
    if engine.kv_tiers is not None:
        connectors.append(_offloading(contract, engine.kv_tiers, place, weights))
    if not connectors:
        return None
    return _json(connectors[0] if len(connectors) == 1 else _both(connectors))


def modules(engine: Engine) -> tuple[str, ...]:
    """Of ours, those that the engine's connectors are in."""
    nixl = () if engine.transfer is None else (NIXL_MODULE,)
    tiers = () if engine.kv_tiers is None else (OFFLOADING_MODULE, SPEC_MODULE, TIER_MODULE)
    return (*nixl, *tiers)


def _nixl(transfer: Transfer, role: RoleName) -> dict[str, Any]:
    return {
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": NIXL_MODULE,
        "kv_role": KV_ROLES[role],
        "kv_load_failure_policy": transfer.on_failure.lower(),
    }


def _offloading(contract: NodeContract, tiers: KvTiers, place: Place, weights: str | None) -> dict[str, Any]:
    engine = contract.engine
    below = [] if tiers.disk is None or weights is None else [disk_tier(contract, tiers.disk, place, weights)]
    return {
        "kv_connector": "OffloadingConnector",
        "kv_connector_module_path": OFFLOADING_MODULE,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "Spec",
            "spec_module_path": SPEC_MODULE,
            # Each data-parallel copy takes as much.
            "cpu_bytes_to_use": tiers.host_bytes // engine.parallelism.data,
            "blocks_per_chunk": 1 if engine.device == "cpu" else GPU_BLOCKS_PER_CHUNK,
            # Answers too: the next turn of a conversation begins with them.
            "offload_prompt_only": False,
            # With the tokens of each block, so that a gateway that missed the beginning understands the rest.
            "self_describing_kv_events": True,
            "secondary_tiers": below,
        },
    }


def disk_tier(contract: NodeContract, disk: KvDisk, place: Place, weights: str) -> dict[str, Any]:
    """What `engine/kvtier.py` is given. Holds no secret: the key is read from its file."""
    return {
        "type": "DiskTier",
        "module_path": TIER_MODULE,
        "disk": disk.model_dump(by_alias=True, exclude_defaults=True),
        "deployment": f"{contract.namespace}_{contract.deployment}",
        "weights": weights,
        "settings": settings_digest(contract.engine),
        "hashing": HASHING,
        "run_dir": place.run_dir,
    }


def _both(connectors: list[dict[str, Any]]) -> dict[str, Any]:
    """NIXL first: where a request brings the way to its blocks, that is where they are taken from."""
    first = connectors[0]
    return {
        "kv_connector": "MultiConnector",
        "kv_role": first["kv_role"],
        "kv_load_failure_policy": first["kv_load_failure_policy"],
        "kv_connector_extra_config": {"connectors": connectors},
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
