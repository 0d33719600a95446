"""How long an engine may send nothing while it owes bytes, and how long a KV transfer may take.

Pure. An engine that computes a long prompt is silent and sound; one that was stopped is silent and is not. What parts
them is time, measured by the engine's own: by the silences that it broke itself, and by the prompts it has before it.
On a machine where everything is slow those silences are longer, and so is the patience. Called by `fleet.py` and
`links.py`.
"""

from dataclasses import dataclass, replace

WINDOW_SECONDS = 120.0
"""The longest of the current and of the previous window of this length is what is remembered."""
LONG_PROMPT = 256
"""Tokens of a prompt from which on a silence is put down to it."""
CHUNK = 8192
"""Prompt tokens an engine computes at most between two tokens of its streams: vLLM's largest usual step."""
QUICK_SECONDS = 1.0
TOKEN_SECONDS = 2e-3
"""Time of a prompt's token on an engine of which nothing is known: slower than a 150 M model on one core."""
TOKEN_SECONDS_LEAST = 2.5e-4
"""Prompts whose beginning was cached make an engine look faster than it is for others."""
TOKEN_SECONDS_MOST = 5e-2
WITHOUT_ANOTHER = 4.0
"""More patience where nobody else is there to go on."""

TRANSFER_SECONDS = 1.5
FIRST_TRANSFER_SECONDS = 3.0
"""Two engines that never exchanged blocks have to connect first."""
TRANSFER_TOKEN_SECONDS = 1e-4


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest of some times, forgotten after one or two windows."""

    current: float = 0.0
    previous: float = 0.0
    since: float = 0.0

    @property
    def value(self) -> float:
        return max(self.current, self.previous)

    def noted(self, seconds: float, now: float) -> "Longest":
        if now - self.since < WINDOW_SECONDS:
            return replace(self, current=max(self.current, seconds))
        previous = self.current if now - self.since < 2 * WINDOW_SECONDS else 0.0
        return Longest(seconds, previous, now)


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of one engine's times, in seconds."""

    gap: Longest = Longest()
    """Silences that it ended itself, with no long prompt before it."""
    token: Longest = Longest()
    """Per token of a long prompt: how long it was silent, or how soon it answered."""


UNKNOWN = Pace()


def silence_ended(pace: Pace, seconds: float, prompt_tokens: int, now: float) -> Pace:
    """The engine sent something after `seconds` of silence; the longest prompt before it had `prompt_tokens`."""
    if prompt_tokens < LONG_PROMPT:
        return replace(pace, gap=pace.gap.noted(seconds, now))
    return replace(pace, token=pace.token.noted(seconds / prompt_tokens, now))


def computed(pace: Pace, seconds: float, prompt_tokens: int, now: float) -> Pace:
    """A prompt's first token came after `seconds`. What took longer waited for others, as far as is known here; a long
    computation shows as a silence."""
    if prompt_tokens < LONG_PROMPT or seconds > QUICK_SECONDS:
        return pace
    return replace(pace, token=pace.token.noted(seconds / prompt_tokens, now))


def patience(pace: Pace, least: float, prompt_tokens: int, writing: bool, alone: bool) -> float:
    """Seconds of silence after which the engine is taken for hung.

    `least`: for an engine that is known to be quick · `prompt_tokens`: of the longest prompt it has yet to compute ·
    `writing`: a stream of it has begun; between two of its tokens lies one step, not a whole prompt · `alone`: no other
    engine could take over.
    """
    token = pace.token.value or TOKEN_SECONDS
    token = min(max(token, TOKEN_SECONDS_LEAST), TOKEN_SECONDS_MOST)
    step = min(prompt_tokens, CHUNK) if writing else prompt_tokens
    seconds = max(least, 3 * min(pace.gap.value, least)) + 2 * token * step
    return seconds * WITHOUT_ANOTHER if alone else seconds


def transfer_deadline(usual: float | None, prompt_tokens: int) -> float:
    """Seconds to the first token of an answer that starts from transferred KV blocks. `usual`: of the slowest lately;
    None where the two engines never exchanged any."""
    seconds = FIRST_TRANSFER_SECONDS if usual is None else TRANSFER_SECONDS + 4 * usual
    return seconds + TRANSFER_TOKEN_SECONDS * prompt_tokens
