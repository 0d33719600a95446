"""The checksums of a model's files, as a ConfigMap holds them: the output of `sha256sum` under one key.

One key, since a ConfigMap's keys cannot hold the slashes of a path. Pure; called by `observe.py`.
"""

import re
from collections.abc import Mapping
from typing import Final

KEY: Final = "SHA256SUMS"
_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(\S.*)")


def read_checksums(data: Mapping[str, str]) -> dict[str, str] | None:
    """SHA-256 in hex by relative path, from a ConfigMap's data.

    None where the key is missing or empty, or a line is not of `sha256sum`: half a manifest must not pass for a whole.
    """
    lines = [line for line in data.get(KEY, "").splitlines() if line.strip()]
    matches = [match for line in lines if (match := _LINE.fullmatch(line))]
    if not lines or len(matches) != len(lines):
        return None
    return {match[2]: match[1] for match in matches}
