"""The demo's question: a stream is read to its end or said to be broken, and Ready means Ready of the newest spec."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from local.errors import LocalError
from local.question import ask
from local.readiness import is_ready

MESSAGES = [{"role": "user", "content": "?"}]


def piece(text: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text} if text else {}}]})}\n\n"


@contextmanager
def gateway(status: int, body: str) -> Iterator[str]:
    """Answers every question with these words."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("x-headrace-prefill", "p-0")
            self.send_header("x-headrace-decode", "d-0")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's word
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_is_shown_as_it_comes_and_names_its_engines() -> None:
    shown: list[str] = []
    with gateway(200, piece(None) + piece("Par") + piece("is.") + "data: [DONE]\n\n") as url:
        answer = ask(url, "m", MESSAGES, shown.append)
    assert shown == ["Par", "is."]
    assert (answer.text, answer.prefill, answer.decode) == ("Paris.", "p-0", "d-0")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, piece("Par"), "ended before its last line"),
        (200, 'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        (503, '{"error": {"message": "no engine is ready"}}', "503.*no engine is ready"),
    ],
)
def test_a_broken_answer_is_an_error(status: int, body: str, said: str) -> None:
    with gateway(status, body) as url, pytest.raises(LocalError, match=said):
        ask(url, "m", MESSAGES, lambda _: None)


def test_no_gateway_is_an_error() -> None:
    with pytest.raises(LocalError, match="no answer from the gateway"):
        ask("http://127.0.0.1:1", "m", MESSAGES, lambda _: None)


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([], False),
        ([{"type": "Ready", "status": "True", "observedGeneration": 2}], True),
        ([{"type": "Ready", "status": "True", "observedGeneration": 1}], False),
        ([{"type": "Ready", "status": "False", "observedGeneration": 2}], False),
        ([{"type": "Accepted", "status": "True", "observedGeneration": 2}], False),
    ],
)
def test_ready_is_of_the_newest_spec(conditions: list[dict[str, Any]], ready: bool) -> None:
    assert is_ready({"metadata": {"generation": 2}, "status": {"conditions": conditions}}) is ready


def test_without_a_status_nothing_is_ready() -> None:
    assert not is_ready({"metadata": {"generation": 1}})
