"""The index of who holds which beginning of a prompt."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.gateway import prefix
from headrace_runtime.gateway.blocks import ROOT, Holdings, Stored, Tier, keys_of
from headrace_runtime.gateway.prefix import HOPE_SECONDS, PrefixIndex
from headrace_runtime.gateway.prompts import exact

BLOCK = 4
TIERS: tuple[Tier, ...] = ("device", "host", "disk")


def tokens(*blocks: int) -> list[int]:
    """Each block is its number, four times."""
    return [number for number in blocks for _ in range(BLOCK)]


def index(*engines: str) -> PrefixIndex:
    made = PrefixIndex()
    for engine in engines:
        made.join(engine)
        made.heard(engine, 0.0)
    return made


def names(*blocks: int) -> list[int]:
    """As vLLM's hashes are: of what a block holds and what comes before."""
    return [hash(blocks[: place + 1]) for place in range(len(blocks))]


def stored(*blocks: int, after: Sequence[int] = ()) -> Stored:
    parent = names(*after)[-1] if after else None
    return Stored(names(*after, *blocks)[len(after) :], parent, tokens(*blocks), BLOCK)


def path(*blocks: int) -> list[tuple[int, int]]:
    return list(exact(tokens(*blocks), BLOCK))


def test_knows_nothing_of_a_prompt_that_no_engine_holds() -> None:
    assert index("a").held(path(1, 2), 0.0).device == {}
    assert index("a").held([], 0.0).device == {}


def test_counts_the_tokens_that_each_engine_holds_from_the_beginning() -> None:
    made = index("a", "b", "c")
    made.store("a", stored(1, 2, 3))
    made.store("b", stored(1, 2))
    made.store("c", stored(2, 3))
    assert made.held(path(1, 2, 3, 4), 0.0).device == {"a": 12, "b": 8}


def test_a_block_stored_later_follows_on_its_parent() -> None:
    made = index("a")
    made.store("a", stored(1, 2))
    made.store("a", stored(3, after=(1, 2)))
    assert made.held(path(1, 2, 3), 0.0).device == {"a": 12}


def test_blocks_after_an_unknown_parent_are_left_out_and_removing_them_changes_nothing() -> None:
    made = index("a")
    made.store("a", stored(3, after=(1, 2)))
    made.remove("a", stored(3, after=(1, 2)).names)
    assert len(made) == 0


def test_a_removed_block_ends_what_an_engine_holds() -> None:
    made = index("a", "b")
    for engine in ("a", "b"):
        made.store(engine, stored(1, 2, 3))
    made.remove("a", stored(1, 2, 3).names[1:])
    assert made.held(path(1, 2, 3), 0.0).device == {"a": 4, "b": 12}


def test_finds_where_each_of_many_engines_ends_in_a_long_prompt() -> None:
    engines = [f"e{number}" for number in range(100)]
    made = index(*engines)
    blocks = list(range(200))
    for number, engine in enumerate(engines):
        made.store(engine, stored(*blocks[: 2 * number]))
    expected = {engine: 2.0 * number * BLOCK for number, engine in enumerate(engines) if number}
    assert made.held(path(*blocks), 0.0).device == expected


def test_a_cleared_engine_holds_nothing_and_others_keep_what_they_have() -> None:
    made = index("a", "b")
    for engine in ("a", "b"):
        made.store(engine, stored(1, 2))
    made.clear("a")
    assert made.held(path(1, 2), 0.0).device == {"b": 8}


def test_an_engine_that_leaves_gives_its_number_to_one_that_holds_nothing() -> None:
    made = index("a", "b")
    made.store("a", stored(1, 2))
    made.hope("a", path(5), 0.0, exact=True)
    made.leave("a")
    made.join("c")
    made.heard("c", 0.0)
    assert made.held(path(1, 2), 0.0).device == {}
    assert made.held(path(5), 0.0).device == {}
    assert len(made) == 0


def test_tells_what_lies_on_the_device_in_host_memory_and_on_disk() -> None:
    made = index("a", "b", "c")
    for engine in ("a", "b", "c"):
        made.store(engine, stored(1, 2, 3, 4))
        made.remove(engine, names(1, 2, 3, 4)[{"a": 1, "b": 3, "c": 0}[engine] :])
    made.refer("a", names(1, 2), "host")
    made.refer("a", names(1, 2, 3, 4), "disk")
    made.refer("c", names(1, 2, 3)[1:], "disk")
    assert made.held(path(1, 2, 3, 4, 5), 0.0) == Holdings({"a": 4, "b": 12}, {"a": 4}, {"a": 8})


def test_a_block_that_leaves_the_device_is_still_known_on_the_host() -> None:
    made = index("a")
    made.store("a", stored(1, 2))
    made.refer("a", names(1, 2), "host")
    made.remove("a", names(1, 2))
    assert made.held(path(1, 2), 0.0) == Holdings({}, {"a": 8})
    made.remove("a", names(1, 2), "host")
    assert made.held(path(1, 2), 0.0) == Holdings()


