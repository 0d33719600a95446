"""KV blocks read back from disk after an engine was killed, against computing the prompt, and what the tier costs where
it has nothing.

Three real vLLM engines with a small real model, side by side, one request at a time, in turn: one computes, one has our
disk tier, one has vLLM's own (`fs`) in its place, all else equal. The two with a disk compute every prompt once, are
killed (SIGKILL) and started again, so nothing but the disk can know the prompts; before each request the disk's files
are dropped from the page cache. TTFT is seen by the client. Of a prompt of which the disk has a part, the *sweep* shows
what it takes at every share from nothing to all. A figure counts only if vLLM's own counter of tokens from disk moved
by exactly the blocks that are there, and if the answer is the one with vLLM's own tier.
"""

import http.client
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from rich.progress import Progress

from bench.forks import Parent, parent
from bench.programs import free_port
from bench.report import Check, Options, Report, at_least, at_most, spread
from headrace_runtime.contract import Engine, KvDisk, KvTiers, Model, NodeContract, Place
from headrace_runtime.engine import connectors
from headrace_runtime.engine.arguments import CPU, Command, command
from headrace_runtime.kv import report as tier_report
from local.engine import models

MODEL: Final = "smollm2"
BLOCK: Final = 128
"""Tokens of a block on CPU."""
REST: Final = 40
"""Tokens of each prompt after its last whole block."""
HOST_BYTES: Final = 512 * 1024**2
DISK_BYTES: Final = 6 * 1024**3
ANSWER: Final = 8
STORED_SECONDS: Final = 300.0
START_SECONDS: Final = 300.0
FIRST_TOKEN_ID, LAST_TOKEN_ID = 100, 40_000
JSON: Final = {"content-type": "application/json"}
COLUMNS = ("prompt tokens", "on disk", "computed, ms", "vLLM's fs tier, ms", "ours, ms", "fs ÷ ours", "computed ÷ ours")

