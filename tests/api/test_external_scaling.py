"""Roles that somebody else scales, against a real API server: its scale subresource, autoscalers' objects, and who
owns which field."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace_operator import names
from headrace_operator.api.conditions import Reason
from headrace_operator.cluster import INFERENCE_ROLE, POD, Kind, client
from headrace_operator.cluster.client import APPLY
from headrace_operator.errors import ClusterError
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Object
from headrace_operator.testing import DEFAULTS, Sample
from sweep.stage import MERGE, Client, Stage, install, served

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]
SCALERS = sorted((ROOT / "manifests/scalers").glob("*.yaml"))
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
HPA = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
SCALED_OBJECT = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")
NAME = names.inference_role("chat", "decode")


def external(most: int = 4) -> Sample:
    roles: list[Any] = [{"name": "prefill", "replicas": 1}, {"name": "decode", "scaling": {"min": 1, "max": most}}]
    return Sample().set("roles", roles).set("scaling.mode", "External")


class Scene:
    """One namespace, its operator, and everybody else."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.stage = Stage(client, namespace)
        self.world = World(client, self.stage.runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: "a-token")

    async def settle(self) -> None:
        """Passes, and what everybody else does, until there is nothing left to do."""
        for _ in range(40):
            before = await self.versions()
            await reconcile(self.world, self.stage.ref)
            if not await self.stage.step() and await self.versions() == before:
                return
        raise AssertionError("not quiet")

    async def versions(self) -> dict[str, str]:
        """Of everything there is."""
        objects = await self.stage.objects()
        return {f"{obj['kind']}/{obj['metadata']['name']}": obj["metadata"]["resourceVersion"] for obj in objects}

    async def role(self) -> Object:
        found = await self.client.get(INFERENCE_ROLE, self.stage.namespace, NAME)
        assert found is not None
        return found

    async def limited(self) -> Object:
        found: Object = next(one for one in (await self.role())["status"]["conditions"])
        return found

    async def ready(self) -> int:
        return (await self.stage.ready_engines())["decode"]

    async def write_scale(self, replicas: int) -> Object:
        """What autoscalers and `kubectl scale` do: read the scale, and write it back."""
        path = INFERENCE_ROLE.path(self.stage.namespace, NAME, "scale")
        scale = await self.client.call("GET", path)
        return await self.client.call("PUT", path, {**scale, "spec": {"replicas": replicas}}, fieldManager="scaler")


@pytest.fixture
async def scene(api_kubeconfig: Path) -> AsyncIterator[Scene]:
    async with await Client.connect(kubeconfig=api_kubeconfig) as everybody:
        await install(everybody)
        async with asyncio.timeout(30):
            while not await served(everybody):
                await asyncio.sleep(0.05)
        made = Scene(everybody, f"external-{secrets.token_hex(4)}")
        await made.stage.open()
        yield made


