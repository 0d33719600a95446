"""What must hold between fields, as functions of the spec: each yields the problems it finds, with numbers and the fix.

Pure. `rules.py` lists them beside their CEL twins and says which places of the schema those stand at.
"""

from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.engine import Engine
from headrace_operator.api.options import ALIKE, OWNED, OWNED_ENV, QUANTIZATIONS
from headrace_operator.api.podtemplate import template_problems
from headrace_operator.api.problems import Problem
from headrace_operator.api.sources import caches, fetched
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, Limits, Volume
from headrace_runtime.contract import owned_option

Problems = Iterator[Problem]


def lora_of_role(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(spec.roles):
        if role.engine is not None and role.engine.lora is not None:
            yield Problem(
                f"spec.roles[{index}].engine.lora", "every engine serves every adapter: set spec.engine.lora alone"
            )


def adapters_have_room(spec: InferenceDeploymentSpec) -> Problems:
    lora, count = spec.engine.lora, len(spec.model.adapters)
    if count and lora is None:
        yield Problem("spec.model.adapters", "engines keep no room for adapters: set spec.engine.lora")
    elif lora is not None and count > lora.max_adapters:
        more = "raise it, which starts the engines anew, or remove some"
        yield Problem(
            "spec.model.adapters", f"has {count}, spec.engine.lora.maxAdapters is {lora.max_adapters}: {more}"
        )


def adapter_names(spec: InferenceDeploymentSpec) -> Problems:
    for index, adapter in enumerate(spec.model.adapters):
        if adapter.name == spec.model.served_name:
            yield Problem(
                f"spec.model.adapters[{index}].name", f"{adapter.name} is the model's own name: choose another"
            )


def adapters_in_reach(spec: InferenceDeploymentSpec) -> Problems:
    """A running pod gets no volume: what adapters come from is settled when it is made."""
    folder = spec.engine.lora.folder if spec.engine.lora is not None else None
    for index, adapter in enumerate(spec.model.adapters):
        path = f"spec.model.adapters[{index}].source"
        scheme = adapter.source.partition("://")[0]
        if fetched(adapter.source):
            if not caches(spec):
                fix = "put it below spec.engine.lora.folder, or remove that field"
                yield Problem(path, f"is fetched over {scheme}://, and the engines have a folder and no cache: {fix}")
        elif folder is None or not adapter.source.startswith(f"{folder}/"):
            below = f"is not below {folder}" if folder else "is in no folder that is mounted"
            yield Problem(path, f"{adapter.source!r} {below}: set spec.engine.lora.folder above it")


def loader(spec: InferenceDeploymentSpec) -> Problems:
    on_cpu = [role.name for role in effective_roles(spec) if role.on_cpu]
    if spec.model.loader == "FastSafetensors" and on_cpu:
        fix = "use Streamer or Auto"
        yield Problem(
            "spec.model.loader", f"FastSafetensors reads into a GPU's memory, and {on_cpu[0]} is on cpu: {fix}"
        )


def role_names(spec: InferenceDeploymentSpec) -> Problems:
    names = [role.name for role in spec.roles]
    if sorted(names) not in (["serve"], ["decode", "prefill"]):
        yield Problem(
            "spec.roles",
            f"has {' and '.join(names)}: give one role named serve, or one named prefill and one named decode",
        )


def rollback_has_a_cause(spec: InferenceDeploymentSpec) -> Problems:
    """A rollout fails by its deadline or by its canary alone."""
    may_fail = spec.rollout.progress_deadline is not None or spec.rollout.canary is not None
    if spec.rollout.auto_rollback and not may_fail:
        why = "nothing makes a rollout fail: set progressDeadline or canary as well"
        yield Problem("spec.rollout.autoRollback", why)


def _engines(spec: InferenceDeploymentSpec) -> Iterator[tuple[str, Engine]]:
    """Engines as they were written, with their paths: the deployment's and the roles' overrides."""
    yield "spec.engine", spec.engine
    for index, role in enumerate(spec.roles):
        if role.engine is not None:
            yield f"spec.roles[{index}].engine", role.engine


def cpu_has_no_count(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        if engine.device.resource == "cpu" and engine.device.count is not None:
            yield Problem(f"{path}.device.count", "is for accelerators: on cpu remove it and set roles[].resources")


def count_is_product(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(effective_roles(spec)):
        count, sizes = role.engine.device.count, role.parallelism
        if role.on_cpu or count is None or count == sizes.devices:
            continue
        device = spec.roles[index].engine
        own = device is not None and "device" in device.model_fields_set
        yield Problem(
            f"spec.roles[{index}].engine.device.count" if own else "spec.engine.device.count",
            f"is {count}, but the role {role.name} needs {sizes.devices}: tensor {sizes.tensor} x pipeline "
            f"{sizes.pipeline} x data {sizes.data} x context {sizes.context}; remove count, or change the parallelism",
        )


def device_override(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(spec.roles):
        given = role.engine is not None and "device" in role.engine.model_fields_set
        if role.engine and given and "resource" not in role.engine.device.model_fields_set:
            path = f"spec.roles[{index}].engine.device"
            yield Problem(path, "replaces spec.engine.device whole: name the resource as well")


def accelerator_in_resources(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(effective_roles(spec)):
        device = role.engine.device.resource
        for kind, amounts in (("requests", role.role.resources.requests), ("limits", role.role.resources.limits)):
            if not role.on_cpu and device in amounts:
                yield Problem(
                    f"spec.roles[{index}].resources.{kind}", f"names {device}: remove it and set engine.device.count"
                )


def _split(spec: InferenceDeploymentSpec) -> tuple[EffectiveRole, EffectiveRole] | None:
    roles = {role.name: role for role in effective_roles(spec)}
    return (roles["prefill"], roles["decode"]) if roles.keys() >= {"prefill", "decode"} else None


# What both ends of a transfer must have in common: vllm 0.32, kv_connector/v1/nixl/ metadata, connector, base_worker.


def split_dtype(spec: InferenceDeploymentSpec) -> Problems:
    if (pair := _split(spec)) is None:
        return
    prefill, decode = pair
    if prefill.engine.dtype != decode.engine.dtype:
        types = f"prefill has {prefill.engine.dtype}, decode {decode.engine.dtype}"
        yield Problem("spec.roles", f"engine.dtype must be the same in both roles: {types}")


def split_options(spec: InferenceDeploymentSpec) -> Problems:
    if (pair := _split(spec)) is None:
        return
    prefill, decode = pair
    for option in ALIKE:
        one, other = (role.engine.extra_args.get(option, "none") for role in (prefill, decode))
        if one != other:
            values = f"prefill has {one}, decode {other}"
            yield Problem("spec.roles", f"engine.extraArgs.{option} must be the same in both roles: {values}")


def split_tensor(spec: InferenceDeploymentSpec) -> Problems:
    if (pair := _split(spec)) is None:
        return
    small, large = sorted(role.parallelism.tensor for role in pair)
    if large % small:
        yield Problem(
            "spec.roles",
            f"parallelism.tensor of one role must be a multiple of the other's: {small} does not divide {large}",
        )


def split_pipeline(spec: InferenceDeploymentSpec) -> Problems:
    if (pair := _split(spec)) is None:
        return
    for role in pair:
        if role.parallelism.pipeline > 1:
            message = (
                f"parallelism.pipeline must be 1 with prefill and decode: {role.name} has {role.parallelism.pipeline}"
            )
            yield Problem("spec.roles", message)


def split_context(spec: InferenceDeploymentSpec) -> Problems:
    pair = _split(spec)
    if pair is not None and pair[1].parallelism.context > 1:
        context = pair[1].parallelism.context
        yield Problem("spec.roles", f"parallelism.context is for prefill only: decode has {context}, set it to 1")


def role_change(spec: InferenceDeploymentSpec) -> Problems:
    change, path = spec.disaggregation.role_change, "spec.disaggregation.roleChange"
    if not change.enabled or (split := _split(spec)) is None:
        return
    prefill, decode = split
    bounds = ((prefill, "minPrefill", change.min_prefill), (decode, "minDecode", change.min_decode))
    for role, field, fewest in bounds:
        if role.replicas < fewest:
            what = "replicas" if role.role.scaling is None else "scaling.min"
            yield Problem(
                f"{path}.{field}", f"is {fewest}, but {role.name} has {what} {role.replicas}: lower it, or raise {what}"
            )
    differ = [what for what, one, other in _sides(prefill, decode) if one != other]
    if differ:
        yield Problem(
            f"{path}.enabled",
            f"prefill and decode differ in {' and '.join(differ)}, so that no engine can take the other's place: "
            "make them alike, or switch it off",
        )


def _sides(one: EffectiveRole, other: EffectiveRole) -> Iterator[tuple[str, Any, Any]]:
    """All that an engine of a role is made from, of both roles."""
    yield "engine", one.engine, other.engine
    yield "parallelism", one.parallelism, other.parallelism
    for name, field in type(one.role).model_fields.items():
        if name not in {"name", "replicas", "scaling", "engine", "parallelism"}:
            yield str(field.alias), getattr(one.role, name), getattr(other.role, name)


def extra_args(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        for option in engine.extra_args:
            if (name := owned_option(option)) is not None:
                says = "" if name == option else f" means {name}, which"
                yield Problem(f"{path}.extraArgs.{option}", f"{says} is not free here: {OWNED[name]}".strip())


def quantization(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        if engine.quantization is None or engine.quantization in QUANTIZATIONS:
            continue
        near = get_close_matches(engine.quantization, QUANTIZATIONS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"it knows {', '.join(QUANTIZATIONS)}"
        yield Problem(f"{path}.quantization", f"{engine.quantization!r} is unknown to the engine: {fix}")


def draft_model(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        guess = engine.speculative
        if guess and (guess.method in {"Eagle3", "DraftModel"}) != (guess.model is not None):
            fix = "remove it" if guess.model else "name the draft weights"
            yield Problem(
                f"{path}.speculative.model", f"is for the methods Eagle3 and DraftModel, which need it: {fix}"
            )


def env_names(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        for index, variable in enumerate(engine.env):
            if variable.name in OWNED_ENV:
                yield Problem(f"{path}.env[{index}]", f"{variable.name} is Headrace's own: remove it")
        for name, count in Counter(variable.name for variable in engine.env).items():
            if count > 1:
                yield Problem(f"{path}.env", f"has {name} {count} times: keep the one that is meant")


def env(spec: InferenceDeploymentSpec) -> Problems:
    for path, engine in _engines(spec):
        for index, variable in enumerate(engine.env):
            if variable.value is not None and variable.value_from is not None:
                yield Problem(f"{path}.env[{index}]", f"{variable.name} has both value and valueFrom: keep one")


def tolerations(spec: InferenceDeploymentSpec) -> Problems:
    for index, role in enumerate(spec.roles):
        for number, toleration in enumerate(role.tolerations):
            path = f"spec.roles[{index}].tolerations[{number}]"
            if toleration.operator == "Equal" and toleration.key is None:
                yield Problem(path, "without a key needs operator Exists")
            if toleration.operator == "Exists" and toleration.value is not None:
                yield Problem(path, "with operator Exists takes no value")


def templates(spec: InferenceDeploymentSpec) -> Problems:
    templates = {f"spec.roles[{index}].podTemplate": role.pod_template for index, role in enumerate(spec.roles)}
    templates |= {"spec.gateway.podTemplate": spec.gateway.pod_template}
    templates |= {"spec.ray.headPodTemplate": spec.ray.head_pod_template}
    for path, template in templates.items():
        yield from template_problems(path, template)


def volumes(spec: InferenceDeploymentSpec) -> Problems:
    volumes: dict[str, Volume | None] = {"spec.ray.gcs.volume": spec.ray.gcs.volume}
    if spec.kv_cache.disk is not None:
        volumes["spec.kvCache.disk.volume"] = spec.kv_cache.disk.volume
    for path, volume in volumes.items():
        yield from _exactly_one(path, volume)


def manifest(spec: InferenceDeploymentSpec) -> Problems:
    yield from _exactly_one("spec.model.integrity.manifest", spec.model.integrity.manifest)


def keys(spec: InferenceDeploymentSpec) -> Problems:
    gateway = spec.gateway
    if gateway.api_keys_secret_ref is None and (gateway.keys or gateway.limits.per_key is not None):
        field = "keys" if gateway.keys else "limits.perKey"
        yield Problem(f"spec.gateway.{field}", "nobody has a key: set spec.gateway.apiKeysSecretRef, or remove it")


def shares(spec: InferenceDeploymentSpec) -> Problems:
    gateway = spec.gateway
    limits: dict[str, Limits | None] = {"limits": gateway.limits, "limits.perKey": gateway.limits.per_key}
    limits |= {f"keys[{index}].limits": key.limits for index, key in enumerate(gateway.keys)}
    for path, limit in limits.items():
        for name in Limits.model_fields if limit else ():
            value, alias = getattr(limit, name), Limits.model_fields[name].alias
            if value is not None and value < gateway.replicas:
                fix = f"{gateway.replicas} gateway pods cannot share it: raise it, or lower spec.gateway.replicas"
                yield Problem(f"spec.gateway.{path}.{alias}", f"is {value}, and {fix}")


def expose(spec: InferenceDeploymentSpec) -> Problems:
    yield from _exactly_one("spec.gateway.expose", spec.gateway.expose)


def _exactly_one(path: str, union: Any) -> Problems:
    """For a union: one optional field per variant."""
    if union is None:
        return
    fields = type(union).model_fields
    given = [str(field.alias) for name, field in fields.items() if getattr(union, name) is not None]
    if len(given) != 1:
        names = ", ".join(str(field.alias) for field in fields.values())
        has = f"has {' and '.join(given)}" if given else "is empty"
        yield Problem(path, f"{has}: give exactly one of {names}")


def gcs(spec: InferenceDeploymentSpec) -> Problems:
    gcs = spec.ray.gcs
    if (gcs.backend == "Redis") != (gcs.redis is not None):
        yield Problem("spec.ray.gcs", "redis goes with backend Redis and only with it: set both or neither")
    if gcs.volume is not None and gcs.backend != "RocksDB":
        yield Problem("spec.ray.gcs.volume", f"is for backend RocksDB: with {gcs.backend} remove it")


def rollout(spec: InferenceDeploymentSpec) -> Problems:
    if spec.rollout.max_surge == 0 and spec.rollout.max_unavailable == 0:
        yield Problem("spec.rollout", "maxSurge and maxUnavailable are both 0, so nothing could ever change: raise one")


def canary_steps(spec: InferenceDeploymentSpec) -> Problems:
    if spec.rollout.canary is None:
        return
    steps = spec.rollout.canary.steps
    if steps[-1] != 100 or any(one >= next_ for one, next_ in pairwise(steps)):
        yield Problem("spec.rollout.canary.steps", f"must rise and end with 100, not {list(steps)}")


def backoff(spec: InferenceDeploymentSpec) -> Problems:
    backoff = spec.recovery.backoff
    if backoff.base.seconds > backoff.max.seconds:
        yield Problem(
            "spec.recovery.backoff", f"base {backoff.base} is longer than max {backoff.max}: lower base or raise max"
        )