Kind = Literal["off", "fs", "ours"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    lengths: tuple[int, ...]
    """Of prompts that are on disk whole, in blocks."""
    shares: tuple[int, ...]
    """Of prompts of `shares[-1]` blocks, so many are on disk."""
    misses: int
    """Prompts of which nothing is."""
    repeats: int


FULL = Sizes(lengths=(4, 8, 16, 31), shares=(0, 1, 2, 4, 8, 12, 16), misses=15, repeats=5)
QUICK = Sizes(lengths=(4, 16), shares=(0, 1, 8, 16), misses=3, repeats=1)
MISS_BLOCKS: Final = 8


@dataclass(frozen=True)
class Ask:
    """One prompt, of which the disk has the first `stored` blocks."""

    tokens: list[int]
    stored: int

    @property
    def before(self) -> list[int]:
        """The prompt that was computed and stored."""
        return self.tokens[: self.stored * BLOCK] + [FIRST_TOKEN_ID] * REST


@dataclass
class Told:
    """What came of an `Ask` at each engine."""

    ask: Ask
    seconds: dict[Kind, float] = field(default_factory=dict)
    whole: dict[Kind, float] = field(default_factory=dict)
    from_disk: dict[Kind, float] = field(default_factory=dict)
    text: dict[Kind, str] = field(default_factory=dict)


class Arm:
    """One engine, and the folder that its blocks go to."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.kind = kind
        self._group: int | None = None
        self._folder = folder / kind
        self._folder.mkdir()
        self.disk = self._folder / "disk"
        self._place = Place(name=kind, address="127.0.0.1", run_dir=str(self._folder / "run"), engine_port=free_port())
        Path(self._place.run_dir).mkdir()
        self._log = self._folder / "engine.log"

    def start(self, parent: Parent) -> None:
        """Returns once it answers."""
        tier_report.clear(Path(self._place.run_dir))
        self._group = parent.fork(self.command(), self._log)
        deadline = time.monotonic() + START_SECONDS
        while not self._healthy():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {self.kind} engine does not answer: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self, parent: Parent) -> None:
        assert self._group is not None
        parent.kill(self._group)

    def _healthy(self) -> bool:
        try:
            return self._get("/health")[0] == 200
        except OSError:
            return False

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._place.engine_port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def contract(self) -> NodeContract:
        disk = KvDisk(path=str(self.disk), size_bytes=DISK_BYTES)
        tiers = None if self.kind == "off" else KvTiers(host_bytes=HOST_BYTES, disk=disk)
        return NodeContract(
            namespace="bench",
            deployment="bench",
            revision="bench",
            role="serve",
            model=Model(source="bench", path=str(models.folder() / MODEL), served_name=MODEL),
            engine=Engine(device=CPU, max_model_len=8192, kv_cache_bytes=HOST_BYTES, kv_tiers=tiers),
            drain_seconds=1.0,
        )

    def command(self) -> Command:
        launch = command(self.contract(), self._place, weights="sha256:bench")
        return launch if self.kind != "fs" else Command(tuple(map(self._with_fs, launch.argv)), launch.env)

    def _with_fs(self, word: str) -> str:
        """vLLM's own tier in the place of ours, with the options it has by itself."""
        option, _, value = word.partition("=")
        if option != "--kv-transfer-config":
            return word
        config = json.loads(value)
        config["kv_connector_extra_config"]["secondary_tiers"] = [{"type": "fs", "root_dir": str(self.disk)}]
        return f"{option}={json.dumps(config)}"

    def ask(self, tokens: Sequence[int]) -> tuple[float, float, str]:
        """Seconds to the first token and to the last, and the text."""
        body = {"model": MODEL, "prompt": list(tokens), "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", self._place.engine_port, timeout=300)
        began, first, text = time.perf_counter(), 0.0, ""
        try:
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), JSON)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"the {self.kind} engine answers {answer.status}: {answer.read()!r}")
            for line in _data(answer):
                first = first or time.perf_counter()
                text += line["choices"][0]["text"]
        finally:
            connection.close()
        return first - began, time.perf_counter() - began, text

    def from_disk(self) -> float:
        """Tokens of prompts that came from there so far, by the engine's own count."""
        lines = self._get("/metrics")[1].splitlines()
        wanted = [line for line in lines if line.startswith("vllm:prompt_tokens_cached_by_source_total")]
        return sum(float(line.rpartition(" ")[2]) for line in wanted if 'source="disk"' in line)

    def blocks(self) -> int:
        """On the disk now."""
        if self.kind == "ours":
            state = tier_report.read(Path(self._place.run_dir))
            return state.blocks if state else 0
        return sum(1 for _ in self.disk.rglob("*.bin"))

    def wait_until_stored(self, blocks: int) -> None:
        deadline = time.monotonic() + STORED_SECONDS
        while (found := self.blocks()) < blocks:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{found} of {blocks} blocks are on the disk of the {self.kind} engine")
            time.sleep(0.1)

    def drop_page_cache(self) -> None:
        for file in self.disk.rglob("*"):
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def _data(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


class Prompts:
    """Tokens by chance, none twice with one seed."""

    def __init__(self, seed: int = 5) -> None:
        self._chance = random.Random(seed)

    def ask(self, blocks: int, stored: int) -> Ask:
        tokens = [self._chance.randrange(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(blocks * BLOCK + REST)]
        return Ask(tokens, stored)


@dataclass
class Plan:
    whole: dict[int, list[Told]]
    """By length in blocks: all of it is on disk."""
    sweep: dict[int, list[Told]]
    """By blocks on disk."""
    misses: list[Told]

    @classmethod
    def made(cls, sizes: Sizes) -> "Plan":
        prompts, longest = Prompts(), sizes.shares[-1]
        return cls(
            {n: [Told(prompts.ask(n, n)) for _ in range(sizes.repeats)] for n in sizes.lengths},
            {n: [Told(prompts.ask(longest, n)) for _ in range(sizes.repeats)] for n in sizes.shares},
            [Told(prompts.ask(MISS_BLOCKS, 0)) for _ in range(sizes.misses)],
        )

    def stored(self) -> list[Told]:
        groups = [*self.whole.values(), *self.sweep.values()]
        return [told for group in groups for told in group if told.ask.stored]


def run(options: Options) -> Report:
    sizes = QUICK if options.quick else FULL
    plan = Plan.made(sizes)
    report = Report("kv-reload", f"TTFT after a restart, {sizes.repeats} prompts each; median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        arms = [Arm(folder, kind) for kind in ("off", "fs", "ours")]
        progress.add_task("starting", total=None)
        modules = connectors.modules(arms[-1].contract().engine)
        warm = stack.enter_context(parent(folder / "parent.log", arms[0].command().env, modules))
        fill(plan, arms[1:], warm, progress)
        for arm in arms:
            arm.start(warm)
        for arm in arms:
            arm.ask(Prompts(seed=6).ask(1, 0).tokens[:BLOCK])  # what is lazy at the first request
        measure(plan, arms, progress)
    write(plan, report)
    return report


def fill(plan: Plan, arms: Sequence[Arm], warm: Parent, progress: Progress) -> None:
    """Each engine computes what its disk is to hold, and is killed."""
    stored = plan.stored()
    task = progress.add_task("filling the disks", total=len(arms) * len(stored))
    for arm in arms:  # one after the other: they would only wait for each other's cores
        arm.start(warm)
        blocks = 0
        for told in stored:
            arm.ask(told.ask.before)
            blocks += told.ask.stored
            arm.wait_until_stored(blocks)
            progress.update(task, advance=1)
        arm.kill(warm)


def measure(plan: Plan, arms: Sequence[Arm], progress: Progress) -> None:
    rounds = [*_in_turn(plan.whole), *_in_turn(plan.sweep), *plan.misses]
    task = progress.add_task("asking", total=len(rounds))
    for number, told in enumerate(rounds):
        turned = [*arms[number % len(arms) :], *arms[: number % len(arms)]]
        for arm in turned:
            if arm.kind != "off":
                arm.drop_page_cache()
            before = arm.from_disk()
            told.seconds[arm.kind], told.whole[arm.kind], told.text[arm.kind] = arm.ask(told.ask.tokens)
            told.from_disk[arm.kind] = arm.from_disk() - before
            settle(arms)
        progress.update(task, advance=1)


def _in_turn(groups: dict[int, list[Told]]) -> Iterator[Told]:
    """One of each, then the next of each."""
    for row in zip(*groups.values(), strict=True):
        yield from row


def settle(arms: Sequence[Arm], quiet_seconds: float = 0.3, most_seconds: float = 20.0) -> None:
    """Until no engine writes to its disk any more: the next request is not to pay for the last."""
    deadline = time.monotonic() + most_seconds
    counts, since = [arm.blocks() for arm in arms if arm.kind == "fs"], time.monotonic()
    while time.monotonic() - since < quiet_seconds and time.monotonic() < deadline:
        time.sleep(0.05)
        if (now := [arm.blocks() for arm in arms if arm.kind == "fs"]) != counts:
            counts, since = now, time.monotonic()


def write(plan: Plan, report: Report) -> None:
    for blocks, group in (*plan.whole.items(), *plan.sweep.items()):
        report.rows.append(_row(group, blocks))
    report.rows.append(_row(plan.misses, 0))
    everything = [*(told for group in (*plan.whole.values(), *plan.sweep.values()) for told in group), *plan.misses]
    longest = plan.whole[max(plan.whole)]
    miss = _median(plan.misses, "ours") / _median(plan.misses, "off")
    wrong = sum(told.text["ours"] != told.text["fs"] for told in everything)
    rounded = sum(told.text["ours"] != told.text["off"] for told in everything)
    report.notes += [
        "the first rows are prompts that are on disk whole; the next those of which it has a part, from none to all; "
        "the last unseen prompts only",
        f"an unseen prompt with its {ANSWER} tokens, ours ÷ computed: "
        f"{median(told.whole['ours'] for told in plan.misses) / median(told.whole['off'] for told in plan.misses):.3f}",
        *_losing(plan),
        f"{rounded} of {len(everything)} answers differ from the computing engine's: a prompt that is computed in "
        "other pieces is rounded in other places, with either tier",
    ]
    report.checks += [
        _gate("ours", everything),
        _gate("fs", everything),
        at_most("answers that differ from those with vLLM's fs tier", wrong, 0),
        at_least("computed ÷ ours at the longest prompt", _median(longest, "off") / _median(longest, "ours"), 5.0),
        at_least("vLLM's fs tier ÷ ours at the longest prompt", _median(longest, "fs") / _median(longest, "ours"), 1.0),
        at_most("an unseen prompt: ours ÷ computed", miss, 1.05),
        at_most("share of a prompt on disk from which on ours is quicker than computing, %", break_even(plan), 10.0),
    ]


def _gate(kind: Kind, everything: Sequence[Told]) -> Check:
    off = sum(told.from_disk[kind] != told.ask.stored * BLOCK for told in everything)
    return at_most(f"requests whose tokens from disk are not the expected ones ({kind})", off, 0)


def _median(group: Sequence[Told], kind: Kind) -> float:
    return median(told.seconds[kind] for told in group)


def _row(group: Sequence[Told], stored: int) -> list[str]:
    cells = [spread([1000 * told.seconds[kind] for told in group], 0) for kind in ("off", "fs", "ours")]
    tokens = len(group[0].ask.tokens)
    ours = _median(group, "ours")
    ratios = [f"{_median(group, 'fs') / ours:.2f}", f"{_median(group, 'off') / ours:.2f}"]
    return [str(tokens), f"{100 * stored * BLOCK / tokens:.0f} %", *cells, *ratios]


def _ratios(plan: Plan) -> list[tuple[float, float]]:
    """(share on disk in %, ours ÷ computed), from nothing to all. Of each prompt, so that its own noise cancels."""
    return [
        (
            100 * blocks * BLOCK / len(group[0].ask.tokens),
            median(told.seconds["ours"] / told.seconds["off"] for told in group),
        )
        for blocks, group in sorted(plan.sweep.items())
    ]


def break_even(plan: Plan) -> float:
    """The share on disk, in %, from which on ours takes no longer than computing: between two measured shares by a
    straight line. 100 where it never does."""
    points = _ratios(plan)
    for (share, ratio), (next_share, next_ratio) in reversed(list(pairwise(points))):
        if next_ratio > 1:
            return next_share if next_share < points[-1][0] else 100.0
        if ratio > 1:
            return share + (next_share - share) * (ratio - 1) / (ratio - next_ratio)
    return 0.0


def _losing(plan: Plan) -> list[str]:
    slower = [f"{share:.0f} % ({ratio:.3f})" for share, ratio in _ratios(plan) if ratio > 1]
    return [f"slower than computing where the disk has: {', '.join(slower)}"] if slower else []
