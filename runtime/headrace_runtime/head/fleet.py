"""Supervises every engine of the Ray cluster: one detached actor each, pinned to the engine's own node.

The actor asks its agent after the engine each second, over HTTP on its node's address, and so adopts an engine that
runs already; it never starts, stops or holds one. The only module that imports Ray; run by `head.py` as a program of
its own (`headrace_runtime fleet`), since calls like `ray.nodes()` take no deadline and block while Ray's control store
is away: `head.py` ends a fleet that does not report. Reports are `FleetState`, one JSON line each on stdout.
"""

import json
import logging
import sys
import threading
import time
import urllib.request
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from headrace_runtime.contract import HeadContract, NodeState, Place
from headrace_runtime.head.plan import Engine, FleetPlan, engines, plan
from headrace_runtime.head.state import FleetState, SupervisorState
from headrace_runtime.node.raylet import ENGINE_RESOURCE

log = logging.getLogger(__name__)

ACTOR_PREFIX = "supervisor-"
BEAT_SECONDS = 1.0
AGENT_TIMEOUT = 3.0
PASS_SECONDS = 2.0
ANSWER_TIMEOUT = 3.0


class Supervisor:
    """The actor. Its beat starts with it, so one that Ray restarts needs nobody to call it."""

    def __init__(self, agent_port: int) -> None:
        self._id = ray.get_runtime_context().get_actor_id() or ""
        self._url = f"http://{_bracketed(ray.util.get_node_ip_address())}:{agent_port}/supervise"
        self._phase: str | None = None
        threading.Thread(target=self._beat, daemon=True, name="supervise").start()

    def status(self) -> tuple[str, str | None]:
        """Its own id, and the engine's phase; None when the agent did not answer the last beat."""
        return self._id, self._phase

    def _beat(self) -> None:
        # No proxy from the environment stands between an actor and the agent beside it.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        body = json.dumps({"actor": self._id}).encode()
        while True:
            request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310
            try:
                with opener.open(request, timeout=AGENT_TIMEOUT) as answer:
                    self._phase = NodeState.model_validate_json(answer.read()).phase
            except (OSError, ValueError):
                self._phase = None
            time.sleep(BEAT_SECONDS)


class Fleet:
    """The driver: brings the actors in line with the nodes, pass by pass."""

    def __init__(self) -> None:
        self._gone_since: dict[str, float] = {}

    def one_pass(self, now: float) -> FleetState:
        nodes: list[dict[str, object]] = ray.nodes()
        alive = engines(nodes)
        supervised = {name.removeprefix(ACTOR_PREFIX) for name in ray.util.list_named_actors()}
        self._gone_since = {pod: self._gone_since.get(pod, now) for pod in supervised - alive.keys()}
        wanted = plan(alive, supervised, {pod: now - since for pod, since in self._gone_since.items()})
        _apply(wanted)
        living = sum(bool(node.get("Alive")) for node in nodes)
        return FleetState(nodes=living, supervisors=_ask(sorted(alive)))


def _apply(wanted: FleetPlan) -> None:
    for engine in wanted.create:
        _create(engine)
        log.info("supervisor of %s created", engine.pod)
    for pod in wanted.remove:
        ray.kill(ray.get_actor(ACTOR_PREFIX + pod), no_restart=True)
        log.info("supervisor of %s removed: its node has been gone for long", pod)


def _create(engine: Engine) -> None:
    options = ray.remote(Supervisor).options(
        name=ACTOR_PREFIX + engine.pod,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        resources={ENGINE_RESOURCE + engine.pod: 1},
        max_restarts=-1,
    )
    options.remote(engine.agent_port)


def _ask(pods: list[str]) -> tuple[SupervisorState, ...]:
    asked: dict[str, Any] = {pod: ray.get_actor(ACTOR_PREFIX + pod).status.remote() for pod in pods}
    if not asked:
        return ()
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_TIMEOUT)
    return tuple(_answer(pod, answer) for pod, answer in asked.items())


def _answer(pod: str, answer: Any) -> SupervisorState:
    try:
        actor, phase = ray.get(answer, timeout=0)
    except (GetTimeoutError, RayError):
        return SupervisorState(pod=pod)
    return SupervisorState(pod=pod, actor=actor, phase=phase)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def main(contract: HeadContract, place: Place) -> None:
    """Pass after pass, until ended. Raises whatever Ray raises: `head.py` starts a new fleet."""
    ray.init(
        address=f"{_bracketed(place.address)}:{contract.port}",
        namespace=f"headrace-{contract.deployment}",
        log_to_driver=False,
        configure_logging=False,
    )
    fleet = Fleet()
    while True:
        state = fleet.one_pass(time.monotonic())
        sys.stdout.write(state.model_dump_json(by_alias=True) + "\n")
        sys.stdout.flush()
        time.sleep(PASS_SECONDS)
