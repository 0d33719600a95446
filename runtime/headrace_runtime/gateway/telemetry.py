"""What the gateway tells of its requests: Prometheus series and one JSON line per request. Never a prompt, never an
answer.

Labels come from fixed sets (routes, outcomes, causes), so that no client can make series. `Record` is filled by
`flow.py`.
"""

import sys
from dataclasses import dataclass
from typing import BinaryIO, Literal

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace_runtime.contract import RoleName
from headrace_runtime.gateway.demand import Visit
from headrace_runtime.gateway.figures import Figures
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.share import Side

Outcome = Literal["answered", "refused", "failed", "broken", "left"]
"""answered: a complete answer of an engine · refused: the client's fault (4xx) · failed: no first token (5xx) ·
broken: lost after the first token · left: the client went away."""

TransferResult = Literal["completed", "given_up"]

ResumeResult = Literal[
    "resumed", "completed", "lost_again", "mismatch", "refused", "no_engine", "not_resumable", "too_long", "too_often",
]  # fmt: skip
"""What became of an answer whose engine was lost after the first token. resumed: another engine went on · completed:
only the end was missing, and no engine needed · lost_again: the next engine was lost before it said anything new ·
the others end the answer with an error. mismatch: the next engine said something else · refused: it answered 4xx ·
no_engine: none came in time · not_resumable: several sequences, or resume is off · too_long: no memory was left to keep
it · too_often: more losses than allowed."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


@dataclass(slots=True)
class Record:
    """One request, as far as it has come. Times are of the monotonic clock, in seconds."""

    request_id: str
    path: str
    began: float
    key: str = ""
    """Name of the API key, never the key."""
    tokens: int | None = None
    """Of prompt and answer: as the engine says, or of a stream by its events, which are about as many."""
    queued: float = 0.0
    """Seconds."""
    stream: bool = False
    prompt_tokens: int = 0
    revision: str = ""
    prefill: str = ""
    decode: str = ""
    explain: bool = False
    """The client asks why it was routed as it was."""
    routing: str = ""
    """The reason, where it asks."""
    tries: int = 0
    resumed: int = 0
    """How often another engine went on with the answer."""
    first_token: float | None = None
    last_token: float | None = None
    """Of a whole stream of one sequence."""
    gaps: int = 0
    """Between its events after the first read: about one for each token but the first."""
    output_tokens: int | None = None
    """Of a whole answer: the events of a stream, or as the engine says. None: that is not known."""
    role: RoleName | None = None
    """Of the engine that writes the answer."""
    cached: float | None = None
    """Share of the prompt that the engine which computed it was known to hold; None: that was not known."""
    side: Side | None = None
    """Of a canary."""
    own: bool = False
    """The operator's question: no client waits for it, and it is in no figure."""
    demands: bool = False
    """It counts among what is asked of the deployment."""
    visit: Visit | None = None
    """As which it does."""
    status: int = 0
    outcome: Outcome = "failed"


