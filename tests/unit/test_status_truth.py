"""What must hold of every status, whatever was seen; and which of its changes are announced."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus
from headrace_operator.known import Known
from headrace_operator.plan import make_plan
from headrace_operator.state import Blocker, CanaryAnswer, Observed, Outcome, Pod
from headrace_operator.status import announcements, new_status
from headrace_operator.testing import START, Sample, agent

SAMPLE = Sample().split(1, 2)
PLAN = make_plan(SAMPLE.spec(), Observed())


@st.composite
def engines(draw: st.DrawFn) -> Pod:
    role = draw(st.sampled_from(["prefill", "decode", "serve"]))
    revision = draw(st.sampled_from([PLAN.revision, "old"]))
    index = draw(st.integers(0, 9))
    name = names.engine_pod("chat", role, revision, index)
    ready = draw(st.booleans())
    return Pod(
        name, "engine", role, revision, index, ready=ready,
        going=draw(st.booleans()),
        failed=not ready and draw(st.booleans()),
        blocker=draw(st.none() | st.just(Blocker(name, "Unschedulable", "no room"))) if not ready else None,
        agent=draw(st.none() | st.just(agent(name, role, revision))),
    )  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> Known:
    head = Pod("chat-head", "head", "", PLAN.head_revision, ready=draw(st.booleans()))
    pods = {pod.name: pod for pod in draw(st.lists(engines(), max_size=6))}
    ready = draw(st.integers(0, 2))
    gateway = {
        "metadata": {"name": "chat-gateway", "generation": 2},
        "spec": {"replicas": 2},
        "status": {"observedGeneration": draw(st.integers(1, 2)), "readyReplicas": ready},
    }
    children = draw(st.sampled_from([{}, {("Deployment", "chat-gateway"): gateway}]))
    observed = Observed(children=children, pods=(*pods.values(), *draw(st.sampled_from([(), (head,)]))))
    return Known(
        ref=SAMPLE.ref(),
        generation=3,
        now=START,
        previous=InferenceDeploymentStatus(),
        observed=draw(st.sampled_from([observed, Observed(failure="no answer")])),
        subject=SAMPLE.subject(),
        plan=PLAN,
        outcome=draw(st.sampled_from([Outcome(), Outcome(errors=("Pod/x: no",), refused=("Pod/x: no",))])),
        canary=draw(st.sampled_from([None, CanaryAnswer("d", "p"), CanaryAnswer(failure="503")])),
    )


def judged(status: InferenceDeploymentStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in status.conditions}


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_every_condition_is_there_with_a_reason_and_the_generation(known: Known) -> None:
    status = new_status(known)
    assert [condition.type for condition in status.conditions] == list(c.TYPES)
    assert all(condition.reason and condition.observed_generation == 3 for condition in status.conditions)
    assert all(condition.message for condition in status.conditions)


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_ready_needs_all_roles_the_gateway_and_an_answer(known: Known) -> None:
    status = new_status(known)
    if judged(status)[c.READY] == "True":
        assert judged(status)[c.ROLES_READY] == judged(status)[c.GATEWAY_READY] == "True"
        assert known.canary is not None
        assert known.canary.failure is None
    if known.observed.failure is not None:
        assert judged(status)[c.READY] == "Unknown"


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_the_same_world_seen_again_is_nothing_new(known: Known) -> None:
    first = new_status(known)
    again = replace(known, previous=first, now=START.replace(year=2027), canary=None)
    second = new_status(again)
    third = new_status(replace(again, previous=second, now=START.replace(year=2028)))
    assert third == second
    assert list(announcements(second, third)) == []


@settings(max_examples=40, deadline=None)
@given(worlds(), worlds())
def test_only_flips_are_announced_and_a_transition_time_moves_with_them(one: Known, two: Known) -> None:
    before = new_status(one)
    after = new_status(replace(two, previous=before, now=START.replace(year=2027)))
    flipped = {kind for kind, status in judged(after).items() if judged(before)[kind] != status}
    moved = {x.type for x in after.conditions if x.last_transition_time != START}
    assert moved == flipped
    assert {note.message.partition(":")[0] for note in announcements(before, after)} <= flipped
