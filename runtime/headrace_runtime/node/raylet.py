"""Keeps this pod's raylet in the Ray cluster. The engine neither needs it nor notices when it goes.

Ray is run as a program, never imported: `ray start --block`, started again with a growing delay when it ends. The
raylet carries a resource named after the pod, to which the head's fleet pins one supervisor actor. Token authentication
is always set explicitly, on or off: left alone, `ray start` decides by whatever token it finds on the machine. Called
by `agent.py`.
"""

import json
import os
import sys
from collections.abc import Mapping

from headrace_runtime.contract import Place, RayNode, RayState
from headrace_runtime.node.keeper import Keeper
from headrace_runtime.node.process import Children

ENGINE_RESOURCE = "headrace-engine-"
AGENT_PORT_LABEL = "headrace.dev/agent-port"
RAY = (sys.executable, "-m", "ray.scripts.scripts")
YIELDING = ("nice", "-n", "10")
"""Tokens go first: a head that comes back keeps the raylet beside an engine busy for seconds."""


def authentication(token_file: str | None) -> dict[str, str]:
    """Ray's environment for a token in a file, or for none."""
    if token_file is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_file}


def join_arguments(node: RayNode, place: Place) -> list[str]:
    """Words after `ray` that join a cluster. Ports of Ray's helpers are free ones: several may share an address.

    `--node-ip-address` is not optional: without it Ray sends a packet towards a public resolver to learn its own
    address. `--num-cpus 0` keeps it from starting idle workers; the actor asks for the pod's resource alone.
    """
    return [
        "start",
        f"--address={node.address}",
        "--block",
        f"--node-ip-address={place.address}",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--resources={json.dumps({ENGINE_RESOURCE + place.name: 1})}",
        f"--labels={AGENT_PORT_LABEL}={place.agent_port}",
        f"--object-store-memory={node.object_store_bytes}",
        "--include-log-monitor=false",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
    ]


def join_environment(node: RayNode, inherited: Mapping[str, str]) -> dict[str, str]:
    own = {name: value for name, value in inherited.items() if not name.startswith("RAY_AUTH_")}
    return {
        **own,
        **authentication(node.token_file),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(node.reconnect_seconds),
    }


class Raylet:
    """Keeps `ray start` running; `state` may be read at any time."""

    def __init__(self, children: Children, node: RayNode, place: Place, version: str) -> None:
        self._version = version
        argv = [*YIELDING, *RAY, *join_arguments(node, place)]
        self._keeper = Keeper(children, "raylet", argv, join_environment(node, os.environ))

    def state(self, supervised: bool) -> RayState:
        """`joined`: the raylet runs, and an actor on it has been heard."""
        joined = self._keeper.runs and supervised
        return RayState(joined=joined, version=self._version, restarts=self._keeper.restarts)

    async def run(self) -> None:
        await self._keeper.run()

    async def stop(self) -> None:
        await self._keeper.stop()
