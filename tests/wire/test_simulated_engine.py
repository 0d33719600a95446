"""The simulated engine keeps to vLLM's shapes where the gateway depends on them: token ids, replay, and faults."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.engine.fake import FakeEngine, Script

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
CASES = [(TEXT, {"prompt": [5, 6, 7]}), (CHAT, {"messages": [{"role": "user", "content": "a b c"}]})]


async def events(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    asked = {"stream": True, "return_token_ids": True, "max_tokens": 6, **body}
    async with aiohttp.ClientSession() as client, client.post(url + path, json=asked) as response:
        lines = (await response.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def choices(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for document in documents for choice in document["choices"]]


def token_ids(documents: list[dict[str, Any]]) -> list[int]:
    return [token for choice in choices(documents) for token in choice.get("token_ids", [])]


def text(documents: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] if "text" in choice else choice["delta"]["content"] for choice in choices(documents))


@pytest.mark.parametrize(("path", "prompt"), CASES)
async def test_names_the_prompts_tokens_once_and_each_of_its_own(path: str, prompt: dict[str, Any]) -> None:
    async with FakeEngine(Script(burst=4)).serving() as url:
        got = await events(url, path, prompt)
    first = got[0] if path == CHAT else got[0]["choices"][0]
    assert first["prompt_token_ids"] == [0, 1, 2]
    assert sum(b"prompt_token_ids" in orjson.dumps(event) for event in got) == 1
    assert [choice["token_ids"] for choice in choices(got) if "token_ids" in choice] == [[0, 1, 2, 3], [4, 5]]
    assert text(got) == " t0 t1 t2 t3 t4 t5"


@pytest.mark.parametrize(("path", "prompt"), CASES)
async def test_sends_replayed_tokens_again_then_goes_on(path: str, prompt: dict[str, Any]) -> None:
    options = {"stream_options": {"include_usage": True}, "logprobs": 1 if path == TEXT else True}
    async with FakeEngine().serving() as url:
        whole = await events(url, path, prompt | options)
        again = await events(url, path, prompt | options | {"vllm_xargs": {REPLAY_FIELD: [0, 1, 2]}})
    assert token_ids(again) == token_ids(whole) == [0, 1, 2, 3, 4, 5]
    assert text(again) == text(whole)
    assert again[-1]["usage"] == whole[-1]["usage"]
    assert len(choices(again)) == len(choices(whole)) - 2, "the replayed tokens come in one event"


@pytest.mark.parametrize(("path", "prompt"), CASES)
async def test_sends_nothing_more_than_the_limit_however_much_is_replayed(path: str, prompt: dict[str, Any]) -> None:
    async with FakeEngine().serving() as url:
        got = await events(url, path, prompt | {"vllm_xargs": {REPLAY_FIELD: list(range(9))}})
    assert token_ids(got) == [0, 1, 2, 3, 4, 5]
    assert choices(got)[-1]["finish_reason"] == "length"


async def test_thinks_first_then_calls_a_tool_when_told_to() -> None:
    async with FakeEngine(Script(reasoning=2, calls_tool=True, burst=3)).serving() as url:
        deltas = [choice["delta"] for choice in choices(await events(url, *CASES[1]))]
    assert deltas[1] == {"reasoning": " t0 t1"}
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0].pop("id").startswith("chatcmpl-tool-")
    assert calls == [
        {"index": 0, "type": "function", "function": {"name": "f", "arguments": " t2"}},
        {"index": 0, "function": {"arguments": " t3 t4 t5"}},
    ]


async def test_answers_nothing_while_it_hangs_and_everything_after() -> None:
    engine = FakeEngine(Script(fault="hang"))
    async with engine.serving() as url, aiohttp.ClientSession() as client:
        asked = [asyncio.create_task(client.get(url + path)) for path in ("/health", "/metrics")]
        done, _ = await asyncio.wait(asked, timeout=0.3)
        assert not done
        engine.become(fault="none")
        async with asyncio.timeout(5):
            for response in await asyncio.gather(*asked):
                assert response.status == 200
                response.release()


async def test_serves_adapters_by_their_names_and_knows_no_others() -> None:
    async with FakeEngine().serving() as url, aiohttp.ClientSession() as client:

        async def post(path: str, **words: Any) -> tuple[int, dict[str, Any]]:
            async with client.post(url + path, json=words) as response:
                text = await response.text()
            return response.status, orjson.loads(text) if text.startswith("{") else {}

        async def listed() -> list[str]:
            async with client.get(url + "/v1/models") as response:
                return [card["id"] for card in (await response.json())["data"]]

        assert (await post(TEXT, model="legal", prompt="a"))[0] == 404
        assert (await post("/v1/load_lora_adapter", lora_name="legal", lora_path="~/legal"))[0] == 200
        assert (await post("/v1/load_lora_adapter", lora_name="legal", lora_path="~/other"))[0] == 400
        assert await listed() == ["fake", "legal"]
        assert (await post(TEXT, model="legal", prompt="a"))[1]["model"] == "legal"
        assert (await post("/v1/unload_lora_adapter", lora_name="legal"))[0] == 200
        assert (await post("/v1/unload_lora_adapter", lora_name="legal"))[0] == 404
        assert (await post(TEXT, model="legal", prompt="a"))[1]["error"]["param"] == "model"
        assert await listed() == ["fake"]
