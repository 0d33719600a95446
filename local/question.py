"""Asks a deployed model one question through its gateway's Service, as a user's program would: OpenAI's chat over HTTP.

The way in is `kubectl port-forward`, which works with every kind of cluster. Called by the demo and the cluster tests.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from local import toolchain
from local.errors import LocalError

SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """What came back, and which engines worked on it."""

    text: str
    first_token_seconds: float
    seconds: float
    prefill: str | None
    """None: the prompt was computed by the engine that wrote the answer."""
    decode: str | None


@contextmanager
def forwarded(kubeconfig: Path, namespace: str, service: str, port: int = 80) -> Iterator[str]:
    """The Service's address on this machine, `http://127.0.0.1:PORT`, while the block runs.

    Raises:
        LocalError: kubectl cannot forward; with its words.
    """
    client = [str(toolchain.kubectl()), "--kubeconfig", str(kubeconfig), "--namespace", namespace]
    with subprocess.Popen(
        [*client, "port-forward", f"service/{service}", f":{port}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            if not found:
                process.terminate()
                raise LocalError(f"kubectl port-forward to service/{service} failed: {process.stderr.read().strip()}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


def ask(url: str, model: str, messages: list[dict[str, str]], show: Callable[[str], None]) -> Answer:
    """One streamed chat completion; `show` gets each piece of the answer as it comes.

    Raises:
        LocalError: the gateway refused it, the stream broke off, or nothing came for a minute.
    """
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": 64, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    began = monotonic()
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as response:
            first, pieces = 0.0, []
            for piece in _pieces(response):
                first = first or monotonic() - began
                pieces.append(piece)
                show(piece)
            headers = response.headers
    except urllib.error.HTTPError as error:
        raise LocalError(f"the gateway answered {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    except OSError as error:
        raise LocalError(f"no answer from the gateway: {error}") from error
    names = (headers.get("x-headrace-prefill"), headers.get("x-headrace-decode"))
    return Answer("".join(pieces), first, monotonic() - began, *names)


def _pieces(lines: Iterator[bytes]) -> Iterator[str]:
    """The texts of an event stream. LocalError: it brought an error, or ended without its last line."""
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise LocalError(f"the engine broke off: {chunk['error'].get('message', chunk['error'])}")
        if piece := chunk["choices"][0]["delta"].get("content"):
            yield piece
    raise LocalError("the stream ended before its last line")
