"""From a contract to vLLM's command line: the words after `vllm serve`, and the environment. Pure.

Called by the agent before each start of its engine. What the contract states becomes options of vLLM 0.32
(vllm/engine/arg_utils.py, vllm/entrypoints/launchers/cli_args.py); what it leaves open stays as vLLM has it, except on
CPU, where vLLM's defaults leave the API server no processor time: see `_cpu_environment` and `_defaults`. `extra_args`
come last. They may replace a default of this module, but never what the contract or the place has decided:
`contract.OWNED_OPTIONS`.

An engine listens on `place.address` only, so that one on loopback cannot be reached from outside. Ask it there.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from headrace_runtime.contract import (
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    Engine,
    KvEvents,
    Lora,
    NodeContract,
    Parallelism,
    Place,
    owned_option,
)
from headrace_runtime.engine import connectors

Scalar = bool | int | float | str

CPU = "cpu"
ZYGOTE = ("-m", "headrace_runtime.engine.zygote")
SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
"""`vllm serve`, without the script of that name: its first line holds the path it was installed at."""
SCHEDULER = "headrace_runtime.engine.replay.scheduler"
WORKER_EXTENSION = "headrace_runtime.engine.replay_worker.Extension"
LOAD_FORMATS: Mapping[str, str] = {
    "Safetensors": "safetensors",
    "Streamer": "runai_streamer",
    "FastSafetensors": "fastsafetensors",
}
"""By `Model.loader`; what each needs beside vLLM is in `node/preflight.py`."""
CPU_KV_CACHE_BYTES = 512 * 1024**2
"""vLLM would take 4 GiB or more. 23 000 tokens of a model of 135 M parameters."""

OWNED_ENV = frozenset(
    {
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_HOST_IP"),
        *("VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_PORT"),
    }
)


class ClashError(ValueError):
    """The contract's free-form part says again what a field or the place decides. The message names the entry."""


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    """The words after `vllm serve`."""
    env: Mapping[str, str]
    """Added to the environment of the process, before Python starts in it: libraries read some of it while loading."""


class Meeting(NamedTuple):
    """Where the workers of all pods of one engine meet: an address of rank 0."""

    address: str
    port: int
    life: str
    """Which run of the engine this is, the same for all its pods."""


def command(
    contract: NodeContract, place: Place, weights: str | None = None, meeting: Meeting | None = None
) -> Command:
    """How to start the engine of this pod, or its part of one that is spread over several. `weights`: their digest,
    without which KV blocks are not kept on disk; `meeting`: of several pods, where they meet. Raises ClashError."""
    engine = contract.engine
    refuse_clashes(engine)
    options: dict[str, Scalar] = {
        **({"headless": True} if place.rank else {"host": place.address, "port": place.engine_port}),
        "served-model-name": contract.model.served_name,
        "shutdown-timeout": round(contract.drain_seconds),
        "scheduler-cls": SCHEDULER,
        "worker-extension-cls": WORKER_EXTENSION,
        **_model(contract),
        **_parallelism(engine.parallelism),
        **(_gang(engine.parallelism, place.rank, meeting) if meeting else {}),
    }
    env = _environment(place)
    if engine.parallelism.pods > 1 and ipaddress.ip_address(place.address).is_loopback:
        env["GLOO_SOCKET_IFNAME"] = "lo"  # else it takes the address of the machine's name
    if engine.device == CPU:
        env |= _cpu_environment(engine.parallelism)
    if (transfer := connectors.transfer_config(contract, place, weights, meeting and meeting.life)) is not None:
        options["kv-transfer-config"] = transfer
    if engine.transfer is not None:
        env |= _transfer_environment(engine, place)
    if engine.kv_tiers is not None:
        options["prefix-caching-hash-algo"] = connectors.HASHING
    if engine.kv_events and place.rank == 0:
        options["kv-events-config"] = _events_config(place)
    if engine.lora is not None:
        options |= _lora(engine.lora)
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # routes that no client reaches: see gateway/request.py
    options |= _defaults(engine) | engine.extra_args
    if engine.device == CPU and _workers(engine.parallelism) > 1 and options["enforce-eager"] is True:
        # Eager or not, a vocabulary that is cut over workers is compiled, for which an image has no compiler.
        env["TORCHDYNAMO_DISABLE"] = "1"
    return Command((contract.model.path, *map(_word, options.items())), env | engine.env)


def zygote_argv(python: str, engine: Engine) -> tuple[str, ...]:
    """The program of the warm parent, with the modules that this engine imports and not all do."""
    return (python, *ZYGOTE, *connectors.modules(engine))


def refuse_clashes(engine: Engine) -> None:
    for option in engine.extra_args:
        if (owned := owned_option(option)) is not None:
            says = "" if owned == option else f" (it means {owned})"
            raise ClashError(f"engine.extraArgs.{option}{says}: Headrace sets this option; remove it, or set the field")
    for name in engine.env:
        if name in OWNED_ENV:
            raise ClashError(f"engine.env.{name}: Headrace sets this variable; remove it")


