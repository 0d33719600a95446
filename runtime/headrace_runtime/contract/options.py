"""Which of vLLM's options are ours: `Engine.extra_args` may not hold them."""

OWNED_OPTIONS = frozenset({
    "api-key", "api-server-count", "code-revision", "config", "cpu-offload-gb", "data-parallel-address",
    "data-parallel-backend", "data-parallel-external-lb", "data-parallel-hybrid-lb",
    "data-parallel-multi-port-external-lb", "data-parallel-rank", "data-parallel-rpc-port", "data-parallel-size",
    "data-parallel-size-local", "data-parallel-start-rank", "device-ids", "distributed-executor-backend",
    "download-dir", "dtype", "enable-expert-parallel", "enable-log-deltas", "enable-log-outputs",
    "enable-log-requests", "enable-lora", "grpc", "headless", "hf-token", "host", "kv-cache-dtype",
    "kv-cache-memory-bytes", "kv-events-config", "kv-offloading-backend", "kv-offloading-size", "kv-transfer-config",
    "load-format", "lora-modules", "master-addr", "master-port", "max-cpu-loras", "max-lora-rank", "max-loras",
    "max-model-len", "model", "nnodes", "node-rank",
    "otlp-traces-endpoint", "pipeline-parallel-size", "port", "prefill-context-parallel-size",
    "prefix-caching-hash-algo", "quantization",
    "revision", "root-path", "scheduler-cls", "served-model-name", "shutdown-timeout", "spec-method", "spec-model",
    "spec-tokens", "speculative-config", "ssl-ca-certs", "ssl-certfile", "ssl-keyfile", "tensor-parallel-size",
    "tokenizer", "tokenizer-revision", "uds", "worker-extension-cls",
})  # fmt: skip
"""Options of vLLM that `Engine.extra_args` may not hold: a field or Headrace sets them, or they would log prompts."""


def owned_option(option: str) -> str | None:
    """The owned option that vLLM would take `option` for, or None.

    It takes underscores for dashes, `no-` forms, members of a JSON option (`kv-transfer-config.kv_role`), and any
    beginning of a name that no other option has.
    """
    plain = option.partition(".")[0].replace("_", "-").removeprefix("no-")
    if plain in OWNED_OPTIONS:
        return plain
    return next((name for name in sorted(OWNED_OPTIONS) if plain and name.startswith(plain)), None)
