"""What becomes of an own policy's answer: it has what it wants as far as that is allowed, and nonsense is refused."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.conditions import Reason
from headrace_operator.plan.scaling import Aim, Answer, Ask, Changed, Decision, Model, Role, Window, decide
from headrace_operator.plan.scaling.bounds import room
from headrace_operator.plan.scaling.own import NonsenseError, fenced, instead, taken

WINDOW = Window(0.0, 30.0, requests=60.0)
ROLES = (Role("prefill", 2, 1, 4), Role("decode", 2, 1, 4))
ASK = Ask(Aim(), ROLES, (WINDOW,))

asks = st.builds(
    Ask,
    st.builds(Aim, cap=st.none() | st.integers(1, 40), spare=st.integers(0, 4), role_change=st.booleans()),
    st.tuples(
        *(
            st.builds(Role, st.just(name), st.integers(1, 9), st.just(1), st.integers(9, 12), st.integers(1, 4))
            for name in ("prefill", "decode")
        )
    ),
    st.sampled_from([(), (WINDOW,), (replace(WINDOW, age=500.0),), (replace(WINDOW, requests=None),)]),
    st.lists(st.builds(Changed, st.floats(0, 300), st.just("decode"), st.just(1), st.just(2), st.booleans())).map(
        tuple
    ),
)
wishes = st.dictionaries(st.sampled_from(["prefill", "decode"]), st.integers(0, 10**30))


def wanting(**sizes: Any) -> Answer:
    return Answer(sizes, "Sized", "So.")


def test_an_answer_that_asks_for_nothing_changes_nothing() -> None:
    answer = taken("my:policy", ASK, wanting())
    assert (answer.sizes, answer.decisions) == ({"prefill": 2, "decode": 2}, ())
    assert (answer.policy, answer.message, answer.inputs) == ("my:policy", "my:policy: So.", {"policy": "my:policy"})


@given(asks, wishes)
@settings(deadline=None)
def test_whatever_it_wants_bounds_and_the_cap_hold_and_missing_figures_make_nothing_smaller(
    ask: Ask, wants: dict[str, int]
) -> None:
    answer = taken("my:policy", ask, wanting(**wants))
    before = sum(role.size * role.accelerators for role in ask.roles)
    used = sum(answer.sizes[role.name] * role.accelerators for role in ask.roles)
    least = sum(role.least * role.accelerators for role in ask.roles)
    assert all(role.least <= answer.sizes[role.name] <= role.most for role in ask.roles)
    assert ask.aim.cap is None or used <= max(least, room(ask.roles, ask.aim))
    if ask.windows != (WINDOW,) and (ask.aim.cap is None or before <= room(ask.roles, ask.aim)):
        assert all(answer.sizes[role.name] >= role.size for role in ask.roles)
    assert {one.role: one.after for one in answer.decisions} == {
        role.name: answer.sizes[role.name] for role in ask.roles if answer.sizes[role.name] != role.size
    }


@given(asks)
@settings(deadline=None)
def test_where_it_answered_lately_its_failing_makes_no_role_smaller(ask: Ask) -> None:
    fits = ask.aim.cap is None or sum(r.size * r.accelerators for r in ask.roles) <= room(ask.roles, ask.aim)
    answer = instead("my:policy", ask, "failed", lately=True)
    assert not fits or all(answer.sizes[role.name] >= role.size for role in ask.roles)
    assert (answer.verdict, answer.policy) == (Reason.POLICY_FAILED, "builtin")


def test_engines_change_their_role_no_sooner_than_the_spec_says() -> None:
    swapping = replace(ASK, aim=Aim(role_change=True, role_change_pause=60.0))
    moved = taken("my:policy", swapping, wanting(prefill=3, decode=1))
    assert (moved.sizes, [one.swap for one in moved.decisions]) == ({"prefill": 3, "decode": 1}, [True, True])
    lately = replace(swapping, changes=(Changed(10.0, "decode", 1, 2, swap=True),))
    assert taken("my:policy", lately, wanting(prefill=3, decode=1)).sizes == {"prefill": 3, "decode": 2}


def test_its_reasons_are_kept_and_what_it_did_not_get_is_said() -> None:
    why = Decision("prefill", 99, 99, "Night\n falls.", swap=True)
    answer = taken("my:policy", ASK, replace(wanting(prefill=9), decisions=(why,)))
    assert answer.decisions == (Decision("prefill", 2, 4, "Night falls. It wanted 9."),)


def test_a_policy_that_fits_no_model_leaves_what_was_learnt() -> None:
    learnt = replace(ASK, model=Model(pace=0.1, fitted=True))
    assert taken("my:policy", learnt, wanting()).model == learnt.model
    mine = Model(pace=0.2, fitted=True)
    assert taken("my:policy", learnt, replace(wanting(), model=mine)).model == mine
    absurd = replace(mine, startup=-1.0)
    assert taken("my:policy", learnt, replace(wanting(), model=absurd)).model == learnt.model


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (wanting(prefil=3), "there are: prefill, decode"),
        (wanting(prefill=-1), "the size of prefill is negative"),
        (replace(wanting(), verdict="Whatever"), "the verdict is none of CapTooSmall, FiguresMissing"),
    ],
)
def test_nonsense_is_refused_and_says_why(answer: Answer, said: str) -> None:
    with pytest.raises(NonsenseError, match=said):
        taken("my:policy", ASK, answer)


def test_ours_behind_the_fence_is_still_ours() -> None:
    ask = replace(ASK, windows=tuple(replace(WINDOW, age=30.0 * place) for place in range(20)))
    assert fenced("builtin", decide)(ask).sizes == decide(ask).sizes
