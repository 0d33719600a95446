"""Which engine serves a request."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Endpoint, RoleName
from headrace_runtime.gateway.explain import explain
from headrace_runtime.gateway.routing import Choice, Engine, Need, Policy, Prompt, rank
from headrace_runtime.gateway.sources import Rates


def engine(name: str, role: RoleName = "decode", revision: str = "a", load: int = 0, **fields: object) -> Engine:
    healthy = bool(fields.pop("healthy", True))
    endpoint = Endpoint.model_validate({"name": name, "url": "http://e", "role": role, "revision": revision, **fields})
    return Engine(endpoint, healthy, load)


def names(choices: tuple[Choice, ...]) -> list[tuple[str, str | None]]:
    return [(choice.decode.name, choice.prefill.name if choice.prefill else None) for choice in choices]


SPLIT = Need(split=True)

engines_strategy = st.lists(
    st.builds(
        engine,
        name=st.sampled_from([f"e{index}" for index in range(12)]),
        role=st.sampled_from(["serve", "prefill", "decode"]),
        revision=st.sampled_from(["a", "b"]),
        kv_layout=st.sampled_from(["x", "y"]),
        load=st.integers(0, 3),
        draining=st.booleans(),
        ready=st.booleans(),
        healthy=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda engine: engine.endpoint.name,
)
needs_strategy = st.builds(
    Need,
    split=st.booleans(),
    canary=st.sampled_from([None, "a", "b"]),
    tried=st.frozensets(st.sampled_from([f"e{index}" for index in range(12)]), max_size=3),
    avoid=st.frozensets(st.sampled_from([f"e{index}" for index in range(12)]), max_size=3),
    prompt=st.none()
    | st.builds(
        Prompt,
        tokens=st.integers(0, 500),
        held=st.dictionaries(st.sampled_from([f"e{index}" for index in range(12)]), st.floats(0, 500)),
        disk=st.dictionaries(st.sampled_from([f"e{index}" for index in range(12)]), st.floats(0, 500)),
        waiting=st.dictionaries(st.sampled_from([f"e{index}" for index in range(12)]), st.floats(0, 500)),
        short=st.integers(0, 100),
    ),
)
policies = st.sampled_from(["PrefixAware", "LeastLoaded", "RoundRobin"])


def test_no_engine_gives_no_choice() -> None:
    assert rank(Need(), []) == ()


@settings(deadline=None)
@given(needs_strategy, engines_strategy, policies, st.integers(0, 100))
def test_chooses_only_engines_that_can_take_a_request(
    need: Need, engines: list[Engine], policy: Policy, turn: int
) -> None:
    state = {one.endpoint.name: one for one in engines}
    for choice in rank(need, engines, policy, turn):
        for endpoint in filter(None, (choice.decode, choice.prefill)):
            assert state[endpoint.name].healthy
            assert endpoint.ready
            assert not endpoint.draining
            assert need.canary in (None, endpoint.revision)


@settings(deadline=None)
@given(needs_strategy, engines_strategy, policies, st.integers(0, 100))
def test_pairs_only_engines_that_can_read_each_others_blocks(
    need: Need, engines: list[Engine], policy: Policy, turn: int
) -> None:
    for choice in rank(need, engines, policy, turn):
        if choice.prefill is not None:
            assert need.split
            assert (choice.prefill.role, choice.decode.role) == ("prefill", "decode")
            assert choice.prefill.revision == choice.decode.revision
            assert choice.prefill.kv_layout == choice.decode.kv_layout


@settings(deadline=None)
@given(needs_strategy, engines_strategy, policies, st.integers(0, 100))
def test_never_asks_an_engine_twice_unless_it_is_the_only_one(
    need: Need, engines: list[Engine], policy: Policy, turn: int
) -> None:
    choices = rank(need, engines, policy, turn)
    again = [choice for choice in choices if choice.decode.name in need.tried]
    assert not again or len(choices) == 1
    assert all(choice.prefill is None or choice.prefill.name not in need.tried for choice in choices)


@settings(deadline=None)
@given(needs_strategy, engines_strategy, policies, st.integers(0, 100))
def test_finds_a_choice_wherever_an_untried_engine_is_usable(
    need: Need, engines: list[Engine], policy: Policy, turn: int
) -> None:
    usable = [
        one
        for one in engines
        if one.healthy
        and one.endpoint.ready
        and not one.endpoint.draining
        and need.canary in (None, one.endpoint.revision)
    ]
    untried = [one for one in usable if one.endpoint.name not in need.tried]
    assert bool(rank(need, engines, policy, turn)) == bool(untried or len(usable) == 1)


@settings(deadline=None)
@given(needs_strategy, engines_strategy, policies, st.integers(0, 100))
def test_the_order_of_discovery_does_not_matter(need: Need, engines: list[Engine], policy: Policy, turn: int) -> None:
    assert rank(need, engines, policy, turn) == rank(need, engines[::-1], policy, turn)


def test_a_short_prompt_goes_straight_to_decode() -> None:
    assert names(rank(Need(split=False), [engine("d"), engine("p", "prefill")])) == [("d", None)]


def test_a_long_prompt_takes_the_least_loaded_pair() -> None:
    engines = [
        engine("d1", load=2),
        engine("d2", load=1),
        engine("p1", "prefill", load=4),
        engine("p2", "prefill", load=3),
    ]
    assert names(rank(SPLIT, engines)) == [("d2", "p2"), ("d1", "p2")]


def test_a_prefill_engine_writes_tokens_when_decode_is_missing() -> None:
    assert names(rank(SPLIT, [engine("p", "prefill"), engine("d", healthy=False)])) == [("p", None)]


def test_a_rollout_keeps_long_prompts_on_the_revision_with_both_roles() -> None:
    engines = [engine("new-d", revision="b"), engine("old-d", load=5), engine("old-p", "prefill", load=5)]
    assert names(rank(SPLIT, engines)) == [("old-d", "old-p"), ("new-d", None)]


def test_a_canary_stays_on_its_revision() -> None:
    engines = [
        engine("old-d"),
        engine("old-p", "prefill"),
        engine("new-d", revision="b"),
        engine("new-p", "prefill", "b"),
    ]
    assert names(rank(Need(split=True, canary="b"), engines)) == [("new-d", "new-p")]
    assert rank(Need(canary="c"), engines) == ()


def test_aggregated_engines_are_never_split() -> None:
    assert names(rank(SPLIT, [engine("s", "serve"), engine("p", "prefill")])) == [("s", None)]


def test_an_engine_to_avoid_comes_last_but_stays_a_choice() -> None:
    need = Need(avoid=frozenset({"d1"}))
    assert names(rank(need, [engine("d1"), engine("d2", load=9)])) == [("d2", None), ("d1", None)]
    assert names(rank(need, [engine("d1")])) == [("d1", None)]


def test_round_robin_takes_every_engine_in_turn() -> None:
    engines = [engine("d1", load=9), engine("d2"), engine("p1", "prefill"), engine("p2", "prefill")]
    taken = [names(rank(SPLIT, engines, "RoundRobin", turn))[0] for turn in range(4)]
    assert taken == [("d1", "p1"), ("d2", "p2"), ("d1", "p1"), ("d2", "p2")]


def test_equally_loaded_engines_take_turns() -> None:
    engines = [engine("d1"), engine("d2"), engine("d3")]
    assert {names(rank(Need(), engines, turn=turn))[0] for turn in range(3)} == {
        ("d1", None),
        ("d2", None),
        ("d3", None),
    }


# PrefixAware


def prompt(tokens: int = 1000, **fields: object) -> Prompt:
    return Prompt(tokens, **fields)  # type: ignore[arg-type]


def aware(
    given_prompt: Prompt, engines: list[Engine], split: bool = False, turn: int = 0
) -> list[tuple[str, str | None]]:
    return names(rank(Need(split=split, prompt=given_prompt), engines, "PrefixAware", turn))


def test_the_engine_that_holds_the_prompt_comes_first() -> None:
    assert aware(prompt(held={"b": 800}), [engine("a"), engine("b")])[0][0] == "b"


def test_a_long_queue_outweighs_what_is_held() -> None:
    engines = [engine("a"), engine("b")]
    assert aware(prompt(held={"b": 800}, waiting={"b": 700}), engines)[0][0] == "b"
    assert aware(prompt(held={"b": 800}, waiting={"b": 900}), engines)[0][0] == "a"


def test_answers_under_way_weigh_a_little() -> None:
    engines = [engine("a"), engine("b")]
    assert aware(prompt(writing={"a": 1000}), engines)[0][0] == "b"
    assert aware(prompt(writing={"a": 1000}, held={"a": 100}), engines)[0][0] == "a"


def test_an_engine_that_computed_much_lately_gives_way_where_it_holds_little() -> None:
    engines = [engine("a"), engine("b")]
    assert aware(prompt(held={"a": 100}, fresh={"a": 5_000}), engines)[0][0] == "a"
    assert aware(prompt(held={"a": 100}, fresh={"a": 20_000}), engines)[0][0] == "b"
    assert aware(prompt(held={"a": 900}, fresh={"a": 20_000}), engines)[0][0] == "a"


def test_an_engine_that_was_just_started_is_not_given_everything() -> None:
    engines = [engine("new"), engine("old")]
    worked = {"old": 5_000_000.0, "new": 10_000.0}
    assert aware(prompt(fresh=worked), engines)[0][0] == "new"
    assert aware(prompt(fresh=worked, writing={"new": 30_000.0, "old": 5_000.0}), engines)[0][0] == "old"


def test_equals_take_turns_whatever_the_policy() -> None:
    engines = [engine("a"), engine("b"), engine("c")]
    assert [aware(prompt(), engines, turn=turn)[0][0] for turn in range(4)] == ["a", "b", "c", "a"]


def test_prefix_aware_without_a_prompt_is_least_loaded() -> None:
    assert rank(Need(), [engine("a", load=2), engine("b")], "PrefixAware")[0].decode.name == "b"


def test_the_prefill_engine_is_chosen_by_what_it_holds() -> None:
    engines = [engine("p", "prefill"), engine("q", "prefill"), engine("d")]
    assert aware(prompt(held={"q": 600}), engines, split=True) == [("d", "q")]


def test_a_decode_engine_that_holds_nearly_all_needs_no_prefill_engine() -> None:
    engines = [engine("p", "prefill"), engine("d"), engine("e")]
    assert aware(prompt(held={"d": 950}, short=64), engines, split=True) == [("d", None), ("e", "p")]
    assert aware(prompt(held={"d": 950}, waiting={"d": 5000}, short=64), engines, split=True)[0] == ("e", "p")


def test_a_decode_engine_that_lacks_most_of_a_prompt_never_computes_it_alone() -> None:
    engines = [engine("p", "prefill"), engine("d")]
    for held in (0, 499):
        waiting = {"p": 1e6}
        assert aware(prompt(held={"d": held}, waiting=waiting), engines, split=True) == [("d", "p")]
    assert aware(prompt(held={"d": 501}, waiting={"p": 1e6}), engines, split=True) == [("d", None)]


def test_what_decode_would_compute_holds_up_the_answers_it_is_writing() -> None:
    idle, busy = ([engine("p", "prefill"), engine("d", load=load)] for load in (0, 40))
    asked = prompt(held={"d": 800}, short=64)
    assert aware(asked, idle, split=True) == [("d", None)]
    assert aware(asked, busy, split=True) == [("d", "p")]


def test_a_canary_is_split_whatever_decode_holds() -> None:
    engines = [engine("p", "prefill"), engine("d")]
    need = Need(split=True, canary="a", prompt=prompt(held={"d": 1000}))
    assert names(rank(need, engines, "PrefixAware")) == [("d", "p")]


def test_a_prompt_on_the_decode_engines_disk_is_loaded_there_or_computed_by_prefill_as_the_queues_are() -> None:
    engines = [engine("p", "prefill"), engine("d")]
    on_disk: dict[str, object] = {"disk": {"d": 1000}, "short": 64}
    assert aware(prompt(**on_disk), engines, split=True) == [("d", None)]
    assert aware(prompt(**on_disk, waiting={"p": 5000}), engines, split=True) == [("d", None)]
    slow = {"d": Rates(disk=1.5)}
    assert aware(prompt(**on_disk, rates=slow), engines, split=True) == [("d", "p")]
    assert aware(prompt(**on_disk, rates=slow, waiting={"p": 5000}), engines, split=True) == [("d", None)]


def test_how_much_prefill_engines_computed_lately_says_which_to_take_and_not_whether() -> None:
    engines = [engine("p", "prefill"), engine("q", "prefill"), engine("d")]
    slow: dict[str, object] = {"disk": {"d": 1000}, "short": 64, "rates": {"d": Rates(disk=1.5)}}
    assert aware(prompt(**slow, fresh={"p": 2e6, "q": 1e6}), engines, split=True) == [("d", "q")]


def test_a_prefill_engine_that_has_it_nearer_is_better_than_a_slow_disk() -> None:
    engines = [engine("p", "prefill"), engine("d")]
    asked = prompt(disk={"d": 1000, "p": 1000}, held={"p": 0}, rates={"d": Rates(disk=0.5), "p": Rates(disk=0.02)})
    assert aware(asked, engines, split=True) == [("d", "p")]
    assert aware(prompt(disk={"d": 1000, "p": 1000}, short=64), engines, split=True) == [("d", None)]


def test_of_two_that_hold_it_the_one_with_it_on_its_device_comes_first() -> None:
    engines = [engine("a"), engine("b"), engine("c")]
    assert aware(prompt(held={"c": 900}, host={"b": 900}, disk={"a": 900}), engines)[0][0] == "c"
    assert aware(prompt(host={"b": 900}, disk={"a": 900}), engines)[0][0] == "b"
    assert aware(prompt(disk={"a": 900}), engines)[0][0] == "a"
    assert aware(prompt(disk={"a": 900}, rates={"a": Rates(disk=2.0)}), engines)[0][0] == "b"


def test_a_complete_pair_comes_before_an_engine_without_a_partner_whatever_it_costs() -> None:
    engines = [engine("p", "prefill", "a"), engine("d", revision="a"), engine("e", revision="b")]
    assert aware(prompt(held={"e": 400}, waiting={"d": 9000, "p": 9000}), engines, split=True)[0] == ("d", "p")


def test_explains_a_choice_in_names_and_numbers() -> None:
    engines = [engine("a", load=1), engine("b"), engine("p", "prefill")]
    need = Need(split=True, prompt=prompt(held={"a": 400.0}, waiting={"b": 70.0}))
    said = explain(need, engines, rank(need, engines, "PrefixAware"), "PrefixAware")
    assert said == (
        "PrefixAware chose a (holds 400 of 1000 prompt tokens; 0 tokens wait there, 0 are in answers) among 2, "
        "prefill on p (holds 0 of 1000 prompt tokens; 0 tokens wait there, 0 are in answers), "
        "prefill and transfer for 1000 + 60 tokens of work, 600 if a were alone, "
        "next best b (holds 0 of 1000 prompt tokens; 70 tokens wait there, 0 are in answers)"
    )
    assert said.isascii()


def test_explains_what_comes_from_which_tier() -> None:
    engines = [engine("d"), engine("p", "prefill")]
    need = Need(split=True, prompt=prompt(held={"d": 200}, host={"d": 300.0}, disk={"d": 500.0}))
    said = explain(need, engines, rank(need, engines, "PrefixAware"), "PrefixAware")
    assert said == (
        "PrefixAware chose d (holds 1000 of 1000 prompt tokens, 300 on its host, 500 on its disk; "
        "0 tokens wait there, 0 are in answers) among 1, from its own tiers for 310 tokens of work"
    )


def test_explains_least_loaded_by_requests_and_the_lack_of_engines() -> None:
    engines = [engine("a", load=1)]
    said = explain(Need(), engines, rank(Need(), engines), "LeastLoaded")
    assert said == "LeastLoaded chose a (1 requests in flight) among 1"
    assert explain(Need(), engines, (), "LeastLoaded") == "LeastLoaded: none of 1 engines may serve this request"
