"""Engines over several pods: what a plan makes of their ranks, and that no partial one counts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import names
from headrace_operator.desired import desired_objects
from headrace_operator.gangs import whole
from headrace_operator.plan import make_plan
from headrace_operator.plan.revision import engine_revision
from headrace_operator.state import Observed, Pod
from headrace_operator.testing import Sample


def sample(engines: int = 1, pods: int = 2) -> Sample:
    return Sample().serve(engines).set("parallelism", {"tensor": 2, "pods": pods})


REVISION = engine_revision(sample().spec())


def rank(engine: int, number: int, *, revision: str = REVISION, **state: bool) -> Pod:
    gang = f"chat-serve-{revision}-{engine}"
    name = f"{gang}-r{number}" if number else gang
    ready = {"ready": True, **state}
    return Pod(name, "engine", "serve", revision, engine, gang=gang, rank=number, ranks=2, **ready)


def made(spec: Sample, *pods: Pod) -> list[str]:
    """Names of the pods that shall be there after the step."""
    subject = spec.subject()
    plan = make_plan(subject.spec, Observed(pods=pods))
    objects = [obj for obj in desired_objects(subject, plan) if obj["kind"] == "Pod"]
    wanted = [o["metadata"]["name"] for o in objects if o["metadata"]["labels"][names.COMPONENT] == "engine"]
    return sorted({*wanted, *plan.keep})


def test_an_engine_with_one_pod_is_that_pod() -> None:
    pod = Pod("chat-serve-r-0", "engine", "serve", "r", 0, ready=True)
    assert whole([pod]) == [pod]
    assert whole([]) == []


def test_all_ranks_of_an_engine_are_made_at_once() -> None:
    assert made(sample()) == [f"chat-serve-{REVISION}-0", f"chat-serve-{REVISION}-0-r1"]


def test_nothing_to_do() -> None:
    there = (rank(0, 0), rank(0, 1))
    assert made(sample(), *there) == [pod.name for pod in there]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_is_only_missing_is_made_again_beside_the_others(missing: int) -> None:
    assert made(sample(), rank(0, 1 - missing)) == [f"chat-serve-{REVISION}-0", f"chat-serve-{REVISION}-0-r1"]


@pytest.mark.parametrize("state", [{"going": True}, {"failed": True, "ready": False}])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_takes_its_engine_with_it_and_the_successor_has_another_name(
    lost: int, state: dict[str, bool]
) -> None:
    there = [rank(0, 0), rank(0, 1)]
    there[lost] = replace(there[lost], **state)
    assert made(sample(), *there) == [f"chat-serve-{REVISION}-1", f"chat-serve-{REVISION}-1-r1"]


def test_an_old_engine_stays_with_all_its_ranks_until_a_new_one_is_whole() -> None:
    old = [rank(0, number, revision="old") for number in (0, 1)]
    both = [*[pod.name for pod in old], f"chat-serve-{REVISION}-0", f"chat-serve-{REVISION}-0-r1"]
    assert made(sample(), *old) == sorted(both)
    assert made(sample(), *old, rank(0, 0), rank(0, 1, ready=False)) == sorted(both)
    assert made(sample(), *old, rank(0, 0), rank(0, 1)) == both[2:]


def test_other_pods_of_an_engine_are_another_revision_and_one_is_none() -> None:
    assert engine_revision(sample(pods=1).spec()) == engine_revision(
        Sample().serve(1).set("parallelism", {"tensor": 2}).spec()
    )
    assert engine_revision(sample(pods=1).spec()) != REVISION


def test_ranks_find_rank_0_by_its_name_and_gateways_see_no_other() -> None:
    subject = sample().subject()
    objects = desired_objects(subject, make_plan(subject.spec, Observed()))
    first, second = (o for o in objects if o["kind"] == "Pod" and names.GANG in o["metadata"]["labels"])
    service = next(o for o in objects if o["kind"] == "Service" and o["metadata"]["name"] == "chat-ranks")
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert {o["spec"]["subdomain"] for o in (first, second)} == {"chat-ranks"}
    assert [o["spec"]["hostname"] for o in (first, second)] == [o["metadata"]["name"] for o in (first, second)]
    labels = [o["metadata"]["labels"] for o in (first, second)]
    assert [one[names.RANK] for one in labels] == ["0", "1"]
    assert {one[names.GANG] for one in labels} == {first["metadata"]["name"]}
    env = {e["name"]: e.get("value") for e in second["spec"]["containers"][0]["env"]}
    assert env["HEADRACE_LEADER"] == f"{first['metadata']['name']}.chat-ranks.demo.svc:8090"
    assert env["HEADRACE_RANK"] == "1"
    assert [p["name"] for p in second["spec"]["containers"][0]["ports"]] == ["agent"]


def test_each_pod_has_its_part_of_the_accelerators() -> None:
    spread = {"tensor": 8, "pipeline": 2, "pods": 2}
    subject = sample().set("engine", {"device": {"count": 16}}).set("parallelism", spread).subject()
    pods = [o for o in desired_objects(subject, make_plan(subject.spec, Observed())) if o["kind"] == "Pod"]
    limits = [o["spec"]["containers"][0]["resources"].get("limits") for o in pods if "hostname" in o["spec"]]
    assert limits == [{"nvidia.com/gpu": "8"}] * 2


def test_a_name_that_is_too_long_still_tells_the_ranks_apart() -> None:
    found = {names.engine_pod("x" * 80, "prefill", REVISION, 7, number) for number in range(12)}
    assert len(found) == 12
    assert all(len(name) <= names.NAME_LIMIT for name in found)


STATES = st.sampled_from(["absent", "waiting", "ready", "going", "failed"])


def _pod(engine: int, number: int, revision: str, state: str) -> Pod:
    return rank(
        engine, number, revision=revision, ready=state == "ready", going=state == "going", failed=state == "failed"
    )


@given(
    st.dictionaries(st.tuples(st.sampled_from([REVISION, "old"]), st.integers(0, 3)), st.tuples(STATES, STATES)),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_no_step_leaves_a_part_of_an_engine_or_fewer_whole_ones_than_wanted(
    seen: dict[tuple[str, int], tuple[str, str]], size: int
) -> None:
    pods = [
        _pod(engine, number, revision, state)
        for (revision, engine), states in seen.items()
        for number, state in enumerate(states)
        if state != "absent"
    ]
    left = set(made(sample(size), *pods))
    for name in left:
        other = name.removesuffix("-r1") if name.endswith("-r1") else f"{name}-r1"
        missing_for_good = f"serve-{REVISION}" not in name and other not in {pod.name for pod in pods}
        assert other in left or missing_for_good, (
            "never a rank without the other, but of an engine that is on its way out"
        )
    ready = {(revision, engine) for (revision, engine), states in seen.items() if states == ("ready", "ready")}
    stay = {(r, e) for r, e in ready if f"chat-serve-{r}-{e}" in left}
    assert len(stay) >= min(size, len(ready)), "a whole engine goes only where enough others are whole"
