"""`headrace_runtime fetch`: a model into a node's cache from a shell, to warm the node or to see what is wrong.

What an agent of the node fetches meanwhile is shared: the same locks, the same folder, one download.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from pathlib import Path

import click

from headrace_runtime.models import record
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.errors import CancelledError, FetchError
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress

SIZE = re.compile(r"(\d+)(|[KMGT]i?)", re.ASCII)
SHOWN_SECONDS = 0.2


def size(text: str) -> int:
    """Bytes: `500Gi`, `40G`, `1000000`. Raises ValueError."""
    match = SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no size: write bytes, or a number with K, M, G, T, Ki, Mi, Gi or Ti")
    unit, base = match[2], 1024 if match[2].endswith("i") else 1000
    return int(int(match[1]) * base ** " KMGT".index(unit[0] if unit else " "))


def run(source: str, folder: Path, size_bytes: int | None, secret: Path | None, environment: Mapping[str, str]) -> int:
    """Fetch, with a bar on standard error; the model's folder goes to standard output. Returns the exit status."""
    progress = Progress()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: progress.cancelled.set())
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(
            lambda: fetch(source, Cache(folder, size_bytes), Credentials.of(secret, environment), progress)
        )
        _show(work, progress)
    try:
        path = work.result()
    except FetchError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except CancelledError:
        click.echo("ended early; the next fetch goes on from here", err=True)
        return 130
    known = record.read(path)
    if known:
        click.echo(f"{known.source}: {len(known.files)} files", err=True)
    click.echo(path)
    return 0


def _show(work: Future[Path], progress: Progress) -> None:
    """A line that changes, on a terminal; nothing where nobody looks."""
    while not work.done():
        try:
            work.exception(SHOWN_SECONDS)
        except NotYetError:
            if sys.stderr.isatty():
                click.echo(f"\r{line(progress)}\033[K", err=True, nl=False)
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)


def line(progress: Progress) -> str:
    """How far it is, in a line."""
    done, total, rate = progress.fetched, progress.total, progress.rate()
    if not total:
        return "asking the source"
    width, part = 30, min(1.0, done / total)
    bar = "#" * int(width * part) + "-" * (width - int(width * part))
    left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate)) if rate > 0 else "--:--:--"
    return f"[{bar}] {part:4.0%}  {done / 1e9:.2f} of {total / 1e9:.2f} GB  {rate / 1e6:.0f} MB/s  {left}"
