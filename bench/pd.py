"""Prefill and decode on separate engines: against the same two engines aggregated, and behind vllm-router.

Two real vLLM engines with a tiny model on this machine's processors serve all arms, since with NIXL each request says
which side it is on: *split* (our gateway), *aggregated* (our gateway, both engines doing both, with vLLM's chunked
prefill), *vllm-router* (its P/D mode). The arms alternate, and each repeat gives one ratio. Loads differ in how much
of the work is prompts: where the split does not pay, the table says so. The last part asks one prompt at a time,
longer and longer, and takes the time to the first token apart: what is not the prompt's computing is hand-over.
"""

import json
import random
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from zlib import crc32

from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress

from bench.engines import Kind, Worker, engines, gateway
from bench.load import Load, Result, completion
from bench.load import run as run_load
from bench.peers import vllm_router
from bench.report import Options, Report, at_least, at_most, percentile, spread
from headrace_runtime.contract import FixedDiscovery, RoleName

KIND = Kind("tiny", max_model_len=8192, kv_cache_bytes=512 * 1024**2)
STREAMS = 12
SPLIT, TOGETHER, ROUTER = "split, our gateway", "aggregated, our gateway", "split, vllm-router"
ROLES: dict[str, tuple[RoleName, RoleName]] = {SPLIT: ("prefill", "decode"), TOGETHER: ("serve", "serve")}
WARM_UP = -1
LONGEST = KIND.max_model_len - 16
LENGTHS = (1024, 2048, 4096, LONGEST)


@dataclass(frozen=True)
class Mix:
    """A load: tokens of each prompt and of each answer, and requests of one run."""

    name: str
    prompt: int
    answer: int
    requests: int


EVEN = Mix("even", 1536, 480, 48)
"""About as much work for the one side as for the other, where each has a core of its own."""
MIXES = (Mix("prompts lead", 2048, 16, 60), EVEN, Mix("answers lead", 256, 512, 48))

COLUMNS = (
    f"closed loop, {STREAMS} streams",
    "requests/s",
    "TTFT p50 ms",
    "TTFT p99 ms",
    "gap p50 ms",
    "gap p99 ms",
    "longest gap ms",
    "KV moved %",
)