def test_an_emptied_engine_still_has_its_disk() -> None:
    made = index("a", "b")
    for engine in ("a", "b"):
        made.store(engine, stored(1, 2))
        made.refer(engine, names(1, 2), "host")
        made.refer(engine, names(1), "disk")
    made.empty("a")
    assert made.held(path(1, 2), 0.0) == Holdings({"b": 8}, disk={"a": 4})


# Names


def test_what_a_restarted_engine_finds_on_its_disk_is_known_by_name() -> None:
    made = index("a")
    made.store("a", stored(1, 2, 3))
    made.lost("a")
    made.heard("a", 1.0)
    assert made.held(path(1, 2, 3), 1.0) == Holdings()
    made.refer("a", names(1, 2), "disk")
    assert made.held(path(1, 2, 3), 1.0) == Holdings(disk={"a": 8})


def test_a_name_that_another_engine_told_the_meaning_of_is_known() -> None:
    made = index("a", "b")
    made.store("a", stored(1, 2))
    made.refer("b", names(1, 2), "disk")
    made.leave("a")
    assert made.held(path(1, 2), 0.0) == Holdings(disk={"b": 8})


def test_a_block_whose_name_nobody_knows_counts_once_its_meaning_is_told() -> None:
    made = index("a", "b")
    made.refer("a", names(1, 2, 3), "disk")
    made.refer("a", names(1), "host")
    made.remove("a", names(1, 2, 3)[2:], "disk")
    assert made.held(path(1, 2, 3), 0.0) == Holdings()
    made.store("b", stored(1, 2, 3))
    assert made.held(path(1, 2, 3), 0.0) == Holdings({"b": 12}, {"a": 4}, {"a": 4})


def test_a_cleared_engine_has_no_blocks_without_a_meaning_either() -> None:
    made = index("a", "b")
    made.refer("a", names(1, 2), "disk")
    made.clear("a")
    made.store("b", stored(1, 2))
    assert made.held(path(1, 2), 0.0) == Holdings({"b": 8})


def test_the_last_block_of_a_chunk_stands_for_all_of_it() -> None:
    """As where an engine finds chunks on its disk after a restart: it knows the hash of the last block alone."""
    made = index("a")
    made.store("a", stored(1, 2, 3, 4))
    for chunk in (names(1, 2), names(1, 2, 3, 4)[2:]):
        made.chunk(chunk)
    made.lost("a")
    made.heard("a", 1.0)
    made.refer("a", [names(1, 2)[-1], names(1, 2, 3, 4)[-1]], "disk")
    assert made.held(path(1, 2, 3, 4), 1.0) == Holdings(disk={"a": 16})
    made.remove("a", [names(1, 2, 3, 4)[-1]], "disk")
    assert made.held(path(1, 2, 3, 4), 1.0) == Holdings(disk={"a": 8})
    made.remove("a", names(1, 2), "disk")
    assert made.held(path(1, 2, 3, 4), 1.0) == Holdings()


def test_a_name_means_what_it_meant_first() -> None:
    made = index("a", "b")
    made.store("a", Stored([7], None, tokens(1), BLOCK))
    made.store("b", Stored([7], None, tokens(2), BLOCK))
    assert made.held(path(1), 0.0) == Holdings({"a": 4})
    assert made.held(path(2), 0.0) == Holdings()
    made.remove("b", [7])
    made.remove("a", [7])
    assert made.held(path(1), 0.0) == Holdings()


def test_names_that_nobody_holds_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "NAMES", 4)
    made = index("a")
    made.store("a", stored(1))
    made.remove("a", names(1))
    for number in range(10, 15):
        made.store("a", stored(number))
        made.remove("a", names(number))
    made.refer("a", [*names(1), *names(14)], "disk")
    assert made.held(path(1), 0.0) == Holdings()
    assert made.held(path(14), 0.0) == Holdings(disk={"a": 4})


def test_what_tells_blocks_of_equal_tokens_apart_keeps_them_apart() -> None:
    made = index("a")
    made.store("a", Stored([7], None, tokens(1), BLOCK, extra=[("adapter",)]))
    assert made.held(path(1), 0.0).device == {}


# Hopes


def test_a_prompt_just_sent_is_hoped_to_be_held_until_its_time_is_over() -> None:
    made = index("a", "b")
    made.hope("a", path(1, 2), 0.0, exact=True)
    assert made.held(path(1, 2, 3), HOPE_SECONDS / 2).device == {"a": 8}
    assert made.held(path(1, 2, 3), HOPE_SECONDS).device == {}


def test_events_make_a_hope_true() -> None:
    made = index("a")
    made.hope("a", path(1, 2), 0.0, exact=True)
    made.store("a", stored(1, 2))
    made.heard("a", 1.0)
    assert made.held(path(1, 2), 2 * HOPE_SECONDS).device == {"a": 8}


def test_an_engine_that_says_nothing_of_what_it_was_sent_is_late_until_it_speaks() -> None:
    made = index("a", "b")
    made.store("a", stored(1))
    made.hope("a", path(1, 2), 1.0, exact=True)
    assert made.held(path(1), 1.0 + HOPE_SECONDS).device == {}
    assert not made.timely("a")
    made.heard("a", 20.0)
    assert made.held(path(1), 20.0).device == {"a": 4}


