"""`Runtime` over HTTP: the agents' state, the gateways' figures and the canary. Called by observe and reconcile; a
failure is an answer.

Neither asks Ray anything: state is read from agents, since a call to Ray can block for as long as its head is away.
"""

import logging
from http import HTTPStatus
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
from pydantic import BaseModel, ValidationError

from headrace_operator.state import Canary, CanaryAnswer
from headrace_runtime.contract import AGENT_PORT, GATEWAY_ADMIN_PORT, GatewayFigures, NodeState

logger = logging.getLogger(__name__)

Told = TypeVar("Told", bound=BaseModel)

STATE_SECONDS = 1.5
FIGURES_SECONDS = 2.0
REQUEST_SECONDS = 30.0
"""That a gateway is waited for until it has had a request."""
CANARY_SECONDS = 30.0


class HttpRuntime:
    """One connection pool for all agents and gateways. Use as an async context manager, or call `close`."""

    def __init__(self, *, agent_port: int = AGENT_PORT, gateway_port: int = GATEWAY_ADMIN_PORT) -> None:
        self._agent_port = agent_port
        self._gateway_port = gateway_port
        # A pod's address is soon another pod's: connections are not kept.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64, force_close=True))
        # One for each gateway of each deployment that sleeps, which keep nobody else waiting.
        self._waiting = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
        await self._waiting.close()

    async def node_state(self, address: str) -> NodeState | None:
        return await self._told(NodeState, f"http://{_host(address)}:{self._agent_port}/state", STATE_SECONDS)

    async def figures(self, address: str) -> GatewayFigures | None:
        return await self._told(
            GatewayFigures, f"http://{_host(address)}:{self._gateway_port}/figures", FIGURES_SECONDS
        )

    async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
        if seen is None:
            return await self.figures(address)
        requests = seen.demand.requests if seen.demand is not None else 0
        query = urlencode({"start": seen.start, "requests": requests, "wait": REQUEST_SECONDS})
        url = f"http://{_host(address)}:{self._gateway_port}/figures?{query}"
        return await self._told(GatewayFigures, url, REQUEST_SECONDS + FIGURES_SECONDS, self._waiting)

    async def _told(
        self, what: type[Told], url: str, seconds: float, session: aiohttp.ClientSession | None = None
    ) -> Told | None:
        """What is answered to a GET. None: no usable answer in time."""
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with (session or self._session).get(url, timeout=timeout) as response:
                if response.status != HTTPStatus.OK:
                    return None
                return what.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None

    async def stay(self, address: str) -> None:
        timeout = aiohttp.ClientTimeout(total=STATE_SECONDS)
        try:
            async with self._session.post(
                f"http://{_host(address)}:{self._agent_port}/stay", timeout=timeout
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    logger.info("the agent at %s cannot be asked to stay: %d", address, answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.info("the agent at %s was not asked to stay: %s", address, type(error).__name__)

    async def canary(self, address: str, question: Canary) -> CanaryAnswer:
        try:
            async with self._session.post(
                f"http://{_host(address)}:{self._gateway_port}/canary",
                json={"revision": question.revision, "words": question.words},
                timeout=aiohttp.ClientTimeout(total=CANARY_SECONDS),
            ) as response:
                if response.status != HTTPStatus.OK:
                    return CanaryAnswer(failure=f"the gateway answered {response.status}{await _why(response)}")
                # The whole answer counts: headers come before the first token.
                await response.read()
                return _judge(question, response.headers)
        except TimeoutError:
            return CanaryAnswer(failure=f"no answer from the gateway within {CANARY_SECONDS:.0f} s")
        except (aiohttp.ClientError, OSError) as error:
            return CanaryAnswer(failure=f"the gateway was not reached ({type(error).__name__})")


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _judge(question: Canary, headers: Any) -> CanaryAnswer:
    revision = headers.get("x-headrace-revision", "")
    decode, prefill = headers.get("x-headrace-decode", ""), headers.get("x-headrace-prefill", "")
    if revision != question.revision:
        return CanaryAnswer(
            decode, prefill, f"revision {revision or 'unknown'} answered instead of {question.revision}"
        )
    if question.split and not prefill:
        return CanaryAnswer(decode, prefill, f"{decode or 'an engine'} answered without any prefill engine")
    return CanaryAnswer(decode, prefill)


async def _why(response: aiohttp.ClientResponse) -> str:
    """The message of an OpenAI-shaped error body, if there is one."""
    try:
        answer = await response.json(content_type=None)
        return f": {str(answer['error']['message'])[:200]}"
    except (ValueError, KeyError, TypeError, aiohttp.ClientError):
        return ""
