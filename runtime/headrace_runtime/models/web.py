"""`https://`: one file, an archive, or a folder that SHA256SUMS lists.

    https://host/models/qwen/               SHA256SUMS in it says which files there are and what they come to
    https://host/models/qwen.tar.gz         unpacked
    https://host/adapter.safetensors        the one file of the model's folder

SHA256SUMS is what `sha256sum` writes: `find . -type f ! -name SHA256SUMS | xargs sha256sum > SHA256SUMS`. A file's size
is asked for before it is fetched; a file without a digest must keep its ETag to its last byte.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from headrace_runtime.models.credentials import Credentials, basic_header
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.http import Http, mark
from headrace_runtime.models.listing import Address, Checksum, Listing, Remote, identity_of, listing, safe_path
from headrace_runtime.models.sources import WebSource, name_of

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
PROBES = 8


def look(source: WebSource, http: Http, credentials: Credentials) -> Listing:
    """Raises FetchError, BrokenError."""
    headers = _headers(credentials)
    if urlsplit(source.url).path.endswith("/"):
        body, _ = http.document(Address(_beside(source.url, SUMS), headers), f"{source.name}{SUMS}")
        sums = parse_sums(body, source.name)
        with ThreadPoolExecutor(PROBES) as threads:
            files = list(threads.map(lambda entry: _folder_file(source, entry, http, headers), sums.items()))
    else:
        files = [_single(source, http, headers)]
    name = name_of(source)
    return listing(name, name if source.sha256 else identity_of(name, files), files)


def parse_sums(body: bytes, name: str) -> dict[str, str]:
    """SHA-256 by path, of the text that `sha256sum` writes. Raises FetchError."""
    try:
        lines = [line for line in body.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        lines = [""]
    sums = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if not match:
            raise FetchError(f"{name}{SUMS} is not what sha256sum writes: {line[:80]!r}")
        sums[match[2].removeprefix("./")] = match[1].lower()
    sums.pop(SUMS, None)
    return sums


def archive(path: str) -> Literal["tar", "tar+gzip"] | None:
    """What kind of archive a file's name says it is."""
    if path.endswith((".tar.gz", ".tgz")):
        return "tar+gzip"
    return "tar" if path.endswith(".tar") else None


def _folder_file(source: WebSource, entry: tuple[str, str], http: Http, headers: dict[str, str]) -> Remote:
    path, digest = entry
    safe_path(path, source.name)
    address = Address(_beside(source.url, path), headers)
    size, _, ranges = _probe(address, http, f"{source.name}{path}")
    return Remote(path, size, lambda: address, Checksum("sha256", digest), ranges=ranges)


def _single(source: WebSource, http: Http, headers: dict[str, str]) -> Remote:
    address = Address(source.url, headers)
    size, etag, ranges = _probe(address, http, source.name)
    path = unquote(urlsplit(source.url).path).rpartition("/")[2]
    checksum = Checksum("sha256", source.sha256) if source.sha256 else None
    return Remote(path, size, lambda: address, checksum, etag, archive(path), ranges)


def _probe(address: Address, http: Http, what: str) -> tuple[int | None, str | None, bool]:
    """Size of a file, its mark, and whether the server gives parts of it."""
    with http.open(address, what, {"Range": "bytes=0-0"}, also=416) as answer:
        parts = answer.status in (206, 416)  # 416: not even one byte is there
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if parts:
            answer.read(1024)  # a byte, or a sentence: so the connection is free for the next
        else:
            length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None, mark(answer.headers), parts


def _beside(url: str, path: str) -> str:
    """The address of a file of the folder `url`, whose query goes along."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=urljoin(parts.path, quote(path))))


def _headers(credentials: Credentials) -> dict[str, str]:
    if basic := credentials.basic():
        return {"Authorization": basic_header(*basic)}
    token = credentials.get("token")
    return {"Authorization": f"Bearer {token}"} if token else {}
