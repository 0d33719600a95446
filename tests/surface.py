"""What OpenAI's own client can ask of a deployment, as cases: the same through a gateway to the simulated engine and to
vLLM.

A case takes the client and the model's name, and asserts. What a simulated engine cannot do (grammars, tools chosen by
a model, seeds) is in `REAL_CASES`.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

TOKENS = 8
MESSAGES: Any = [{"role": "user", "content": "Say something about water."}]
GREEDY: Any = {"temperature": 0, "extra_body": {"ignore_eos": True}}
COLOURS: Any = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "green", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "paint", "description": "Paints the wall.", "parameters": COLOURS, "strict": True},
}

Case = Callable[[openai.AsyncOpenAI, str], Awaitable[None]]


async def chats_whole_and_streamed_say_the_same(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_completion_tokens": TOKENS, **GREEDY}
    whole = await client.chat.completions.create(**asked)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", TOKENS)
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **asked
        )
    ]
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


async def usage_comes_with_every_chunk_where_it_is_asked_for(client: openai.AsyncOpenAI, model: str) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.completions.create(
        model=model, prompt="water", max_tokens=TOKENS, stream=True, stream_options=options, **GREEDY
    )
    counts = [chunk.usage.completion_tokens for chunk in [one async for one in stream] if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == TOKENS
    assert len(counts) > 2


async def logprobs_are_there_for_every_token(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "prompt": "water", "max_tokens": TOKENS, "logprobs": 1, **GREEDY}
    text = await client.completions.create(**asked)
    assert text.choices[0].logprobs is not None
    assert text.choices[0].logprobs.tokens is not None
    assert len(text.choices[0].logprobs.tokens) == TOKENS
    streamed = [one async for one in await client.completions.create(stream=True, **asked)]
    parts = [choice.logprobs for one in streamed for choice in one.choices if choice.logprobs]
    assert [token for part in parts for token in part.tokens or []] == text.choices[0].logprobs.tokens
    chat = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_completion_tokens=TOKENS, logprobs=True, top_logprobs=1, **GREEDY
    )
    assert chat.choices[0].logprobs is not None
    assert len(chat.choices[0].logprobs.content or []) == TOKENS


async def several_answers_to_one_request(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": MESSAGES, "max_completion_tokens": TOKENS, "n": 3}
    asked["extra_body"] = {"ignore_eos": True}
    whole = await client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 3 * TOKENS
    chunks = [one async for one in await client.chat.completions.create(stream=True, **asked)]
    ends = {choice.index: choice.finish_reason for one in chunks for choice in one.choices if choice.finish_reason}
    assert ends == {0: "length", 1: "length", 2: "length"}


async def responses_whole_and_streamed(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "input": "Say something about water.", "max_output_tokens": TOKENS, "temperature": 0}
    whole = await client.responses.create(**asked)
    assert whole.output_text
    assert whole.usage is not None
    events = [event async for event in await client.responses.create(stream=True, **asked)]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    said = "".join(getattr(event, "delta", "") for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text


async def text_becomes_tokens_and_tokens_text(client: openai.AsyncOpenAI, model: str) -> None:
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    split: Any = await root.post("/tokenize", cast_to=object, body={"model": model, "prompt": "clear water"})
    tokens = split["tokens"]
    assert len(tokens) == split["count"] > 0
    joined: Any = await root.post("/detokenize", cast_to=object, body={"model": model, "tokens": tokens})
    assert isinstance(joined["prompt"], str)


async def models_are_listed_and_found(client: openai.AsyncOpenAI, model: str) -> None:
    assert [one.id async for one in client.models.list()] == [model]
    assert (await client.models.retrieve(model)).id == model
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("another")


async def refusals_are_the_clients_own_exceptions(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as unknown:
        await client.completions.create(model="another", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model=model, prompt=[1] * 5000, max_tokens=1)
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model=model, prompt=[1] * 5000, max_tokens=1, stream=True)
    with pytest.raises(openai.BadRequestError, match="kv_transfer_params"):
        await client.completions.create(
            model=model, prompt="x", extra_body={"kv_transfer_params": {"remote_host": "h"}}
        )


async def a_model_without_embeddings_says_so(client: openai.AsyncOpenAI, model: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.embeddings.create(model=model, input="water")
    assert 400 <= refused.value.status_code < 500


async def a_tool_that_must_be_called_is(client: openai.AsyncOpenAI, model: str) -> None:
    choice: Any = {"type": "function", "function": {"name": "paint"}}
    asked: Any = {"model": model, "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, "temperature": 0}
    whole = await client.chat.completions.create(max_completion_tokens=60, **asked)
    calls: Any = whole.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["paint"]
    assert json.loads(calls[0].function.arguments)
    chunks = [one async for one in await client.chat.completions.create(max_completion_tokens=60, stream=True, **asked)]
    parts = [call for one in chunks for each in one.choices for call in each.delta.tool_calls or [] if call.function]
    assert [part.function.name for part in parts if part.function and part.function.name] == ["paint"]
    streamed = "".join(part.function.arguments or "" for part in parts if part.function)
    assert json.loads(streamed) == json.loads(calls[0].function.arguments)


async def several_tools_at_once(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Paint one wall red, another wall green, and a third one blue."}],
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=True,
        temperature=0,
        max_completion_tokens=200,
    )
    calls: Any = whole.choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"paint"}
    assert all(json.loads(call.function.arguments) for call in calls)


async def output_follows_a_schema_and_a_pattern(client: openai.AsyncOpenAI, model: str) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "wall", "schema": COLOURS, "strict": True}}
    asked: Any = {"model": model, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 60}
    whole = await client.chat.completions.create(response_format=schema, **asked)
    assert json.loads(whole.choices[0].message.content or "")["colour"] in ("red", "green", "blue")
    stream = await client.chat.completions.create(response_format=schema, stream=True, **asked)
    said = "".join([choice.delta.content or "" async for one in stream for choice in one.choices])
    assert said == whole.choices[0].message.content
    pattern: Any = {"structured_outputs": {"regex": "[0-9]{4}"}}
    digits = await client.chat.completions.create(extra_body=pattern, **asked)
    assert (digits.choices[0].message.content or "").isdigit()


async def a_seed_makes_chance_repeatable(client: openai.AsyncOpenAI, model: str) -> None:
    asked: Any = {"model": model, "prompt": "water", "max_tokens": TOKENS, "temperature": 1.5}
    texts = [(await client.completions.create(seed=seed, **asked)).choices[0].text for seed in (7, 7, 8, 9, 10)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


async def echo_stop_and_several_prompts(client: openai.AsyncOpenAI, model: str) -> None:
    echoed = await client.completions.create(model=model, prompt="clear water", max_tokens=1, echo=True, temperature=0)
    assert echoed.choices[0].text.startswith("clear water")
    several = await client.completions.create(model=model, prompt=["water", "fire"], max_tokens=2, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    asked: Any = {"model": model, "prompt": "Count: 1 2 3 4", "max_tokens": 30, **GREEDY}
    long = await client.completions.create(**asked)
    word = long.choices[0].text.split()[1]
    stopped = await client.completions.create(
        model=model, prompt="Count: 1 2 3 4", max_tokens=30, stop=[word], **GREEDY
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert long.choices[0].text.startswith(stopped.choices[0].text)
    assert word not in stopped.choices[0].text


CASES: tuple[Case, ...] = (
    chats_whole_and_streamed_say_the_same,
    usage_comes_with_every_chunk_where_it_is_asked_for,
    logprobs_are_there_for_every_token,
    several_answers_to_one_request,
    responses_whole_and_streamed,
    text_becomes_tokens_and_tokens_text,
    models_are_listed_and_found,
    refusals_are_the_clients_own_exceptions,
    a_model_without_embeddings_says_so,
)
REAL_CASES: tuple[Case, ...] = (
    a_tool_that_must_be_called_is,
    several_tools_at_once,
    output_follows_a_schema_and_a_pattern,
    a_seed_makes_chance_repeatable,
    echo_stop_and_several_prompts,
)
