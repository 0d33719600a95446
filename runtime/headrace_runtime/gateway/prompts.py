"""A prompt as a path of keys for `prefix.py`, without tokenising it. Pure.

Token ids are cut into the engines' blocks: that is exact. Text is cut into pieces of its canonical bytes, and what
blocks these pieces end up in is learnt: an answer of an engine names the ids of its prompt's tokens (`learn`), and a
later prompt that begins with the same pieces begins with the same blocks. How tokens spread over the pieces of one
prompt is not known, so they are taken to spread evenly, less one block. That can be wrong by a few blocks, and costs
no more than a choice that is not the best: whether an engine holds a block is looked up in the exact index.

Pieces that nobody has learnt stand for themselves: no engine's event speaks of them, but the hope of `prefix.py` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from headrace_runtime.gateway.assemble import prompt_ids_in
from headrace_runtime.gateway.blocks import ROOT, Path, keys_of
from headrace_runtime.gateway.recent import Recent

PIECE_BYTES: Final = 256
BYTES_PER_TOKEN: Final = 4
PIECES: Final = 400_000
"""Most pieces of text whose blocks are remembered: about 100 MB, and 100 MB of text."""

_BEFORE_MESSAGES: Final = ("tools", "documents", "chat_template", "chat_template_kwargs", "add_generation_prompt")
"""Fields of a chat request from which its prompt is made, beside the messages."""


@dataclass(frozen=True, slots=True)
class Apart:
    """What keeps blocks of equal tokens apart: prompts that differ in it have no block in common."""

    adapter: str = ""
    salt: str = ""

    def of_blocks(self, blocks: int) -> list[object]:
        """As engines say it in their events: the adapter with every block, the salt with the first."""
        if not (self.adapter or self.salt):
            return []
        each = [self.adapter] if self.adapter else []
        return [each + [self.salt] * bool(self.salt), *[each or None] * (blocks - 1)]


NOTHING_APART: Final = Apart()


def token_ids(document: Mapping[str, Any]) -> Sequence[int] | None:
    """The prompt, where it is given as token ids."""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    if not isinstance(prompt, list) or not prompt:
        return None
    return prompt if all(type(token) is int for token in prompt) else None


def pieces(document: Mapping[str, Any], apart: Apart = NOTHING_APART) -> list[tuple[int, int]]:
    """The text that the prompt is made of: a key for each beginning of it, and the bytes up to there.

    A message ends a piece, so that a conversation that goes on begins with all pieces of what it was.
    """
    separate: list[object] = [apart.adapter, apart.salt, document.get("mm_processor_kwargs")]
    messages = document.get("messages")
    if isinstance(messages, list):
        texts = [orjson.dumps(message, option=orjson.OPT_SORT_KEYS) for message in messages]
        separate += [document.get(field) for field in _BEFORE_MESSAGES]
    else:
        texts = [orjson.dumps(document.get("prompt"))]
    key = hash((ROOT, orjson.dumps(separate, option=orjson.OPT_SORT_KEYS)))
    found: list[tuple[int, int]] = []
    size = 0
    for text in texts:
        for start in range(0, len(text), PIECE_BYTES):
            piece = text[start : start + PIECE_BYTES]
            key, size = hash((key, piece)), size + len(piece)
            found.append((key, size))
    return found


class Prompts:
    """Paths of prompts, and what was learnt of text. Bounded: pieces that were not met for long are forgotten."""

    def __init__(self, limit: int = PIECES) -> None:
        self._learnt: Recent[int, tuple[int, int]] = Recent(limit)
        """Key of a piece → key of the block that ends at it or a little before, and tokens up to that block's end; 0
        tokens where no block has ended yet."""

    def __len__(self) -> int:
        return len(self._learnt)

    def knows(self, document: Mapping[str, Any], apart: Apart = NOTHING_APART) -> bool:
        """Whether there is nothing to learn of the prompt: all of its text was."""
        parts = pieces(document, apart) if token_ids(document) is None else []
        return not parts or self._learnt.get(parts[-1][0]) is not None

    def path(self, document: Mapping[str, Any], block_size: int, apart: Apart = NOTHING_APART) -> tuple[Path, bool]:
        """The prompt's path, and whether it is exact. Empty while no engine has said how large its blocks are."""
        if not block_size:
            return (), False
        ids = token_ids(document)
        if ids is not None:
            try:
                return exact(ids, block_size, apart), True
            except OverflowError:  # an id below 0 or beyond 32 bits: the engine will refuse it
                return (), False
        return self._places(pieces(document, apart)), False

    def learn(
        self, document: Mapping[str, Any], ids: Sequence[int], block_size: int, apart: Apart = NOTHING_APART
    ) -> None:
        """An engine says that the request's prompt has these token ids. Raises OverflowError for what is no id."""
        if not block_size or token_ids(document) is not None:
            return
        keys, parts = keys_of(ids, block_size, ROOT, apart.of_blocks(len(ids) // block_size)), pieces(document, apart)
        whole = parts[-1][1]
        for key, size in parts:
            blocks = len(ids) * size // (whole * block_size)
            if size < whole:
                blocks -= 1
            known = self._learnt.get(key)
            if known is not None:
                if _agrees(known, keys, block_size):
                    continue
                blocks = min(blocks, known[1] // block_size) - 1
            self._learnt.keep(key, (keys[blocks - 1], blocks * block_size) if blocks > 0 else (ROOT, 0))

    def _places(self, parts: Sequence[tuple[int, int]]) -> Path:
        """Those that are known by their blocks; the rest stands for itself, each token taken to have four bytes."""
        found: list[tuple[int, int]] = []
        known_tokens = known_size = 0
        for key, size in parts:
            known = self._learnt.get(key)
            if known is None:
                found.append((key, known_tokens + (size - known_size) // BYTES_PER_TOKEN))
                continue
            known_tokens, known_size = max(known_tokens, known[1]), size
            if known[1]:
                found.append(known)
        return found


def ids_named_in(payload: bytes) -> Sequence[int]:
    """The ids of the prompt's tokens in an engine's answer, whole or its first event; none where it names none."""
    place = prompt_ids_in(payload)
    if place is None:
        return ()
    try:
        ids = orjson.loads(payload[place])
    except orjson.JSONDecodeError:
        return ()
    return ids if all(type(token) is int for token in ids) else ()


def exact(ids: Sequence[int], block_size: int, apart: Apart = NOTHING_APART) -> Path:
    """The path of a prompt whose tokens are known. Raises OverflowError for what is no token id."""
    keys = keys_of(ids, block_size, ROOT, apart.of_blocks(len(ids) // block_size))
    return list(zip(keys, range(block_size, (len(keys) + 1) * block_size, block_size), strict=True))


def _agrees(known: tuple[int, int], keys: Sequence[int], block_size: int) -> bool:
    """Whether a prompt with these block keys goes through the place that was learnt from another."""
    blocks = known[1] // block_size
    return not blocks or (blocks <= len(keys) and keys[blocks - 1] == known[0])
