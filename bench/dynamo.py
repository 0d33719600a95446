"""The rival in `bench routing`: the KV router of NVIDIA Dynamo (https://github.com/ai-dynamo/dynamo, Apache-2.0).

It runs in Dynamo's own replay of traces, in a virtual environment of its own in the cache.

It also counts what our routing would have reused with *its* engines (`score`): each engine's requests, as we routed
them, are replayed by one of its engines.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.enginemodel import BLOCK, BLOCKS
from bench.replay import ENGINES
from local import cache, packages
from local.engine import build
from simulator.request import Request

LOCK = Path(__file__).with_name("dynamo.lock")
"""Written by `make lock`."""
SECONDS = 300
"""A replay of one hour takes some five."""

Mode = Literal["round_robin", "kv_router"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay reports. Times in ms, *simulated*."""

    reuse: float
    mean: float
    median: float
    p90: float
    p99: float
    gap: float


def replay(requests: Sequence[Request], mode: Mode, folder: Path, engines: int = ENGINES) -> Replayed:
    """Replay in Dynamo's simulator. Raises RuntimeError with what it said."""
    trace, report = folder / "trace.jsonl", folder / "report.json"
    with trace.open("w") as lines:
        for request in requests:
            lines.write(json.dumps(_line(request)) + "\n")
    options = {
        "trace-block-size": BLOCK,
        "num-workers": engines,
        "router-mode": mode,
        "extra-engine-args": json.dumps({"num_gpu_blocks": BLOCKS, "block_size": BLOCK}),
        "report-json": report,
    }
    argv = [str(installed() / "bin" / "python3"), "-m", "dynamo.replay", str(trace)]
    argv += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    ran = subprocess.run(
        argv, cwd=folder, env={"DYN_LOG": "error"}, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"dynamo.replay ended with {ran.returncode}: {ran.stderr[-2000:]}")
    said = json.loads(report.read_text())
    mean, median, p90, p99 = (float(said[f"{which}_ttft_ms"]) for which in ("mean", "median", "p90", "p99"))
    return Replayed(said["prefix_cache_reused_ratio"], mean, median, p90, p99, said["mean_itl_ms"])


@dataclass(frozen=True, slots=True)
class Score:
    """Of requests as we routed them, with Dynamo's engines. Mean time to first token in ms, *simulated*."""

    reuse: float
    mean: float


def score(routed: Sequence[Sequence[Request]], folder: Path) -> Score:
    """`routed`: the requests of each engine."""
    found = [(replay(requests, "round_robin", folder, engines=1), requests) for requests in routed if requests]
    tokens = sum(request.prompt for requests in routed for request in requests)
    reused = sum(one.reuse * sum(request.prompt for request in requests) for one, requests in found)
    count = sum(len(requests) for requests in routed)
    mean = sum(one.mean * len(requests) for one, requests in found) / count
    return Score(reused / tokens, mean)


def installed() -> Path:
    """Its virtual environment, made on the first call: some 200 MB."""
    packages.require(str(build.PYTHON))
    return cache.kept("dynamo", cache.key(LOCK.read_bytes()), _install)


def _install(folder: Path) -> None:
    build.install(folder, LOCK)


def _line(request: Request) -> dict[str, Any]:
    return {
        "timestamp": request.at * 1e3,
        "input_length": request.prompt,
        "output_length": request.output,
        "hash_ids": request.ids,
    }