def test_a_prompt_that_was_cached_already_makes_nobody_late() -> None:
    made = index("a")
    made.store("a", stored(1, 2))
    made.hope("a", path(1, 2), 1.0, exact=True)
    made.held([], 1.0 + HOPE_SECONDS)
    assert made.timely("a")


def test_text_that_no_event_can_confirm_makes_nobody_late() -> None:
    made = index("a")
    made.hope("a", path(1, 2), 1.0, exact=False)
    made.held([], 1.0 + HOPE_SECONDS)
    assert made.timely("a")


def test_hopes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "HOPED_BLOCKS", 2)
    made = index("a")
    made.hope("a", path(1, 2), 0.0, exact=True)
    made.hope("a", path(3), 0.0, exact=True)
    assert made.held(path(3), 0.0).device == {}


def test_nothing_is_hoped_of_a_late_engine() -> None:
    made = PrefixIndex()
    made.join("a")
    made.hope("a", path(1), 0.0, exact=True)
    made.hope("unknown", path(1), 0.0, exact=True)
    made.heard("a", 0.0)
    assert made.held(path(1), 0.0).device == {}


def test_lost_events_leave_an_engine_with_nothing() -> None:
    made = index("a")
    made.store("a", stored(1))
    made.lost("a")
    assert made.held(path(1), 0.0).device == {}
    made.heard("a", 1.0)
    assert made.held(path(1), 1.0).device == {}


def test_remembers_no_more_blocks_of_an_engine_than_it_may() -> None:
    made = PrefixIndex(blocks_per_engine=2)
    made.join("a")
    made.heard("a", 0.0)
    made.store("a", stored(1, 2, 3))
    assert made.held(path(1, 2, 3), 0.0).device == {"a": 8}
    made.remove("a", [stored(1, 2, 3).names[1]])
    made.store("a", stored(5, after=(1,)))
    assert made.held(path(1, 5), 0.0).device == {"a": 8}


def test_keys_of_a_longer_prompt_begin_with_those_of_its_beginning() -> None:
    assert keys_of(tokens(1, 2), BLOCK) == keys_of(tokens(1, 2, 3), BLOCK)[:2]
    assert keys_of(tokens(2), BLOCK, parent=keys_of(tokens(1), BLOCK)[0]) == keys_of(tokens(1, 2), BLOCK)[1:]
    assert keys_of([1, 2], BLOCK, ROOT) == []


# Against the plain way: every engine a set of what it holds


changes = st.lists(
    st.tuples(
        st.sampled_from(["store", "host", "disk", "remove", "remove", "clear", "leave"]),
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
        st.sampled_from(["device", "host", "disk"]),
    ),
    max_size=30,
)
Beginning = tuple[int, ...]


class Plain:
    """What engines hold as sets of beginnings by engine and tier, and which of these mean anything."""

    def __init__(self) -> None:
        self.holds: dict[tuple[str, str], set[Beginning]] = {(e, t): set() for e in "abc" for t in TIERS}
        self.meant: set[Beginning] = set()

    def depth(self, engine: str, asked: list[int], tiers: int) -> int:
        held = set[Beginning]().union(*(self.holds[engine, tier] for tier in TIERS[:tiers])) & self.meant
        depth = 0
        while depth < len(asked) and tuple(asked[: depth + 1]) in held:
            depth += 1
        return depth * BLOCK


@settings(deadline=None)
@given(changes, st.lists(st.integers(0, 2), max_size=5))
def test_says_what_a_set_per_engine_and_tier_would_say(
    made: list[tuple[str, str, list[int], Tier]], asked: list[int]
) -> None:
    found, plain = index("a", "b", "c"), Plain()
    for what, engine, blocks, tier in made:
        beginnings = {tuple(blocks[: size + 1]) for size in range(len(blocks))}
        if what == "store":
            found.store(engine, stored(*blocks))
            plain.holds[engine, "device"] |= beginnings
            plain.meant |= beginnings
        elif what in ("host", "disk"):
            found.refer(engine, names(*blocks), "host" if what == "host" else "disk")
            plain.holds[engine, what] |= beginnings
        elif what == "remove":  # as engines do it: nothing stays that what goes was the beginning of
            gone = {one for one in plain.holds[engine, tier] if one[: len(blocks)] == tuple(blocks)}
            found.remove(engine, [hash(one) for one in gone], tier)
            plain.holds[engine, tier] -= gone
        else:
            found.clear(engine) if what == "clear" else found.leave(engine)
            found.join(engine)
            found.heard(engine, 0.0)
            plain.holds |= {(engine, tier): set() for tier in TIERS}
    held = found.held(path(*asked), 0.0)
    for engine in "abc":
        near, middle, far = (plain.depth(engine, asked, tiers) for tiers in (1, 2, 3))
        said = tuple(of.get(engine, 0) for of in (held.device, held.host, held.disk))
        assert said == (near, middle - near, far - middle)
    for engine in "abc":
        found.leave(engine)
    assert len(found) == 0
    assert not found._names
