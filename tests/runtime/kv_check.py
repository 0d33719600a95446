"""What the tier on disk takes for granted of vLLM, checked in the engine's environment. Run by `test_kv_tier.py`.

keys    A block's key is made by an algorithm that is the same in every process, from all tokens up to its end, the
        request's cache salt, and the name and path of its adapter.
copies  The worker for CPU engines brings every block back as it was: chunks of several blocks, transfers that begin
        and end amid a chunk, a hybrid model's groups that share tensors, pages with padding.
"""

import hashlib
from typing import Any

import cbor2
import torch
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.request import Request

from headrace_runtime.engine.connectors import HASHING
from headrace_runtime.engine.kvspec import MemoryWorker


def keys() -> None:
    algorithm = get_hash_fn_by_name(HASHING)
    init_none_hash(algorithm)
    hasher = get_request_block_hasher(4, algorithm)

    def hashes(tokens: list[int], salt: str | None = None, lora: tuple[str, str] | None = None) -> list[bytes]:
        adapter = None if lora is None else LoRARequest(lora_name=lora[0], lora_int_id=1, lora_path=lora[1])
        request = Request(
            request_id="r",
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(),
            pooling_params=None,
            lora_request=adapter,
            cache_salt=salt,
            block_hasher=hasher,
        )
        return list(request.block_hashes)

    def by_hand(parent: bytes, tokens: list[int], extra: Any = None) -> bytes:
        return hashlib.sha256(cbor2.dumps((parent, tuple(tokens), extra), canonical=True)).digest()

    seed = hashlib.sha256(cbor2.dumps("vllm-none-hash", canonical=True)).digest()
    first = by_hand(seed, [1, 2, 3, 4])
    assert hashes([1, 2, 3, 4, 5, 6, 7, 8, 9]) == [first, by_hand(first, [5, 6, 7, 8])]
    plain = hashes([1, 2, 3, 4])
    different = [
        plain,
        hashes([1, 2, 3, 5]),
        hashes([1, 2, 3, 4], salt="a"),
        hashes([1, 2, 3, 4], salt="b"),
        hashes([1, 2, 3, 4], lora=("law", "/adapters/00aa")),
        hashes([1, 2, 3, 4], lora=("law", "/adapters/00bb")),
        hashes([1, 2, 3, 4], lora=("tax", "/adapters/00aa")),
    ]
    assert len({one[0] for one in different}) == len(different)
    assert hashes([1, 2, 3, 4], lora=("law", "/adapters/00aa")) == different[4]


def copies() -> None:
    blocks, page, per_chunk, chunks = 16, 96, 3, 8
    tensors = [torch.randint(-128, 128, (blocks, page), dtype=torch.int8) for _ in range(3)]
    # Both groups lie in the same tensors; the pages of the second have 32 bytes of padding.
    refs = [[CanonicalKVCacheRef(0, page), CanonicalKVCacheRef(1, page)], [CanonicalKVCacheRef(2, 64)]]
    caches = CanonicalKVCaches([CanonicalKVCacheTensor(tensor, page) for tensor in tensors], refs)
    size = 3 * page * per_chunk
    region = SharedOffloadRegion("kv-check", chunks, 0, 4096, size)
    worker = MemoryWorker(caches, per_chunk, region)
    try:
        before = [tensor.clone() for tensor in tensors]
        # The first group's blocks 2 to 6 of its request, the second's 0 and 1.
        stored = GPULoadStoreSpec([3, 9, 4, 11, 5, 7, 8], group_sizes=[5, 2], block_indices=[2, 0])
        assert worker.submit_store(1, stored, CPULoadStoreSpec([6, 1, 4, 2]))
        loaded = GPULoadStoreSpec([12, 13, 14, 0, 1], group_sizes=[3, 2], block_indices=[3, 0])
        assert worker.submit_load(2, CPULoadStoreSpec([1, 2]), loaded)
        finished = worker.get_finished()
        assert [(one.job_id, one.success, one.transfer_size) for one in finished] == [
            (1, True, 5 * 2 * page + 2 * 64),
            (2, True, 3 * 2 * page + 2 * 64),
        ]
        for tensor in (0, 1):
            assert torch.equal(tensors[tensor][12:15], before[tensor][[9, 4, 11]])
        assert torch.equal(tensors[2][0:2, :64], before[2][[7, 8], :64])
        assert torch.equal(tensors[2][0:2, 64:], before[2][0:2, 64:]), "padding is nobody's"
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor[3:12], old[3:12]), "what was stored is unchanged"
    finally:
        worker.shutdown()
    assert worker.get_finished() == []


if __name__ == "__main__":
    keys()
    copies()
