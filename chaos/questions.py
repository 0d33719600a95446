"""What the load asks: a fixed set of questions, the same in every run, so that each has one right answer.

Greedy, of short and long prompts, as completions of token ids and as chats, most of them streamed; half of them ask
for token ids. Pure.
"""

import random
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
WORDS = ("river", "lake", "stream", "mill", "wheel", "stone", "bridge", "water", "hill", "field", "rain", "wind")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in tokens (of a chat's prompt: in words). Every fourth prompt is long."""

    count: int = 24
    short: tuple[int, int] = (8, 40)
    long: tuple[int, int] = (200, 400)
    answer: tuple[int, int] = (24, 96)
    vocabulary: int = 4000


@dataclass(frozen=True, slots=True)
class Question:
    path: str
    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


def questions(model: str, shape: Shape, seed: int = 0) -> list[Question]:
    """The same for the same arguments."""
    chance = random.Random(seed)
    return [_question(number, model, shape, chance) for number in range(shape.count)]


def is_long(number: int) -> bool:
    """Whether the question of this number has a long prompt."""
    return number % 4 == 3


def _question(number: int, model: str, shape: Shape, chance: random.Random) -> Question:
    length = chance.randint(*(shape.long if is_long(number) else shape.short))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": chance.randint(*shape.answer),
        "temperature": 0,
        "ignore_eos": True,  # every answer is as long as it may be: streams are there to be cut
        "stream": number % 8 != 6,
    }
    if number % 2:
        body["return_token_ids"] = True
    if number % 3 == 2:
        words = " ".join(chance.choice(WORDS) for _ in range(length))
        return Question(CHAT, body | {"messages": [{"role": "user", "content": words}]})
    prompt = [chance.randrange(10, shape.vocabulary) for _ in range(length)]
    return Question(COMPLETIONS, body | {"prompt": prompt})
