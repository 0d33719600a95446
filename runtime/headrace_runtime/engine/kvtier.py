"""KV blocks on a disk of the node, as a secondary tier of vLLM's offloading. Loaded by vLLM, which `connectors.py`
points here.

What vLLM asks in its scheduler's thread is answered from memory: whether a block is on the disk, from the store's
index; loads and stores by threads (`kv/transfers.py`); everything else that may wait for a disk by `kv/keeper.py`. A
disk that is slow, full or gone is to vLLM a disk that holds nothing, and its blocks are computed.

Each data-parallel copy of an engine has a tier; all share the store with the other engines of the deployment on the
node. Where a block is cut over several workers, the bytes of all of them are one block here: vLLM's host memory has
them side by side. `SecondaryTierManager` of vLLM 0.32 (vllm/v1/kv_offload/tiering/base.py).
"""

import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from headrace_runtime.contract import KvDisk, KvState
from headrace_runtime.kv import report
from headrace_runtime.kv.identity import Geometry, Group, Identity, Parallel
from headrace_runtime.kv.keeper import Keeper
from headrace_runtime.kv.layout import FORMAT
from headrace_runtime.kv.opening import open_store
from headrace_runtime.kv.transfers import Limits, Transfers

OPEN_SECONDS = 10.0
"""How long an engine's start may wait for the store's index."""
FAILED_SECONDS = 30.0
"""How long a block that could not be loaded counts as missing: it would be asked for again in the next step."""
DROPPED = "headrace:kv_disk_stores_dropped"
GIVEN_UP = "headrace:kv_disk_loads_given_up"


