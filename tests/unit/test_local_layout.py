"""Where `headrace_runtime local` puts the parts of a deployment."""

from pathlib import Path
from typing import Literal

import pytest
import yaml

from headrace_runtime.contract import (
    FixedDiscovery,
    GatewayContract,
    HeadContract,
    KvEvents,
    LocalContract,
    NodeContract,
    Parallelism,
    RayNode,
)
from headrace_runtime.local import free_ports, lay_out, ports_needed

EXAMPLES = Path(__file__).parents[2] / "runtime" / "examples"
FOLDER = Path("/run")


def example(name: Literal["pd", "aggregated"]) -> LocalContract:
    return LocalContract.model_validate(yaml.safe_load((EXAMPLES / f"local-{name}.yaml").read_text()))


def with_ray(contract: LocalContract) -> LocalContract:
    ray = RayNode(address="head:6379")
    nodes = tuple(node.model_copy(update={"ray": ray}) for node in contract.nodes)
    return contract.model_copy(update={"head": HeadContract(namespace="n", deployment="d"), "nodes": nodes})


@pytest.mark.parametrize(("name", "roles"), [("pd", ["prefill", "decode"]), ("aggregated", ["serve"])])
def test_the_gateway_knows_every_engine_by_its_role(name: Literal["pd", "aggregated"], roles: list[str]) -> None:
    contract = example(name)
    parts = lay_out(contract, Path("/model"), range(1000, 1000 + ports_needed(contract)), FOLDER)
    gateway = parts[-1].contract
    assert isinstance(gateway, GatewayContract)
    assert isinstance(gateway.discovery, FixedDiscovery)
    assert [endpoint.role for endpoint in gateway.discovery.endpoints] == roles
    for endpoint, part in zip(gateway.discovery.endpoints, parts, strict=False):
        assert endpoint.url == f"http://{part.place.address}:{part.place.engine_port}"


def test_every_port_is_given_once() -> None:
    contract = with_ray(example("pd"))
    parts = lay_out(contract, None, range(1000, 1000 + ports_needed(contract)), FOLDER)
    gateway = parts[-1].contract
    assert isinstance(gateway, GatewayContract)
    ports = [gateway.port, gateway.admin_port]
    ports += [
        p for one in parts[:-1] for p in (one.place.engine_port, one.place.agent_port, one.place.kv_transfer_port)
    ]
    assert sorted(ports) == list(range(1000, 1000 + ports_needed(contract)))


def test_the_model_on_the_command_line_replaces_the_files() -> None:
    contract = example("pd")
    for model, path in ((Path("/given"), "/given"), (None, contract.nodes[0].model.path)):
        parts = lay_out(contract, model, range(1000, 2000), FOLDER)
        assert [part.contract.model.path for part in parts if isinstance(part.contract, NodeContract)] == [path] * 2


def test_with_a_head_each_raylet_has_an_address_that_ray_leaves_alone() -> None:
    parts = lay_out(with_ray(example("pd")), None, range(1000, 2000), FOLDER)
    head = parts[0]
    assert isinstance(head.contract, HeadContract)
    nodes = [part for part in parts if isinstance(part.contract, NodeContract)]
    addresses = [part.place.address for part in (head, *nodes)]
    assert len(set(addresses)) == 3
    assert "127.0.0.1" not in addresses
    for part in nodes:
        assert isinstance(part.contract, NodeContract)
        assert part.contract.ray
        assert part.contract.ray.address == f"{head.place.address}:{head.contract.port}"
        assert part.contract.ray.token_file is None


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_the_gateway_hears_engines_on_loopback_by_socket_files() -> None:
    contract = example("pd")
    nodes = tuple(
        node.model_copy(update={"engine": node.engine.model_copy(update={"kv_events": node.role == "prefill"})})
        for node in contract.nodes
    )
    parts = lay_out(contract.model_copy(update={"nodes": nodes}), None, range(1000, 2000), FOLDER)
    gateway = parts[-1].contract
    assert isinstance(gateway, GatewayContract)
    assert isinstance(gateway.discovery, FixedDiscovery)
    prefill, decode = gateway.discovery.endpoints
    assert prefill.kv_events == KvEvents(
        publish=f"ipc://{FOLDER}/prefill-0/kv-events", replay=f"ipc://{FOLDER}/prefill-0/kv-replay"
    )
    assert decode.kv_events is None


def test_the_pods_of_one_engine_are_places_that_find_the_first_and_the_gateway_knows_that_one() -> None:
    contract = with_ray(example("pd"))
    first, other = contract.nodes
    engine = first.engine.model_copy(update={"parallelism": Parallelism(tensor=2, pods=2)})
    contract = contract.model_copy(update={"nodes": (first.model_copy(update={"engine": engine}), other)})
    parts = lay_out(contract, None, range(1000, 1000 + ports_needed(contract)), FOLDER)
    _, one, two, alone, gateway = parts
    assert [(part.place.name, part.place.rank) for part in (one, two, alone)] == [
        ("prefill-0", 0),
        ("prefill-0-r1", 1),
        ("decode-1", 0),
    ]
    assert two.place.leader == f"{one.place.address}:{one.place.agent_port}"
    assert len({part.place.address for part in parts[:-1]}) == 4
    assert isinstance(gateway.contract, GatewayContract)
    assert isinstance(gateway.contract.discovery, FixedDiscovery)
    assert [endpoint.name for endpoint in gateway.contract.discovery.endpoints] == ["prefill-0", "decode-1"]
    ports = [p for o in parts[:-1] for p in (o.place.engine_port, o.place.agent_port, o.place.kv_transfer_port)]
    ports += [one.place.gang_port, gateway.contract.port, gateway.contract.admin_port]
    assert sorted(ports) == list(range(1000, 1000 + ports_needed(contract)))
