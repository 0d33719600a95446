"""`oci://`: an artifact of a registry, over the OCI distribution protocol.

Known are artifacts of the CNCF model specification (ModelPack), ModelKits, and what `oras push` writes: a layer is a
file (`…raw`, or an annotation that names it) or a tar that is unpacked. A tag is resolved to the manifest's digest
first; manifest and layers are checked against theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from headrace_runtime.models.credentials import SECRET, Credentials, basic_header
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.http import DeniedError, Http
from headrace_runtime.models.listing import Address, Checksum, Listing, Remote, listing
from headrace_runtime.models.sources import SHA256, OciSource, loopback, name_of

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ACCEPT = f"{MANIFEST}, {INDEX}, application/vnd.docker.distribution.manifest.v2+json"
NAMES = ("org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title")
"""Annotations of a layer that say which file it is, best first."""
ORAS_FOLDER = "io.deis.oras.content.unpack"
TOKEN_SECONDS = 60.0
"""How long a token holds that does not say so itself."""
DOCKER_HUB = ("docker.io", "registry-1.docker.io")
CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Registry:
    """One repository of a registry, and what it asks of who reads it. Thread-safe."""

    def __init__(self, source: OciSource, http: Http, credentials: Credentials) -> None:
        self._http = http
        host = DOCKER_HUB[1] if source.registry == DOCKER_HUB[0] else source.registry
        # As container engines do: without TLS on this machine only.
        self._root = f"{'http' if loopback(host) else 'https'}://{host}/v2/{source.repository}"
        self._repository = source.repository
        self._login = credentials.of_registry(source.registry)
        self._challenge: dict[str, str] | None = None
        self._header: tuple[str, float] = ("", float("inf"))
        self._lock = threading.Lock()
        self.name = f"oci://{source.registry}/{source.repository}"

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """The manifest's bytes, and its media type. Raises FetchError, BrokenError."""
        address = Address(f"{self._root}/manifests/{reference}", {"Accept": ACCEPT})
        what = f"{self.name}, manifest {reference}"
        try:
            body, headers = self._http.document(self._signed(address), what)
        except DeniedError as denied:
            if not self._meet(denied.challenge):
                raise
            body, headers = self._http.document(self._signed(address), what)
        return body, headers.get("Content-Type", "").partition(";")[0]

    def blob(self, digest: str) -> Address:
        """Where a layer is. Raises FetchError, BrokenError: the token may have to be renewed for it."""
        return self._signed(Address(f"{self._root}/blobs/{digest}"))

    def _signed(self, address: Address) -> Address:
        with self._lock:
            header, until = self._header
            if self._challenge is not None and time.monotonic() > until:
                header = self._ask_token(self._challenge)
        return Address(address.url, {**address.headers, "Authorization": header}) if header else address

    def _meet(self, challenge: str) -> bool:
        """Do as a 401 asks. False where it cannot be done."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and self._login:
            self._header = (basic_header(*self._login), float("inf"))
            return True
        if kind.lower() != "bearer":
            return False
        with self._lock:
            self._challenge = dict(CHALLENGE.findall(rest))
            self._ask_token(self._challenge)
        return True

    def _ask_token(self, challenge: dict[str, str]) -> str:
        """A token to read this repository; kept until shortly before its end."""
        realm = challenge.get("realm", "")
        host = urlsplit(realm).netloc
        if urlsplit(realm).scheme != "https" and not loopback(host):
            raise FetchError(f"{self.name}: its tokens come from {host or 'nowhere'} unencrypted")
        query = {"scope": challenge.get("scope") or f"repository:{self._repository}:pull"}
        if service := challenge.get("service"):
            query["service"] = service
        headers = {"Authorization": basic_header(*self._login)} if self._login else {}
        sign = "&" if urlsplit(realm).query else "?"
        what = f"{self.name}, a token to read it"
        body, _ = self._http.document(Address(f"{realm}{sign}{urlencode(query)}", headers), what)
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer["access_token"]
            seconds = float(answer.get("expires_in") or TOKEN_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FetchError(f"{what}: {host} gave none: check {SECRET}") from None
        self._header = (f"Bearer {token}", time.monotonic() + seconds * 0.8)
        return self._header[0]


def look(source: OciSource, http: Http, credentials: Credentials) -> Listing:
    """Raises FetchError, BrokenError."""
    registry = Registry(source, http, credentials)
    reference = source.digest or source.tag or "latest"
    body, kind = registry.manifest(reference)
    digest = _checked(body, source.digest, registry.name)
    manifest = _read(body, registry.name)
    if kind == INDEX or "manifests" in manifest:
        inner = _only_manifest(manifest, registry.name)
        body, _ = registry.manifest(inner)
        _checked(body, inner, registry.name)
        manifest = _read(body, registry.name)
    name = f"{name_of(source)}@{digest}"
    try:
        files = list(_layers(manifest, registry, name))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FetchError(f"{name}: its manifest is not what the OCI image specification says") from None
    # The same bytes are the same model, whatever repository they come from.
    return listing(name, digest, files)


def _checked(body: bytes, expected: str | None, name: str) -> str:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if expected is not None and digest != expected:
        raise FetchError(f"{name}: asked for the manifest {expected}, and got one that comes to {digest}")
    return digest


def _read(body: bytes, name: str) -> dict[str, Any]:
    try:
        manifest = json.loads(body)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise FetchError(f"{name}: the registry's answer is no manifest")
    return manifest


def _only_manifest(index: dict[str, Any], name: str) -> str:
    entries = index.get("manifests") or []
    if len(entries) != 1:
        raise FetchError(f"{name} is an index of {len(entries)} manifests: name the one that is meant by its digest")
    return str(entries[0]["digest"])


def _layers(manifest: dict[str, Any], registry: Registry, name: str) -> Iterator[Remote]:
    for number, layer in enumerate(manifest["layers"]):
        digest, size, kind = str(layer["digest"]), int(layer["size"]), str(layer["mediaType"])
        if not digest.startswith("sha256:") or not SHA256.fullmatch(digest[7:]):
            raise FetchError(f"{name}: layer {number} has the digest {digest[:80]!r}: only sha256 is known")
        notes = layer.get("annotations") or {}
        path = next((str(notes[key]) for key in NAMES if notes.get(key)), None)
        unpack = packed(kind, path, folder=notes.get(ORAS_FOLDER) == "true", name=name)
        if unpack is None and path is None:
            raise FetchError(
                f"{name}: layer {number} ({kind}) is no archive, and no annotation names the file that it is"
            )
        label = path if path and not unpack else f"layer {number}"
        checksum = Checksum("sha256", digest[7:])
        yield Remote(label, size, partial(registry.blob, digest), checksum, unpack=unpack)


def packed(kind: str, path: str | None, *, folder: bool, name: str) -> Literal["tar", "tar+gzip"] | None:
    """How a layer of media type `kind` is packed; None for a file as it is. Pure. Raises FetchError."""
    plain_file = path is not None and kind.startswith("application/vnd.oci.image.layer") and not folder
    if plain_file or (kind.endswith((".raw", "+json")) and not folder):
        return None  # `oras push` gives every file the type of a layer, and names it
    if kind.endswith(("zstd", "zst")):
        raise FetchError(f"{name}: layers compressed with zstd cannot be read: push it raw, as tar, or with gzip")
    if folder or kind.endswith(("tar+gzip", "tar.gzip")):
        return "tar+gzip"
    return "tar" if kind.endswith(".tar") else None
