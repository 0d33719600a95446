"""Every name that the operator gives: children, labels, annotations, field manager, ports.

A literal of this kind stands here and nowhere else. Pure; called by desired, observe, status and the tests. The labels
that the runtime reads too come from the contract, so that both sides spell them alike.
"""

import hashlib

from headrace_runtime import contract

GROUP = "headrace.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceDeployment"
PLURAL = "inferencedeployments"
SHORT = "infd"
ROLE_KIND = "InferenceRole"
ROLE_PLURAL = "inferenceroles"
ROLE_SHORT = "infrole"
CATEGORY = "headrace"
"""`kubectl get headrace` lists all objects of both kinds."""

FIELD_MANAGER = "headrace"
DEPLOYMENT = contract.DEPLOYMENT_LABEL
COMPONENT = contract.COMPONENT_LABEL
ROLE = contract.ROLE_LABEL
REVISION = contract.REVISION_LABEL
KV_LAYOUT = contract.KV_LAYOUT_LABEL
DRAINING = contract.DRAINING_ANNOTATION
RANK = contract.RANK_LABEL
GANG = f"{GROUP}/gang"
"""Label on the pods of an engine that is spread over several: the engine, by the name of its rank 0."""
GANG_SIZE = f"{GROUP}/gang-size"
"""Label beside it: how many there are."""
KV_SLOT = f"{GROUP}/kv-slot"
"""Label on an engine whose KV blocks outlive it: the place in its role that they belong to, such as `decode-0`."""
RETURNS_TO = f"{GROUP}/returns-to"
"""Annotation on an engine that may start on this node only, where the blocks of its slot are."""
MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "headrace"
APPLIED = f"{GROUP}/applied"
"""Annotation on every child: the hash of what was applied, so that a pass with nothing to do writes nothing."""

NAME_LIMIT = 63


def child(deployment: str, *parts: str) -> str:
    """A DNS label for a child: `deployment-part-part`, cut and given a hash when it would pass 63 characters.

    The parts are kept whole, since they tell the children of one deployment apart; the deployment's name is what is
    cut.
    """
    tail = "".join(f"-{part}" for part in parts)
    if len(deployment) + len(tail) <= NAME_LIMIT:
        return deployment + tail
    digest = hashlib.sha256(deployment.encode()).hexdigest()[:8]
    room = NAME_LIMIT - len(tail) - len(digest) - 1
    return f"{deployment[:room].rstrip('-.')}-{digest}{tail}"


def label(deployment: str) -> str:
    """The value of the deployment's label on its children: the name, cut like a child's where it is longer than a
    label."""
    return child(deployment)


def selector(deployment: str, component: str) -> dict[str, str]:
    """Labels that choose the pods of one component of a deployment."""
    return {DEPLOYMENT: label(deployment), COMPONENT: component}


def gateway_url(namespace: str, deployment: str) -> str:
    """Where clients inside the cluster reach the gateway."""
    return f"http://{service(deployment)}.{namespace}.svc"


def ray_address(namespace: str, deployment: str) -> str:
    """host:port of the Ray head's control store."""
    return f"{head(deployment)}.{namespace}.svc:{contract.RAY_PORT}"


def service(deployment: str) -> str:
    """The Service that clients use: the deployment's own name."""
    return child(deployment)


def gateway(deployment: str) -> str:
    """The gateway's Deployment, service account, role and contract."""
    return child(deployment, "gateway")


def head(deployment: str) -> str:
    """The Ray head's pod, headless Service and contract."""
    return child(deployment, "head")


def ray_token(deployment: str) -> str:
    """The Secret with the Ray cluster's token."""
    return child(deployment, "ray-token")


def engine_contract(deployment: str, role: str, revision: str) -> str:
    """The ConfigMap that all engine pods of one role and revision read."""
    return child(deployment, role, revision)


def engine_pod(deployment: str, role: str, revision: str, index: int, rank: int = 0) -> str:
    """One engine's pod, or one of its ranks. The revision is part of the name: old and new stand side by side while a
    rollout goes on."""
    return child(deployment, role, revision, str(index), *([f"r{rank}"] if rank else []))


def ranks(deployment: str) -> str:
    """The headless Service under whose name the ranks of an engine find its rank 0."""
    return child(deployment, "ranks")


def leader_address(namespace: str, deployment: str, pod: str) -> str:
    """host:port of the agent of an engine's rank 0."""
    return f"{pod}.{ranks(deployment)}.{namespace}.svc:{contract.AGENT_PORT}"


def record(deployment: str, revision: str) -> str:
    """The ControllerRevision that keeps what engines of a revision are made from."""
    return child(deployment, revision)


def budget(deployment: str, role: str) -> str:
    """The PodDisruptionBudget of one role's engines, whatever their revision."""
    return child(deployment, role)


def inference_role(deployment: str, role: str) -> str:
    """The InferenceRole by which somebody else scales one role: `kubectl scale infrole chat-decode --replicas=3`."""
    return child(deployment, role)


def kv_slot(role: str, number: int) -> str:
    """A slot that KV blocks belong to, in labels, claims and status: `decode-0`."""
    return f"{role}-{number}"


def kv_claim(deployment: str, slot: str) -> str:
    """The claim of the volume that holds the KV blocks of one slot, whichever engine has it."""
    return child(deployment, "kv", slot)
