"""What one *simulated* engine can do, built in or read from a file. `fit.py` makes one of measurements."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

BLOCK: Final = 512
"""Tokens of a block of a prompt, as in the traces."""

Cost = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Profile:
    """Seconds and tokens. An engine goes by steps, each of which may compute prompt tokens, write one token of each
    answer, or both. It takes `pace` for each prompt token and `attention` for each of these with each token before it,
    `per_request` for each answer and `per_token` for each token of their context; and by itself `step` where answers
    are written, `overhead` where there are prompts alone."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    overhead: Cost
    pace: Cost
    step: Cost
    per_request: Cost
    per_token: Cost
    kv_tokens: Count
    """Context that fits into one engine."""
    batch_tokens: Count = 8192
    """Of one step, prompts and answers together. What is longer is computed in several."""
    batch_requests: Count = 256
    """Answers that are written at a time."""
    transfer_base: Cost = 0.002
    """From a computed prompt to the decode engine's being asked."""
    transfer: Cost = 1e-6
    """Seconds for each token of context from prefill to decode: 32k tokens took 31.65 ms at 142 GB/s in Mooncake's
    documentation."""
    attention: Cost = 0.0
    front: Cost = 0.0
    """What a request takes outside of engines, on its way there and back."""
    crowding: Cost = 0.0
    """How much slower an engine is for each other one that is busy, as a share: engines of one machine."""

    def slower(self, times: float) -> "Profile":
        """A larger model: all computing takes so many times as long."""
        return replace(
            self,
            overhead=self.overhead * times,
            pace=self.pace * times,
            attention=self.attention * times,
            step=self.step * times,
            per_request=self.per_request * times,
            per_token=self.per_token * times,
        )

    def prompt_seconds(self, tokens: int, before: int = 0) -> float:
        """For so many tokens of a prompt after those that are computed, without the step itself."""
        return self.pace * tokens + self.attention * tokens * (before + tokens / 2)

    def step_seconds(self, requests: int, context: float) -> float:
        """One token of so many answers, with so many tokens of context in all."""
        return self.step + self.per_request * requests + self.per_token * context


_FILE: Final = TypeAdapter(Profile)


def read(file: Path) -> Profile:
    """Raises ValueError, which names the file and each field that is wrong, and OSError."""
    try:
        return _FILE.validate_json(file.read_bytes())
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()]
        raise ValueError(f"{file} is no profile: {'; '.join(wrong)}") from error


def write(profile: Profile, file: Path) -> None:
    file.write_bytes(_FILE.dump_json(profile, indent=2) + b"\n")


H200_8B: Final = Profile(
    overhead=0.0, pace=0.087342 / 4168, step=0.0044, per_request=4.8e-5, per_token=2.27e-8, kv_tokens=945_029
)
"""Lines through the points that NVIDIA Dynamo publishes for Llama 3.1 8B FP8 on one H200 (Apache-2.0; directory
`H200_TP1P_TP1D` of its planner's tests): the prefill time at 4168 tokens, and decode at contexts of 350 and 2997."""
