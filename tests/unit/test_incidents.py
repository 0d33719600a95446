"""What failed, as the status keeps it: no more than twenty, the newest first, each once."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.status import RecoveryStatus
from headrace_operator.incidents import KEPT, recovery
from headrace_operator.state import Pod, Termination

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def pod(name: str, *minutes: int, ready: bool = False) -> Pod:
    """One whose containers failed so many minutes ago, each."""
    ends = tuple(Termination(f"c{place}", "Error", 1, NOW - timedelta(minutes=m)) for place, m in enumerate(minutes))
    return Pod(name, "engine", "decode", "r1", ready=ready, terminations=ends)


def test_nothing_happened() -> None:
    assert recovery(None, [pod("a")], NOW) is None
    assert recovery(RecoveryStatus(), [pod("a")], NOW) == RecoveryStatus()


def test_what_the_pod_no_longer_remembers_the_status_does() -> None:
    first = recovery(None, [pod("a", 5)], NOW)
    later = recovery(first, [pod("b", 1)], NOW)
    assert later is not None
    assert [one.target for one in later.incidents] == ["b", "a"]


def test_a_pod_that_is_ready_again_is_so_once() -> None:
    first = recovery(None, [pod("a", 5)], NOW)
    again = recovery(first, [pod("a", 5, ready=True)], NOW)
    assert again is not None
    assert again.incidents[0].recovered_in == "300s"
    assert recovery(again, [pod("a", 5, ready=True)], NOW + timedelta(hours=1)) == again


failing = st.lists(
    st.builds(
        lambda name, minutes, ready: pod(name, *minutes, ready=ready),
        st.sampled_from([f"pod-{n}" for n in range(8)]),
        st.lists(st.integers(0, 60), max_size=4, unique=True),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)


@settings(deadline=None)
@given(st.lists(failing, max_size=5))
def test_it_is_bounded_sorted_and_looking_twice_changes_nothing(looks: list[list[Pod]]) -> None:
    told = None
    for pods in looks:
        told = recovery(told, pods, NOW)
        assert recovery(told, pods, NOW + timedelta(days=1)) == told
        if told is not None:
            assert len(told.incidents) <= KEPT
            times = [one.time for one in told.incidents]
            assert times == sorted(times, reverse=True)
