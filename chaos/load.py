"""The load: requests at even intervals, whether or not earlier ones have ended (open loop), each on a connection of its
own.

A program of its own, started by `client.py`, in the cluster's network where the world is one: `python -m chaos.load`.
Reads one line of JSON (`Plan`) from standard input and sends until that is closed; writes a line of JSON for each
answer that begins (`{"first": …}`) and for each request that has ended (`{"entry": …}`). Whoever asks without a retry
sees every failure; `retries` are those of OpenAI's own clients: connections that broke before an answer began, and
answers that ask to come again.
"""

import asyncio
import dataclasses
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.journal import SILENCE_SECONDS, Entry, Silence
from chaos.questions import Question

RETRY_SECONDS = (0.5, 1.0)
"""Before the first and the second retry, as OpenAI's clients wait."""
RETRIED = frozenset({0, 408, 409, 429, 500, 502, 503, 504})
AT_A_TIME = 4
REQUEST_SECONDS = 90.0
"""After that a client gives up."""


@dataclass(frozen=True)
class Plan:
    url: str
    questions: list[Question]
    rate: float
    """Requests per second. 0: each question once, a few at a time, then end."""
    retries: int = 0
    run: str = ""
    """Begin of every request's id."""

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def of_line(cls, line: str) -> "Plan":
        found = json.loads(line)
        return cls(**{**found, "questions": [Question(**one) for one in found["questions"]]})


@dataclass
class Attempt:
    """One request while it is under way."""

    id: str
    question: int
    scheduled: float
    last: float
    status: int = 0
    engine: str = ""
    first: float | None = None
    texts: list[str] = field(default_factory=list)
    ids: list[int] | None = None
    finishes: int = 0
    ends: int = 0
    error: str = ""
    tries: int = 0
    silences: list[Silence] = field(default_factory=list)

    def sign(self, now: float) -> None:
        """A piece of the answer came."""
        if self.first is None:
            self.first = now
            say({"first": {"id": self.id, "engine": self.engine, "at": now}})
        self._silence(now)

    def _silence(self, now: float) -> None:
        if now - self.last > SILENCE_SECONDS:
            self.silences.append((self.last, now))
        self.last = now

    def take(self, document: dict[str, Any]) -> None:
        """One event of the stream, or a whole answer."""
        if "error" in document:
            self.error = str(document["error"].get("code") or document["error"].get("message"))
        for choice in document.get("choices", []):
            said = choice.get("delta") or choice.get("message") or choice
            text = said.get("text") or said.get("content") or ""
            if text or choice.get("token_ids"):
                self.sign(time.monotonic())
            self.texts.append(text)
            if self.ids is not None:
                self.ids += choice.get("token_ids") or []
            self.finishes += choice.get("finish_reason") is not None

    def entry(self) -> Entry:
        end = time.monotonic()
        incomplete = self.status != 200 or self.error or not (self.finishes and self.ends)
        if incomplete and not self.error:
            self.error = "the stream ended before its last line" if self.status == 200 else f"status {self.status}"
        if incomplete:
            self.silences.append((self.last, end))
        else:
            self._silence(end)
        return Entry(
            id=self.id,
            question=self.question,
            scheduled=self.scheduled,
            end=end,
            status=self.status,
            engine=self.engine,
            first=self.first,
            text="".join(self.texts),
            token_ids=None if self.ids is None else tuple(self.ids),
            finishes=self.finishes,
            ends=self.ends,
            error=self.error,
            tries=self.tries,
            silences=tuple(self.silences),
        )


async def ask(client: aiohttp.ClientSession, plan: Plan, attempt: Attempt) -> Entry:
    """One request with its retries, to its end; never raises for what a server does."""
    question = plan.questions[attempt.question]
    for delay in (*RETRY_SECONDS[: plan.retries], None):
        attempt.tries += 1
        attempt.status, attempt.error, attempt.ends = 0, "", 0
        attempt.ids = [] if question.body.get("return_token_ids") else None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await _once(client, plan.url, question, attempt)
        except TimeoutError:
            attempt.error = f"no end within {REQUEST_SECONDS:.0f} s"
        except (aiohttp.ClientError, ValueError) as error:  # broken off, or no JSON
            attempt.error = type(error).__name__
        again = attempt.status in RETRIED  # an answer that has begun says 200
        if not again or delay is None:
            break
        await asyncio.sleep(delay)
    return attempt.entry()


async def _once(client: aiohttp.ClientSession, url: str, question: Question, attempt: Attempt) -> None:
    headers = {"x-request-id": attempt.id}
    async with client.post(url + question.path, json=question.body, headers=headers) as response:
        attempt.status = response.status
        attempt.engine = response.headers.get("x-headrace-decode", "")
        if response.content_type != "text/event-stream":
            document = json.loads(await response.read())
            attempt.take(document)
            attempt.ends += 1
            return
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                attempt.ends += 1
            elif line.startswith(b"data: "):
                attempt.take(json.loads(line[6:]))


def say(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def send(plan: Plan, ended: asyncio.Event) -> None:
    """Until `ended` is set; then waits for the answers under way."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as client:
        if not plan.rate:
            await _each_once(client, plan)
            return
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count():
                due = began + number / plan.rate
                try:
                    async with asyncio.timeout(max(0.0, due - time.monotonic())):
                        await ended.wait()
                    return
                except TimeoutError:
                    tasks.create_task(_record(client, plan, number, due))


async def _each_once(client: aiohttp.ClientSession, plan: Plan) -> None:
    free = asyncio.Semaphore(AT_A_TIME)

    async def one(number: int) -> None:
        async with free:
            await _record(client, plan, number, time.monotonic())

    await asyncio.gather(*map(one, range(len(plan.questions))))


async def _record(client: aiohttp.ClientSession, plan: Plan, number: int, due: float) -> None:
    attempt = Attempt(f"{plan.run}-{number}", number % len(plan.questions), due, last=due)
    entry = await ask(client, plan, attempt)
    say({"entry": dataclasses.asdict(entry)})


async def main() -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    plan = Plan.of_line(await loop.run_in_executor(None, sys.stdin.readline))
    watching = loop.run_in_executor(None, sys.stdin.read)
    watching.add_done_callback(lambda _: ended.set())
    await send(plan, ended)


if __name__ == "__main__":
    asyncio.run(main())
