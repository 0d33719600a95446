"""Engine pods: one per slot, with the agent as their only process. Pure."""

import math

from headrace_operator import names
from headrace_operator.api.effective import EffectiveRole
from headrace_operator.desired import contracts, model, pods, ranks, tiers
from headrace_operator.desired.metadata import metadata
from headrace_operator.desired.overlay import lay_over
from headrace_operator.state import Object, Slot, Subject
from headrace_runtime import contract

GRACE_SECONDS = 30
"""What the agent gets beyond the drain to end the engine's processes."""


def contract_map(subject: Subject, role: EffectiveRole, revision: str) -> Object:
    """The contract that all engines of one role and revision share."""
    return contracts.config_map(
        subject,
        names.engine_contract(subject.name, role.name, revision),
        "engine",
        contracts.node(subject, role, revision),
        {names.ROLE: role.name, names.REVISION: revision},
    )


def pods_of(subject: Subject, role: EffectiveRole, revision: str, slot: Slot) -> list[Object]:
    """One engine, made for `role`: a pod, or all ranks of it."""
    return [pod(subject, role, revision, slot, rank) for rank in range(role.parallelism.pods)]


def pod(subject: Subject, role: EffectiveRole, revision: str, slot: Slot, rank: int = 0) -> Object:
    """One pod of an engine that is made for `role`; its label says the role it has now."""
    labels = {
        names.ROLE: slot.role,
        names.REVISION: revision,
        names.KV_LAYOUT: contracts.kv_layout(subject, role),
    }
    generated = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(
            subject.ref, names.engine_pod(subject.name, role.name, revision, slot.index, rank), "engine", labels
        ),
        "spec": _spec(subject, role, revision),
    }
    if role.parallelism.pods > 1:
        leader = names.engine_pod(subject.name, role.name, revision, slot.index)
        generated = ranks.as_rank(generated, subject, leader, rank, role.parallelism.pods)
    made = lay_over(tiers.with_tiers(generated, subject, slot), role.role.pod_template)
    return tiers.returning(made, slot.returns_to) if slot.returns_to else made


def _spec(subject: Subject, role: EffectiveRole, revision: str) -> Object:
    token, token_mount = pods.ray_token(subject.name)
    shm, shm_mount = pods.shared_memory()
    container = _container(subject, role)
    files = model.parts(subject, container["image"])
    container["volumeMounts"] += [*files.mounts, token_mount, shm_mount]
    spec = pods.pod_spec(
        restartPolicy="Always",
        terminationGracePeriodSeconds=math.ceil(subject.spec.drain.timeout.seconds) + GRACE_SECONDS,
        containers=[container],
        volumes=[
            *pods.base_volumes(names.engine_contract(subject.name, role.name, revision)),
            *files.volumes,
            token,
            shm,
        ],
    )
    if files.init:
        spec["initContainers"] = list(files.init)
    if role.engine.lora and role.engine.lora.folder:
        folder, folder_mount = model.folder_volume("adapters", role.engine.lora.folder, contract.ADAPTERS_MOUNT)
        spec["volumes"].append(folder)
        container["volumeMounts"].append(folder_mount)
    if role.role.node_selector:
        spec["nodeSelector"] = dict(role.role.node_selector)
    if role.role.tolerations:
        spec["tolerations"] = [
            toleration.model_dump(mode="json", by_alias=True, exclude_none=True) for toleration in role.role.tolerations
        ]
    return spec


def _container(subject: Subject, role: EffectiveRole) -> Object:
    engine = role.engine
    devices = {engine.device.resource: str(role.accelerators_per_pod)} if role.accelerators else None
    container = pods.process(
        "engine",
        "node",
        engine.image or subject.defaults.engine_image,
        pods.resources(role.role.resources, devices),
    )
    # The whole container has them, not the engine alone: the agent and the raylet may be found by such a PATH too.
    container["env"] += [v.model_dump(mode="json", by_alias=True, exclude_none=True) for v in engine.env]
    container["ports"] = [
        {"name": "engine", "containerPort": contract.ENGINE_PORT},
        {"name": "agent", "containerPort": contract.AGENT_PORT},
        {"name": "kv-transfer", "containerPort": contract.KV_TRANSFER_PORT},
    ]
    if contracts.publishes_kv_events(subject, role):
        container["ports"] += [
            {"name": "kv-events", "containerPort": contract.KV_EVENTS_PORT},
            {"name": "kv-replay", "containerPort": contract.KV_REPLAY_PORT},
        ]
    return container | pods.probes(contract.AGENT_PORT)
