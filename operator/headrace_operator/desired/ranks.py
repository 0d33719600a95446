"""What makes an engine's pod one of several: its place among them, and a name in the network. Pure.

`engine.py` makes the pod as one that is an engine by itself, and calls this. Nothing here is secret, and nothing is
given out by the operator at run time: rank 0 has a name that follows from the deployment's, before it has an address.
"""

from headrace_operator import names
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Subject
from headrace_runtime import contract


def service(subject: Subject) -> Object:
    """Gives each rank a name. It leads to those that are not ready too: they have to meet before any can be."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(subject.ref, names.ranks(subject.name), "engine"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(subject.name, "engine"),
            "ports": [{"name": "agent", "port": contract.AGENT_PORT, "targetPort": contract.AGENT_PORT}],
        },
    }


def as_rank(pod: Object, subject: Subject, engine: str, rank: int, size: int) -> Object:
    """The pod as one of `size` of an engine, which has the name of its rank 0."""
    meta, spec = pod["metadata"], pod["spec"]
    container, *others = spec["containers"]
    env = [{"name": "HEADRACE_RANK", "value": str(rank)}]
    if rank:
        leader = names.leader_address(subject.ref.namespace, subject.name, engine)
        env.append({"name": "HEADRACE_LEADER", "value": leader})
        # It serves its agent alone.
        ports = [port for port in container["ports"] if port["name"] == "agent"]
    else:
        ports = [*container["ports"], {"name": "gang", "containerPort": contract.GANG_PORT}]
    labels = {names.GANG: engine, names.GANG_SIZE: str(size), names.RANK: str(rank)}
    return pod | {
        "metadata": {**meta, "labels": {**meta["labels"], **labels}},
        "spec": {
            **spec,
            "hostname": meta["name"],
            "subdomain": names.ranks(subject.name),
            "containers": [container | {"env": [*container["env"], *env], "ports": ports}, *others],
        },
    }
