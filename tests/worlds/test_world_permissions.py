"""Every call of whole passes, against the one list of what the operator may do."""

from headrace_operator.cluster import KINDS, OWNED
from headrace_operator.cluster.fake import Call, FakeCluster
from headrace_operator.election import Election, Lease
from headrace_operator.permissions import ELECTION_RULES, allowed
from headrace_operator.testing import Sample, Scene


def right(call: Call) -> tuple[str, str, str]:
    """Group, resource and verb, as a rule names them."""
    kind, _, subresource = call.kind.partition("/")
    group = KINDS[kind].api_version.rpartition("/")[0]
    return group, "/".join(filter(None, (KINDS[kind].plural, subresource))), call.verb


async def test_no_pass_asks_for_what_it_may_not() -> None:
    scene = Scene(Sample().split(2, 3))
    await scene.settle()
    scene.edit(Sample().split(1, 2))
    await scene.settle()
    scene.edit(Sample().split(1, 1))
    await scene.settle()
    scene.fail(scene.pods()[0])
    await scene.settle()
    claim = {"size": "1Gi", "volume": {"claimTemplate": {"size": "1Gi"}}}
    scene.edit(Sample().split(1, 1).set("kvCache.host", {"size": "1Gi"}).set("kvCache.disk", claim))
    await scene.settle()
    scene.edit(Sample().split(1, 1))
    await scene.settle()
    assert Call("delete", "PersistentVolumeClaim", "chat-kv-decode-0") in scene.cluster.calls
    assert {right(call) for call in scene.cluster.calls} <= set(allowed(called_only=True))


def test_every_kind_of_child_is_listed_and_watched() -> None:
    may = set(allowed())
    for kind in OWNED:
        assert (kind.api_version.rpartition("/")[0], kind.plural, "list") in may
        assert (kind.api_version.rpartition("/")[0], kind.plural, "watch") in may


def test_what_a_gateway_is_granted_the_operator_holds() -> None:
    assert {("", "pods", verb) for verb in ("get", "list", "watch")} <= set(allowed())


async def test_the_election_asks_for_what_its_own_rules_say_and_for_nothing_else() -> None:
    cluster = FakeCluster()
    async with await Election(Lease(cluster, "headrace-system", "headrace", "a")).win():
        pass
    assert {right(call) for call in cluster.calls} == set(allowed(ELECTION_RULES))
    assert not {resource for _, resource, _ in allowed(ELECTION_RULES)} & {resource for _, resource, _ in allowed()}
