"""The workers' half of `replay.py`, for vLLM's first model runner (the only one on CPU). Loaded by vLLM in every
process that computes, as `--worker-extension-cls`: vLLM offers no hook here, so importing this module changes
`CachedRequestState`, the state that a worker keeps of a request.

The second model runner (GPUs) is told prompt and output of each request, and draws random numbers by seed and position.
It needs nothing of this. The first one is told the prompt alone, so the state takes the replayed tokens up as output
itself; and it draws from a generator for each seeded request, which is moved on by the draws that were made.

On CPU such a generator also gets the one method that it lacks: to take a draw back. vLLM calls it for each part of a
prompt that is computed in several, so that any seeded request with a long prompt would end the engine.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from headrace_runtime.contract import REPLAY_FIELD

OFFSET_OF_A_DRAW = 4
"""By how much one draw moves a generator on a GPU (`GPUModelRunner._bookkeeping_sync`)."""


class Extension:
    """Adds nothing to the worker; vLLM wants a class."""


class CpuGenerator(torch.Generator):  # type: ignore[misc] # torch is not there to be type-checked
    """Draws one number for each token (`TopKTopPSampler.forward_cpu`). `output` is the request's, and grows with it."""

    def __new__(cls, seed: int, output: list[int]) -> "CpuGenerator":
        generator: CpuGenerator = super().__new__(cls, "cpu")
        return generator

    def __init__(self, seed: int, output: list[int]) -> None:
        self._seed = seed
        self._output = output
        self.set_offset(0)

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        """Forget draws of which no token came, however many: CPU generators know no offset."""
        self.manual_seed(self._seed)
        torch.randint(0, 2**31, (len(self._output),), generator=self, dtype=torch.long)


def take_up(state: CachedRequestState) -> None:
    """Make the replayed tokens output of a new request."""
    sampling = state.sampling_params
    if sampling is None:
        return
    replayed: list[int] = (sampling.extra_args or {}).get(REPLAY_FIELD, [])
    state.output_token_ids.extend(replayed)
    generator: Any = state.generator
    if generator is None:
        return
    if generator.device.type == "cpu":
        state.generator = CpuGenerator(sampling.seed, state.output_token_ids)
    elif replayed:
        generator.set_offset(generator.get_offset() + OFFSET_OF_A_DRAW * len(replayed))


def change(state: type[CachedRequestState]) -> None:
    was = state.__post_init__

    def begin(self: CachedRequestState) -> None:
        was(self)
        take_up(self)

    state.__post_init__ = begin


change(CachedRequestState)
