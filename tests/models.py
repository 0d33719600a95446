"""Models in miniature, just enough of the formats that what reads a model's folder takes them for real; and a web
server of theirs."""

import hashlib
import json
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in mid-body, since this server knows no ranges, is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[int]:
    """The port that `folder` is served at."""
    with Server(("127.0.0.1", port), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def publish(folder: Path, files: Mapping[str, bytes] = FILES) -> None:
    """The files, with the list of them that a fetch from a folder of a web server begins with."""
    write(folder, files)
    sums = "".join(f"{hashlib.sha256(body).hexdigest()}  {path}\n" for path, body in files.items())
    (folder / "SHA256SUMS").write_text(sums)
