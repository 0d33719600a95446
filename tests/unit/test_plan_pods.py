"""From counts to names: which pods a plan makes, keeps and lets go."""

from headrace_operator.plan import make_plan
from headrace_operator.plan.revision import engine_revision
from headrace_operator.state import Observed, Pod, Slot
from headrace_operator.testing import Sample

SAMPLE = Sample().serve(2)
REVISION = engine_revision(SAMPLE.spec())


def engine(
    index: int, *, revision: str = REVISION, ready: bool = True, going: bool = False, failed: bool = False
) -> Pod:
    name = f"chat-serve-{revision}-{index}"
    return Pod(name, "engine", "serve", revision, index, ready=ready, going=going, failed=failed)


def slots(*pods: Pod, sample: Sample = SAMPLE) -> list[int]:
    return [slot.index for slot in make_plan(sample.spec(), Observed(pods=pods)).slots]


def test_plans_the_whole_deployment_where_nothing_is_seen() -> None:
    plan = make_plan(Sample().split(1, 2).spec(), Observed())
    assert plan.slots == (Slot("prefill", 0), Slot("decode", 0), Slot("decode", 1))
    assert plan.head
    assert plan.sizes == {"prefill": 1, "decode": 2}


def test_keeps_what_is_there_when_there_is_nothing_to_do() -> None:
    assert slots(engine(0), engine(1)) == [0, 1]


def test_a_lost_pod_is_replaced_under_the_lowest_free_index() -> None:
    assert slots(engine(1)) == [0, 1]


def test_a_dead_pod_does_not_keep_its_successor_waiting() -> None:
    assert slots(engine(0, failed=True, ready=False), engine(1)) == [1, 2]


def test_a_pod_on_a_lost_node_that_cannot_end_does_not_either() -> None:
    assert slots(engine(0, going=True), engine(1)) == [1, 2]


def test_the_highest_index_goes_first_but_ready_pods_stay() -> None:
    one = Sample().serve(1)
    assert slots(engine(0), engine(1), sample=one) == [0]
    assert slots(engine(0, ready=False), engine(1), sample=one) == [1]


def test_old_pods_stay_until_new_ones_are_ready() -> None:
    old = [engine(0, revision="old"), engine(1, revision="old")]
    first = make_plan(SAMPLE.spec(), Observed(pods=tuple(old)))
    assert [s.index for s in first.slots] == [0]
    assert first.keep == {"chat-serve-old-0", "chat-serve-old-1"}
    second = make_plan(SAMPLE.spec(), Observed(pods=(*old, engine(0))))
    assert second.keep == {"chat-serve-old-0"}


def test_taking_a_change_back_half_way_ends_only_what_was_new() -> None:
    seen = Observed(pods=(engine(0), engine(1), engine(0, revision="new", ready=False)))
    plan = make_plan(SAMPLE.spec(), seen)
    assert [s.index for s in plan.slots] == [0, 1]
    assert plan.keep == frozenset()


def test_suspend_ends_all_engines_and_keeps_the_head() -> None:
    suspended = Sample().serve(2).set("suspend", True).spec()
    head = Pod("chat-head", "head", "", make_plan(suspended, Observed()).head_revision, ready=True)
    plan = make_plan(suspended, Observed(pods=(engine(0), engine(1), head)))
    assert plan.slots == ()
    assert plan.keep == frozenset()
    assert plan.head


def test_an_old_head_must_be_gone_before_the_new_one_comes() -> None:
    wanted = make_plan(SAMPLE.spec(), Observed()).head_revision
    old = Pod("chat-head", "head", "", "old", ready=True)
    assert not make_plan(SAMPLE.spec(), Observed(pods=(old,))).head
    ending = Pod("chat-head", "head", "", wanted, going=True)
    assert not make_plan(SAMPLE.spec(), Observed(pods=(ending,))).head


def test_sizes_and_what_only_the_gateway_reads_leave_the_revision_alone() -> None:
    same = [
        Sample().serve(5),
        Sample().serve(2).set("gateway.replicas", 5),
        Sample().serve(2).set("disaggregation.minPromptTokens", 9),
        Sample().serve(2).set("rollout.maxSurge", 2),
        Sample().serve(2).set("paused", True).set("suspend", True),
        Sample().serve(2).set("ray.headResources", {"requests": {"cpu": "1"}}),
        Sample().serve(2).set("engine.dtype", "auto"),
        Sample().serve(2).set("gateway.routing.policy", "RoundRobin"),
    ]
    assert {engine_revision(sample.spec()) for sample in same} == {REVISION}


def test_what_an_engine_is_made_from_changes_the_revision() -> None:
    other = [
        Sample().serve(2).set("engine.dtype", "float16"),
        Sample().serve(2).set("engine.image", "example.org/other:2"),
        Sample().serve(2).set("model.source", "node:///models/other"),
        Sample().serve(2).set("roles.0.nodeSelector", {"disk": "nvme"}),
        Sample().serve(2).set("roles.0.podTemplate", {"spec": {"priorityClassName": "high"}}),
        Sample().serve(2).set("drain.timeout", "10s"),
        Sample().serve(2).set("gateway.routing.policy", "PrefixAware"),
        Sample().split(1, 1),
    ]
    revisions = {engine_revision(sample.spec()) for sample in other}
    assert len(revisions) == len(other)
    assert REVISION not in revisions


def test_other_checksums_are_another_revision() -> None:
    spec = Sample().serve(2).spec()
    assert len({engine_revision(spec, sums) for sums in (None, {"a": "0" * 64}, {"a": "1" * 64})}) == 3
    assert engine_revision(spec, {}) == REVISION


def test_an_override_counts_although_it_says_what_would_be_the_default() -> None:
    plain = Sample().serve(1).set("engine.dtype", "float16")
    over = Sample().serve(1).set("engine.dtype", "float16").set("roles.0.engine", {"dtype": "auto"})
    assert engine_revision(plain.spec()) != engine_revision(over.spec())


def test_the_order_of_roles_is_no_change() -> None:
    there, back = Sample().split(1, 1), Sample().split(1, 1)
    back.set("roles", list(reversed(back.build()["spec"]["roles"])))
    assert engine_revision(there.spec()) == engine_revision(back.spec())
