"""`hf://`: a commit of a repository of a model hub, over its documented HTTP API.

A listing gives every file's size and digest: SHA-256 of what is kept in LFS, git's own name of what is not. So every
byte is checked, whoever delivers it: the hub answers with redirects to where the bytes are.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlsplit

from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.http import Http, next_page
from headrace_runtime.models.listing import Address, Checksum, Listing, Remote, listing, wanted
from headrace_runtime.models.sources import HubSource, loopback, name_of

ENDPOINT = "https://huggingface.co"
RULES = 1
"""Of `wanted`: which files are taken is part of what a copy is."""


def identity(source: HubSource) -> str:
    return f"{name_of(source)}#{RULES}"


def look(source: HubSource, http: Http, credentials: Credentials) -> Listing:
    """Raises FetchError, BrokenError."""
    endpoint = (credentials.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    token = credentials.get("HF_TOKEN")
    parts = urlsplit(endpoint)
    if token and parts.scheme != "https" and not loopback(parts.netloc):
        raise FetchError(f"HF_ENDPOINT: {parts.netloc} is not encrypted, and HF_TOKEN would be seen: write https://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    name = name_of(source)
    entries: list[dict[str, Any]] = []
    page: str | None = f"{endpoint}/api/models/{source.repository}/tree/{source.commit}?recursive=true"
    while page:
        body, answered = http.document(Address(page, headers), name)
        try:
            entries += [entry for entry in json.loads(body) if entry["type"] == "file"]
        except (ValueError, KeyError, TypeError):
            raise FetchError(f"{name}: the answer is no listing of a repository: is HF_ENDPOINT a model hub?") from None
        page = next_page(answered, page)
    kept = wanted(entry["path"] for entry in entries)
    base = f"{endpoint}/{source.repository}/resolve/{source.commit}"
    files = (_remote(entry, base, headers) for entry in entries if entry["path"] in kept)
    return listing(name, identity(source), files)


def _remote(entry: dict[str, Any], base: str, headers: dict[str, str]) -> Remote:
    path, large = str(entry["path"]), entry.get("lfs")
    address = Address(f"{base}/{quote(path)}", headers)
    checksum = Checksum("sha256", large["oid"]) if large else Checksum("git", entry["oid"])
    return Remote(path, int(large["size"] if large else entry["size"]), lambda: address, checksum)