def _model(contract: NodeContract) -> dict[str, Scalar]:
    engine = contract.engine
    options: dict[str, Scalar | None] = {
        "load-format": LOAD_FORMATS.get(contract.model.loader),
        "dtype": None if engine.dtype == "auto" else engine.dtype,
        "max-model-len": engine.max_model_len,
        "quantization": engine.quantization,
        "kv-cache-dtype": None if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype,
        "kv-cache-memory-bytes": engine.kv_cache_bytes,
    }
    return {name: value for name, value in options.items() if value is not None}


def _lora(lora: Lora) -> dict[str, Scalar]:
    """Twice the room in host memory: requests under way still need an adapter that was unloaded, or replaced."""
    return {
        "enable-lora": True,
        "max-loras": lora.max_adapters,
        "max-cpu-loras": 2 * lora.max_adapters,
        "max-lora-rank": lora.max_rank,
    }


def _parallelism(sizes: Parallelism) -> dict[str, Scalar]:
    options = {
        "tensor-parallel-size": sizes.tensor,
        "pipeline-parallel-size": sizes.pipeline,
        "prefill-context-parallel-size": sizes.context,
        "data-parallel-size": sizes.data,
    }
    given: dict[str, Scalar] = {name: size for name, size in options.items() if size > 1}
    return {**given, "enable-expert-parallel": True} if sizes.expert else given


def _gang(sizes: Parallelism, rank: int, meeting: Meeting) -> dict[str, Scalar]:
    """A rank above 0 computes what rank 0 tells its workers to, and listens for nobody else."""
    return {
        "nnodes": sizes.pods,
        "node-rank": rank,
        "master-addr": meeting.address,
        "master-port": meeting.port,
    }


def _workers(sizes: Parallelism) -> int:
    """Processes that one copy of the model is cut over; each data-parallel copy has as many."""
    return sizes.tensor * sizes.pipeline * sizes.context


def _defaults(engine: Engine) -> dict[str, Scalar]:
    """Options of our choosing, which `extra_args` may replace."""
    options: dict[str, Scalar] = {"disable-uvicorn-access-log": True}
    if _workers(engine.parallelism) > 1:
        # Ray only places pods: left to itself, vLLM may find Ray running and start its workers there.
        options["distributed-executor-backend"] = "mp"
    elif engine.device == CPU:
        options["distributed-executor-backend"] = "uni"
    if engine.device == CPU:
        options["enforce-eager"] = True
        if engine.kv_cache_bytes is None:
            options["kv-cache-memory-bytes"] = CPU_KV_CACHE_BYTES
    return options


def _environment(place: Place) -> dict[str, str]:
    return {
        # Nothing is fetched or reported: the weights are there, and verified.
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Else vLLM looks for its own address by way of a public name server.
        "VLLM_HOST_IP": place.address,
        # Caches of compiled kernels: the root of the file system is read-only in a pod.
        "HOME": place.run_dir,
        "XDG_CACHE_HOME": f"{place.run_dir}/cache",
    }


def _cpu_environment(sizes: Parallelism) -> dict[str, str]:
    """One thread that is bound to no core: on few cores, vLLM's binding leaves none to the API server."""
    env = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # The platform replaces executor `uni` by `mp`, a further process that spins, unless this is set. EngineCore remains
    # a process of its own all the same.
    return env if _workers(sizes) > 1 else {**env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _transfer_environment(engine: Engine, place: Place) -> dict[str, str]:
    """The side channel is where engines learn how to read each other's memory. A data-parallel copy adds its number to
    the port."""
    env = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": place.address,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(place.kv_transfer_port),
    }
    return {**env, "UCX_TLS": "tcp"} if engine.device == CPU else env


def kv_events_of(place: Place) -> KvEvents:
    """Where the engine at this place publishes its KV events, if its contract says so: for the gateway to connect to.

    On loopback these are socket files: vLLM binds to all addresses or connects, and nothing between.
    """
    ip = ipaddress.ip_address(place.address)
    if ip.is_loopback:
        return KvEvents(publish=f"ipc://{place.run_dir}/kv-events", replay=f"ipc://{place.run_dir}/kv-replay")
    return kv_events_at(place.address)


def kv_events_at(address: str) -> KvEvents:
    """The same for a pod, by its address."""
    host = f"[{address}]" if ":" in address else address
    return KvEvents(publish=f"tcp://{host}:{KV_EVENTS_PORT}", replay=f"tcp://{host}:{KV_REPLAY_PORT}")


def _events_config(place: Place) -> str:
    """A data-parallel copy adds its number to both ports; the gateway hears the first."""
    address = kv_events_of(place)
    local = address.publish.startswith("ipc:")
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": address.publish if local else f"tcp://*:{KV_EVENTS_PORT}",
        "replay_endpoint": address.replay if local else f"tcp://*:{KV_REPLAY_PORT}",
    }
    return json.dumps(config, separators=(",", ":"))


def _word(option: tuple[str, Scalar]) -> str:
    """An option as one word, in vLLM's spelling."""
    name, value = option
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
