"""An agent's state as Prometheus metrics, made from one `NodeState` at each scrape: there is nothing to keep in step.

The names are an interface: dashboards and alerts use them.
"""

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from headrace_runtime.contract import KvState, NodeState, Phase


class StateCollector(Collector):
    def __init__(self, state: Callable[[], NodeState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        info = InfoMetricFamily("headrace_node", "What this agent looks after")
        labels = {"pod": state.pod, "role": state.role, "revision": state.revision}
        info.add_metric([], {**labels, "engine_version": state.engine_version or ""})
        yield info
        phase = GaugeMetricFamily("headrace_node_phase", "1 for the phase the agent is in", labels=["phase"])
        for name in get_args(Phase):
            phase.add_metric([name], float(name == state.phase))
        yield phase
        reason = GaugeMetricFamily(
            "headrace_node_reason", "1 for the reason of the phase, if it has one", labels=["reason"]
        )
        if state.reason:
            reason.add_metric([state.reason], 1.0)
        yield reason
        yield _counter("headrace_node_engine_restarts", "Engines started after the first", state.engine_restarts)
        yield _counter("headrace_node_requests_cut", "Requests that a drain ended at its deadline", state.cut)
        if state.ready_seconds is not None:
            yield _gauge(
                "headrace_node_engine_ready_seconds",
                "From the last engine's start to its first token",
                state.ready_seconds,
            )
        yield _gauge("headrace_node_weights_bytes", "Bytes of the model's folder", state.weights.bytes_total)
        yield _gauge(
            "headrace_node_weights_read_bytes", "Bytes of the model's folder read so far", state.weights.bytes_read
        )
        if state.weights.fetch_total:
            yield _gauge("headrace_node_weights_fetch_bytes", "Bytes that the source gives", state.weights.fetch_total)
            yield _gauge("headrace_node_weights_fetched_bytes", "Of these, bytes that are there", state.weights.fetched)
        if state.weights.verified_at is not None:
            when = "When the weights were last read and found right, in seconds since the epoch"
            yield _gauge("headrace_node_weights_verified_at_seconds", when, state.weights.verified_at)
        if state.weights.verified is not None:
            yield _gauge(
                "headrace_node_weights_verified", "1 if the weights are what was promised", state.weights.verified
            )
        if state.kv is not None:
            yield from _kv(state.kv)
        served = GaugeMetricFamily(
            "headrace_node_adapter_served", "1 if the engine serves the adapter", labels=["adapter"]
        )
        for adapter in state.adapters:
            served.add_metric([adapter.name], float(adapter.served))
        yield served
        if state.ray is not None:
            yield _gauge("headrace_node_ray_joined", "1 while the raylet runs and its actor is heard", state.ray.joined)
            yield _counter("headrace_node_raylet_restarts", "Raylets started after the first", state.ray.restarts)


def _kv(kv: KvState) -> Iterator[Metric]:
    yield _gauge("headrace_kv_ready", "1 while KV blocks are kept on the node's disk", kv.ready)
    reason = GaugeMetricFamily("headrace_kv_reason", "1 for the reason why they are not", labels=["reason"])
    if kv.reason:
        reason.add_metric([kv.reason], 1.0)
    yield reason
    yield _gauge("headrace_kv_bytes", "Physical bytes of the deployment's KV blocks on this node", kv.bytes_used)
    yield _gauge("headrace_kv_limit_bytes", "What they may be", kv.bytes_limit)
    yield _gauge("headrace_kv_blocks", "KV blocks on disk that this engine can read", kv.blocks)
    yield _counter("headrace_kv_lookups", "KV blocks that requests asked the disk for", kv.looked_up)
    yield _counter("headrace_kv_hits", "KV blocks that were there", kv.found)
    yield _counter("headrace_kv_misses", "KV blocks that were not", max(0, kv.looked_up - kv.found))
    yield _counter("headrace_kv_stored", "KV blocks written", kv.stored)
    yield _counter("headrace_kv_loaded", "KV blocks read and verified", kv.loaded)
    yield _counter("headrace_kv_damaged", "KV blocks whose checksum was wrong", kv.damaged)
    yield _counter("headrace_kv_evicted", "KV blocks that made room for others", kv.evicted)
    yield _counter("headrace_kv_dropped", "KV blocks not stored, as the disk could not follow", kv.dropped)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=float(value))
