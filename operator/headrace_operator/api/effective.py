"""What each role's engines really run with: `spec.engine` and `spec.parallelism` under the role's overrides.

Pure; called by the rules and by everything that builds engine pods. An override counts where it was *given*,
not where it differs from a default: `roles[].engine` read field by field would show defaults that nobody asked for.
"""

from dataclasses import dataclass

from headrace_operator.api.engine import Engine, EnvVar, Parallelism
from headrace_operator.api.roles import Role, RoleName
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


@dataclass(frozen=True)
class EffectiveRole:
    """One role with nothing left to look up elsewhere."""

    role: Role
    engine: Engine
    parallelism: Parallelism

    @property
    def name(self) -> RoleName:
        return self.role.name

    @property
    def replicas(self) -> int:
        """Engines that the spec asks for; `suspend` and a scaler may ask for another number."""
        if self.role.replicas is not None:
            return self.role.replicas
        return self.role.scaling.min if self.role.scaling else 1

    @property
    def on_cpu(self) -> bool:
        return self.engine.device.resource == "cpu"

    @property
    def accelerators(self) -> int:
        """Accelerators of one engine; 0 on `cpu`."""
        if self.on_cpu:
            return 0
        return self.engine.device.count or self.parallelism.devices

    @property
    def accelerators_per_pod(self) -> int:
        """The same of each of its pods."""
        return self.accelerators // self.parallelism.pods


def effective_roles(spec: InferenceDeploymentSpec) -> tuple[EffectiveRole, ...]:
    """Every role of the spec, in its order, overrides applied."""
    return tuple(
        EffectiveRole(
            role=role,
            engine=_engine(spec.engine, role.engine),
            parallelism=_parallelism(spec.parallelism, role.parallelism),
        )
        for role in spec.roles
    )


def _engine(base: Engine, over: Engine | None) -> Engine:
    """Objects such as `device` are replaced whole: a new resource with the old one's count would be a trap."""
    if over is None:
        return base
    given = {name: getattr(over, name) for name in over.model_fields_set}
    if "extra_args" in given:
        given["extra_args"] = {**base.extra_args, **over.extra_args}
    if "env" in given:
        given["env"] = _by_name(base.env, over.env)
    return base.model_copy(update=given)


def _by_name(base: tuple[EnvVar, ...], over: tuple[EnvVar, ...]) -> tuple[EnvVar, ...]:
    return tuple({variable.name: variable for variable in (*base, *over)}.values())


def _parallelism(base: Parallelism, over: Parallelism | None) -> Parallelism:
    if over is None:
        return base
    return base.model_copy(update={name: getattr(over, name) for name in over.model_fields_set})
