"""Which requests go to the engines now, which wait, and which are refused: the state machine behind `admission.py`.

Pure: no clock, no I/O; the same calls give the same answers. A request comes (`arrive`), leaves the line or is done
(`leave`), and time passes (`tick`, no later than `due` says). After each call `changed` gives the tickets that went
from waiting to running or refused.

A key's rates are its holder's own affair: above them a request is refused at once. Everything else is a matter of the
order in which the deployment's capacity is given out: requests wait while all together, or those of their key, are at
their limit. The queue is bounded in length, bytes and time. When it overflows, the key that fills most of it in the
lowest class gives way, so that nobody can fill it for others.

While there is no engine at all, all wait for one where the deployment holds them (`Hold`): in the same line, by other
bounds. What was let in when the last engine left, and has no answer yet, comes back into it (`again`).
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from headrace_runtime.contract import Admission, Hold, KeyRule, Priority
from headrace_runtime.gateway.line import Line
from headrace_runtime.gateway.rates import Bucket, resized

Cause = Literal[
    "key_requests",
    "key_tokens",
    "key_concurrency",
    "too_many_tokens",
    "queue_full",
    "queue_wait",
    "hold_full",
    "hold_wait",
    "leaving",
]

NO_KEY: Final = ""
"""The holder of all requests where no keys are asked for."""
_RANK: Final[dict[Priority, int]] = {"High": 0, "Normal": 1, "Low": 2}
_LEARNING = 0.1
"""Weight of the newest request in the mean time of one."""
LONGEST_WAIT = 600.0
"""The longest time until another try that is ever told, in seconds: an estimate beyond it means nothing."""


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`limit`: what would have been passed. `seconds`: when another try may succeed; None where none ever will."""

    cause: Cause
    limit: int
    seconds: float | None


class Holder:
    """What is known of one key's holder."""

    __slots__ = ("name", "requests", "rule", "running", "tokens", "waiting")

    def __init__(self, name: str, rule: KeyRule, now: float) -> None:
        self.name = name
        self.rule = rule
        self.running = self.waiting = 0
        self.requests = resized(None, rule.limits.requests_per_minute, now)
        self.tokens = resized(None, rule.limits.tokens_per_minute, now)

    @property
    def at_its_limit(self) -> bool:
        limit = self.rule.limits.max_concurrent
        return limit is not None and self.running >= limit

    def change(self, rule: KeyRule, now: float) -> None:
        self.rule = rule
        self.requests = resized(self.requests, rule.limits.requests_per_minute, now)
        self.tokens = resized(self.tokens, rule.limits.tokens_per_minute, now)


class Ticket:
    """One request. `tokens` is what its budget was charged with; `since`: when it began to wait for what it waits for
    now, a turn or an engine."""

    __slots__ = ("arrived", "began", "owner", "rank", "refusal", "since", "size", "state", "tokens")

    def __init__(self, owner: Holder, tokens: int, now: float, size: int = 0) -> None:
        self.owner = owner
        self.size = size
        self.rank = _RANK[owner.rule.priority]
        self.tokens = tokens
        self.arrived = self.began = self.since = now
        self.state = State.WAITING
        self.refusal: Refusal | None = None


