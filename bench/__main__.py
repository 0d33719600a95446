"""`python -m bench NAME`: run one benchmark, print its table, exit 1 when one of its checks fails."""

import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.report import Options, Report

BENCHES = {
    "autoscale": "Sizes by the policy against fixed fleets and other policies, on traces, over cold starts (simulated)",
    "planner": "Sizes with the engine times of Dynamo's planner: 1P1D at 8/s, 2P1D at 18/s, the path from 12 to 36/s",
    "burst": "10,000 connections, and their requests, at once, while a few streams are relayed (simulated engine)",
    "admission": "Processor time of the way in (real), and what a greedy key costs others (simulated)",
    "coldstart": "What a start of an engine costs: first pod of a node, second, after a crash, page cache warm or not",
    "eviction": "Which KV blocks are evicted, on a trace, against LRU, S3-FIFO, ARC, 2Q and Belady (simulated)",
    "fidelity": "The simulator fitted to real engines, and held against them on other loads: E2E, TTFT, ITL",
    "gateway": "Requests/s, processor time and added latency of the gateway, against no relay and vllm-router",
    "idle": "What the operator writes, computes and holds while nothing changes (10 minutes, on a cluster that is up)",
    "kv-reload": "KV blocks from disk after a restart, against computing them and vLLM's own disk tier; cost of a miss",
    "kv-store": "Storing and loading KV blocks against the disk's own ceiling, and what verifying them costs",
    "kv-torture": "The store of KV blocks with its writers killed and its files damaged: what it serves and keeps",
    "pd": "Prefill and decode on separate engines, against the same engines aggregated and behind vllm-router",
    "resume": "An engine killed under its streams: going on elsewhere, against asking again and a cold restart",
    "rolechange": "An engine that changes its role under load, against stopping it and starting it again",
    "routing": "Prefix-aware routing: cost of a decision, and reuse on a trace against Dynamo's KV router (simulated)",
    "scale": "100 and 1,000 deployments on a control plane with kwok nodes: writes, processor time, memory, seconds",
    "sizing": "Processor time of one decision about the sizes of 1,000 deployments, from readings to bounds",
    "storage-path": "KV blocks from decode's disk or by a prefill engine: our choice against either (simulated)",
    "streams": "10,000 open streams through one gateway on one core, against vllm-router (simulated engine)",
}
"""Name of the benchmark and of its module (`-` is `_` there), which has `run(options) -> Report`."""


@click.command(context_settings={"max_content_width": 120})
@click.argument("name", type=click.Choice(sorted(BENCHES)), required=False)
@click.option("--quick", is_flag=True, help="Shorter, to see that it works; the figures are not to be quoted.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result there as JSON.")
@click.option(
    "--traces",
    envvar="HEADRACE_TRACES",
    show_envvar=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of request traces.",
)
@click.option("--objects", type=click.IntRange(min=2), multiple=True, help="How many deployments (scale); repeatable.")
@click.option(
    "--profile", type=click.Path(dir_okay=False, path_type=Path), help="Write the engines' profile (fidelity)."
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture, as SVG (fidelity).")
def main(name: str | None, quick: bool, file: Path | None, **given: Any) -> None:
    """Run the benchmark NAME; without a name, list what there is. Exit 1: a check did not hold."""
    console = Console()
    if name is None:
        table = Table("Benchmark", "What it measures")
        for bench, summary in sorted(BENCHES.items()):
            table.add_row(bench, summary)
        console.print(table)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the blocks that end what was started
    report: Report = import_module(f"bench.{name.replace('-', '_')}").run(Options(quick, **given))
    report.show(console)
    if file is not None:
        report.write(file)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    main()
