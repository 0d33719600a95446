"""How one engine runs: `spec.engine`, `spec.parallelism` and `spec.executor`, which a role may override in part."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from headrace_operator.api.types import Bytes, FreeForm, Frozen, list_map


def _scalar(value: Any) -> Any:
    """One plain complaint, where the union would complain once for each of its members."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("must be text, a number, true or false: write a structured option as JSON text")
    return value


Size = Annotated[int, Field(ge=1, le=1024)]
Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]
ResourceName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^(cpu|[a-z0-9.-]+/[A-Za-z0-9._-]+)$")]
OptionName = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Device(Frozen):
    """What an engine computes on."""

    resource: ResourceName = "nvidia.com/gpu"
    """The Kubernetes resource of one accelerator, or `cpu`."""
    count: Size | None = None
    """Accelerators of one engine. Default: what it needs, tensor x pipeline x data x context. Not for `cpu`."""


class Speculative(Frozen):
    """Speculative decoding: several tokens guessed, then checked in one step."""

    method: Literal["NGram", "Suffix", "Eagle3", "MTP", "DraftModel"]
    """Where guesses come from."""
    num_tokens: int = Field(default=4, ge=1, le=64)
    """Tokens guessed at a time."""
    model: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The source of the draft weights, for Eagle3 and DraftModel."""


class WeightsOffload(Frozen):
    """Weights kept outside device memory."""

    cpu: Bytes
    """Host memory for weights, per device."""


class Lora(Frozen):
    """Room for LoRA adapters, which an engine must be started with. Which ones it serves is `spec.model.adapters`, and
    changes while it runs."""

    max_adapters: int = Field(default=4, ge=1, le=64)
    """Adapters served at a time, all computed side by side. Each takes device memory, whether there or not."""
    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """The greatest rank of an adapter. Device memory is kept for all of this rank."""
    folder: Annotated[str, Field(max_length=1024, pattern=r"^(pvc|node)://[^\s]+$")] | None = None
    """A folder that adapters lie in, node:///absolute/path or pvc://claim/path, mounted in every engine's pod. What is
    put there later can be served without a restart."""


class EnvVar(Frozen):
    """One environment variable of the engine's container."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """The variable's name."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """The variable's value. Not for secrets: use valueFrom."""
    value_from: FreeForm | None = None
    """Where the value comes from, as in a pod: secretKeyRef, configMapKeyRef, fieldRef or resourceFieldRef."""


class Engine(Frozen):
    """The inference engine of every role. A role overrides single fields in `roles[].engine`."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")] | None = None
    """The engine's image. Default: the operator's setting. Pin it by digest in production."""
    device: Device = Device()
    """What one engine computes on."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations."""
    max_model_len: int | None = Field(default=None, ge=16, le=100_000_000)
    """Longest prompt plus answer, in tokens. Default: what the model was trained for."""
    quantization: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")] | None = None
    """The engine's name of a quantization, such as awq or fp8. Default: what the model's files say."""
    speculative: Speculative | None = None
    """Speculative decoding."""
    weights_offload: WeightsOffload | None = None
    """Keep part of the weights in host memory, to run a model larger than device memory."""
    lora: Lora | None = None
    """Room for LoRA adapters. None: the engine takes no adapters. Not in a role: every engine serves all of them."""
    extra_args: dict[OptionName, Scalar] = Field(
        default={},
        max_length=64,
        json_schema_extra={
            "type": "object",
            "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True},
        },
    )
    """Further options of the engine without their dashes: `true` is a bare flag, `false` its `--no-` form.
    Options that a field of this API sets are refused."""
    env: tuple[EnvVar, ...] = Field(default=(), max_length=128, json_schema_extra=list_map("name"))
    """Further environment variables of the engine's container."""


class Parallelism(Frozen):
    """How one engine is cut over its accelerators."""

    tensor: Size = 1
    """Each layer's weights are cut into this many parts."""
    pipeline: Size = 1
    """Layers are dealt out over this many stages."""
    data: Size = 1
    """Copies of the engine's core that share its queue."""
    expert: bool = False
    """Deal out the experts of a mixture-of-experts model instead of cutting each one."""
    context: Size = 1
    """A long prompt is cut into this many parts that are computed side by side."""
    pods: Size = 1
    """Pods that one engine is spread over, each with an equal part of its accelerators. For a model that no node
    holds alone. Not with KV tiers, adapters and data-parallel copies."""

    @property
    def devices(self) -> int:
        """Accelerators that one engine needs."""
        return self.tensor * self.pipeline * self.data * self.context


Executor = Literal["Auto", "Ray", "Multiprocessing"]
