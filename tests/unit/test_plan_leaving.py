"""Who answers on although it was told to go: only where its role lacks engines, and no more of them than it lacks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.plan.leaving import needed_still
from headrace_operator.state import Plan, Pod
from headrace_operator.testing import agent


def plan(**sizes: int) -> Plan:
    return Plan("r2", "h1", sizes, ())


def pod(
    name: str, role: str = "decode", *, going: bool = False, ready: bool = True, revision: str = "r2", gang: str = ""
) -> Pod:
    said = agent(name, role, revision, phase="Draining" if going else "Ready", engine_pid=7)
    return Pod(name, "engine", role, revision, going=going, ready=ready, gang=gang, agent=said)


def names(found: tuple[Pod, ...]) -> list[str]:
    return [one.name for one in found]


def test_nobody_where_nobody_leaves() -> None:
    assert needed_still(plan(decode=2), [pod("d-0"), pod("d-1")], 0) == ()


def test_as_many_as_are_lacking_those_of_the_wanted_revision_first() -> None:
    leaving = [pod("d-0", going=True, revision="r1"), pod("d-1", going=True), pod("d-2", going=True, revision="r1")]
    assert names(needed_still(plan(decode=3), [*leaving, pod("d-3")], 0)) == ["d-1", "d-0"]
    assert names(needed_still(plan(decode=3), [*leaving, pod("d-3")], 1)) == ["d-1"]
    assert names(needed_still(plan(decode=3), [*leaving, pod("d-3")], 3)) == []


def test_one_that_is_not_ready_any_more_may_stay_all_the_same() -> None:
    """The readiness probe may have come before the question."""
    assert names(needed_still(plan(decode=1), [pod("d-0", going=True, ready=False)], 0)) == ["d-0"]


def test_a_role_that_is_gone_or_suspended_needs_nobody() -> None:
    assert needed_still(plan(prefill=1, decode=0), [pod("p-0", "prefill"), pod("d-0", going=True)], 0) == ()
    assert needed_still(plan(serve=1), [pod("d-0", going=True)], 0) == ()


def test_ranks_of_an_engine_over_several_pods_do_not_stay() -> None:
    assert needed_still(plan(decode=1), [pod("d-0", going=True, gang="d-0")], 0) == ()


pods = st.lists(
    st.builds(
        pod,
        st.from_regex(r"e-[0-9]{1,3}", fullmatch=True),
        st.sampled_from(["prefill", "decode"]),
        going=st.booleans(),
        ready=st.booleans(),
        revision=st.sampled_from(["r1", "r2"]),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)


@settings(deadline=None)
@given(pods, st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_never_more_than_a_rollout_must_leave_and_never_one_that_is_to_stay(
    there: list[Pod], prefill: int, decode: int, unavailable: int
) -> None:
    found = needed_still(plan(prefill=prefill, decode=decode), there, unavailable)
    assert all(one.going for one in found)
    for role, size in (("prefill", prefill), ("decode", decode)):
        serving = sum(one.role == role and one.ready and one.live for one in there)
        asked = sum(one.role == role for one in found)
        able = sum(one.role == role and one.going for one in there)
        assert asked == min(able, max(0, size - unavailable - serving))
