"""What an engine is told of adapters, and what it answers: vLLM's routes to load, unload and list them.

Which calls there are to make is a pure function of what is wanted and what is served. Called by `adapters.py`. Clients
never reach these routes, which load whatever path they are given: `gateway/request.py` lists what clients may.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from headrace_runtime.node.readiness import UNREACHABLE

MESSAGE_LENGTH = 200


@dataclass(frozen=True)
class Change:
    """One call to the engine."""

    name: str
    path: str | None
    """None: unload it."""


def changes(wanted: Mapping[str, str | None], served: Mapping[str, str]) -> list[Change]:
    """What makes an engine that has `served` (path by name) serve `wanted`. None: not there yet, and left as it is.

    A replaced adapter is unloaded first, and not loaded in its place: in vLLM requests under way would go on with the
    new weights upon KV blocks of the old.
    """
    found = [Change(name, None) for name in served if name not in wanted]
    for name, path in wanted.items():
        if path is not None and served.get(name) != path:
            found += [Change(name, None)] if name in served else []
            found.append(Change(name, path))
    return found


class Routes:
    """One engine's."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def served(self) -> dict[str, str] | None:
        """Path by name. None: the engine gives no answer."""
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=aiohttp.ClientTimeout(5)) as answer:
                cards = (await answer.json())["data"] if answer.status == 200 else None
            return None if cards is None else {card["id"]: card["root"] for card in cards if card.get("parent")}
        except (*UNREACHABLE, ValueError, KeyError, TypeError):
            return None

    async def apply(self, change: Change) -> str:
        """Returns what went wrong, empty if nothing did."""
        verb = "unload" if change.path is None else "load"
        body = {"lora_name": change.name} | ({} if change.path is None else {"lora_path": change.path})
        url, patience = f"{self._url}/v1/{verb}_lora_adapter", aiohttp.ClientTimeout(60)
        try:
            async with self._session.post(url, json=body, timeout=patience) as answer:
                return "" if answer.status == 200 else f"the engine refused it: {_said(await answer.read())}"
        except UNREACHABLE as error:
            return f"the engine gave no answer: {type(error).__name__}"


def _said(body: bytes) -> str:
    """The message in an error of the engine, short and on one line."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "it does not say why"
    return " ".join(str(message).split())[:MESSAGE_LENGTH]
