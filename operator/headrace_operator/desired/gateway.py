"""The gateway: a Deployment, the Service that clients use, and the right to watch the pods of its namespace. Pure."""

import math

from headrace_operator import names
from headrace_operator.desired import contracts, pods
from headrace_operator.desired.metadata import metadata
from headrace_operator.desired.overlay import lay_over
from headrace_operator.state import Object, Subject
from headrace_runtime import contract

LEAVE_SECONDS = 3
"""Between the decision that a gateway goes and its SIGTERM: long enough for Services to leave it out."""
CONTRACT_ANNOTATION = f"{names.GROUP}/contract"
"""On the gateway's pods: a hash of what they read of their contract at start alone, so that another brings new pods."""


def objects(subject: Subject, share: contract.CanaryShare | None = None) -> list[Object]:
    """Everything of the gateway, in the order in which it needs each other. `share`: of a revision that is tried."""
    told = contracts.gateway(subject, share)
    return [
        contracts.config_map(subject, names.gateway(subject.name), "gateway", told, {}),
        *_access(subject),
        service(subject),
        _deployment(subject),
    ]


def service(subject: Subject) -> Object:
    """What clients use: the deployment's own name, port 80."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(subject.ref, names.service(subject.name), "gateway"),
        "spec": {
            "type": "ClusterIP",
            "selector": names.selector(subject.name, "gateway"),
            "ports": [{"name": "http", "port": 80, "targetPort": contract.GATEWAY_PORT, "appProtocol": "http"}],
        },
    }


def _access(subject: Subject) -> list[Object]:
    """A service account that may watch pods, and nothing else."""
    name, ref = names.gateway(subject.name), subject.ref
    group = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(ref, name, "gateway"),
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": metadata(ref, name, "gateway"),
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata(ref, name, "gateway"),
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": ref.namespace}],
        },
    ]


def _deployment(subject: Subject) -> Object:
    chosen = names.selector(subject.name, "gateway")
    template = {
        "metadata": {
            "labels": {**chosen, names.MANAGED_BY: names.OPERATOR},
            "annotations": {CONTRACT_ANNOTATION: contracts.fingerprint(contracts.gateway(subject))},
        },
        "spec": _spec(subject),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(subject.ref, names.gateway(subject.name), "gateway"),
        "spec": {
            "replicas": subject.spec.gateway.replicas,
            "selector": {"matchLabels": chosen},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": lay_over(template, subject.spec.gateway.pod_template),
        },
    }


def _spec(subject: Subject) -> Object:
    name = names.gateway(subject.name)
    container = pods.process(
        "gateway", "gateway", subject.defaults.gateway_image, pods.resources(subject.spec.gateway.resources)
    )
    keys = _api_keys(subject)
    container["volumeMounts"] += [mount for _, mount in keys]
    container["ports"] = [
        {"name": "http", "containerPort": contract.GATEWAY_PORT},
        {"name": "admin", "containerPort": contract.GATEWAY_ADMIN_PORT},
    ]
    # Until no proxy sends new connections here any more: the process stops listening as soon as it is told to end.
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": LEAVE_SECONDS}}}
    container["securityContext"] = {**pods.RESTRICTED, "readOnlyRootFilesystem": True}
    return pods.pod_spec(
        automountServiceAccountToken=True,
        serviceAccountName=name,
        securityContext={
            "runAsNonRoot": True,
            "runAsUser": pods.USER,
            "runAsGroup": pods.GROUP,
            "fsGroup": pods.GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        terminationGracePeriodSeconds=math.ceil(contracts.gateway(subject).drain_seconds) + LEAVE_SECONDS + 30,
        topologySpreadConstraints=[
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": names.selector(subject.name, "gateway")},
                # Without it the pods of the version before would count.
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        containers=[container | pods.probes(contract.GATEWAY_ADMIN_PORT)],
        volumes=[*pods.base_volumes(name), *(volume for volume, _ in keys)],
    )


def _api_keys(subject: Subject) -> list[tuple[Object, Object]]:
    """Volume and mount of the Secret with the API keys, where there is one. Without it a pod does not start: better
    than a gateway that lets nobody in, while the pods before it still serve."""
    ref = subject.spec.gateway.api_keys_secret_ref
    if ref is None:
        return []
    volume = {"name": "api-keys", "secret": {"secretName": ref.name, "defaultMode": 0o440}}
    return [(volume, {"name": "api-keys", "mountPath": contract.KEYS_MOUNT, "readOnly": True})]
