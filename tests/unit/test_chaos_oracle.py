"""The oracles of the chaos suite, over made-up journals: each finds what it is there for, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.doctor import SPOILS
from chaos.journal import Entry, Strike, Truth
from chaos.oracle import fate, judge, repeats
from chaos.scenario import Expectation

TRUTH = Truth(" t0 t1 t2 t3 t4 t5 t6 t7", (0, 1, 2, 3, 4, 5, 6, 7), first_seconds=0.5)
STRICT = Expectation(detect_seconds=2.0, recover_seconds=3.0, whole_seconds=10.0)
AT = 20.0
STRIKE = Strike(AT, "e1", detected=AT + 1.0, whole=AT + 5.0)


def entry(number: int = 0, **changes: object) -> Entry:
    """A request that is due every second, gets its answer half a second later, and is done after two seconds."""
    due = float(number)
    plain = Entry(
        id=f"run-{number}",
        question=0,
        scheduled=due,
        end=due + 2.0,
        status=200,
        engine=f"e{number % 2}",
        first=due + 0.5,
        text=TRUTH.text,
        token_ids=TRUTH.token_ids,
        finishes=1,
        ends=1,
        silences=((due, due + 0.5),),
    )
    return replace(plain, **changes)  # type: ignore[arg-type] # names and types are Entry's own


def journal(**odd: object) -> list[Entry]:
    """Forty quiet requests; the one that is open when the strike comes may be another."""
    return [entry(number, **(odd if number == 19 else {})) for number in range(40)]


def test_finds_nothing_where_nothing_is_wrong() -> None:
    verdict = judge(journal(), [TRUTH], [STRIKE], patience=1.0)
    assert STRICT.broken_by(verdict) == {}
    assert (verdict.requests, verdict.struck, verdict.recover, verdict.statuses) == (40, 1, (0.0,), {})


def test_needs_no_strike() -> None:
    verdict = judge(journal(), [TRUTH], [], patience=1.0)
    assert (verdict.struck, verdict.detect, verdict.recover, verdict.whole) == (0, (), (), ())


@pytest.mark.parametrize(
    ("change", "is_then"),
    [
        pytest.param({}, "answered", id="as it should be"),
        pytest.param({"token_ids": None}, "answered", id="no ids asked for"),
        pytest.param({"status": 503}, "lost", id="refused"),
        pytest.param({"status": 0, "error": "ServerDisconnectedError"}, "lost", id="no answer"),
        pytest.param({"error": "engine_lost"}, "lost", id="an error event at its end"),
        pytest.param({"ends": 0}, "lost", id="no last line"),
        pytest.param({"finishes": 0}, "lost", id="no finish reason"),
        pytest.param({"ends": 2}, "duplicated", id="two last lines"),
        pytest.param({"finishes": 2}, "duplicated", id="two finish reasons"),
        pytest.param({"text": TRUTH.text[:12] + TRUTH.text[9:]}, "duplicated", id="a word given again"),
        pytest.param({"text": TRUTH.text + TRUTH.text}, "duplicated", id="the answer given again"),
        pytest.param({"token_ids": (0, 1, 2, 2, 3, 4, 5, 6, 7)}, "duplicated", id="an id given again"),
        pytest.param({"text": TRUTH.text[:9] + TRUTH.text[12:]}, "mismatched", id="a word left out"),
        pytest.param({"text": TRUTH.text.replace("t5", "tX")}, "mismatched", id="another word"),
        pytest.param({"token_ids": (0, 1, 2, 3, 4, 5, 6)}, "mismatched", id="an id left out"),
        pytest.param({"text": ""}, "mismatched", id="complete and empty"),
    ],
)
def test_says_what_became_of_a_request(change: dict[str, object], is_then: str) -> None:
    assert fate(entry(**change), TRUTH) == is_then


@given(st.text("ab", min_size=1, max_size=12), st.data())
@settings(deadline=None)
def test_a_part_given_again_is_found_wherever_it_is(true: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(1, len(true)))
    again = data.draw(st.integers(0, end - 1))
    assert repeats(true[:end] + true[again:], true)


@given(st.text("ab", max_size=12), st.text("ab", max_size=12))
@settings(deadline=None)
def test_what_is_no_longer_repeats_nothing(given_text: str, true: str) -> None:
    if len(given_text) <= len(true):
        assert not repeats(given_text, true)


def test_a_loss_is_cut_only_where_the_answer_had_begun_at_the_strike() -> None:
    cut = judge(journal(ends=0), [TRUTH], [STRIKE], patience=1.0)
    never_begun = judge(journal(status=503, first=None), [TRUTH], [STRIKE], patience=1.0)
    assert (cut.lost, cut.cut) == (1, 1)
    assert (never_begun.lost, never_begun.cut, never_begun.statuses) == (1, 0, {503: 1})
    begun_may_be_lost = STRICT.model_copy(update={"lost": "begun"})
    assert "lost" not in begun_may_be_lost.broken_by(cut)
    assert "lost" in begun_may_be_lost.broken_by(never_begun)


def test_goodput_is_back_when_the_last_client_that_waited_goes_on() -> None:
    waited = journal(end=AT + 4.0, silences=((19.0, 19.5), (AT, AT + 3.5)))
    (seconds,) = judge(waited, [TRUTH], [STRIKE], patience=1.0).recover
    assert seconds == pytest.approx(3.5, abs=0.1)


def test_a_wait_within_patience_costs_no_goodput() -> None:
    waited = journal(end=AT + 2.0, silences=((19.0, 19.5), (AT, AT + 0.9)))
    assert judge(waited, [TRUTH], [STRIKE], patience=1.0).recover == (0.0,)


def test_the_time_that_a_first_token_always_takes_is_nobodys_wait() -> None:
    slow = Truth(TRUTH.text, TRUTH.token_ids, first_seconds=30.0)
    waited = [
        entry(number, first=number + 30.5, end=number + 31.0, silences=((number, number + 30.5),))
        for number in range(40)
    ]
    assert judge(waited, [slow], [STRIKE], patience=1.0).recover == (0.0,)
    assert judge(waited, [TRUTH], [STRIKE], patience=1.0).longest_silence == pytest.approx(30.0)


def test_each_strike_has_its_own_recovery() -> None:
    second = replace(STRIKE, at=30.0, detected=30.5, whole=31.0)
    waited = journal(end=AT + 4.0, silences=((19.0, 19.5), (AT, AT + 2.0)))
    first, later = judge(waited, [TRUTH], [STRIKE, second], patience=1.0).recover
    assert first == pytest.approx(2.0, abs=0.1)
    assert later == 0.0


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.name)
def test_a_spoiled_journal_is_found_by_the_oracle_for_it(spoil: object) -> None:
    entries, strikes = spoil.spoil((journal(), [STRIKE]))  # type: ignore[attr-defined]
    broken = STRICT.broken_by(judge(entries, [TRUTH], strikes, patience=1.0))
    assert spoil.oracle in broken  # type: ignore[attr-defined]
