"""The operator's door to the world: one Kubernetes API (`Cluster`) and the runtime's own HTTP (`Runtime`).

Everything above speaks to these two protocols, in plain dictionaries. `client.py` and `runtime.py` are the real ones,
`fake.py` holds both in memory. A call that fails raises `ClusterError`; what is merely absent is None.
"""

from dataclasses import dataclass
from typing import Protocol

from headrace_operator import names
from headrace_operator.state import Canary, CanaryAnswer, Object, Ref
from headrace_runtime.contract import GatewayFigures, NodeState


@dataclass(frozen=True)
class Kind:
    """One kind of object and where it lives in the API."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The path of a namespaced object, of its subresource, or (without a name) of the collection: of one
        namespace, or of all of them ("")."""
        root = "/apis" if "/" in self.api_version else "/api"
        scope = "namespaces" if namespace else ""
        return "/".join(p for p in (root, self.api_version, scope, namespace, self.plural, name, subresource) if p)


INFERENCE_DEPLOYMENT = Kind(names.API_VERSION, names.KIND, names.PLURAL)
INFERENCE_ROLE = Kind(names.API_VERSION, names.ROLE_KIND, names.ROLE_PLURAL)
POD = Kind("v1", "Pod", "pods")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
PERSISTENT_VOLUME_CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICE = Kind("v1", "Service", "services")
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts")
SECRET = Kind("v1", "Secret", "secrets")
EVENT = Kind("v1", "Event", "events")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
CONTROLLER_REVISION = Kind("apps/v1", "ControllerRevision", "controllerrevisions")
ROLE = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
POD_DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")

OWNED = (
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    DEPLOYMENT,
    CONTROLLER_REVISION,
    PERSISTENT_VOLUME_CLAIM,
    POD,
    POD_DISRUPTION_BUDGET,
    INFERENCE_ROLE,
)
"""Every kind that is applied and pruned. Secrets are not among them: they are created once and never read."""

WATCHED = tuple(kind for kind in OWNED if kind not in (CONTROLLER_REVISION, POD_DISRUPTION_BUDGET))
"""Those whose every change is a reason to look. A budget's status follows the pods, which are among them; a budget, or
a record of the history, that somebody took is put back at the next resync."""

MADE_ONCE = frozenset({POD.kind, INFERENCE_ROLE.kind})
"""Of these only the metadata is ours once they are made: a pod's spec cannot change, and how many engines an
InferenceRole asks for is said by whoever scales it."""

ATOMIC = frozenset({"selector", "labelSelector", "nodeSelector", "roleRef"})
"""Fields that the API server applies as a whole: an entry that somebody added would change what ours mean."""

KINDS = {kind.kind: kind for kind in (*OWNED, INFERENCE_DEPLOYMENT, SECRET, EVENT, LEASE)}


def kind_of(obj: Object) -> Kind:
    """The table's entry for an object. KeyError: a kind that the operator has no business with."""
    return KINDS[obj["kind"]]


class Cluster(Protocol):
    """One Kubernetes API server."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None where there is none."""

    async def list_owned(self, ref: Ref) -> list[Object]:
        """All objects of the `OWNED` kinds with the deployment's label, whoever owns them. All kinds or an error.

        They may be a moment old, but never older than what this client wrote itself."""

    async def apply(self, obj: Object) -> Object:
        """Server-side apply, our field manager, forced. Returns the object as the server keeps it."""

    async def create_once(self, obj: Object) -> bool:
        """Create; False where it existed already. Never reads or overwrites."""

    async def delete(self, obj: Object) -> None:
        """Delete exactly this object (same uid), in the background. Gone already is fine."""

    async def apply_status(self, ref: Ref, version: str, status: Object) -> None:
        """Write the whole status of the InferenceDeployment; fields not in it are given up.

        Conflict: the object is no longer of this resource version. What the status says may be of another object by
        now.
        """

    async def apply_role_status(self, role: Object, status: Object) -> None:
        """The same of an InferenceRole, as it was read."""

    async def event(self, ref: Ref, event_type: str, reason: str, message: str) -> None:
        """Post an Event (`Normal` or `Warning`) about the InferenceDeployment."""

    async def pod_events(self, namespace: str, pod: str) -> list[Object]:
        """Warnings about one pod, oldest first."""


class Runtime(Protocol):
    """The runtime's processes, asked over HTTP, each call with its own short deadline."""

    async def node_state(self, address: str) -> NodeState | None:
        """What the agent at this pod address says of itself. None: no usable answer in time."""

    async def figures(self, address: str) -> GatewayFigures | None:
        """What the gateway at this pod address has counted. None: no usable answer in time."""

    async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
        """What the gateway at this pod address has counted, once a request has come since it said `seen`, or after half
        a minute; at once where nothing was seen. None: no usable answer."""

    async def stay(self, address: str) -> None:
        """Ask the agent at this pod address to answer on for some seconds although it drains. One that does not hear it
        leaves as it would have."""

    async def canary(self, address: str, question: Canary) -> CanaryAnswer:
        """Have the gateway at this pod address put one real question to its own public port. A failure is an answer
        too; this never raises."""
