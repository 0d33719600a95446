"""What KV tiers make of an engine's pod and of its contract."""

from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.types import Quantity
from headrace_operator.desired import contracts, desired_objects
from headrace_operator.desired.tiers import returning, with_memory
from headrace_operator.errors import SettingsError
from headrace_operator.plan import make_plan
from headrace_operator.settings import Settings, load
from headrace_operator.state import Object, Observed, Subject
from headrace_operator.testing import DEFAULTS, Sample
from headrace_runtime.contract import KV_KEY_FILE, KV_MOUNT, KvDisk, KvTiers

GIB = 2**30


def with_disk(volume: Object | None = None, **disk: Any) -> Sample:
    tier = {"size": "10Gi", "volume": volume or {"hostPath": "/mnt/nvme/"}, **disk}
    return Sample().serve(1).set("kvCache.host", {"size": "2Gi"}).set("kvCache.disk", tier)


def objects(sample: Sample) -> list[Object]:
    return desired_objects(sample.subject(), make_plan(sample.spec(), Observed()))


def engine(sample: Sample) -> Object:
    (pod,) = [o for o in objects(sample) if o["kind"] == "Pod" and o["metadata"]["labels"].get(names.ROLE)]
    return pod


def volume(sample: Sample, name: str = "kv") -> Object:
    (found,) = [volume for volume in engine(sample)["spec"]["volumes"] if volume["name"] == name]
    return {key: value for key, value in found.items() if key != "name"}


def mounts(container: Object) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def tiers(sample: Sample, node_bytes: int | None = None) -> KvTiers | None:
    made = sample.subject()
    subject = Subject(made.ref, 1, made.spec, type(DEFAULTS)("e", "g", None, node_bytes))
    (role,) = effective_roles(subject.spec)
    return contracts.node(subject, role, "r").engine.kv_tiers


def test_nothing_is_added_where_blocks_stay_on_the_device() -> None:
    assert tiers(Sample().serve(1)) is None
    pod = engine(Sample().serve(1))
    assert "initContainers" not in pod["spec"]
    assert names.KV_SLOT not in pod["metadata"]["labels"]
    assert "kv" not in mounts(pod["spec"]["containers"][0])


def test_the_contract_says_what_the_spec_does() -> None:
    assert tiers(Sample().serve(1).set("kvCache.host", {"size": "2Gi"})) == KvTiers(host_bytes=2 * GIB)
    assert tiers(with_disk()) == KvTiers(host_bytes=2 * GIB, disk=KvDisk(size_bytes=10 * GIB))
    every = with_disk(
        verify="Never", eviction="LRU", onModelChange="Wipe", encryption={"keySecretRef": {"name": "kv-key"}}
    )
    disk = KvDisk(
        size_bytes=10 * GIB, verify="Never", eviction="LRU", on_model_change="Wipe", key_file=KV_KEY_FILE
    )  # fmt: skip
    assert tiers(every) == KvTiers(host_bytes=2 * GIB, disk=disk)


def test_the_limit_of_a_node_is_for_the_folder_that_deployments_share() -> None:
    shared, own = tiers(with_disk(), 50 * GIB), tiers(with_disk({"emptyDir": {}}), 50 * GIB)
    assert shared is not None
    assert shared.disk is not None
    assert shared.disk.node_size_bytes == 50 * GIB
    assert own is not None
    assert own.disk is not None
    assert own.disk.node_size_bytes is None


def test_a_folder_of_the_node_is_one_below_the_one_that_is_named_and_made_the_engines_own() -> None:
    assert volume(with_disk()) == {"hostPath": {"path": "/mnt/nvme/headrace-kv", "type": "DirectoryOrCreate"}}
    spec = engine(with_disk())["spec"]
    (init,) = spec["initContainers"]
    assert mounts(init) == {"kv": KV_MOUNT}
    assert init["image"] == spec["containers"][0]["image"]
    assert mounts(spec["containers"][0])["kv"] == KV_MOUNT


