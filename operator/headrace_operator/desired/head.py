"""The Ray head: its contract, its pod, and the headless Service under whose name engines find it. Pure."""

from headrace_operator import names
from headrace_operator.desired import contracts, pods
from headrace_operator.desired.metadata import metadata
from headrace_operator.desired.overlay import lay_over
from headrace_operator.state import Object, Plan, Subject
from headrace_runtime import contract

GCS_MOUNT = "/var/lib/headrace/gcs"


def contract_map(subject: Subject) -> Object:
    """The head's contract."""
    return contracts.config_map(subject, names.head(subject.name), "head", contracts.head(subject), {})


def service(subject: Subject) -> Object:
    """The name of the head. It leads to a head that is not ready too: engines must find it in order to join."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(subject.ref, names.head(subject.name), "head"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(subject.name, "head"),
            "ports": [{"name": "gcs", "port": contract.RAY_PORT, "targetPort": contract.RAY_PORT}],
        },
    }


def pod(subject: Subject, plan: Plan) -> Object:
    """The head's pod. No engine work is ever placed on it."""
    name = names.head(subject.name)
    labels = {names.REVISION: plan.head_revision}
    generated = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(subject.ref, name, "head", labels),
        "spec": _spec(subject, name),
    }
    return lay_over(generated, subject.spec.ray.head_pod_template)


def token_secret(subject: Subject, token: str) -> Object:
    """The Ray cluster's token. Created once, and never read or changed again."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(subject.ref, names.ray_token(subject.name), "head"),
        "type": "Opaque",
        "stringData": {pods.TOKEN_KEY: token},
    }


def _spec(subject: Subject, name: str) -> Object:
    spec = subject.spec
    image = subject.defaults.head_image or spec.engine.image or subject.defaults.engine_image
    token, token_mount = pods.ray_token(subject.name)
    shm, shm_mount = pods.shared_memory()
    gcs, gcs_mount = _gcs(subject)
    container = pods.process("head", "head", image, pods.resources(spec.ray.head_resources))
    container["ports"] = [
        {"name": "gcs", "containerPort": contract.RAY_PORT},
        {"name": "admin", "containerPort": contract.HEAD_ADMIN_PORT},
    ]
    container["volumeMounts"] += [gcs_mount, token_mount, shm_mount]
    if "hostPath" in gcs:
        # The kubelet makes such a folder root's own, and Kubernetes has no other way to say whose it shall be.
        container["securityContext"] = {**pods.RESTRICTED, "runAsUser": 0}
    return pods.pod_spec(
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        containers=[container | pods.probes(contract.HEAD_ADMIN_PORT)],
        volumes=[*pods.base_volumes(name), gcs, token, shm],
    )


def _gcs(subject: Subject) -> tuple[Object, Object]:
    """Volume and mount of the control store. ValueError: a volume that is not made here."""
    volume = subject.spec.ray.gcs.volume
    mount: Object = {"name": "gcs", "mountPath": GCS_MOUNT}
    if volume is not None and volume.host_path is not None:
        # A folder of its own: two heads on one store would destroy it.
        mount["subPath"] = f"{subject.ref.namespace}/{subject.name}"
        return {"name": "gcs", "hostPath": {"path": volume.host_path, "type": "DirectoryOrCreate"}}, mount
    if volume is not None and volume.empty_dir is None:
        raise ValueError("spec.ray.gcs.volume: only hostPath and emptyDir are mounted")
    limit = volume.empty_dir.size_limit if volume and volume.empty_dir else None
    return {"name": "gcs", "emptyDir": {"sizeLimit": str(limit)} if limit else {}}, mount
