"""The engine's own vocabulary (vLLM 0.32), as far as the API must know it: options that a field already sets.

Pure tables; used by the rules. Sources: vllm/engine/arg_utils.py, vllm/entrypoints/launchers/cli_args.py,
vllm/model_executor/layers/quantization/__init__.py.
"""

from typing import Final

_OWNED: Final = "Headrace sets it itself"
_PODS: Final = "set spec.parallelism.pods"
_ONE_POD: Final = "data-parallel copies of an engine are in one pod"

OWNED: Final[dict[str, str]] = {
    "model": "set spec.model.source",
    "tokenizer": "the tokenizer lies beside the weights of spec.model.source",
    "revision": "set spec.model.source",
    "code-revision": "set spec.model.source",
    "tokenizer-revision": "set spec.model.source",
    "download-dir": "set spec.model.source",
    "hf-token": "set spec.model.credentialsSecretRef",
    "served-model-name": "set spec.model.servedName",
    "load-format": "set spec.model.loader",
    "enable-lora": "set spec.engine.lora",
    "max-loras": "set spec.engine.lora.maxAdapters",
    "max-cpu-loras": "set spec.engine.lora.maxAdapters",
    "max-lora-rank": "set spec.engine.lora.maxRank",
    "lora-modules": "set spec.model.adapters",
    "dtype": "set spec.engine.dtype",
    "max-model-len": "set spec.engine.maxModelLen",
    "quantization": "set spec.engine.quantization",
    "speculative-config": "set spec.engine.speculative",
    "spec-method": "set spec.engine.speculative.method",
    "spec-model": "set spec.engine.speculative.model",
    "spec-tokens": "set spec.engine.speculative.numTokens",
    "cpu-offload-gb": "set spec.engine.weightsOffload.cpu",
    "tensor-parallel-size": "set spec.parallelism.tensor",
    "pipeline-parallel-size": "set spec.parallelism.pipeline",
    "prefix-caching-hash-algo": "keys of KV blocks are the same in every engine",
    "data-parallel-size": "set spec.parallelism.data",
    "prefill-context-parallel-size": "set spec.parallelism.context",
    "enable-expert-parallel": "set spec.parallelism.expert",
    "distributed-executor-backend": "set spec.executor",
    "device-ids": "set spec.engine.device",
    "kv-cache-dtype": "set spec.kvCache.dtype",
    "kv-cache-memory-bytes": "set spec.kvCache.device.size",
    "kv-events-config": "set spec.gateway.routing.policy",
    "kv-transfer-config": "set spec.disaggregation",
    "kv-offloading-size": "set spec.kvCache.host.size",
    "kv-offloading-backend": "set spec.kvCache.host",
    "otlp-traces-endpoint": "set spec.observability.tracing.endpoint",
    "api-key": "set spec.gateway.apiKeysSecretRef",
    "config": "give the options one by one",
    "host": _OWNED,
    "port": _OWNED,
    "uds": _OWNED,
    "root-path": _OWNED,
    "ssl-keyfile": "set spec.gateway.tls",
    "ssl-certfile": "set spec.gateway.tls",
    "ssl-ca-certs": "set spec.gateway.tls",
    "headless": _OWNED,
    "api-server-count": _OWNED,
    "grpc": _OWNED,
    "scheduler-cls": _OWNED,
    "worker-extension-cls": _OWNED,
    "shutdown-timeout": "set spec.drain.timeout",
    "enable-log-requests": "prompts are never logged",
    "enable-log-outputs": "answers are never logged",
    "enable-log-deltas": "answers are never logged",
    "nnodes": _PODS,
    "node-rank": _PODS,
    "master-addr": _PODS,
    "master-port": _PODS,
    "data-parallel-size-local": _ONE_POD,
    "data-parallel-start-rank": _ONE_POD,
    "data-parallel-address": _ONE_POD,
    "data-parallel-rpc-port": _ONE_POD,
    "data-parallel-rank": _ONE_POD,
    "data-parallel-backend": _ONE_POD,
    "data-parallel-external-lb": _ONE_POD,
    "data-parallel-hybrid-lb": _ONE_POD,
    "data-parallel-multi-port-external-lb": _ONE_POD,
}
"""Options that are refused in `extraArgs`, and what to do in their place."""

OWNED_ENV: Final = frozenset(
    {
        *("POD_NAME", "POD_IP", "NODE_NAME", "HEADRACE_RANK", "HEADRACE_LEADER"),
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_HOST_IP"),
        *("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_PORT"),
    }
)
"""Environment variables that the operator and the agent set."""

ALIKE: Final = ("attention-backend", "block-size", "disable-hybrid-kv-cache-manager")
"""Options that decide how KV blocks look: prefill and decode must agree (vllm `nixl/metadata.py`)."""

QUANTIZATIONS: Final = (
    "auto_awq", "auto_gptq", "awq", "awq_marlin", "compressed-tensors", "deepseek_v4_fp8", "experts_int8", "fbgemm_fp8",
    "fp8", "fp8_per_block", "fp8_per_channel", "fp8_per_tensor", "fp_quant", "gpt_oss_mxfp4", "gptq", "gptq_marlin",
    "humming", "inc", "int8_per_channel_weight_only", "modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8",
    "moe_wna16", "mxfp4", "mxfp8", "nvfp4_per_token", "online", "quark", "torchao",
)  # fmt: skip
