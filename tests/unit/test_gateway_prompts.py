"""A prompt as a path: exact for token ids, learnt for text."""

from typing import Any

import pytest

from headrace_runtime.gateway.blocks import Stored, keys_of
from headrace_runtime.gateway.prefix import PrefixIndex
from headrace_runtime.gateway.prompts import PIECE_BYTES, Apart, Prompts, exact, ids_named_in, pieces, token_ids

BLOCK = 16


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    messages = [
        {"role": roles[min(place, 1 + (place + 1) % 2)], "content": text} for place, text in enumerate(contents)
    ]
    return {"messages": messages, **fields}


def ids(document: dict[str, Any]) -> list[int]:
    """A tokenizer: one token for four bytes of the canonical text."""
    text = "".join(str(sorted(message.items())) for message in document["messages"]).encode()
    return [int.from_bytes(text[start : start + 4], "little") for start in range(0, len(text), 4)]


def keys(document: dict[str, Any]) -> set[int]:
    return set(keys_of(ids(document), BLOCK))


SYSTEM, QUESTION = "You are a helpful assistant. " * 60, "Why is the sky blue, and since when? " * 20


def test_an_empty_prompt_has_an_empty_path() -> None:
    assert Prompts().path({"messages": []}, BLOCK) == ([], False)
    assert Prompts().path({}, BLOCK)[1] is False


def test_token_ids_are_cut_into_blocks_exactly() -> None:
    numbers = list(range(40))
    path, is_exact = Prompts().path({"prompt": numbers}, BLOCK)
    assert is_exact
    assert [tokens for _, tokens in path] == [16, 32]
    assert path == exact(numbers, BLOCK) == Prompts().path({"prompt": [numbers]}, BLOCK)[0]


@pytest.mark.parametrize("prompt", ["text", [], [True], [1, "2"], [[1], [2]], None])
def test_only_a_list_of_ids_is_taken_for_token_ids(prompt: object) -> None:
    assert token_ids({"prompt": prompt}) is None


@pytest.mark.parametrize(
    ("apart", "extra"),
    [
        (Apart(), None),
        (Apart(salt="mine"), [["mine"], None, None]),
        (Apart(adapter="poet"), [["poet"], ["poet"], ["poet"]]),
        (Apart("poet", "mine"), [["poet", "mine"], ["poet"], ["poet"]]),
    ],
)
def test_a_path_with_salt_and_adapter_is_that_of_the_blocks_that_engines_tell_of(
    apart: Apart, extra: list[object] | None
) -> None:
    """In vLLM's events the adapter's name stands with each block, and the salt behind it with the first."""
    index, ids = PrefixIndex(), list(range(48))
    index.join("a")
    index.heard("a", 0.0)
    index.store("a", Stored([1, 2, 3], None, ids, BLOCK, extra or ()))
    for asked in (Apart(), Apart(salt="mine"), Apart("poet"), Apart("poet", "mine")):
        path, is_exact = Prompts().path({"prompt": ids}, BLOCK, asked)
        assert is_exact
        assert index.held(path, 0.0).device == ({"a": 48} if asked == apart else {})


def test_text_learnt_under_one_salt_is_not_known_under_another() -> None:
    prompts, document, mine = Prompts(), chat(SYSTEM), Apart(salt="mine")
    prompts.learn(document, ids(document), BLOCK, mine)
    assert prompts.knows(document, mine)
    assert not prompts.knows(document)
    salted = {key for key, _ in exact(ids(document), BLOCK, mine)}
    assert {key for key, _ in prompts.path(document, BLOCK, mine)[0]} <= salted
    assert not {key for key, _ in prompts.path(document, BLOCK)[0]} & salted


def test_ids_that_no_token_has_give_no_path() -> None:
    assert Prompts().path({"prompt": [-1] * BLOCK}, BLOCK) == ((), False)
    assert Prompts().path({"prompt": [2**40] * BLOCK}, BLOCK) == ((), False)


def test_nothing_is_said_before_an_engine_told_the_size_of_its_blocks() -> None:
    assert Prompts().path({"prompt": [1] * 64}, 0) == ((), False)


def test_a_conversation_that_goes_on_begins_with_the_pieces_it_had() -> None:
    first = pieces(chat(SYSTEM, QUESTION))
    assert pieces(chat(SYSTEM, QUESTION, "Because.", "And the sea?"))[: len(first)] == first
    assert len(first) >= (len(SYSTEM) + len(QUESTION)) // PIECE_BYTES


@pytest.mark.parametrize(("fields", "apart"), [({"tools": [1]}, Apart()), ({}, Apart("", "mine")), ({}, Apart("poet"))])
def test_what_the_prompt_is_made_of_beside_its_messages_keeps_it_apart(fields: dict[str, Any], apart: Apart) -> None:
    assert not set(pieces(chat(SYSTEM))) & set(pieces(chat(SYSTEM, **fields), apart))


