"""vLLM's tiered KV offloading, on every device. Loaded by vLLM, which `connectors.py` points here.

On GPUs this is vLLM's own specification and nothing else: its worker copies blocks between device and host memory. On
CPU vLLM refuses to have such a worker; here is one. There the device is memory too, so a copy is done where it is asked
for, between two steps of the engine, and takes what copying memory takes.

`TieringOffloadingSpec` and `CPUOffloadingWorker` of vLLM 0.32 (vllm/v1/kv_offload/tiering/spec.py, cpu/gpu_worker.py).
"""

import time
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from headrace_runtime.kv.chunks import pairs


class Spec(TieringOffloadingSpec):  # type: ignore[misc] # vLLM is not there to be type-checked
    """Found by its name: `spec_name` together with `spec_module_path`."""

    _worker: OffloadingWorker | None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if not current_platform.is_cpu():
            return super().get_worker(kv_caches)
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=0 if self.replicated_layout else self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = MemoryWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker


class MemoryWorker(OffloadingWorker):  # type: ignore[misc] # as above
    """Copies between two places in memory. A job is over when `submit_…` returns."""

    def __init__(self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        """Owns `region` from here on."""
        self._region = region
        self._blocks_per_chunk = blocks_per_chunk
        self._groups = kv_caches.group_data_refs
        self._device: list[torch.Tensor] = []
        """(blocks, bytes of a page), one for each tensor."""
        self._host: list[torch.Tensor] = []
        """(chunks, blocks of a chunk, bytes of a page), the same."""
        for cache in kv_caches.tensors:
            page = cache.page_size_bytes
            self._device.append(cache.tensor.view(torch.int8).view(-1, page))
            view = region.create_next_worker_view(page * blocks_per_chunk)
            self._host.append(view.unflatten(1, (blocks_per_chunk, page)))
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any) -> bool:
        self._copy(job_id, src_spec, dst_spec.block_ids, to_host=True)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec) -> bool:
        self._copy(job_id, dst_spec, src_spec.block_ids, to_host=False)
        return True

    def _copy(self, job_id: int, device: GPULoadStoreSpec, chunks: Any, *, to_host: bool) -> None:
        began, size = time.perf_counter(), 0
        found = pairs(
            device.group_sizes, device.block_indices, device.block_ids.tolist(), chunks.tolist(), self._blocks_per_chunk
        )
        for refs, group in zip(self._groups, found, strict=True):
            for ref in refs:
                count = ref.page_size_bytes
                pages, places = self._device[ref.tensor_idx], self._host[ref.tensor_idx]
                for pair in group:
                    page, place = pages[pair.block, :count], places[pair.chunk, pair.slot, :count]
                    if to_host:
                        place.copy_(page)
                    else:
                        page.copy_(place)
                size += count * len(group)
        seconds = time.perf_counter() - began
        self._finished.append(TransferResult(job_id=job_id, success=True, transfer_size=size, transfer_time=seconds))

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""

    def shutdown(self) -> None:
        self._device.clear()
        self._host.clear()  # before the memory that they are views of
        self._region.cleanup()
