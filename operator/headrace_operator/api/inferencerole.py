"""`InferenceRole` of `headrace.dev/v1alpha1`: one role of an InferenceDeployment as something that can be scaled.

The operator makes one for each role whose size somebody else decides (`scaling.mode: External`) and never writes its
`spec.replicas` again: that belongs to whoever scales. Its scale subresource is what `kubectl scale`, a
HorizontalPodAutoscaler and KEDA speak to.
"""

from typing import Annotated, Final

from pydantic import Field

from headrace_operator.api.roles import Replicas, RoleName
from headrace_operator.api.status import Condition, Count, Reported, Text
from headrace_operator.api.types import Frozen, ObjectName, list_map

SCALING_LIMITED: Final = "ScalingLimited"
"""Condition of an InferenceRole, named and with reasons as a HorizontalPodAutoscaler has it."""


class InferenceRoleSpec(Frozen):
    """What is asked of one role."""

    deployment_name: ObjectName
    """The InferenceDeployment, in the same namespace. Never changes."""
    role: RoleName
    """Its role. Never changes."""
    replicas: Replicas
    """Engines that are asked for. Carried out within `roles[].scaling` and `scaling.maxAccelerators` of the
    InferenceDeployment; `ScalingLimited` says where that is another number."""


class InferenceRoleStatus(Reported):
    """What became of it."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status speaks of."""
    replicas: Count = 0
    """Engines that there are, ready or not, without those that are leaving."""
    ready_replicas: Count = 0
    """Engines that answer."""
    selector: Text | None = None
    """Label selector with which each engine of the role is one pod."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=8, json_schema_extra=list_map("type"))
    """`ScalingLimited`: whether another number is carried out than is asked for, and why."""