class DiskTier(SecondaryTierManager):  # type: ignore[misc] # vLLM is not there to be type-checked
    """Found by its name: `type` together with `module_path`."""

    medium = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        **options: Any,
    ) -> None:
        """`options` are those of `connectors.disk_tier`."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality.LOCAL
        config, parallel = offloading_spec.config, offloading_spec.config.parallel
        size = self.block_size_bytes
        blocks = len(primary_kv_view)
        identity = Identity(
            weights=options["weights"],
            settings=options["settings"],
            geometry=geometry_of(offloading_spec, size, options["hashing"]).canonical(),
            format=FORMAT,
        )
        per_chunk = offloading_spec.blocks_per_chunk
        self._tokens = {group.group_id: group.tokens_per_block * per_chunk for group in config.groups}
        self._looked_up = self._found = 0
        self._hits: dict[OffloadKey, float] = {}
        """Blocks that requests of this step need, and when the requests came."""
        self._failed: dict[OffloadKey, float] = {}
        self._loads: dict[int, TransferJob] = {}
        self._told = (0, 0)
        self._keeper = Keeper(
            partial(open_store, KvDisk.model_validate(options["disk"]), options["deployment"], identity.folder(), size),
            partial(report.write, report.path(Path(options["run_dir"]), parallel.data_parallel_index)),
            self._counted,
            events=offloading_spec.kv_events_config.enable_kv_cache_events,
        )
        cores = len(os.sched_getaffinity(0))
        limits = Limits(
            readers=min(16, max(2, cores)), writers=min(8, max(1, cores // 2)), waiting_stores=max(1, blocks // 4)
        )
        self._transfers = Transfers(primary_kv_view.cast("B"), size, lambda: self._keeper.store, limits)
        self._usable = True
        self._keeper.start(OPEN_SECONDS)

    # ---- asked by the scheduler, for each block -----------------------------------------------------------------

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        asked = req_context.get_state(Asked)
        if asked is None:
            asked = Asked()
            req_context.set_state(asked)
        if key not in asked:
            asked.add(key)
            self._looked_up += 1
        store = self._keeper.store
        if store is None or not self._usable or key not in store or self._failed.get(key, 0.0) > time.monotonic():
            return LookupResult.MISS
        self._found += 1
        self._hits[key] = came(req_context)
        return LookupResult.HIT

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._keeper.touch(keys, came(req_context))

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._loads[job_metadata.job_id] = job_metadata
        self._transfers.load(job_metadata.job_id, list(job_metadata.keys), self._places(job_metadata))

    def submit_store(self, job_metadata: TransferJob) -> None:
        keys, context = list(job_metadata.keys), job_metadata.req_context
        depths = [self._depth(key, context) for key in keys]
        self._transfers.store(job_metadata.job_id, keys, self._places(job_metadata), depths, came(context))

    def get_finished_jobs(self) -> Iterable[JobResult]:
        results = []
        for job in self._transfers.poll():
            load = self._loads.pop(job.job, None)
            if load is None:
                # What became of its blocks is known later, and to the store: their places are free already.
                results.append(JobResult(job_id=job.job, success=True, transfer_time=job.seconds, transfer_bytes=0))
                continue
            self._note_failed(set(load.keys).difference(job.good))
            results.append(
                JobResult(
                    job_id=job.job,
                    success=len(job.good) == job.asked,
                    successful_keys=job.good or None,
                    transfer_time=job.seconds,
                    transfer_bytes=len(job.good) * self.block_size_bytes,
                )
            )
        return results

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._usable = not self._transfers.hanging
        if self._hits:
            moments: defaultdict[float, list[OffloadKey]] = defaultdict(list)
            for key, at in self._hits.items():
                moments[at].append(key)
            self._hits = {}
            for at, keys in moments.items():
                self._keeper.touch(keys, at)

    def drain_jobs(self) -> None:
        self._transfers.settle()

    def has_pending_work(self) -> bool:
        """Jobs keep the engine stepping by themselves; blocks that came or went are told in a step as well."""
        return self._keeper.has_events

    def shutdown(self) -> None:
        self._transfers.close()
        self._keeper.close()

    # ---- told to others -----------------------------------------------------------------------------------------

    def take_events(self) -> Iterable[OffloadingEvent]:
        """A few in each step: what a disk held at the engine's start may be many."""
        if (change := self._keeper.take_event()) is not None:
            yield OffloadingEvent(
                keys=[OffloadKey(key) for key in change.keys],
                medium=self.medium,
                removed=change.removed,
                locality=self.locality,
                ownership=self.tier_type,
                removal_expected=True,
            )

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return {
            DROPPED: OffloadingCounterMetadata("KV blocks that were not stored, as the disk could not follow."),
            GIVEN_UP: OffloadingCounterMetadata("KV blocks that the disk did not give in time."),
        }

    def get_stats(self) -> OffloadingConnectorStats | None:
        counts = self._transfers.counts
        now, told = (counts.dropped, counts.given_up), self._told
        if now == told:
            return None
        self._told, stats = now, OffloadingConnectorStats()
        for name, value, before in zip((DROPPED, GIVEN_UP), now, told, strict=True):
            stats.increase_counter(name, value - before)
        return stats

    def _counted(self, state: KvState) -> KvState:
        dropped = self._transfers.counts.dropped
        more: dict[str, object] = {"looked_up": self._looked_up, "found": self._found, "dropped": dropped}
        if self._transfers.hanging and state.ready:
            more |= {"ready": False, "reason": "DiskSlow", "message": "a read or write has not come back for seconds"}
        return state.model_copy(update=more)

    # ---- inside -------------------------------------------------------------------------------------------------

    def _places(self, job: TransferJob) -> list[int]:
        return [int(chunk) * self.block_size_bytes for chunk in job.chunk_ids]

    def _depth(self, key: OffloadKey, context: ReqContext) -> int:
        """How many blocks of its prompt precede this one."""
        end = context.get_offload_key_position(key) or 0
        tokens: int = self._tokens[get_offload_group_idx(key)]
        return max(0, -(-end // tokens) - 1)

    def _note_failed(self, keys: Collection[OffloadKey]) -> None:
        now = time.monotonic()
        self._failed = {key: until for key, until in self._failed.items() if until > now}
        self._failed.update(dict.fromkeys(keys, now + FAILED_SECONDS))


class Asked(set[OffloadKey]):
    """Blocks that a request was looked up for: it is asked again in every step until it can run."""


class Came(float):
    """When a request came, by the wall clock: all its blocks count as used then, and eviction knows them together."""


def came(context: ReqContext) -> float:
    at = context.get_state(Came)
    if at is None:
        at = Came(time.time())
        context.set_state(at)
    return float(at)


def geometry_of(spec: OffloadingSpec, size: int, hashing: str) -> Geometry:
    config, parallel = spec.config, spec.config.parallel
    return Geometry(
        engine=f"vllm {version('vllm')}",
        device=device(),
        layout=config.kv_cache_layout or "",
        dtype=config.model.dtype,
        groups=tuple(Group(group.tokens_per_block, tuple(group.layer_names)) for group in config.groups),
        blocks=spec.blocks_per_chunk,
        bytes=size,
        tokens_per_hash=spec.tokens_per_hash,
        hashing=f"{hashing} {resolve_none_hash_seed(get_hash_fn_by_name(hashing))}",
        parallel=Parallel(
            tensor=parallel.tp_size,
            pipeline=parallel.pp_size,
            prefill_context=parallel.pcp_size,
            decode_context=parallel.dcp_size,
            workers=parallel.world_size,
            replicated=spec.replicated_layout,
        ),
    )


def device() -> str:
    """What computes, as far as it decides how a block is laid out: on CPU the instructions that attention uses."""
    if current_platform.is_cpu():
        amx = " amx" if torch.cpu._is_amx_tile_supported() else ""
        return f"cpu {current_platform.get_cpu_architecture().name} {torch.backends.cpu.get_cpu_capability()}{amx}"
    capability = current_platform.get_device_capability()
    return f"{current_platform.device_type} {capability.as_version_str() if capability else ''}"
