"""What a pod or a node says of itself in the API. Pure."""

from collections.abc import Mapping
from typing import Any

Pod = Mapping[str, Any]


def name(pod: Pod) -> str:
    found: str = pod["metadata"]["name"]
    return found


def uid(pod: Pod) -> str:
    """Names come back, uids do not."""
    found: str = pod["metadata"]["uid"]
    return found


def is_ready(pod: Pod) -> bool:
    """Whether it, a pod or a node, is Ready and stays."""
    states = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", [])}
    return states.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def restarts(pod: Pod) -> int:
    """How often containers of this pod were started again."""
    return sum(one["restartCount"] for one in pod.get("status", {}).get("containerStatuses", []))
