"""What one *simulated* engine can do."""

from dataclasses import dataclass, replace
from typing import Final

BLOCK: Final = 512
"""Tokens of a block of a prompt, as in the traces."""


@dataclass(frozen=True)
class Profile:
    """Seconds and tokens. A prefill batch takes `overhead` and `pace` for each token; a decode step takes `step`,
    `per_request` for each request in it and `per_token` for each token of their context."""

    overhead: float
    pace: float
    step: float
    per_request: float
    per_token: float
    kv_tokens: int
    """Context that fits into one engine."""
    batch_tokens: int = 8192
    """Prompt tokens of one prefill batch, but for a longer prompt, which is one by itself."""
    batch_requests: int = 256
    """Of one decode batch."""
    transfer_base: float = 0.002
    transfer: float = 1e-6
    """Seconds for each token of context from prefill to decode: 32k tokens took 31.65 ms at 142 GB/s in Mooncake's
    documentation."""

    def slower(self, times: float) -> "Profile":
        """A larger model: all computing takes so many times as long."""
        return replace(
            self,
            overhead=self.overhead * times,
            pace=self.pace * times,
            step=self.step * times,
            per_request=self.per_request * times,
            per_token=self.per_token * times,
        )


H200_8B: Final = Profile(
    overhead=0.0, pace=0.087342 / 4168, step=0.0044, per_request=4.8e-5, per_token=2.27e-8, kv_tokens=945_029
)
"""Lines through the points that NVIDIA Dynamo publishes for Llama 3.1 8B FP8 on one H200 (Apache-2.0; directory
`H200_TP1P_TP1D` of its planner's tests): the prefill time at 4168 tokens, and decode at contexts of 350 and 2997."""
