"""What a model's files make of an engine's pod and of its contract."""

from dataclasses import replace

import pytest

from headrace_operator import names
from headrace_operator.api.effective import effective_roles
from headrace_operator.desired import contracts, desired_objects
from headrace_operator.errors import SettingsError
from headrace_operator.plan import make_plan
from headrace_operator.settings import Settings, load
from headrace_operator.state import Object, Observed
from headrace_operator.testing import DEFAULTS, Sample
from headrace_runtime.contract import (
    CREDENTIALS_MOUNT,
    MODEL_CACHE_MOUNT,
    SIGNER_KEY_FILE,
    Integrity,
    Model,
    ModelCache,
)

HUB = "hf://Qwen/Qwen3-8B@0123456789abcdef0123456789abcdef01234567"


def engine(sample: Sample) -> Object:
    objects = desired_objects(sample.subject(), make_plan(sample.spec(), Observed()))
    (pod,) = [o for o in objects if o["kind"] == "Pod" and o["metadata"]["labels"].get(names.ROLE)]
    spec: Object = pod["spec"]
    return spec


def volumes(spec: Object) -> dict[str, Object]:
    return {volume["name"]: {k: v for k, v in volume.items() if k != "name"} for volume in spec["volumes"]}


def mounts(spec: Object) -> dict[str, Object]:
    return {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}


def model(sample: Sample, cache_bytes: int | None = None) -> Model:
    subject = replace(sample.subject(), defaults=replace(DEFAULTS, model_cache_bytes=cache_bytes))
    (role,) = effective_roles(subject.spec)
    return contracts.node(subject, role, "r").model


def test_a_mounted_model_is_mounted_and_nothing_else() -> None:
    spec = engine(Sample().serve())
    assert volumes(spec)["model"] == {"hostPath": {"path": "/models/tiny", "type": "Directory"}}
    assert mounts(spec)["model"]["readOnly"] is True
    assert "initContainers" not in spec
    assert not {"model-cache", "credentials", "signer"} & volumes(spec).keys()
    assert model(Sample().serve()).model_dump(exclude_defaults=True) == {
        "source": "node:///models/tiny",
        "served_name": "chat",
    }


def test_a_fetched_model_has_the_nodes_cache() -> None:
    sample = Sample().set("model.source", HUB).serve()
    spec = engine(sample)
    assert "model" not in volumes(spec)
    assert volumes(spec)["model-cache"] == {
        "hostPath": {"path": "/var/lib/headrace/models", "type": "DirectoryOrCreate"}
    }
    assert mounts(spec)["model-cache"] == {"name": "model-cache", "mountPath": MODEL_CACHE_MOUNT}
    assert model(sample, cache_bytes=5).cache == ModelCache(path=MODEL_CACHE_MOUNT, size_bytes=5)


def test_the_cache_is_made_ours_by_a_container_with_two_rights() -> None:
    (init,) = engine(Sample().set("model.source", HUB).serve())["initContainers"]
    assert init["command"][-1] == MODEL_CACHE_MOUNT
    assert init["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN", "FOWNER"]}
    assert [mount["name"] for mount in init["volumeMounts"]] == ["model-cache"]


def test_secrets_are_files_and_no_variables() -> None:
    sample = Sample().set("model", {"source": HUB, "credentialsSecretRef": {"name": "hub"}})
    sample.set("model.integrity", {"signature": {"publicKeySecretRef": {"name": "signer"}}}).serve()
    spec = engine(sample)
    assert volumes(spec)["credentials"]["secret"]["secretName"] == "hub"
    assert volumes(spec)["signer"]["secret"]["secretName"] == "signer"
    assert mounts(spec)["credentials"]["mountPath"] == CREDENTIALS_MOUNT
    assert SIGNER_KEY_FILE.startswith(f"{mounts(spec)['signer']['mountPath']}/")
    assert model(sample).credentials_folder == CREDENTIALS_MOUNT
    assert model(sample).integrity.signer_key_file == SIGNER_KEY_FILE
    assert not {"hub", "signer"} & {variable["name"] for variable in spec["containers"][0]["env"]}


def test_what_integrity_asks_for_is_in_the_contract() -> None:
    asked = {"policy": "Warn", "allowPickle": True, "trustUnchanged": "Boot", "rescan": "90m"}
    made = model(Sample().set("model", {"source": HUB, "integrity": asked}).serve()).integrity
    assert made == Integrity(policy="Warn", allow_pickle=True, trust_unchanged="Boot", rescan_seconds=5400)


def test_without_a_check_nothing_is_promised() -> None:
    made = model(Sample().set("model.integrity", {"policy": "Off", "allowPickle": True}).serve()).integrity
    assert made == Integrity(policy="Off")


def test_where_the_cache_is_can_be_set() -> None:
    settings = Settings(model_cache_path="/mnt/nvme/models", model_cache_size="500Gi")
    assert settings.defaults.model_cache_path == "/mnt/nvme/models"
    assert settings.defaults.model_cache_bytes == 500 * 2**30
    assert Settings().defaults.model_cache_bytes is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("PATH", "models"), ("PATH", "/"), ("PATH", ""), ("PATH", "/a b"), ("SIZE", "500GB"), ("SIZE", "0")],
)
def test_a_cache_that_makes_no_sense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HEADRACE_MODEL_CACHE_{name}", value)
    with pytest.raises(SettingsError, match=f"HEADRACE_MODEL_CACHE_{name}"):
        load()
