"""Models in miniature: just enough of the formats that what reads a model's folder takes them for real."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path


def safetensors(body: bytes = b"weights") -> bytes:
    """A whole safetensors file with one tensor."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}}).encode()
    return len(header).to_bytes(8, "little") + header + body


FILES = {"config.json": b"{}", "model.safetensors": safetensors(b"x" * 5000), "sub/tokenizer.json": b"[]"}
"""A model, by path."""


def write(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    """The folder, made with these files in it."""
    for path, body in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(body)
    return folder


class Harmful:
    """What a pickle could do: it says so in a file, if anybody loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def pickled(marker: Path, protocol: int = 4) -> bytes:
    return pickle.dumps(Harmful(marker), protocol)
