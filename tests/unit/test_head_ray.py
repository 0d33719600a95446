"""How Ray is started: authentication always explicit, the control store on disk, no leftover that stops a new head."""

import json
from pathlib import Path

import pytest

from headrace_runtime.contract import HeadContract, Place, RayNode
from headrace_runtime.head.head import forget_last_cluster, head_arguments, head_environment
from headrace_runtime.node.raylet import authentication, join_arguments, join_environment

PLACE = Place(name="chat-decode-r1-0", address="10.0.0.7", agent_port=8090)
# A user's own, which must not decide how this cluster authenticates.
INHERITED = {"PATH": "/bin", "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "theirs", "RAY_gcs_storage": "redis"}


@pytest.mark.parametrize(
    ("token_file", "expected"),
    [
        ("/etc/token", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/etc/token"}),
        (None, {"RAY_AUTH_MODE": "disabled"}),
    ],
)
def test_authentication_is_always_said(token_file: str | None, expected: dict[str, str]) -> None:
    assert authentication(token_file) == expected


def test_a_raylet_carries_its_pods_resource_and_outlives_the_heads_absence() -> None:
    node = RayNode(address="chat-head:6379", reconnect_seconds=86400)
    arguments = join_arguments(node, PLACE)
    resources = next(one.removeprefix("--resources=") for one in arguments if one.startswith("--resources="))
    assert json.loads(resources) == {"headrace-engine-chat-decode-r1-0": 1}
    assert "--node-ip-address=10.0.0.7" in arguments
    assert "--labels=headrace.dev/agent-port=8090" in arguments
    env = join_environment(node, INHERITED)
    assert env["RAY_gcs_rpc_server_reconnect_timeout_s"] == "86400"
    assert env["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in env


@pytest.mark.parametrize(("gcs", "storage"), [("RocksDB", "rocksdb"), ("Memory", None)])
def test_the_heads_control_store(gcs: str, storage: str | None) -> None:
    contract = HeadContract.model_validate({"namespace": "n", "deployment": "d", "gcs": gcs, "gcsPath": "/gcs"})
    env = head_environment(contract, INHERITED)
    assert env.get("RAY_gcs_storage") == storage
    assert env.get("RAY_gcs_storage_path") == ("/gcs" if storage else None)
    assert "--num-cpus=0" in head_arguments(contract, PLACE)


@pytest.mark.parametrize(("note", "stays"), [("10.0.0.7:6379", False), ("10.0.0.8:6379", True)])
def test_only_the_note_of_this_very_cluster_is_removed(tmp_path: Path, note: str, stays: bool) -> None:
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(note + "\n")
    forget_last_cluster("10.0.0.7:6379", tmp_path)
    assert file.exists() is stays


def test_no_note_is_nothing_to_remove(tmp_path: Path) -> None:
    forget_last_cluster("10.0.0.7:6379", tmp_path)
