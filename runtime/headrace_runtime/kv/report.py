"""What an engine's disk tier says of itself, in a file that its agent reads: the two are different processes, and a
request to the engine would wait behind its clients'.

Several copies of an engine (data parallelism) write a file each. Written whole or not at all. Called by
`engine/kvtier.py`, which writes, and by `node/kv.py`, which reads.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from headrace_runtime.contract import KvState

NAME = "kv-state"


def path(run_dir: Path, copy: int) -> Path:
    return run_dir / f"{NAME}-{copy}.json"


def write(file: Path, state: KvState) -> None:
    """Raises OSError."""
    new = file.with_suffix(".new")
    new.write_text(state.model_dump_json(by_alias=True))
    new.replace(file)


def read(run_dir: Path) -> KvState | None:
    """Of all copies together; None before the first has said something. Raises OSError."""
    states = []
    for file in sorted(run_dir.glob(f"{NAME}-*.json")):
        try:
            states.append(KvState.model_validate_json(file.read_bytes()))
        except FileNotFoundError:
            continue  # an engine that ended is being swept away
        except ValidationError as error:
            raise OSError(f"{file.name} holds no state of a KV tier: {error}") from error
    return together(states)


def clear(run_dir: Path) -> None:
    """Forget what an ended engine said."""
    for file in run_dir.glob(f"{NAME}-*.json"):
        file.unlink(missing_ok=True)


def together(states: Iterable[KvState]) -> KvState | None:
    """One state of several copies that share a store: not ready if one is not, and its reason."""
    found = sorted(states, key=lambda state: state.ready)
    if not found:
        return None
    first = found[0]
    shared = ("bytes_used", "bytes_limit", "blocks")
    summed = ("looked_up", "found", "stored", "loaded", "damaged", "evicted", "dropped")
    return first.model_copy(
        update={name: max(getattr(state, name) for state in found) for name in shared}
        | {name: sum(getattr(state, name) for state in found) for name in summed}
    )
