"""Which spec engines are made from: the target as a table of values, records that give back what they were given, and
whole rollouts whose target changes at any moment."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import history, names
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import (
    Condition,
    InferenceDeploymentSpec,
    InferenceDeploymentStatus,
    RevisionStatus,
    RoleStatus,
    RolloutProgress,
)
from headrace_operator.desired.history import record
from headrace_operator.plan import Terms, make_plan
from headrace_operator.plan.revision import engine_revision
from headrace_operator.plan.target import choose
from headrace_operator.state import Object, Observed, Plan, Pod
from headrace_operator.testing import START, Sample

ROLLOUT = {"progressDeadline": "10m", "autoRollback": True}
OLD = Sample().serve(2)
NEW = Sample().serve(2).set("engine.dtype", "float16").set("rollout", ROLLOUT)
LATE = START + timedelta(minutes=11)


def revision(sample: Sample) -> str:
    return engine_revision(sample.spec())


def children(*samples: Sample) -> dict[tuple[str, str], Object]:
    made = [record(one.subject(), revision(one), number) for number, one in enumerate(samples, 1)]
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in made}


def pod(sample: Sample, index: int, *, ready: bool = False) -> Pod:
    name = names.engine_pod("chat", "serve", revision(sample), index)
    since = None if ready else START
    return Pod(name, "engine", "serve", revision(sample), index, ready=ready, created=START, waiting_since=since)


def status(sample: Sample = NEW, ready: int = 0, **over: object) -> InferenceDeploymentStatus:
    """A rollout from OLD to `sample` on its way since START."""
    progress = RolloutProgress(revision=revision(sample), ready=ready, since=START)
    said = RevisionStatus(current=revision(OLD), good=(revision(OLD),), progress=progress)
    return InferenceDeploymentStatus(revision=said.model_copy(update=over))


SEEN = Observed(children(OLD, NEW), pods=(pod(OLD, 0, ready=True), pod(OLD, 1, ready=True), pod(NEW, 0)))


def test_the_target_is_the_spec_where_nothing_stands_in_its_way() -> None:
    target = choose(NEW.spec(), SEEN, status(), START + timedelta(minutes=9))
    assert (target.revision, target.failed, target.held) == (revision(NEW), None, False)
    assert target.spec == NEW.spec()
    assert target.records == {f"chat-{revision(one)}" for one in (OLD, NEW)}


def test_nothing_to_do_has_no_progress() -> None:
    whole = Observed(children(OLD), pods=(pod(OLD, 0, ready=True), pod(OLD, 1, ready=True)))
    said = InferenceDeploymentStatus(revision=RevisionStatus(current=revision(OLD)))
    assert choose(OLD.spec(), whole, said, LATE).progress is None


SIZED = (
    Sample()
    .set("roles", [{"name": "serve", "scaling": {"max": 8}}])
    .set("engine.dtype", "bfloat16")
    .set("slo", {"ttft": {"target": "1s"}})
    .set("scaling", {"mode": "SLO"})
    .set("rollout", ROLLOUT)
)
"""A role of no fixed size."""


def wanted(size: int, **said: object) -> InferenceDeploymentStatus:
    return status(SIZED, **said).model_copy(update={"roles": (RoleStatus(name="serve", desired=size),)})  # type: ignore[arg-type]


def test_a_size_that_is_decided_is_what_the_last_pass_wanted() -> None:
    seen = replace(SEEN, pods=(pod(OLD, 0, ready=True), pod(SIZED, 0)))
    assert choose(SIZED.spec(), seen, wanted(5), LATE).message.startswith("0 of 5 engines became ready")
    assert choose(SIZED.spec(), seen, status(SIZED), LATE).message.startswith("0 of 1 engines became ready")


def test_a_role_that_became_smaller_during_its_rollout_need_not_become_as_large_again() -> None:
    before = wanted(3, ready=6)
    three = replace(SEEN, pods=(pod(OLD, 0, ready=True), *(pod(SIZED, n, ready=True) for n in range(8))))
    smaller = choose(SIZED.spec(), three, before, LATE).progress
    assert smaller is not None
    assert (smaller.ready, smaller.since) == (3, START)
    four = replace(SEEN, pods=tuple(pod(SIZED, n, ready=n < 4) for n in range(5)))
    larger = choose(SIZED.spec(), four, wanted(5, progress=smaller), LATE)
    assert larger.progress is not None
    assert (larger.progress.ready, larger.progress.since) == (4, LATE)


@pytest.mark.parametrize("now", [SIZED, Sample().split(), Sample().serve(3)])
def test_a_revision_whose_sizes_were_decided_comes_back_with_the_sizes_of_now(now: Sample) -> None:
    (made,) = children(SIZED).values()
    back = history.restored(history.records([made])[revision(SIZED)], now.build()["spec"])
    assert isinstance(back, dict)
    spec = parse({"metadata": {"name": "chat"}, "spec": back})
    assert isinstance(spec, InferenceDeploymentSpec)
    assert engine_revision(spec) == revision(SIZED)
    assert [role.replicas for role in effective_roles(spec)] == [
        3 if now.build()["spec"]["roles"][0].get("replicas") == 3 else 1
    ]


def test_after_the_deadline_it_is_the_last_good_revision() -> None:
    target = choose(NEW.spec(), SEEN, status(), LATE)
    assert (target.revision, target.failed, target.held) == (revision(OLD), revision(NEW), False)
    assert target.rolled_back
    assert engine_revision(target.spec, target.manifest) == revision(OLD)
    assert target.message == f"0 of 2 engines became ready, and no other in 10m: {pod(NEW, 0).name}"


def test_without_auto_rollback_it_is_held_while_others_serve() -> None:
    spec = NEW.spec().model_copy(update={"rollout": NEW.spec().rollout.model_copy(update={"auto_rollback": False})})
    target = choose(spec, SEEN, status(), LATE)
    assert (target.revision, target.failed, target.held) == (revision(NEW), revision(NEW), True)
    alone = replace(SEEN, pods=(pod(NEW, 0),))
    assert not choose(spec, alone, status(), LATE).held


@pytest.mark.parametrize(
    ("sentence", "seen", "said"),
    [
        ("an engine became ready meanwhile", replace(SEEN, pods=(pod(NEW, 0, ready=True), pod(NEW, 1))), status()),
        ("no engine is waited for", replace(SEEN, pods=(pod(OLD, 0, ready=True), pod(NEW, 0, ready=True))), status()),
        (
            "what is waited for was ready a moment ago",
            replace(SEEN, pods=(replace(pod(NEW, 0), waiting_since=START + timedelta(minutes=5)),)),
            status(),
        ),
    ],
)
def test_a_rollout_that_moves_has_not_failed(sentence: str, seen: Observed, said: InferenceDeploymentStatus) -> None:
    assert choose(NEW.spec(), seen, said, LATE).failed is None, sentence


def test_a_write_that_fails_once_makes_no_rollout_fail_that_waits_for_something_else() -> None:
    trying = replace(SEEN, pods=(pod(OLD, 0, ready=True), pod(NEW, 0, ready=True)))

    def said(at: datetime) -> InferenceDeploymentStatus:
        failing = Condition(
            type="Degraded", status="True", reason="ApplyFailed", observed_generation=1, last_transition_time=at
        )
        return status(ready=1).model_copy(update={"conditions": (failing,)})

    assert choose(NEW.spec(), trying, said(LATE), LATE).failed is None
    assert choose(NEW.spec(), trying, said(START), LATE).failed == revision(NEW)


def test_a_whole_revision_that_never_answers_has_failed_too() -> None:
    whole = Observed(children(OLD, NEW), pods=(pod(NEW, 0, ready=True), pod(NEW, 1, ready=True)))
    unanswered = Condition(
        type="Ready", status="False", reason="CanaryFailed", observed_generation=1, last_transition_time=START
    )
    said = status(ready=2).model_copy(update={"conditions": (unanswered,)})
    assert choose(NEW.spec(), whole, said, LATE).revision == revision(OLD)
    assert choose(NEW.spec(), whole, status(ready=2), LATE).failed is None


def test_a_lost_canary_goes_back_at_once_and_no_readiness_takes_it_back() -> None:
    first = choose(NEW.spec(), SEEN, status(), START, canary_lost="TTFT 2 s instead of 1 s")
    assert (first.revision, first.reason) == (revision(OLD), "CanaryRejected")
    failed = status(failed=revision(NEW), reason=first.reason, message=first.message, progress=first.progress)
    later = replace(SEEN, pods=(*SEEN.pods[:2], pod(NEW, 0, ready=True)))
    assert choose(NEW.spec(), later, failed, LATE) == first


def test_a_revision_stays_failed_until_the_spec_has_another() -> None:
    failed = status(failed=revision(NEW), reason="ProgressDeadlineExceeded", message="m", progress=None)
    seen = replace(SEEN, pods=SEEN.pods[:2])
    assert choose(NEW.spec(), seen, failed, START).revision == revision(OLD)
    for other in (OLD, Sample().serve(2).set("engine.dtype", "bfloat16")):
        assert choose(other.spec(), seen, failed, LATE).failed is None


def test_a_revision_that_was_never_good_is_not_gone_back_to() -> None:
    target = choose(NEW.spec(), SEEN, status(good=()), LATE)
    assert (target.revision, target.held) == (revision(NEW), True)


SPECS = [
    Sample().serve(3),
    Sample().split(1, 2).set("engine.dtype", "float16").set("parallelism.tensor", 1),
    Sample().serve(1).set("roles.0.engine", {"dtype": "auto"}).set("engine.dtype", "float16"),
    Sample().serve(1).set("roles.0.parallelism", {"data": 1}),
    Sample().serve(1).set("roles.0.podTemplate", {"spec": {"volumes": [{"name": "x", "emptyDir": {}}]}}),
    Sample().serve(1).set("gateway.routing.policy", "PrefixAware"),
    Sample().serve(1).set("rollout.restartedAt", "again"),
    Sample().split(1, 1).set("disaggregation.onTransferFailure", "Fail"),
    Sample()
    .serve(1)
    .set("kvCache.host", {"size": "1Gi"})
    .set("kvCache.disk", {"size": "1Gi", "volume": {"claimTemplate": {"size": "3Gi"}}}),
    Sample().serve(1).set("engine.env", [{"name": "A", "value": "b"}]).set("engine.extraArgs", {"seed": 1}),
    Sample().serve(1).set("drain.timeout", "7s").set("recovery.backoff.base", "2s").set("executor", "Multiprocessing"),
]


@pytest.mark.parametrize("then", SPECS)
def test_a_record_gives_back_the_revision_that_it_was_made_of(then: Sample) -> None:
    for now in SPECS:
        (kept,) = history.records(children(then).values()).values()
        raw = history.restored(kept, now.build()["spec"])
        back = parse({"metadata": {"name": "chat"}, "spec": raw})
        assert isinstance(back, InferenceDeploymentSpec)
        assert engine_revision(back) == revision(then)
        sizes = {role.name: role.replicas for role in effective_roles(now.spec())}
        assert all(role.replicas == sizes.get(role.name, role.replicas) for role in effective_roles(back))
        same = history.restored(next(iter(history.records(children(now).values()).values())), now.build()["spec"])
        assert parse({"metadata": {"name": "chat"}, "spec": same}) == now.spec()


# Whole rollouts between three revisions. Pods become ready, or fail, in an order that hypothesis chooses.


@dataclass
class Fleet:
    """Pods of a deployment, and the bounds checked after every step."""

    sizes: dict[str, int]
    surge: int
    unavailable: int
    pods: dict[str, Pod] = field(default_factory=dict)

    def spec(self, revision: int) -> InferenceDeploymentSpec:
        rollout = {"maxSurge": self.surge, "maxUnavailable": self.unavailable}
        sample = Sample().split(self.sizes["prefill"], self.sizes["decode"]).set("rollout", rollout)
        return sample.set("engine.maxModelLen", 1000 + revision).spec()

    def step(self, revision: int, *, held: bool = False) -> None:
        """What one pass does. Creations are sent before deletions."""
        observed = Observed(pods=tuple(self.pods[name] for name in sorted(self.pods)))
        plan = make_plan(self.spec(revision), observed, terms=Terms(held=held))
        wanted = {
            names.engine_pod("chat", slot.home, plan.revision, slot.index): Pod(
                names.engine_pod("chat", slot.home, plan.revision, slot.index),
                "engine", slot.role, plan.revision, slot.index,
            )
            for slot in plan.slots
        }  # fmt: skip
        created = {name: pod for name, pod in wanted.items() if name not in self.pods}
        assert not (held and created)
        before = dict(self.pods)
        self.check_surge(before, created)
        self.pods = {name: pod for name, pod in (before | created).items() if name in wanted or name in plan.keep}
        self.check_floors(before, plan)

    def check_surge(self, before: dict[str, Pod], created: dict[str, Pod]) -> None:
        for role, size in self.sizes.items():
            if any(pod.role == role for pod in created.values()):
                assert sum(pod.role == role for pod in (before | created).values()) <= size + self.surge

    def check_floors(self, before: dict[str, Pod], plan: Plan) -> None:
        for role, size in plan.sizes.items():
            was, now = (sum(pod.ready for pod in pods.values() if pod.role == role) for pods in (before, self.pods))
            assert now >= min(was, size - self.unavailable)

    def start(self, name: str) -> None:
        self.pods[name] = replace(self.pods[name], ready=True)

    def whole(self, revision: int) -> bool:
        wanted = engine_revision(self.spec(revision))
        return all(pod.ready and pod.revision == wanted for pod in self.pods.values()) and all(
            sum(pod.role == role for pod in self.pods.values()) == size for role, size in self.sizes.items()
        )


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(any),
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 20), st.integers(0, 2)), max_size=12),
    st.integers(0, 2),
)
def test_a_target_that_changes_at_any_moment_keeps_floors_and_surge_and_ends(
    sizes: tuple[int, int], bounds: tuple[int, int], moves: list[tuple[int, bool, int, int]], last: int
) -> None:
    fleet = Fleet({"prefill": sizes[0], "decode": sizes[1]}, *bounds)
    for revision, held, seed, luck in moves:
        fleet.step(revision, held=held)
        waiting = sorted(name for name, pod in fleet.pods.items() if not pod.ready)
        if waiting and luck == 0:
            fleet.start(waiting[seed % len(waiting)])
        if fleet.pods and luck == 1:
            fleet.pods.pop(sorted(fleet.pods)[seed % len(fleet.pods)])
    for _ in range(60):
        fleet.step(last)
        for name in fleet.pods:
            fleet.start(name)
        if fleet.whole(last):
            break
    assert fleet.whole(last)
    there = dict(fleet.pods)
    fleet.step(last)
    assert fleet.pods == there