async def test_a_scale_that_is_written_is_carried_out_and_read_back(scene: Scene) -> None:
    await scene.stage.edit(external())
    await scene.settle()
    assert (await scene.role())["spec"] == {"deploymentName": "chat", "role": "decode", "replicas": 1}
    await scene.write_scale(3)
    await scene.settle()
    assert await scene.ready() == 3
    scale = await scene.client.call("GET", INFERENCE_ROLE.path(scene.stage.namespace, NAME, "scale"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 3)
    chosen = await scene.client._list(POD, scene.stage.namespace, labelSelector=scale["status"]["selector"])
    assert len(chosen) == 3


async def test_what_is_asked_for_belongs_to_whoever_scales(scene: Scene) -> None:
    await scene.stage.edit(external())
    await scene.settle()
    await scene.write_scale(3)
    await scene.settle()
    path = INFERENCE_ROLE.path(scene.stage.namespace, NAME)
    await scene.client.call("PATCH", path, {"metadata": {"labels": {names.ROLE: "other"}}}, MERGE)
    await scene.settle()
    role = await scene.role()
    assert (role["metadata"]["labels"][names.ROLE], role["spec"]["replicas"]) == ("decode", 3)
    owners = {
        (field["manager"], field["operation"])
        for field in role["metadata"]["managedFields"]
        if "f:replicas" in field["fieldsV1"].get("f:spec", {})
    }
    assert owners == {("scaler", "Update")}


async def test_what_is_out_of_bounds_is_limited_and_said(scene: Scene) -> None:
    await scene.stage.edit(external(most=2))
    await scene.settle()
    await scene.write_scale(5)
    await scene.settle()
    assert (await scene.ready(), (await scene.role())["spec"]["replicas"]) == (2, 5)
    said = await scene.limited()
    assert (said["type"], said["status"], said["reason"]) == ("ScalingLimited", "True", Reason.TOO_MANY_REPLICAS)
    with pytest.raises(ClusterError, match="422"):
        await scene.write_scale(-1)


async def test_a_deployment_that_is_applied_again_and_again_changes_nothing(scene: Scene) -> None:
    await scene.stage.edit(external())
    await scene.settle()
    await scene.write_scale(3)
    await scene.settle()
    before = await scene.versions()
    for _ in range(2):
        await scene.stage.edit(external())
        await scene.settle()
    assert await scene.versions() == before


async def test_a_mode_that_changes_there_and_back_keeps_every_engine(scene: Scene) -> None:
    async def engines() -> set[str]:
        return {pod["metadata"]["uid"] for pod in await scene.stage.pods()}

    await scene.stage.edit(Sample().split(1, 3))
    await scene.settle()
    before = await engines()
    await scene.stage.edit(external())
    await scene.settle()
    role = await scene.role()
    (owner,) = role["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], role["spec"]["replicas"]) == (scene.stage.ref.uid, True, 3)
    assert await engines() == before
    await scene.stage.edit(Sample().split(1, 3))
    await scene.settle()
    assert await scene.client.get(INFERENCE_ROLE, scene.stage.namespace, NAME) is None
    assert await engines() == before


async def test_nobody_makes_one_of_another_role_or_leaves_out_what_is_asked_for(scene: Scene) -> None:
    await scene.stage.edit(external())
    await scene.settle()
    path = INFERENCE_ROLE.path(scene.stage.namespace, NAME)
    for field, value in (("role", "prefill"), ("deploymentName", "other")):
        with pytest.raises(ClusterError, match=f"{field} never changes"):
            await scene.client.call("PATCH", path, {"spec": {field: value}}, MERGE)
    with pytest.raises(ClusterError, match=r"spec\.replicas: Required value"):
        await scene.client.call("PATCH", path, {"spec": {"replicas": None}}, MERGE)


async def test_where_its_definition_is_not_there_there_are_none_and_nothing_else_is_missed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.stage.edit(Sample().serve())
    await reconcile(scene.world, scene.stage.ref)
    undefined = Kind(names.API_VERSION, names.ROLE_KIND, "undefined")
    monkeypatch.setattr(client, "INFERENCE_ROLE", undefined)
    monkeypatch.setattr(client, "OWNED", (POD, undefined))
    assert {obj["kind"] for obj in await scene.client.list_owned(scene.stage.ref)} == {POD.kind}
    monkeypatch.setattr(client, "OWNED", (POD, Kind("v1", "Undefined", "undefined")))
    with pytest.raises(ClusterError, match="404"):
        await scene.client.list_owned(scene.stage.ref)


@pytest.fixture
async def keda(scene: Scene) -> None:
    """KEDA's own definition of its objects, as the API server takes it."""
    body = yaml.safe_load((ROOT / "tests/cases/keda-scaledobject-crd.yaml").read_text())
    await scene.client.call(
        "PATCH", CRD.path("", body["metadata"]["name"]), body, APPLY, fieldManager="keda", force="true"
    )

    async def there() -> bool:
        try:
            await scene.client.list(SCALED_OBJECT, "default")
        except ClusterError:
            return False
        return True

    async with asyncio.timeout(30):
        while not await there():
            await asyncio.sleep(0.05)


async def test_the_autoscalers_of_the_documentation_find_what_they_are_to_scale(scene: Scene, keda: None) -> None:
    sample = yaml.safe_load((ROOT / "manifests/samples/gpu-external.yaml").read_text())
    names_of_roles = {
        names.inference_role(sample["metadata"]["name"], role["name"]) for role in sample["spec"]["roles"]
    }
    assert SCALERS
    for file in SCALERS:
        scaler = yaml.safe_load(file.read_text())
        kind = {kind.kind: kind for kind in (HPA, SCALED_OBJECT)}[scaler["kind"]]
        kept = await scene.client.call(
            "POST", kind.path(scene.stage.namespace), scaler, dryRun="All", fieldValidation="Strict"
        )
        target = kept["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"]) == (names.API_VERSION, names.ROLE_KIND)
        assert target["name"] in names_of_roles