class Gate:
    def __init__(self, rules: Admission, now: float) -> None:
        self.rules = rules
        self.running = 0
        self.line: Line[Ticket] = Line()
        self._requests = resized(None, rules.total.requests_per_minute, now)
        self._tokens = resized(None, rules.total.tokens_per_minute, now)
        self._holders: dict[str, Holder] = {}
        self._changed: list[Ticket] = []
        self._mean_seconds = 1.0
        self._last_end = now
        self._leaving = False
        self._hold: Hold | None = None
        """Not None: no engine is there."""
        self._room = 0
        """In the line at the last turn and not gone since: none of them is refused for another bound."""

    @property
    def shut(self) -> bool:
        """Nobody goes, since no engine is there."""
        return self._hold is not None

    def arrive(self, name: str, tokens: int, now: float, size: int = 0) -> Ticket:
        """A request of the key's holder, with an estimate of its prompt's tokens and its size in bytes."""
        holder = self._holders.get(name) or self._new_holder(name, now)
        ticket = Ticket(holder, tokens, now, size)
        refusal = self._over_rate(ticket, now)
        if refusal is not None:
            ticket.state, ticket.refusal = State.REFUSED, refusal
            return ticket
        _charge(holder.requests, holder.tokens, tokens, now)
        if not len(self.line) and not self._full and _may_go(ticket) and not self._wait(1, tokens, now):
            self._start(ticket, now)
            return ticket
        self.line.add(ticket)
        holder.waiting += 1
        self._serve(now)
        self._shorten(now)
        return ticket

    def leave(self, ticket: Ticket, now: float, tokens: int | None = None) -> None:
        """The request is over, in whatever way; `tokens`: how many it took in all, where that is known."""
        state, ticket.state = ticket.state, State.GONE
        if state is State.WAITING:
            self._unqueue(ticket, now)
        elif state is State.RUNNING:
            self._end(ticket, now, tokens)
        self._serve(now)

    def tick(self, now: float) -> None:
        """Who has waited too long is refused; who can go now goes."""
        while (oldest := self.line.oldest()) is not None and oldest.since + self._patience <= now:
            self._refuse(oldest, "hold_wait" if self.shut else "queue_wait", now)
        self._serve(now)

    def due(self, now: float) -> float | None:
        """Seconds until `tick` has something to do by time alone. None: never."""
        oldest = self.line.oldest()
        if oldest is None:
            return None
        until = max(0.0, oldest.since + self._patience - now)
        if not self._full and (ticket := self.line.next(_may_go)) is not None:
            until = min(until, self._wait(1, ticket.tokens, now))
        return until

    def changed(self) -> Sequence[Ticket]:
        """Tickets that waited and began to run or were refused since the last call."""
        if not self._changed:
            return ()
        changed, self._changed = self._changed, []
        return changed

    def change(self, rules: Admission, now: float) -> None:
        """Other rules, for those who wait too. What was spent stays spent."""
        self.rules = rules
        self._requests = resized(self._requests, rules.total.requests_per_minute, now)
        self._tokens = resized(self._tokens, rules.total.tokens_per_minute, now)
        for holder in self._holders.values():
            holder.change(self._rule(holder.name), now)
        self._shorten(now)
        self.tick(now)

    def hold(self, hold: Hold | None, now: float) -> None:
        """From now on there is no engine, and who comes waits for one within these bounds; None: there is one, or none
        is waited for. Those in the line begin to wait anew, and none of them is refused for the line's length."""
        turned, self._hold = self.shut != (hold is not None), hold
        self._serve(now)
        if turned:
            self._room = len(self.line)
            for ticket in self.line:
                ticket.since = now
        self._shorten(now)
        self.tick(now)

    def again(self, ticket: Ticket, now: float) -> bool:
        """A request that was let in has lost the last engine before it had an answer: back into the line. False: it is
        not held here."""
        if not self.shut or self._leaving or ticket.state is not State.RUNNING:
            return False
        self.running -= 1
        ticket.owner.running -= 1
        _charge(self._requests, self._tokens, ticket.tokens, now, sign=-1)
        ticket.state, ticket.since = State.WAITING, now
        self.line.add(ticket)
        ticket.owner.waiting += 1
        self._shorten(now)
        return True

    def forget_all_but(self, names: set[str]) -> None:
        """Keys that are no more: what is known of their holders goes, but for requests under way."""
        for name in [name for name in self._holders if name not in names]:
            if not self._holders[name].running and not self._holders[name].waiting:
                del self._holders[name]

    def turn_away(self, now: float) -> None:
        """Refuse all who wait and all who come: this gateway is about to end."""
        self._leaving = True
        while (oldest := self.line.oldest()) is not None:
            self._refuse(oldest, "leaving", now)

    def budgets(self, ticket: Ticket) -> tuple[Bucket | None, Bucket | None]:
        """The requests and the tokens that the holder may count on: its own budgets, or else everybody's."""
        return ticket.owner.requests or self._requests, ticket.owner.tokens or self._tokens

    # Who goes

    @property
    def _full(self) -> bool:
        limit = self.rules.total.max_concurrent
        return self.shut or (limit is not None and self.running >= limit)

    @property
    def _patience(self) -> float:
        """Seconds that one waits at the most, for an engine or for its turn."""
        return self._hold.seconds if self._hold is not None else self.rules.queue_seconds

    @property
    def _longest(self) -> int:
        """How many may wait."""
        return max(self._room, self._hold.requests if self._hold is not None else self.rules.queue_length)

    def _serve(self, now: float) -> None:
        while len(self.line) and not self._full:
            ticket = self.line.next(_may_go)
            if ticket is None or self._wait(1, ticket.tokens, now) > 0:
                return
            self.line.go(ticket)
            self._room = min(self._room, len(self.line))
            ticket.owner.waiting -= 1
            self._start(ticket, now)
            self._changed.append(ticket)

    def _start(self, ticket: Ticket, now: float) -> None:
        ticket.owner.running += 1
        self.running += 1
        _charge(self._requests, self._tokens, ticket.tokens, now)
        ticket.state, ticket.began = State.RUNNING, now

    def _end(self, ticket: Ticket, now: float, tokens: int | None) -> None:
        holder = ticket.owner
        self.running -= 1
        holder.running -= 1
        self._mean_seconds += _LEARNING * (now - ticket.began - self._mean_seconds)
        self._last_end = now
        if tokens is not None:
            for bucket in (holder.tokens, self._tokens):
                if bucket is not None:
                    bucket.take(tokens - ticket.tokens, now)

    def _unqueue(self, ticket: Ticket, now: float) -> None:
        """Out of the line unserved: its holder is given back what it was charged with."""
        self.line.remove(ticket)
        self._room = min(self._room, len(self.line))
        ticket.owner.waiting -= 1
        _charge(ticket.owner.requests, ticket.owner.tokens, ticket.tokens, now, sign=-1)

    def _wait(self, requests: int, tokens: int, now: float) -> float:
        """Seconds until the budgets of all together allow so much. More than a budget holds waits until it is full."""
        seconds = 0.0
        if self._requests is not None:
            seconds = self._requests.wait(min(requests, self._requests.capacity), now)
        if self._tokens is not None:
            seconds = max(seconds, self._tokens.wait(min(tokens, self._tokens.capacity), now))
        return seconds

    # Who does not

    def _over_rate(self, ticket: Ticket, now: float) -> Refusal | None:
        """What is decided at once, by the holder's own budgets."""
        if self._leaving:
            return Refusal("leaving", 0, self._until_room(ticket.owner, now))
        requests, tokens = ticket.owner.requests, ticket.owner.tokens
        for bucket in (tokens, self._tokens):
            if bucket is not None and ticket.tokens > bucket.capacity:
                return Refusal("too_many_tokens", bucket.capacity, None)
        if requests is not None and (seconds := requests.wait(1, now)) > 0:
            return Refusal("key_requests", requests.capacity, seconds)
        if tokens is not None and (seconds := tokens.wait(ticket.tokens, now)) > 0:
            return Refusal("key_tokens", tokens.capacity, seconds)
        return None

    def _shorten(self, now: float) -> None:
        """To what the queue may hold."""
        full: Cause = "hold_full" if self.shut else "queue_full"
        longest = self._longest
        while len(self.line) > longest:
            self._refuse(self.line.last(), full, now)
        while self.line.size > self.rules.queue_bytes:
            self._refuse(self.line.last(_size), full, now)

    def _refuse(self, ticket: Ticket, cause: Cause, now: float) -> None:
        """One who waits. What its own key is the cause of is said so."""
        self._unqueue(ticket, now)
        limits, limit = ticket.owner.rule.limits, self._longest
        if ticket.owner.at_its_limit and not self.shut and cause != "leaving":
            cause, limit = "key_concurrency", limits.max_concurrent or 0
        ticket.state = State.REFUSED
        ticket.refusal = Refusal(cause, limit, self._until_room(ticket.owner, now))
        self._changed.append(ticket)

    def _until_room(self, holder: Holder, now: float) -> float:
        """Seconds until one more who waits may go: those before it, at the pace of the requests that ended lately.

        While nothing ends at all, no sooner than that has lasted so far; and no sooner than the budgets allow. Where
        all wait for an engine, until the first of them has waited its time: nobody knows how soon one comes.
        """
        if self._hold is not None:
            first = self.line.oldest()
            return min(LONGEST_WAIT, max(0.0, first.since + self._hold.seconds - now)) if first is not None else 0.0
        if holder.at_its_limit:
            ahead, running = holder.waiting + 1, holder.running
        else:
            ahead, running = len(self.line) + 1, self.running
        seconds = ahead * self._mean_seconds / max(1, running) if running else 0.0
        if (oldest := self.line.oldest()) is not None:
            seconds = max(seconds, now - max(self._last_end, oldest.since))
        return min(LONGEST_WAIT, max(seconds, self._wait(ahead, 0, now)))

    # Whose it is

    def _new_holder(self, name: str, now: float) -> Holder:
        holder = self._holders[name] = Holder(name, self._rule(name), now)
        return holder

    def _rule(self, name: str) -> KeyRule:
        return KeyRule() if name == NO_KEY else self.rules.keys.get(name, self.rules.each_key)


def _may_go(ticket: Ticket) -> bool:
    return not ticket.owner.at_its_limit


def _size(tickets: Iterable[Ticket]) -> int:
    return sum(ticket.size for ticket in tickets)


def _charge(requests: Bucket | None, tokens: Bucket | None, amount: int, now: float, sign: int = 1) -> None:
    if requests is not None:
        requests.take(sign, now)
    if tokens is not None:
        tokens.take(sign * amount, now)
