"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON, which is YAML too."""
    half = path.with_name(path.name + ".part")
    half.write_text(json.dumps(value, indent=1))
    half.rename(path)
