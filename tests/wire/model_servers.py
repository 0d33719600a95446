"""Servers that models are fetched from, in threads of the test's process: files over HTTP with all that may go wrong on
the way, and a model hub upon it."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Files:
    """What a server serves, and how badly. May be changed while it runs."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    """By path, without the first slash."""
    ranges: bool = True
    cut_after: int | None = None
    """The connection ends after so many bytes of a body."""
    reset: bool = False
    """It is reset then: what was still on its way is lost."""
    refuse: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    """Statuses, with headers, that come before any real answer."""
    authorization: str | None = None
    """What has to be sent along; else 401."""
    redirects: dict[str, str] = field(default_factory=dict)
    versions: Iterator[int] = field(default_factory=lambda: itertools.repeat(0))
    """Which version of its files it speaks of, at each answer: a part of every ETag."""
    chunked: bool = False
    """No length is said."""
    hold: threading.Event = field(default_factory=threading.Event)
    """Once cleared, bodies wait after their first 64 KB, where `held` says so of the requested range."""
    held: Callable[[str], bool] = lambda _: True
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, range and authorization of each request."""
    sent: int = 0
    """Bytes of bodies."""
    connections: int = 0

    def __post_init__(self) -> None:
        self.hold.set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Files

    def setup(self) -> None:
        self.files.connections += 1
        super().setup()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        files, parts = self.files, urlsplit(self.path)
        path = self.path if parts.netloc else unquote(parts.path).lstrip("/")  # whole, where we are a proxy
        whole = f"{path}?{parts.query}" if parts.query else path
        files.requests.append((path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
        if files.refuse:
            status, headers = files.refuse.pop(0)
            self.answer(status, b"no", headers)
        elif path in files.redirects:
            self.answer(302, b"", {"Location": files.redirects[path]})
        elif files.authorization and self.headers.get("Authorization") != files.authorization:
            self.answer(401, b"who are you?", {"WWW-Authenticate": "Basic"})
        elif whole in files.bodies or path in files.bodies:
            self.body(path, files.bodies.get(whole, files.bodies.get(path, b"")))
        else:
            self.answer(404, b"no such file", {})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def body(self, path: str, body: bytes) -> None:
        files, match = self.files, RANGE.fullmatch(self.headers.get("Range", ""))
        part = body
        if match and files.ranges:
            first, last = int(match[1]), int(match[2]) if match[2] else len(body) - 1
            if first >= len(body):
                self.answer(416, b"there is no such byte", {"Content-Range": f"bytes */{len(body)}"})
                return
            part = body[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}-{next(files.versions)}"')
        if next_page := self.next_page(path):
            self.send_header("Link", next_page)
        if files.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            part = f"{len(part):x}\r\n".encode() + part + b"\r\n0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
        self.send_part(part)

    def next_page(self, path: str) -> str | None:
        return None

    def send_part(self, part: bytes) -> None:
        files = self.files
        shown = part if files.cut_after is None else part[: files.cut_after]
        for start in range(0, len(shown), 1 << 16):
            piece = shown[start : start + (1 << 16)]
            self.wfile.write(piece)
            files.sent += len(piece)
            if start + len(piece) < len(shown) and files.held(self.headers.get("Range", "")):
                files.hold.wait(30)
        if len(shown) < len(part):
            self.close_connection = True
            if files.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""


@contextmanager
def serving(files: Files, handler: type[Handler] = Handler, encrypted: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yields the address, without a slash at its end."""
    server = Server(("127.0.0.1", 0), type("Bound", (handler,), {"files": files}))
    if encrypted:
        server.socket = encrypted.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if encrypted else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        files.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def sums(bodies: Mapping[str, bytes]) -> bytes:
    """A SHA256SUMS of `bodies`."""
    return "".join(f"{hashlib.sha256(body).hexdigest()}  {path}\n" for path, body in bodies.items()).encode()


def folder(bodies: Mapping[str, bytes], at: str = "model") -> dict[str, bytes]:
    """`bodies` and their SHA256SUMS, below `at`."""
    return {**{f"{at}/{path}": body for path, body in bodies.items()}, f"{at}/SHA256SUMS": sums(bodies)}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(Handler):
    """The second page of a listing, where there is one."""

    def next_page(self, path: str) -> str | None:
        following = f"{path}?recursive=true&cursor=2"
        here = "cursor=" in self.path
        return f'</{following}>; rel="next"' if following in self.files.bodies and not here else None


def hub(bodies: Mapping[str, bytes], repository: str = "acme/tiny", pages: int = 1) -> dict[str, bytes]:
    """`bodies` as a model hub has them: what is over 1 KB or ends in safetensors is in LFS."""
    entries = []
    for path, body in bodies.items():
        git = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": git}
        if len(body) > 1000 or path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        entries.append(entry)
    entries.append({"type": "directory", "path": "sub", "size": 0, "oid": "0" * 40})
    tree = f"api/models/{repository}/tree/{COMMIT}"
    cut = len(entries) if pages == 1 else 1
    served = {f"{tree}?recursive=true": json.dumps(entries[:cut]).encode()}
    if pages > 1:
        served[f"{tree}?recursive=true&cursor=2"] = json.dumps(entries[cut:]).encode()
    return {**served, **{f"{repository}/resolve/{COMMIT}/{path}": body for path, body in bodies.items()}}