def test_a_claim_is_that_of_the_slot() -> None:
    sample = with_disk({"claimTemplate": {"size": "11Gi", "storageClassName": "local"}})
    assert volume(sample) == {"persistentVolumeClaim": {"claimName": "chat-kv-serve-0"}}
    assert engine(sample)["metadata"]["labels"][names.KV_SLOT] == "serve-0"
    kinds = [o["kind"] for o in objects(sample)]
    assert kinds.index("PersistentVolumeClaim") < kinds.index("Pod")
    (claim,) = [o for o in objects(sample) if o["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "11Gi"}},
        "storageClassName": "local",
    }
    assert claim["metadata"]["ownerReferences"][0]["uid"] == sample.ref().uid
    assert "initContainers" not in engine(sample)["spec"]


def test_a_folder_of_the_pod_has_headroom() -> None:
    assert volume(with_disk({"emptyDir": {}})) == {"emptyDir": {"sizeLimit": "10304Mi"}}
    assert volume(with_disk({"emptyDir": {"sizeLimit": "12Gi"}})) == {"emptyDir": {"sizeLimit": "12Gi"}}
    assert names.KV_SLOT not in engine(with_disk({"emptyDir": {}}))["metadata"]["labels"]


def test_the_key_is_a_file_from_its_secret() -> None:
    sample = with_disk(encryption={"keySecretRef": {"name": "kv-key"}})
    assert volume(sample, "kv-key") == {"secret": {"secretName": "kv-key", "defaultMode": 0o440}}
    assert mounts(engine(sample)["spec"]["containers"][0])["kv-key"] == KV_KEY_FILE.rpartition("/")[0]
    assert "kv-key" not in mounts(engine(sample)["spec"]["initContainers"][0])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"requests": {"memory": "2048Mi"}}),
        ({"requests": {"cpu": "4"}}, {"requests": {"cpu": "4", "memory": "2048Mi"}}),
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "3072Mi"}}),
        ({"limits": {"memory": "4Gi"}}, {"limits": {"memory": "6144Mi"}}),
        (
            {"requests": {"memory": "1500M"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"}},
            {"requests": {"memory": "3479Mi"}, "limits": {"memory": "6144Mi", "nvidia.com/gpu": "1"}},
        ),
    ],
)
def test_memory_grows_by_the_host_tier(given: Object, wanted: Object) -> None:
    assert with_memory(given, Quantity("2Gi")) == wanted


def test_a_pod_that_returns_may_start_on_one_node_whatever_else_it_asks_for() -> None:
    here = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    asked = {"key": "disk", "operator": "In", "values": ["nvme"]}
    other = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "host"}]}}
    plain: Object = {"metadata": {"name": "p"}, "spec": {"affinity": other}}
    made = returning(plain, "n1")
    terms = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [here]}]}}
    assert made["spec"]["affinity"] == {**other, "nodeAffinity": terms}
    assert made["metadata"]["annotations"] == {names.RETURNS_TO: "n1"}
    assert plain["spec"]["affinity"] == other, "what is given is not changed"

    of_user = {"nodeSelectorTerms": [{"matchExpressions": [asked]}, {"matchFields": [asked]}]}
    plain["spec"]["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": of_user}}
    (_, found), *_ = returning(plain, "n1")["spec"]["affinity"]["nodeAffinity"].items()
    assert found["nodeSelectorTerms"] == [
        {"matchExpressions": [asked], "matchFields": [here]}, {"matchFields": [asked, here]},
    ]  # fmt: skip


def test_who_shares_blocks_is_the_gateways_business() -> None:
    sample = with_disk().set("kvCache.sharing", "Key").set("gateway.apiKeysSecretRef", {"name": "keys"})
    assert contracts.gateway(sample.subject()).kv_sharing == "Key"
    assert "kvSharing" not in contracts.serialise(contracts.gateway(with_disk().subject()))


def test_on_one_machine_the_folder_of_the_node_is_the_machines() -> None:
    local = contracts.local(with_disk().subject(), "r")
    found = local.nodes[0].engine.kv_tiers
    assert found is not None
    assert found.disk is not None
    assert found.disk.path == "/mnt/nvme/headrace-kv"


@pytest.mark.parametrize(
    ("sample", "field"),
    [
        (with_disk({"emptyDir": {}}), "spec.kvCache.disk.volume"),
        (with_disk(encryption={"keySecretRef": {"name": "k"}}), "spec.kvCache.disk.encryption"),
    ],
)
def test_what_only_a_cluster_has_is_refused_there(sample: Sample, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        contracts.local(sample.subject(), "r")


def test_the_setting_of_a_node_is_a_size() -> None:
    assert Settings().defaults.kv_node_bytes is None
    assert Settings(kv_node_disk_limit="500Gi").defaults.kv_node_bytes == 500 * GIB


def test_a_setting_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KV_NODE_DISK_LIMIT", "500GB")
    with pytest.raises(SettingsError, match=r"HEADRACE_KV_NODE_DISK_LIMIT.*'500GB' is not a quantity"):
        load()
