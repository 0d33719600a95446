"""`headrace record` against an API server that answers as it is told: what is written, and what is not."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from headrace_operator import names
from headrace_operator.__main__ import main
from headrace_operator.commands.recording import Header, RecordingError, Writer, sessions
from headrace_operator.state import Object
from headrace_operator.testing import Sample, running
from headrace_runtime.contract import DemandFigures, GatewayFigures, RoleFigures, Sketch
from local.programs import wait_until

SECRET = "sk-not-to-be-written"
FIGURES = GatewayFigures(
    start="a",
    seconds=30.0,
    arrivals=7,
    roles=(RoleFigures(role="decode", revision="r", answers=7, itl=Sketch(counts={-100: 7})),),
    demand=DemandFigures(requests=7, prompt_tokens=700, writing=3.5),
)


def pod(name: str, component: str, role: str = "", created: str = "2026-03-01T02:00:00Z") -> Object:
    labels = {names.COMPONENT: component, names.DEPLOYMENT: "chat", names.ROLE: role, names.REVISION: "r"}
    meta = {"name": name, "namespace": "demo", "labels": labels, "creationTimestamp": created}
    spec = {"containers": [{"name": component, "env": [{"name": "TOKEN", "value": SECRET}]}]}
    return {"metadata": meta, "spec": spec, "status": running("10.0.0.1")}


class Api:
    """The three calls that recording takes."""

    def __init__(self) -> None:
        sample = Sample().split(1, 1).set("engine.env", [{"name": "TOKEN", "value": SECRET}])
        sample.set("roles.0.podTemplate", {"metadata": {"annotations": {"note": SECRET}}}).set("scaling.dryRun", True)
        self.deployment: Object | None = sample.build() | {
            "status": {
                "roles": [{"name": "prefill", "desired": 1, "ready": 1, "summary": SECRET}],
                "scaling": {"sizes": [{"name": "prefill", "size": 1}]},
                "conditions": [],
            }
        }
        self.pods = [
            pod("chat-prefill-r-0", "engine", "prefill"),
            pod("chat-gateway-0", "gateway"),
            pod("chat-gateway-1", "gateway"),
            pod("chat-head", "head"),
        ]
        self.figures: dict[str, Any] = {"chat-gateway-0": FIGURES.model_dump(mode="json", by_alias=True)}
        self.kubeconfig = Path()

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path
        if path.endswith("/inferencedeployments/chat"):
            return web.json_response(self.deployment, status=200 if self.deployment else 404)
        if path.endswith("/namespaces/demo/pods"):
            return web.json_response({"items": self.pods})
        name = path.removeprefix("/api/v1/namespaces/demo/pods/").removesuffix(":8081/proxy/figures")
        if name in self.figures:
            return web.json_response(self.figures[name])
        return web.json_response({"reason": "ServiceUnavailable", "message": "no route"}, status=503)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_route("GET", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api.kubeconfig = tmp_path / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
    }
    api.kubeconfig.write_text(yaml.safe_dump(config))
    yield api
    await runner.cleanup()


async def record(api: Api, file: Path, *more: str) -> Result:
    typed = ["record", "chat", "-n", "demo", "--kubeconfig", str(api.kubeconfig), "-o", str(file), *more]
    return await asyncio.to_thread(CliRunner().invoke, main, typed)


def leaves(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from leaves(below, f"{path}[]")
    else:
        yield path


async def test_a_moment_has_the_spec_the_status_the_pods_and_each_gateways_figures(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    ran = await record(api, file, "--minutes", "0")
    assert ran.exit_code == 0, ran.output
    assert "1 of 2 gateways, ready: prefill 1" in ran.output
    assert "missing: chat-gateway-1" in ran.output
    (session,) = sessions(file)
    (taken,) = session.moments
    assert (session.header.namespace, session.header.name) == ("demo", "chat")
    assert taken.gateways == {"chat-gateway-0": FIGURES, "chat-gateway-1": None}
    spec, status = taken.deployment()
    assert [role.name for role in spec.roles] == ["prefill", "decode"]
    assert spec.scaling.dry_run
    assert status.scaling is not None
    assert [engine.name for engine in taken.observed().engines()] == ["chat-prefill-r-0"]


async def test_only_known_fields_are_written(api: Api, tmp_path: Path) -> None:
    """No prompt, no key, no environment variable: not because they are taken out, but because nothing has a place."""
    api.figures["chat-gateway-0"] |= {"prompt": SECRET, "keys": {SECRET: 1}}
    file = tmp_path / "chat.jsonl"
    assert (await record(api, file, "--minutes", "0")).exit_code == 0
    header, taken = (json.loads(line) for line in file.read_text().splitlines())
    assert SECRET not in file.read_text()
    assert header.keys() == {"format", "writtenBy", "namespace", "name", "uid", "every"}
    assert {leaf for leaf in leaves(taken) if not leaf.startswith(".gateways")} == {
        ".at",
        ".elapsed",
        ".spec.scaling.dryRun",
        ".spec.engine.device.resource",
        ".spec.roles[].name",
        ".spec.roles[].replicas",
        ".status.roles[].name",
        ".status.roles[].desired",
        ".status.roles[].ready",
        ".status.scaling.sizes[].name",
        ".status.scaling.sizes[].size",
        ".pods[].name",
        ".pods[].component",
        ".pods[].role",
        ".pods[].revision",
        ".pods[].ready",
        ".pods[].created",
    }
    assert GatewayFigures.model_validate(taken["gateways"]["chat-gateway-0"]) == FIGURES


async def test_a_second_recording_is_appended_and_what_was_cut_off_goes(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    await record(api, file, "--minutes", "0")
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[1][:100])
    assert [len(session.moments) for session in sessions(file)] == [1], "a line without its end is no line"
    assert (await record(api, file, "--minutes", "0")).exit_code == 0
    assert file.read_text().startswith(whole)
    assert [len(session.moments) for session in sessions(file)] == [1, 1]


async def test_a_file_of_something_else_is_left_alone(api: Api, tmp_path: Path) -> None:
    for text in ("precious\n", '{"format": "other"}\n', "[]\n"):
        file = tmp_path / "notes.txt"
        file.write_text(text)
        ran = await record(api, file, "--minutes", "0")
        assert ran.exit_code == 1
        assert str(file) in ran.output
        assert file.read_text() == text


async def test_another_deployments_recording_is_left_alone(api: Api, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    Writer(file, Header(written_by="1", namespace="demo", name="other", uid="u", every=30.0)).close()
    ran = await record(api, file, "--minutes", "0")
    assert ran.exit_code == 1
    assert "records demo/other: choose another file with -o" in ran.output


async def test_no_deployment_no_file(api: Api, tmp_path: Path) -> None:
    api.deployment = None
    file = tmp_path / "chat.jsonl"
    ran = await record(api, file)
    assert ran.exit_code == 1
    assert "no InferenceDeployment chat" in ran.output
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_a_file_that_can_be_used(api: Api, tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "chat.jsonl"
    argv = ["record", "chat", "-n", "demo", "--kubeconfig", str(api.kubeconfig), "-o", str(file)]
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "headrace_operator", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does in its background
    )
    try:
        there = lambda: file.exists() and file.read_text().count("\n") == 2  # noqa: E731
        await asyncio.to_thread(wait_until, "the first moment", there, 40)
        process.send_signal(number)
        said, _ = await asyncio.to_thread(process.communicate, timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert b"1 moments of demo/chat" in said
    assert [len(session.moments) for session in sessions(file)] == [1]


def test_an_empty_file_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(RecordingError, match="is empty"):
        list(sessions(tmp_path / "none.jsonl"))
