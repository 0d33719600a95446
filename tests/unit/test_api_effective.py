"""What a role's engines run with, once overrides are laid over the deployment's engine."""

from typing import Any

from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


def roles(**spec: Any) -> dict[str, EffectiveRole]:
    parsed = InferenceDeploymentSpec.model_validate({"model": {"source": "node:///m"}, **spec})
    return {role.name: role for role in effective_roles(parsed)}


def test_nothing_overridden_is_the_deployments_own() -> None:
    serve = roles(engine={"dtype": "float16"}, parallelism={"tensor": 2})["serve"]

    assert serve.engine.dtype == "float16"
    assert (serve.replicas, serve.accelerators) == (1, 2)


def test_an_override_counts_only_where_it_was_given() -> None:
    found = roles(
        engine={"dtype": "float16", "maxModelLen": 4096},
        parallelism={"tensor": 2, "data": 3},
        roles=[{"name": "prefill", "engine": {"maxModelLen": 8192}, "parallelism": {"tensor": 4}}, {"name": "decode"}],
    )

    assert (found["prefill"].engine.dtype, found["prefill"].engine.max_model_len) == ("float16", 8192)
    assert (found["prefill"].parallelism.tensor, found["prefill"].parallelism.data) == (4, 3)
    assert (found["decode"].engine.max_model_len, found["decode"].parallelism.tensor) == (4096, 2)


def test_an_override_may_repeat_a_default() -> None:
    assert (
        roles(engine={"dtype": "float16"}, roles=[{"name": "serve", "engine": {"dtype": "auto"}}])["serve"].engine.dtype
        == "auto"
    )


def test_options_merge_by_key_and_variables_by_name() -> None:
    serve = roles(
        engine={"extraArgs": {"a": 1, "b": 2}, "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
        roles=[
            {"name": "serve", "engine": {"extraArgs": {"b": True}, "env": [{"name": "B", "value": "3"}, {"name": "C"}]}}
        ],
    )["serve"]

    assert serve.engine.extra_args == {"a": 1, "b": True}
    assert [(variable.name, variable.value) for variable in serve.engine.env] == [("A", "1"), ("B", "3"), ("C", None)]


def test_a_device_is_replaced_whole() -> None:
    serve = roles(
        engine={"device": {"resource": "nvidia.com/gpu", "count": 4}},
        roles=[{"name": "serve", "engine": {"device": {"resource": "amd.com/gpu"}}, "parallelism": {"tensor": 2}}],
    )["serve"]

    assert (serve.engine.device.resource, serve.accelerators) == ("amd.com/gpu", 2)


def test_cpus_are_no_accelerators() -> None:
    serve = roles(engine={"device": {"resource": "cpu"}}, parallelism={"tensor": 2})["serve"]

    assert (serve.on_cpu, serve.accelerators) == (True, 0)


def test_a_scaled_role_begins_with_its_fewest() -> None:
    assert roles(roles=[{"name": "serve", "scaling": {"min": 3, "max": 5}}])["serve"].replicas == 3
    assert roles(roles=[{"name": "serve", "replicas": 0}])["serve"].replicas == 0
