"""A small client of a Kubernetes API server for measurements: blocking, thread-safe, and cheap beside what is measured.

`call` is one request over a kept connection, `watch` a stream of events. No retries: a measurement whose calls fail
is none.
"""

import base64
import json
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson
import urllib3

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
"""Accept header that makes the server send the metadata of objects alone."""
CONNECTIONS = 24


class RefusedError(RuntimeError):
    """The server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One API server, as the user of a kubeconfig with everything in it."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        server = urlsplit(config["clusters"][0]["cluster"]["server"])
        self._pool = urllib3.HTTPSConnectionPool(
            server.hostname or "", server.port, maxsize=CONNECTIONS, block=False, ssl_context=_context(config)
        )

    def call(self, method: str, path: str, body: Any = None, content_type: str = JSON, **query: str) -> Any:
        """The answer, decoded. Raises RefusedError, with the server's words, where it is an error."""
        answer = self._pool.request(
            method,
            f"{path}?{urlencode(query)}" if query else path,
            body=None if body is None else orjson.dumps(body),
            headers={"Content-Type": content_type, "Accept": JSON},
            retries=False,
            timeout=60.0,
        )
        if answer.status >= 300:
            raise RefusedError(answer.status, f"{method} {path}: {answer.status} {answer.data[:300]!r}")
        return orjson.loads(answer.data)

    def watch(self, path: str, see: Callable[[str, Any], None], stop: threading.Event, *, accept: str = JSON) -> None:
        """Calls `see(type, object)` for what is there, as ADDED, and for every change, until `stop` is set. A stream
        that ends begins anew, with all that is there."""
        query = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        query |= {"allowWatchBookmarks": "true", "timeoutSeconds": "3000"}
        while not stop.is_set():
            stream = self._pool.request(
                "GET",
                f"{path}{'&' if '?' in path else '?'}{urlencode(query)}",
                headers={"Accept": accept},
                retries=False,
                timeout=urllib3.Timeout(connect=10.0, read=3000.0),
                preload_content=False,
            )
            if stream.status >= 300:
                raise RefusedError(stream.status, f"watch {path}: {stream.status} {stream.read()[:300]!r}")
            self._follow(stream, see, stop)

    @staticmethod
    def _follow(stream: urllib3.BaseHTTPResponse, see: Callable[[str, Any], None], stop: threading.Event) -> None:
        rest = b""
        try:
            while not stop.is_set() and (got := stream.read1(1 << 18)):
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    event = orjson.loads(line)
                    if event["type"] not in ("BOOKMARK", "ERROR"):
                        see(event["type"], event["object"])
        except (urllib3.exceptions.HTTPError, OSError):
            if not stop.is_set():
                time.sleep(0.1)  # and begin anew
        finally:
            stream.close()


def watching(
    api: Api, path: str, see: Callable[[str, Any], None], stop: threading.Event, *, accept: str = JSON
) -> threading.Thread:
    """The same in a thread of its own, which dies with the process."""
    thread = threading.Thread(target=api.watch, args=(path, see, stop), kwargs={"accept": accept}, daemon=True)
    thread.start()
    return thread


def _context(config: Any) -> ssl.SSLContext:
    user = config["users"][0]["user"]
    authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    with tempfile.TemporaryDirectory() as folder:  # the ssl module reads a client's certificate from files only
        certificate, key = Path(folder) / "crt", Path(folder) / "key"
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(certificate, key)
    return context
