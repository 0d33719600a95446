"""The side of a request while a revision is tried on a share of the traffic, and the engines of that side."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import CanaryShare, Endpoint
from headrace_runtime.gateway.routing import Engine, Need, rank
from headrace_runtime.gateway.share import Side, engines_of, side

NEW, OLD = Side("r2", new=True), Side("r2", new=False)


def engine(name: str, revision: str, healthy: bool = True) -> Engine:
    """The role is the name's first word."""
    role = name.partition("-")[0]
    return Engine(Endpoint(name=name, url=f"http://{name}", role=role, revision=revision), healthy)


def names(engines: list[Engine], of: Side, *tried: str) -> set[str]:
    return {engine.name for engine in engines_of(of, engines, frozenset(tried))}


def test_without_a_canary_there_are_no_sides() -> None:
    assert side(None, 7) is None


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(0, 10**6), st.integers(1, 400))
def test_any_run_of_requests_has_its_share_to_within_a_few(percent: int, start: int, length: int) -> None:
    share = CanaryShare(revision="r2", percent=percent)
    found = sum(made.new for number in range(start, start + length) if (made := side(share, number)) is not None)
    # The discrepancy of the golden sequence grows with the logarithm of its length, below 3 here.
    assert abs(found - length * percent / 100) <= 3


@pytest.mark.parametrize("period", [2, 3, 5, 10])
def test_no_pattern_of_a_client_falls_in_step_with_it(period: int) -> None:
    share = CanaryShare(revision="r2", percent=50)
    sides = [made.new for number in range(0, 1000 * period, period) if (made := side(share, number)) is not None]
    assert 0.45 < sum(sides) / len(sides) < 0.55


def test_each_side_has_its_own_engines() -> None:
    engines = [engine("serve-0", "r1"), engine("serve-1", "r2")]
    assert names(engines, NEW) == {"serve-1"}
    assert names(engines, OLD) == {"serve-0"}


def test_a_new_revision_with_no_ready_pair_gives_its_share_to_the_old_one() -> None:
    old = [engine("prefill-0", "r1"), engine("decode-0", "r1")]
    for new in ([], [engine("decode-1", "r2")], [engine("prefill-1", "r2")]):
        assert names([*old, *new], NEW) == {"prefill-0", "decode-0"}
    half = [*old, engine("prefill-1", "r2"), engine("decode-1", "r2", healthy=False)]
    assert names(half, NEW) == {"prefill-0", "decode-0"}


def test_a_request_that_the_new_revision_failed_goes_to_the_old_one() -> None:
    engines = [engine("serve-0", "r1"), engine("serve-1", "r2")]
    assert names(engines, NEW, "serve-1") == {"serve-0"}


def test_the_old_revision_keeps_its_share_without_its_prefill_engines_and_gives_it_up_without_writers() -> None:
    new = [engine("prefill-1", "r2"), engine("decode-1", "r2")]
    assert names([*new, engine("decode-0", "r1")], OLD) == {"decode-0"}
    assert "decode-1" in names([*new, engine("prefill-0", "r1")], OLD)
    assert names(new, OLD) == {"prefill-1", "decode-1"}


def test_pairs_are_of_one_revision_on_either_side() -> None:
    engines = [engine(f"{role}-{n}", f"r{n}") for role in ("prefill", "decode") for n in (1, 2)]
    for of, revision in ((NEW, "r2"), (OLD, "r1")):
        for choice in rank(Need(split=True), [*engines_of(of, engines, frozenset())]):
            assert choice.prefill is not None
            assert choice.prefill.revision == choice.decode.revision == revision