@dataclass
class Arm:
    """All runs of one mix against one address."""

    mix: Mix
    name: str
    url: str
    results: list[Result] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    """Share of the prompt tokens that the second engine got from the first."""

    def measure(self, repeat: int, requests: int) -> None:
        """Raises RuntimeError where any answer is missing: a figure of half the requests is none."""
        # Prompts of its own for each run: the engines are the same ones, and keep what they have computed.
        seed = crc32(f"{self.mix.name} {self.name} {repeat}".encode())
        body = completion(KIND.model, self.mix.prompt, self.mix.answer, spread=self.mix.answer // 4)
        result = run_load(Load(self.url, STREAMS, requests, body, seed=seed))
        if result.errors or result.answers != requests:
            raise RuntimeError(f"{self.name}: {result.answers} of {requests} answers; {result.errors[:3]}")
        if repeat != WARM_UP:
            self.results.append(result)

    @property
    def rates(self) -> list[float]:
        return [result.rate for result in self.results]

    @property
    def longest(self) -> list[float]:
        """The longest gap between two tokens of a stream in each run, in seconds."""
        return [max(result.gaps) for result in self.results]

    def row(self) -> list[str]:
        def times(of: str, share: float) -> str:
            return spread([percentile(getattr(result, of), share) * 1e3 for result in self.results])

        shares = [("ttft", 0.5), ("ttft", 0.99), ("gaps", 0.5), ("gaps", 0.99)]
        longest = spread([gap * 1e3 for gap in self.longest])
        moved = spread([share * 100 for share in self.moved], 0)
        return [
            f"{self.mix.name}: {self.name}",
            spread(self.rates),
            *(times(of, share) for of, share in shares),
            longest,
            moved,
        ]


def run(options: Options) -> Report:
    repeats = 2 if options.quick else 5
    report = Report("pd", f"{repeats} alternating repeats, median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting two engines", total=len(MIXES) * (repeats + 1) + 1)
        pair = stack.enter_context(engines(folder, 2, KIND))
        urls = stack.enter_context(_fronts(folder, pair))
        for mix in MIXES:
            arms = [Arm(mix, name, url) for name, url in urls.items()]
            for repeat in range(WARM_UP, repeats):
                progress.update(task, advance=1, description=mix.name)
                for arm in arms[repeat % 3 :] + arms[: repeat % 3]:
                    requests = STREAMS if repeat == WARM_UP else mix.requests // (3 if options.quick else 1)
                    _measure(arm, repeat, requests, pair[1])
            report.rows += [arm.row() for arm in arms]
            _judge(report, *arms)
        progress.update(task, advance=1, description="hand-over")
        _hand_over(report, pair, 3 if options.quick else 9)
    return report


@contextmanager
def _fronts(folder: Path, pair: Sequence[Worker]) -> Iterator[dict[str, str]]:
    """The address of each arm. All stand before the same engines, and only one is asked at a time."""
    with ExitStack() as stack:
        urls = {}
        for name, roles in ROLES.items():
            found = FixedDiscovery(endpoints=tuple(e.endpoint(role) for e, role in zip(pair, roles, strict=True)))
            urls[name] = stack.enter_context(gateway(folder, KIND.model, found, len(pair))).url
        prefill, decode = pair
        split = ("--vllm-pd-disaggregation", "--kv-connector", "nixl", "--policy", "round_robin")
        options = (*split, "--prefill", prefill.url, "--decode", decode.url)
        urls[ROUTER] = stack.enter_context(vllm_router(folder, options)).url
        yield urls


def _measure(arm: Arm, repeat: int, requests: int, decode: Worker) -> None:
    """One run. An arm that splits must have moved its prompts' KV blocks: text alone shows nothing, since an engine
    that got none computes the prompt again."""
    before = _moved(decode)
    arm.measure(repeat, requests)
    share = (_moved(decode) - before) / (arm.mix.prompt * requests)
    if repeat != WARM_UP:
        arm.moved.append(share)
        if (share > 0.5) != (arm.name != TOGETHER):
            raise RuntimeError(f"{arm.name}: {share:.0%} of the prompt tokens came from the other engine")


def _moved(decode: Worker) -> float:
    with urllib.request.urlopen(f"{decode.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    wanted = ("vllm:prompt_tokens_by_source_total", "external_kv_transfer")
    return sum(s.value for family in families for s in family.samples if (s.name, s.labels.get("source")) == wanted)


def _judge(report: Report, split: Arm, together: Arm, router: Arm) -> None:
    mix = split.mix
    rates = [one / other for one, other in zip(split.rates, together.rates, strict=True)]
    gaps = [other / one for one, other in zip(split.longest, together.longest, strict=True)]
    best = median(split.rates) / max(router.rates)
    report.notes.append(
        f"{mix.name} ({mix.prompt} tokens in, {mix.answer} out): requests/s of aggregated {spread(rates, 2)}"
        f"{' (aggregated wins)' if median(rates) < 1 else ''}, longest gap {spread(gaps, 1)} times smaller, "
        f"requests/s of vllm-router's best run {best:.2f}"
    )
    if mix is EVEN:
        report.checks.append(at_least("even: requests/s of vllm-router's best run", best, 0.9))
        report.checks.append(at_least("even: longest gap between tokens, times smaller", median(gaps), 5.0))
        report.checks.append(at_least("even: requests/s of aggregated", median(rates), 0.95))


def _hand_over(report: Report, pair: Sequence[Worker], repeats: int) -> None:
    """What of the time to the first token is not the computing of the prompt, one request at a time."""
    prefill, decode = pair
    for length in LENGTHS:
        parts = [_parts(prefill, decode, length, seed) for seed in range(WARM_UP, repeats)][1:]
        shares = [after / (before + after) for before, after in parts]
        computing, rest = (spread([part[side] * 1e3 for part in parts]) for side in (0, 1))
        percent = spread([share * 100 for share in shares])
        report.notes.append(f"{length} tokens: computed in {computing} ms, first token {rest} ms later: {percent} %")
        if length == LONGEST:
            report.checks.append(at_most("hand-over's share of TTFT at the longest prompt", median(shares), 0.05))


def _parts(prefill: Worker, decode: Worker, length: int, seed: int) -> tuple[float, float]:
    """Seconds until the prefill engine has answered, and from there to the decode engine's first token."""
    chance = random.Random(f"{length} {seed}")
    body: dict[str, Any] = {"model": KIND.model, "prompt": [chance.randrange(10, 4000) for _ in range(length)]}
    body |= {"max_tokens": 1, "temperature": 0}
    asked = perf_counter()
    side = {"do_remote_decode": True, "do_remote_prefill": False}
    answer = _post(prefill.url, body | {"kv_transfer_params": side})
    computed = perf_counter()
    _post(decode.url, body | {"kv_transfer_params": answer["kv_transfer_params"]})
    return computed - asked, perf_counter() - computed


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
