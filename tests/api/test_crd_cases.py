"""The CRD before a real API server: it is accepted, refuses what it should, and says why in words that help."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from headrace_operator import names
from headrace_operator.api.crd import crd
from headrace_operator.api.parse import parse

ROOT = Path(__file__).parents[2]
CASES: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/cases/inferencedeployment.yaml").read_text())
SAMPLES = sorted((ROOT / "manifests/samples").glob("*.yaml"))
COLLECTION = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"

APPLY = "application/apply-patch+yaml"
JSON = "application/json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@dataclass(frozen=True)
class Server:
    """An API server that serves our kind."""

    api: client.ApiClient

    def call(
        self, method: str, path: str, body: Any = None, *, accept: str = JSON, **query: str
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": APPLY if method == "PATCH" else JSON, "Accept": accept}
        _, url, headers, payload, _ = self.api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self.api.call_api(method, url, headers, payload)
        raw = response.read()
        return response.status, json.loads(raw) if raw.startswith(b"{") else {"message": raw.decode()}

    def apply(self, path: str, body: dict[str, Any], manager: str = "someone") -> dict[str, Any]:
        status, answer = self.call("PATCH", path, body, fieldManager=manager, force="true")
        assert status in {200, 201}, answer
        return answer

    def refusal(self, body: dict[str, Any]) -> str | None:
        """What the server has against the object; None when it takes it. Nothing is kept."""
        status, answer = self.call("POST", COLLECTION, body, dryRun="All", fieldValidation="Strict")
        assert status in {201, 422}, answer
        return str(answer["message"]) if status == 422 else None


@pytest.fixture(scope="module")
def server(api_kubeconfig: Path) -> Iterator[Server]:
    with config.new_client_from_config(str(api_kubeconfig)) as api:
        found = Server(api)
        definition = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd()['metadata']['name']}"
        found.apply(definition, crd())
        _until(lambda: found.call("POST", COLLECTION, _object({}), dryRun="All")[0] == 201)
        yield found


def _until(done: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "the API server does not serve our kind"
        time.sleep(0.05)


def _object(spec: dict[str, Any], name: str = "chat") -> dict[str, Any]:
    model = {"source": "node:///model", **spec.get("model", {})}
    given = {key: value for key, value in model.items() if value is not None}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {**spec, "model": given},
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_server_judges_as_the_table_says(server: Server, case: dict[str, Any]) -> None:
    said = server.refusal(_object(case["spec"]))

    if "refusal" not in case:
        assert said is None
    else:
        assert said is not None
        assert case["refusal"] in said.replace('\\"', '"')


@pytest.mark.parametrize("name", ["Chat", "my.chat", "1chat", "chat-"])
def test_refuses_names_that_no_service_can_have(server: Server, name: str) -> None:
    said = server.refusal(_object({}, name))

    assert said is not None
    assert "metadata.name" in said


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_takes_every_sample(server: Server, file: Path) -> None:
    assert server.refusal(yaml.safe_load(file.read_text())) is None


@pytest.fixture
def kept(server: Server) -> Iterator[str]:
    """The path of an object that the test may create."""
    path = f"{COLLECTION}/kept"
    yield path
    server.call("DELETE", path)


def _apply(server: Server, path: str, spec: dict[str, Any]) -> dict[str, Any]:
    return server.apply(path, _object(spec, "kept"))


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_applying_a_sample_twice_changes_nothing(server: Server, kept: str, file: Path) -> None:
    sample = yaml.safe_load(file.read_text())
    first = _apply(server, kept, sample["spec"])

    second = _apply(server, kept, sample["spec"])

    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert second["metadata"]["generation"] == 1


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_defaults_of_the_server_are_those_of_python(server: Server, kept: str, file: Path) -> None:
    sample = yaml.safe_load(file.read_text())

    filled = _apply(server, kept, sample["spec"])

    assert parse(filled) == parse(sample)
    assert filled["spec"]["drain"]["timeout"]


def test_roles_change_from_one_to_two_by_apply(server: Server, kept: str) -> None:
    _apply(server, kept, {})

    split = _apply(server, kept, {"roles": [{"name": "prefill"}, {"name": "decode"}]})
    assert [role["name"] for role in split["spec"]["roles"]] == ["prefill", "decode"]

    joined = _apply(server, kept, {})
    assert "roles" not in joined["spec"]


def test_a_volume_changes_its_kind_by_apply(server: Server, kept: str) -> None:
    _apply(server, kept, {"ray": {"gcs": {"volume": {"emptyDir": {}}}}})

    moved = _apply(server, kept, {"ray": {"gcs": {"volume": {"hostPath": "/gcs"}}}})

    assert moved["spec"]["ray"]["gcs"]["volume"] == {"hostPath": "/gcs"}


def test_status_is_written_beside_the_spec(server: Server, kept: str) -> None:
    created = _apply(server, kept, {})
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "AwaitingCanary",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    roles = [{"name": "serve", "desired": 2, "ready": 1, "updated": 1, "draining": 0, "summary": "1/2"}]
    body = {**_object({}, "kept"), "status": {"conditions": [condition], "roles": roles}}
    del body["spec"]

    written = server.apply(f"{kept}/status", body, manager="operator")

    assert written["status"]["conditions"] == [condition]
    assert written["metadata"]["generation"] == created["metadata"]["generation"]
    assert written["status"]["roles"] == roles


def test_get_prints_the_columns(server: Server, kept: str) -> None:
    _apply(server, kept, {})

    _, table = server.call("GET", kept, accept=TABLE)

    shown = [column["name"] for column in table["columnDefinitions"] if column.get("priority", 0) == 0]
    assert shown == ["Name", "Model", "Ready", "Reason", "Prefill", "Decode", "Revision", "Age"]