class Telemetry:
    def __init__(self, registry: CollectorRegistry, access_log: BinaryIO | None = None) -> None:
        self.access_log = access_log
        self.figures = Figures()
        self._not_admitted = Counter(
            "headrace_gateway_not_admitted", "Requests that were not let in, by cause", ["cause"], registry=registry
        )
        self._queued = Histogram(
            "headrace_gateway_queue_wait_seconds",
            "How long requests waited for their turn, of those that had to",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue = Gauge("headrace_gateway_queue_length", "Requests that wait for their turn", registry=registry)
        self.keys = Gauge("headrace_gateway_api_keys", "API keys that are known", registry=registry)
        self.prefix_blocks = Gauge(
            "headrace_gateway_prefix_blocks", "KV blocks that engines are known to hold", registry=registry
        )
        self.prefix_late = Gauge(
            "headrace_gateway_prefix_late_engines", "Engines whose KV events are late or lost", registry=registry
        )
        self._reloads = Counter(
            "headrace_gateway_reloads",
            "Changes of the contract or of the API keys, taken up or refused",
            ["what", "result"],
            registry=registry,
        )
        self._requests = Counter(
            "headrace_gateway_requests",
            "Requests by route, status and outcome",
            ["route", "code", "outcome"],
            registry=registry,
        )
        self._ttft = Histogram(
            "headrace_gateway_time_to_first_token_seconds",
            "From the complete request to the first token of a streamed answer",
            ["split"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "headrace_gateway_request_duration_seconds",
            "From the complete request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._itl = Histogram(
            "headrace_gateway_inter_token_latency_seconds",
            "Mean time between the tokens of a streamed answer, one sample for each answer",
            buckets=_GAPS,
            registry=registry,
        )
        self.in_flight = Gauge("headrace_gateway_requests_in_flight", "Requests being served", registry=registry)
        self._retries = Counter(
            "headrace_gateway_retries",
            "Tries that gave no first token, by phase and cause",
            ["phase", "cause"],
            registry=registry,
        )
        self._fallbacks = Counter(
            "headrace_gateway_prefill_fallbacks",
            "Requests whose prompt the decode engine computed since prefill or transfer failed",
            ["cause"],
            registry=registry,
        )
        self._transfers = Counter(
            "headrace_gateway_transfers",
            "Answers asked to start from transferred KV blocks",
            ["result"],
            registry=registry,
        )

        self._resumes = Counter(
            "headrace_gateway_resumes",
            "Answers whose engine was lost after the first token, by what became of them",
            ["result"],
            registry=registry,
        )

    def not_admitted(self, cause: str) -> None:
        self._not_admitted.labels(cause).inc()

    def queued(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def reloaded(self, what: str, result: str) -> None:
        self._reloads.labels(what, result).inc()

    def retried(self, phase: str, cause: str) -> None:
        self._retries.labels(phase, cause).inc()

    def fell_back(self, cause: str) -> None:
        self._fallbacks.labels(cause).inc()

    def transferred(self, result: TransferResult) -> None:
        self._transfers.labels(result).inc()

    def resumed(self, result: ResumeResult) -> None:
        self._resumes.labels(result).inc()

    def came(self, record: Record) -> None:
        """The gate has seen it."""
        if record.demands:
            record.visit = self.figures.demand.came(record.prompt_tokens)

    def handed(self, record: Record) -> None:
        """An engine computes it and answers in one piece."""
        if record.visit is not None:
            self.figures.demand.handed(record.visit)

    def began(self, record: Record, now: float) -> None:
        """The first token of an answer that its engine streams."""
        record.first_token = now
        if record.visit is not None:
            self.figures.demand.began(record.visit)
        if record.stream:
            self._ttft.labels("yes" if record.prefill else "no").observe(now - record.began)
        if record.stream and not record.own and record.role is not None:
            by: RoleName = "prefill" if record.prefill else record.role
            self.figures.computed(by, record.revision, now - record.began, record.prompt_tokens, record.cached)

    def finished(self, record: Record, now: float) -> None:
        self._requests.labels(record.path, str(record.status), record.outcome).inc()
        self._duration.labels(record.path).observe(now - record.began)
        if record.visit is not None:
            self.figures.demand.left(record.visit)
        if not record.own:
            self._count(record)
        if self.access_log is not None:
            self.access_log.write(_line(record, now))
            self.access_log.flush()

    def _count(self, record: Record) -> None:
        figures, role = self.figures, record.role
        figures.answered += record.outcome == "answered"
        figures.failed += record.outcome == "failed"
        figures.broken += record.outcome == "broken"
        if role is None or record.outcome != "answered" or record.output_tokens is None:
            return
        itl = None
        if record.last_token is not None and record.first_token is not None and record.gaps > 0:
            itl = (record.last_token - record.first_token) / record.gaps
            self._itl.observe(itl)
        figures.wrote(role, record.revision, record.output_tokens, itl)


class FleetCollector(Collector):
    """Engines, each and counted, read when scraped. An engine that is gone has no series any more."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> list[Metric]:
        engines = GaugeMetricFamily("headrace_gateway_engines", "Engines by role and state", labels=["role", "state"])
        states = GaugeMetricFamily(
            "headrace_gateway_engine_state",
            "1 for the state of the engine's quarantine: closed takes requests, open takes none, half_open is probed",
            labels=["engine", "role", "state"],
        )
        silences = GaugeMetricFamily(
            "headrace_gateway_engine_silent_seconds",
            "For how long the engine has owed answers and sent nothing",
            labels=["engine", "role"],
        )
        quarantines = CounterMetricFamily(
            "headrace_gateway_quarantines", "Engines put in quarantine, by reason", labels=["reason"]
        )
        counts: dict[tuple[str, str], int] = {}
        for slot in self._fleet.slots():
            endpoint = slot.endpoint
            state = "draining" if endpoint.draining else "routable" if slot.routable else "out"
            counts[endpoint.role, state] = counts.get((endpoint.role, state), 0) + 1
            for one in ("closed", "open", "half_open"):
                states.add_metric([endpoint.name, endpoint.role, one], slot.breaker.state == one)
            silences.add_metric([endpoint.name, endpoint.role], slot.silent)
        for labels, count in counts.items():
            engines.add_metric(list(labels), count)
        for reason, times in self._fleet.quarantined.items():
            quarantines.add_metric([reason], times)
        links = GaugeMetricFamily(
            "headrace_gateway_links_quarantined",
            "Pairs of a prefill and a decode engine between which no blocks are sent",
        )
        links.add_metric([], len(self._fleet.links.quarantined()))
        return [engines, states, silences, quarantines, links]


def standard_output() -> BinaryIO:
    return sys.stdout.buffer


def _line(record: Record, now: float) -> bytes:
    first = record.first_token
    line = {
        "request_id": record.request_id,
        "key": record.key,
        "route": record.path,
        "status": record.status,
        "outcome": record.outcome,
        "stream": record.stream,
        "prompt_tokens_estimated": record.prompt_tokens,
        "tokens": record.tokens,
        "revision": record.revision,
        "prefill": record.prefill,
        "decode": record.decode,
        "tries": record.tries,
        "resumed": record.resumed,
        "queued_ms": round(record.queued * 1e3, 1),
        "ttft_ms": None if first is None else round((first - record.began) * 1e3, 1),
        "duration_ms": round((now - record.began) * 1e3, 1),
    }
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
