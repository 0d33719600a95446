"""What two engines must share so that one may read the KV blocks of the other. Pure.

A block's key is vLLM's hash of all tokens up to its end, together with the request's cache salt, its images, and the
name and path of its adapter (which is why adapters lie in folders named by their content). What the hash does not know
is here: the weights and the tokenizer, how they are computed with, and how the bytes of a block lie. All of it makes
the name of a folder, so that an engine with another model finds no block rather than a wrong one.

Called by `engine/kvtier.py`, which knows vLLM; `kv/store.py` sees the folder's name and nothing else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from headrace_runtime.contract import Engine

FOLDER_DIGITS = 32
"""128 bits of SHA-256."""


@dataclass(frozen=True)
class Group:
    """Layers whose blocks are allocated together: a hybrid model has several groups."""

    tokens_per_block: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Parallel:
    """How a block is cut over the workers of one engine; each has its own part of the block's bytes."""

    tensor: int
    pipeline: int
    prefill_context: int
    decode_context: int
    workers: int
    replicated: bool
    """All workers have the same bytes, and one copy is kept."""


@dataclass(frozen=True)
class Geometry:
    """How the bytes of one stored block are laid out, and how its key is made."""

    engine: str
    """Name and version: what a layout's name means may change with it."""
    device: str
    """Kernels of one processor may order a block in another way than those of the next."""
    layout: str
    dtype: str
    groups: tuple[Group, ...]
    blocks: int
    """Of the engine, in one that is stored."""
    bytes: int
    """Of one that is stored, all workers and all groups' share included."""
    tokens_per_hash: int
    hashing: str
    """The algorithm, and what its chain begins with."""
    parallel: Parallel

    def canonical(self) -> str:
        """JSON with one spelling."""
        return _canonical(asdict(self))


@dataclass(frozen=True)
class Identity:
    """Of the blocks of one engine."""

    weights: str
    """`sha256:…` of the model's folder, its tokenizer and configuration included."""
    settings: str
    """`sha256:…` of what else the numbers in a block depend on: see `settings_digest`."""
    geometry: str
    """Canonical JSON of a `Geometry`."""
    format: int
    """Version of what `kv/store.py` writes."""

    def folder(self) -> str:
        """The folder's name: 32 hexadecimal digits."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()[:FOLDER_DIGITS]


def settings_digest(engine: Engine) -> str:
    """Of what may change the numbers in an engine's blocks, beyond what a `Geometry` has of it.

    All free options and variables are taken to: one too many costs a cold cache when it is edited, one too few a wrong
    answer. A digest, since it goes where other processes can read it, and the variables need not.
    """
    chosen = _canonical({
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "max_model_len": engine.max_model_len,  # some models scale their positions by it
        "options": engine.extra_args,
        "env": engine.env,
    })  # fmt: skip
    return f"sha256:{hashlib.sha256(chosen.encode()).hexdigest()}"


def _canonical(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
