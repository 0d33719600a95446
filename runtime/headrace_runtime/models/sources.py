"""Where a model may come from, read from the text of a source. Pure.

    hf://OWNER/NAME@COMMIT          a commit of a repository of a model hub, all 40 hex digits of it
    oci://REGISTRY/REPOSITORY[:TAG|@sha256:HEX]
    s3://BUCKET/PREFIX              every object under the prefix
    https://HOST/FOLDER/            the files that FOLDER/SHA256SUMS lists
    https://HOST/FILE[#sha256=HEX]  one file; .tar, .tar.gz and .tgz are unpacked

`http://` is taken on loopback only. Sources hold no credentials: those come from a Secret (`credentials.py`).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from headrace_runtime.models.errors import FetchError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class SourceError(FetchError):
    """The text is no source."""


@dataclass(frozen=True)
class HubSource:
    repository: str
    commit: str


@dataclass(frozen=True)
class OciSource:
    registry: str
    """`host` or `host:port`."""
    repository: str
    tag: str | None
    digest: str | None
    """`sha256:HEX`. Where there is neither, the tag `latest` is meant."""


@dataclass(frozen=True)
class S3Source:
    bucket: str
    prefix: str
    """Without a slash at either end; empty for the whole bucket."""


@dataclass(frozen=True)
class WebSource:
    url: str
    """Without the fragment. Ends in a slash where it is a folder."""
    sha256: str | None

    @property
    def name(self) -> str:
        """The address as messages show it: without its query, which may hold a token."""
        return self.url.partition("?")[0]


Source = HubSource | OciSource | S3Source | WebSource


def fetched(source: str) -> bool:
    """Whether models of this source are fetched; others are mounted."""
    return source.partition("://")[0] in ("hf", "oci", "s3", "https", "http")


def parse(source: str) -> Source:
    """Raises SourceError."""
    try:
        return _parse(source)
    except ValueError:  # urllib's, of brackets that hold no address
        raise SourceError(f"{source.partition('://')[0]}://… names no host") from None


def _parse(source: str) -> Source:
    scheme, found, rest = source.partition("://")
    if found and scheme == "hf":
        return _hub(rest)
    if found and scheme == "oci":
        return _oci(rest)
    if found and scheme == "s3":
        return _s3(rest)
    if found and scheme in ("https", "http"):
        return _web(source)
    raise SourceError(f"a model cannot be fetched from {scheme or source!r}: write hf://, oci://, s3:// or https://")


def name_of(source: Source) -> str:
    """The source as it is shown and remembered: no query, and of an artifact the tag rather than the digest."""
    match source:
        case HubSource():
            return f"hf://{source.repository}@{source.commit}"
        case OciSource():
            tag = f":{source.tag}" if source.tag else ""
            return f"oci://{source.registry}/{source.repository}{tag}"
        case S3Source():
            return f"s3://{source.bucket}" + (f"/{source.prefix}" if source.prefix else "")
        case WebSource():
            return f"{source.name}#sha256={source.sha256}" if source.sha256 else source.name


def loopback(host: str) -> bool:
    """Whether `host` (`name`, `address` or either with a port) is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _hub(rest: str) -> HubSource:
    repository, _, commit = rest.partition("@")
    if not HUB_NAME.fullmatch(repository):
        raise SourceError(f"hf://{repository} names no repository: write hf://OWNER/NAME@COMMIT")
    if not COMMIT.fullmatch(commit):
        raise SourceError(
            f"hf://{repository} needs a commit, all 40 hex digits: a branch or a tag may change under a deployment"
        )
    return HubSource(repository, commit)


def _oci(rest: str) -> OciSource:
    host, _, path = rest.partition("/")
    path, _, digest = path.partition("@")
    repository, _, tag = path.partition(":")
    if "@" in host or not host or not urlsplit(f"//{host}").hostname or not REPOSITORY.fullmatch(repository):
        raise SourceError(f"oci://{host.rpartition('@')[2]}/… is no reference: write oci://REGISTRY/REPOSITORY:TAG")
    if digest and not (digest.startswith("sha256:") and SHA256.fullmatch(digest[7:])):
        raise SourceError(f"oci://{host}/{repository}: what follows @ must be sha256: and 64 hex digits")
    if tag and not TAG.fullmatch(tag):
        raise SourceError(f"oci://{host}/{repository}: {tag!r} is no tag")
    return OciSource(host, repository, tag or None if digest else tag or "latest", digest or None)


def _s3(rest: str) -> S3Source:
    bucket, _, prefix = rest.partition("/")
    if not BUCKET.fullmatch(bucket):
        raise SourceError(f"s3://{bucket} names no bucket: write s3://BUCKET/PREFIX")
    return S3Source(bucket, prefix.strip("/"))


def _web(source: str) -> WebSource:
    parts = urlsplit(source)
    if parts.username or parts.password:
        raise SourceError(
            f"{parts.scheme}://…@{parts.hostname}: credentials in an address are refused: put `username` and "
            "`password` into the Secret of spec.model.credentialsSecretRef"
        )
    if not parts.hostname:
        raise SourceError(f"{parts.scheme}://{parts.path} names no host")
    if parts.scheme == "http" and not loopback(parts.netloc):
        raise SourceError(f"http://{parts.netloc} is not encrypted: write https://")
    kind, _, digest = parts.fragment.partition("=")
    if parts.fragment and not (kind == "sha256" and SHA256.fullmatch(digest)):
        raise SourceError(f"{parts.netloc}{parts.path}: what follows # must be sha256= and 64 hex digits")
    url = source.partition("#")[0]
    return WebSource(url.removesuffix("SHA256SUMS") if parts.path.endswith("/SHA256SUMS") else url, digest or None)
