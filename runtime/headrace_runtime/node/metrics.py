"""An agent's state as Prometheus metrics, made from one `NodeState` at each scrape: there is nothing to keep in step.

The names are an interface: dashboards and alerts use them.
"""

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from headrace_runtime.contract import NodeState, Phase


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
        if state.weights.verified is not None:
            yield _gauge(
                "headrace_node_weights_verified", "1 if the weights are what was promised", state.weights.verified
            )
        if state.ray is not None:
            yield _gauge("headrace_node_ray_joined", "1 while the raylet runs and its actor is heard", state.ray.joined)
            yield _counter("headrace_node_raylet_restarts", "Raylets started after the first", state.ray.restarts)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=float(value))


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=float(value))
