"""Which kind of cluster is taken, and what kind and a stranger's cluster are told to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from local import choice, current, kind
from local.bare import Bare
from local.current import Current
from local.errors import LocalError
from local.kind import Kind
from local.layout import NAME, Layout, Mount
from local.provider import Provider
from local.steps import Steps

CURRENT = Current(Path("/home/someone/.kube/config"))
MAKERS: dict[str, Callable[[], Provider]] = {
    "kind": Kind,
    "bare": lambda: Bare(Layout(Path("/var/lib/nowhere"))),
    "current": lambda: CURRENT,
}


def with_obstacles(monkeypatch: pytest.MonkeyPatch, **obstacles: str | None) -> None:
    kinds = {name: ((lambda reason=reason: reason), MAKERS[name]) for name, reason in obstacles.items()}
    monkeypatch.setattr(choice, "KINDS", kinds)
    monkeypatch.delenv("CLUSTER", raising=False)


def test_docker_comes_first_then_bare_then_the_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    with_obstacles(monkeypatch, kind=None, bare=None, current=None)
    assert choice.choose().name == "kind"
    with_obstacles(monkeypatch, kind="no Docker", bare=None, current=None)
    assert choice.choose().name == "bare"
    with_obstacles(monkeypatch, kind="no Docker", bare="no root", current=None)
    assert choice.choose().name == "current"


def test_the_environment_decides_against_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with_obstacles(monkeypatch, kind=None, bare=None, current=None)
    monkeypatch.setenv("CLUSTER", "current")
    assert choice.choose().name == "current"
    assert choice.choose("bare").name == "bare"


def test_nothing_is_missing_where_a_cluster_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with_obstacles(monkeypatch, kind="no Docker", bare=None, current="no kubeconfig")
    assert choice.why_none() is None


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with_obstacles(monkeypatch, kind="no Docker engine answers", bare="needs root", current="no kubeconfig")
    reason = choice.why_none()
    assert reason is not None
    assert all(words in reason for words in ("no Docker engine answers", "needs root", "no kubeconfig"))
    assert "\n" not in reason
    with pytest.raises(LocalError, match="needs root"):
        choice.choose()


def test_a_wanted_kind_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with_obstacles(monkeypatch, kind="no Docker engine answers", bare=None, current=None)
    monkeypatch.setenv("CLUSTER", "kind")
    with pytest.raises(LocalError, match="no Docker engine answers"):
        choice.choose()


def test_an_unknown_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")
    with pytest.raises(LocalError, match="CLUSTER=minikube is not one of kind, bare, current"):
        choice.choose()


def test_a_strangers_cluster_is_neither_made_nor_harmed() -> None:
    steps = Steps()
    refused: list[Callable[[], object]] = [
        lambda: CURRENT.up(3, (), False, steps),
        lambda: CURRENT.down(steps),
        lambda: CURRENT.kill("n1"),
        lambda: CURRENT.start("n1"),
        lambda: CURRENT.cut("n1"),
        lambda: CURRENT.heal("n1"),
        lambda: CURRENT.load([Path("image.tar")], steps),
        lambda: CURRENT.mount([], steps),
        lambda: CURRENT.inside(["true"]),
    ]
    for call in refused:
        with pytest.raises(LocalError, match="was not made here"):
            call()
    assert CURRENT.kubeconfig() == Path("/home/someone/.kube/config")


def test_the_kubeconfig_is_the_one_that_kubectl_would_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert current.given_kubeconfig() == tmp_path / "first"
    assert current.obstacle() == f"there is no kubeconfig at {tmp_path / 'first'}"
    (tmp_path / "first").touch()
    assert current.obstacle() is None
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert current.given_kubeconfig() == tmp_path / ".kube" / "config"


def test_kinds_nodes_are_called_as_kind_calls_them() -> None:
    assert [kind.container(name) for name in ("n1", "n2", "n9")] == [f"{NAME}-worker{end}" for end in ("", "2", "9")]


def test_a_lost_node_is_a_killed_or_disconnected_container() -> None:
    node = f"{NAME}-worker2"
    assert kind.kill_command("n2") == ["docker", "kill", node]
    assert kind.start_command("n2") == ["docker", "start", node]
    assert kind.cut_command("n2") == ["docker", "network", "disconnect", "--force", "kind", node]
    assert kind.heal_command("n2", "172.18.0.4") == ["docker", "network", "connect", "--ip", "172.18.0.4", "kind", node]


def test_images_go_to_the_running_nodes_of_kind() -> None:
    words = kind.load_command(Path("image.tar"), ["n1", "n3"])
    assert words[:3] == ["load", "image-archive", "image.tar"]
    assert words[-1] == f"{NAME}-worker,{NAME}-worker3"


def test_kind_gets_as_many_workers_as_wanted_each_with_the_mounts() -> None:
    config = kind.configuration(2, [Mount(Path("/models"), Path("/opt/models"))])
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker", "worker"]
    shown = [{"hostPath": "/models", "containerPath": "/opt/models", "readOnly": True}]
    assert all(node["extraMounts"] == shown for node in config["nodes"][1:])
    patches = [json.loads(patch) for patch in config["kubeadmConfigPatches"]]
    assert {patch["kind"] for patch in patches} == {"ClusterConfiguration", "KubeletConfiguration"}
