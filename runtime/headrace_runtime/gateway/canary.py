"""The operator's question, on the admin port: does a whole request still work? `POST /canary`, `{"revision", "words"}`.

The gateway asks itself, through its public port and all that lies behind it, with a key that only this process knows.
So the operator needs no key, nor the right to read one, and the question is never refused for a limit. Whoever reaches
the admin port can have no more than this: one token after a row of equal words, one question at a time.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
import orjson
from aiohttp import web
from pydantic import Field, ValidationError

from headrace_runtime.contract import Frozen
from headrace_runtime.gateway.flow import CANARY_HEADER
from headrace_runtime.gateway.request import CHAT

ANSWER_SECONDS = 30.0
MOST_WORDS = 4096


class Question(Frozen):
    revision: str = Field(min_length=1, max_length=128)
    """Of the engines that shall answer."""
    words: int = Field(default=1, ge=1, le=MOST_WORDS)
    """Length of the prompt."""


class Canary:
    """`answer` is the handler of `/canary`. `url`: the public port, which is not known before the server listens."""

    def __init__(self, model: str, key: str, url: Callable[[], str]) -> None:
        self._model = model
        self._key = key
        self._url = url
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.Response:
        """The answer as the public port gave it: status, body, and the `x-headrace-` headers."""
        try:
            question = Question.model_validate_json(await request.read())
        except ValidationError as error:
            return _failure(HTTPStatus.BAD_REQUEST, f"not a question: {error.error_count()} fields are wrong")
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._one_at_a_time:
                return await self._ask(question)
        except TimeoutError:
            return _failure(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {ANSWER_SECONDS:.0f} s")
        except aiohttp.ClientError as error:
            return _failure(HTTPStatus.BAD_GATEWAY, f"the public port was not reached ({type(error).__name__})")

    async def _ask(self, question: Question) -> web.Response:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": " ".join(["hello"] * question.words)}],
            "max_tokens": 1,
            "temperature": 0,
        }
        headers = {"authorization": f"Bearer {self._key}", CANARY_HEADER: question.revision}
        async with (
            aiohttp.ClientSession() as client,
            client.post(self._url() + CHAT, json=body, headers=headers) as answer,
        ):
            said = {name: value for name, value in answer.headers.items() if name.lower().startswith("x-headrace-")}
            return web.Response(
                status=answer.status, body=await answer.read(), headers=said, content_type="application/json"
            )


def _failure(status: HTTPStatus, message: str) -> web.Response:
    body = orjson.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": "canary"}})
    return web.Response(status=status, body=body, content_type="application/json")
