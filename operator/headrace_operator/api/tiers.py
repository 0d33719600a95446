"""What must hold of the KV tiers in a spec: checks as those of `checks.py`, listed in `rules.py`. Pure.

That a budget holds one block at all only the engine can tell, which knows how large a block is: it says BudgetTooSmall.
"""

from typing import Final

from headrace_operator.api.checks import Problems
from headrace_operator.api.problems import Problem
from headrace_operator.api.types import Bytes
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

LEAST_HOST: Final = Bytes("16Mi")
LEAST_DISK: Final = Bytes("64Mi")
HEADROOM: Final = Bytes("64Mi")
"""What an emptyDir holds beyond the blocks: the kubelet counts folders and files that are just being replaced too, and
evicts the pod where it finds more than the limit."""


def disk_needs_host(spec: InferenceDeploymentSpec) -> Problems:
    if spec.kv_cache.disk is not None and spec.kv_cache.host is None:
        yield Problem("spec.kvCache.disk", "every block passes through host memory: set spec.kvCache.host.size")


def tier_sizes(spec: InferenceDeploymentSpec) -> Problems:
    tiers = {"host": (spec.kv_cache.host, LEAST_HOST), "disk": (spec.kv_cache.disk, LEAST_DISK)}
    for name, (tier, least) in tiers.items():
        if tier is not None and tier.size.value < least.value:
            yield Problem(f"spec.kvCache.{name}.size", f"is {tier.size}: a tier has {least} at least")


def disk_fits_volume(spec: InferenceDeploymentSpec) -> Problems:
    disk, path = spec.kv_cache.disk, "spec.kvCache.disk.volume"
    if disk is None:
        return
    claim, folder = disk.volume.claim_template, disk.volume.empty_dir
    if claim is not None and claim.size.value < disk.size.value:
        yield Problem(f"{path}.claimTemplate.size", f"is {claim.size}, less than disk.size {disk.size}: claim more")
    limit = folder.size_limit if folder is not None else None
    if limit is not None and limit.value < disk.size.value + HEADROOM.value:
        fix = f"the pod would be evicted: remove it, or allow {HEADROOM} more than disk.size {disk.size}"
        yield Problem(f"{path}.emptyDir.sizeLimit", f"is {limit}, and {fix}")


def disk_needs_digest(spec: InferenceDeploymentSpec) -> Problems:
    if spec.kv_cache.disk is not None and spec.model.integrity.policy == "Off":
        fix = "set spec.model.integrity.policy to Enforce or Warn"
        yield Problem("spec.kvCache.disk", f"blocks are found by the digest of the weights, which nobody takes: {fix}")


def sharing_needs_keys(spec: InferenceDeploymentSpec) -> Problems:
    if spec.kv_cache.sharing == "Key" and spec.gateway.api_keys_secret_ref is None:
        yield Problem(
            "spec.kvCache.sharing", "Key, but nobody has a key: set spec.gateway.apiKeysSecretRef, or use All"
        )
