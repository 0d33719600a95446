"""Which engines change their role, and that none is ended or started where a change of role will do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.plan import make_plan
from headrace_operator.plan.revision import engine_revision
from headrace_operator.plan.roles import change_roles
from headrace_operator.state import Observed, Pod, Slot
from headrace_operator.testing import Sample

REVISION = engine_revision(Sample().split().spec())


def engine(
    born: str, index: int, role: str = "", *, ready: bool = True, revision: str = REVISION, going: bool = False
) -> Pod:
    name = f"chat-{born}-{revision}-{index}"
    return Pod(name, "engine", role or born, revision, index, born, ready=ready, going=going)


def wanted(prefill: int, decode: int, *, enabled: bool = True) -> InferenceDeploymentSpec:
    change = {"enabled": enabled, "minPrefill": 0, "minDecode": 0}
    return Sample().split(prefill, decode).set("disaggregation", {"roleChange": change}).spec()


def slots(spec: InferenceDeploymentSpec, *pods: Pod) -> set[Slot]:
    return set(make_plan(spec, Observed(pods=pods)).slots)


TWO_AND_ONE = (engine("prefill", 0), engine("prefill", 1), engine("decode", 0))


def test_nothing_to_do() -> None:
    here = {Slot("prefill", 0), Slot("prefill", 1), Slot("decode", 0)}
    assert slots(wanted(2, 1), *TWO_AND_ONE) == here


def test_an_engine_too_many_in_one_role_fills_the_gap_in_the_other() -> None:
    changed = {Slot("prefill", 0), Slot("decode", 1, "prefill"), Slot("decode", 0)}
    assert slots(wanted(1, 2), *TWO_AND_ONE) == changed


def test_unless_the_spec_allows_it_one_is_ended_and_another_started() -> None:
    assert slots(wanted(1, 2, enabled=False), *TWO_AND_ONE) == {
        Slot("prefill", 0),
        Slot("decode", 0),
        Slot("decode", 1),
    }


def test_an_engine_keeps_its_name_and_counts_by_its_label() -> None:
    pods = (engine("prefill", 0), engine("prefill", 1, "decode"), engine("decode", 0))
    assert slots(wanted(1, 2), *pods) == {Slot("prefill", 0), Slot("decode", 1, "prefill"), Slot("decode", 0)}
    assert slots(wanted(1, 2, enabled=False), *pods) == slots(wanted(1, 2), *pods)


def test_the_engine_that_came_is_the_one_that_goes_back() -> None:
    pods = (engine("prefill", 0), engine("prefill", 1, "decode"), engine("decode", 0))
    assert slots(wanted(2, 1), *pods) == {Slot("prefill", 0), Slot("prefill", 1), Slot("decode", 0)}


def test_a_new_engine_takes_no_name_of_one_that_has_changed() -> None:
    pods = (engine("prefill", 0), engine("prefill", 1, "decode"), engine("decode", 0))
    assert Slot("prefill", 2) in slots(wanted(2, 2), *pods)


def test_a_label_that_somebody_took_is_the_one_it_was_made_with() -> None:
    for label in ("", "serve"):
        pods = (Pod(TWO_AND_ONE[0].name, "engine", label, REVISION, 0, "prefill", ready=True), *TWO_AND_ONE[1:])
        assert slots(wanted(2, 1), *pods) == {Slot("prefill", 0), Slot("prefill", 1), Slot("decode", 0)}


def test_a_role_may_be_left_without_an_engine() -> None:
    pods = (engine("prefill", 0), engine("decode", 0))
    assert slots(wanted(0, 2), *pods) == {Slot("decode", 0, "prefill"), Slot("decode", 0)}


def test_what_is_not_ready_goes_where_a_ready_one_may_not() -> None:
    pods = (engine("prefill", 0), engine("prefill", 1, ready=False))
    assert slots(wanted(1, 1), *pods) == {Slot("prefill", 0), Slot("decode", 1, "prefill")}


def test_engines_of_another_revision_and_those_that_end_stay_what_they_are() -> None:
    sizes = {"prefill": 0, "decode": 2}
    pods = [engine("prefill", 0, revision="old"), engine("prefill", 1, going=True)]
    assert change_roles(pods, REVISION, sizes, {}) == pods


PODS = st.lists(
    st.tuples(st.sampled_from(["prefill", "decode"]), st.sampled_from(["prefill", "decode"]), st.booleans()), max_size=8
)


@settings(deadline=None)
@given(PODS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 2), st.integers(0, 2))
def test_a_change_of_role_takes_nothing_and_leaves_every_role_its_fewest(
    seen: list[tuple[str, str, bool]], prefill: int, decode: int, low: int, high: int
) -> None:
    pods = [engine(born, index, role, ready=ready) for index, (born, role, ready) in enumerate(seen)]
    sizes = {"prefill": prefill, "decode": decode}
    floors = {"prefill": min(low, prefill), "decode": min(high, decode)}
    after = change_roles(pods, REVISION, sizes, floors)

    assert [pod.name for pod in after] == [pod.name for pod in pods]
    assert change_roles(after, REVISION, sizes, floors) == after
    for role, size in sizes.items():
        before, now = _in(pods, role), _in(after, role)
        assert len(now) >= min(len(before), size), "a role is left with too few"
        assert len(now) <= max(len(before), size), "a role gets too many"
        assert sum(p.ready for p in now) >= min(sum(p.ready for p in before), floors[role])
    gaps = [size - len(_in(after, role)) for role, size in sizes.items()]
    assert not (min(gaps) < 0 < max(gaps)), "one would be ended and another started"


def _in(pods: list[Pod], role: str) -> list[Pod]:
    return [pod for pod in pods if pod.role == role]


@settings(deadline=None, max_examples=200)
@given(PODS, st.integers(0, 4), st.integers(0, 4))
def test_a_plan_never_names_one_pod_twice(seen: list[tuple[str, str, bool]], prefill: int, decode: int) -> None:
    pods = tuple(engine(born, index, role, ready=ready) for index, (born, role, ready) in enumerate(seen))
    planned = make_plan(wanted(prefill, decode), Observed(pods=pods)).slots
    assert len({(slot.home, slot.index) for slot in planned}) == len(planned)