def test_text_that_nobody_learnt_stands_for_itself() -> None:
    document = chat(SYSTEM)
    path, is_exact = Prompts().path(document, BLOCK)
    assert not is_exact
    assert [key for key, _ in path] == [key for key, _ in pieces(document)]
    assert [tokens for _, tokens in path] == [size // 4 for _, size in pieces(document)]


def test_learnt_text_leads_to_the_blocks_of_its_tokens() -> None:
    prompts, document = Prompts(), chat(SYSTEM, QUESTION)
    prompts.learn(document, ids(document), BLOCK)
    path, _ = prompts.path(document, BLOCK)
    assert {key for key, _ in path} <= keys(document)
    assert path[-1] == exact(ids(document), BLOCK)[-1]
    assert [tokens for _, tokens in path] == sorted(tokens for _, tokens in path)


def test_another_prompt_with_the_same_beginning_leads_to_the_same_blocks_as_far_as_it_goes() -> None:
    prompts, learnt, other = Prompts(), chat(SYSTEM, QUESTION), chat(SYSTEM, "Something else. " * 40)
    prompts.learn(learnt, ids(learnt), BLOCK)
    path, _ = prompts.path(other, BLOCK)
    known = [tokens for key, tokens in path if key in keys(learnt)]
    shared = len(keys(learnt) & keys(other)) * BLOCK
    assert shared * 0.75 <= known[-1] <= shared + 2 * PIECE_BYTES // 4


def test_a_place_that_two_prompts_disagree_on_is_moved_back_to_where_they_agree() -> None:
    prompts, first, second = Prompts(), chat("x" * 600, "a" * 4000), chat("x" * 600, "b" * 10)
    # The tokenizer is not the one of the estimate: the first message has far fewer tokens than its bytes suggest.
    prompts.learn(first, [1, 2, 3, *range(1000, 1200)], BLOCK)
    prompts.learn(second, [1, 2, 3, *range(2000, 2100)], BLOCK)
    path, _ = prompts.path(chat("x" * 600), BLOCK)
    assert all(tokens <= 2 * BLOCK for _, tokens in path)
    prompts.learn(chat("x" * 600), [1, 2, 3], BLOCK)
    assert prompts.path(chat("x" * 600), BLOCK)[0] == []


def test_there_is_nothing_to_learn_of_a_prompt_that_was_learnt_or_is_exact() -> None:
    prompts, document = Prompts(), chat(SYSTEM, QUESTION)
    assert not prompts.knows(document)
    prompts.learn(document, ids(document), BLOCK)
    assert prompts.knows(document)
    assert not prompts.knows(chat(SYSTEM, QUESTION, "Because."))
    assert prompts.knows({"prompt": [1, 2]})
    assert prompts.knows({"messages": []})


def test_token_ids_need_not_be_learnt() -> None:
    prompts = Prompts()
    prompts.learn({"prompt": [1] * 64}, [1] * 64, BLOCK)
    assert len(prompts) == 0


def test_forgets_what_was_not_met_for_longest() -> None:
    prompts = Prompts(limit=20)
    kept = chat("kept " * 100)
    prompts.learn(kept, ids(kept), BLOCK)
    for number in range(50):
        document = chat(f"{number} " * 200)
        prompts.learn(document, ids(document), BLOCK)
        prompts.path(kept, BLOCK)
        assert len(prompts) <= 20
    assert {key for key, _ in prompts.path(kept, BLOCK)[0]} <= keys(kept)
    gone = chat("0 " * 200)
    assert not {key for key, _ in prompts.path(gone, BLOCK)[0]} & keys(gone)


@pytest.mark.parametrize(
    "document", [{"messages": "no list"}, {"messages": ["no message"]}, {"prompt": {"a": 1}}, {"prompt": ["a", 1]}, {}]
)
def test_documents_that_hold_no_prompt_have_some_path(document: dict[str, Any]) -> None:
    prompts = Prompts()
    assert not prompts.path(document, BLOCK)[1]
    prompts.learn(document, list(range(64)), BLOCK)


def test_reads_the_ids_of_a_prompt_from_an_answer_that_names_them() -> None:
    said = b'data: {"choices":[{"text":"\\"prompt_token_ids\\":[9]","prompt_token_ids":[1,2,3]}]}'
    assert ids_named_in(said) == [1, 2, 3]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b'{"a":1}',
        b'"prompt_token_ids":null',
        b'"prompt_token_ids":[1,',
        b'"prompt_token_ids":[1,x]',
        b'"prompt_token_ids":["a"]',
    ],
)
def test_an_answer_without_ids_names_none(answer: bytes) -> None:
    assert ids_named_in(answer) == ()
