"""Paths that engines are given, and that lead to wherever a folder is. Called by `custody.py` (the model's copy) and by
`adapters.py`."""

from pathlib import Path
from secrets import token_hex


def point(place: Path, folder: Path) -> None:
    """Let `place` lead to `folder`, whatever it led to before: at every moment it leads to one of them, and several
    threads may point the same place at once. Raises OSError."""
    scratch = place.with_name(f"{place.name}.{token_hex(8)}")
    scratch.symlink_to(folder)
    try:
        scratch.replace(place)
    except OSError:
        scratch.unlink()
        raise
