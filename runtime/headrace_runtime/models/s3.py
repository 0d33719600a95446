"""`s3://`: every object under a prefix of a bucket.

obstore lists, finds credentials (keys from the Secret, a role of the pod or of the machine) and signs addresses;
the bytes come over the same road as those of every other source. S3 gives no digest that could be relied on, so an
object is what its size and ETag say while it is fetched, and what `spec.model.integrity` says afterwards.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from headrace_runtime.models.credentials import SECRET, Credentials
from headrace_runtime.models.errors import BrokenError, FetchError
from headrace_runtime.models.listing import Address, Listing, Remote, identity_of, listing
from headrace_runtime.models.sources import S3Source, name_of

if TYPE_CHECKING:
    from obstore.store import S3Config

SIGNED_FOR = timedelta(hours=1)
SIGN_AGAIN = 600.0
"""Seconds: well within what is left to credentials of a role when they are handed out."""
RETRIES = 3
REFUSALS = ("403 Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "169.254.169.254")
"""Of obstore's words: those of S3, and the address at which it looks for a machine's credentials when it has none."""
PAGE = 1000


class Bucket:
    """One bucket: lists its objects, and gives addresses that may be read without credentials for an hour."""

    def __init__(self, source: S3Source, credentials: Credentials) -> None:
        self.name = name_of(source)
        settings = {name.lower(): value for name, value in credentials.aws().items() if name.lower() in KNOWN}
        settings.setdefault("aws_region", settings.get("aws_default_region", "us-east-1"))
        endpoint = settings.get("aws_endpoint_url", "")
        self._anonymous = settings.get("aws_skip_signature", "").lower() in ("true", "1")
        virtual = settings.get("aws_virtual_hosted_style_request", "").lower() in ("true", "1")
        if virtual or not endpoint:
            host = endpoint or f"https://{source.bucket}.s3.{settings['aws_region']}.amazonaws.com"
            self._root = host.rstrip("/")
            settings["aws_virtual_hosted_style_request"] = "true"
        else:
            self._root = f"{endpoint.rstrip('/')}/{source.bucket}"
        self._store = S3Store(
            source.bucket,
            config=cast("S3Config", settings),
            client_options={"allow_http": endpoint.startswith("http://")},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=30)},
        )
        self._signed: dict[str, tuple[Address, float]] = {}
        self._lock = threading.Lock()

    def address(self, key: str) -> Address:
        """Raises FetchError."""
        if self._anonymous:
            return Address(f"{self._root}/{quote(key)}")
        with self._lock:
            known = self._signed.get(key)
            if known and time.monotonic() - known[1] < SIGN_AGAIN:
                return known[0]
        try:
            address = Address(obstore.sign(self._store, "GET", key, SIGNED_FOR))
        except (BaseError, OSError) as error:
            raise self._plain(error) from None
        with self._lock:
            self._signed[key] = (address, time.monotonic())
        return address

    def objects(self, prefix: str) -> list[tuple[str, int, str | None]]:
        """Key, size and ETag of every object under `prefix`, or of the one that is called so. Raises FetchError."""
        try:
            pages = obstore.list(self._store, prefix or None, chunk_size=PAGE)
            found = [(meta["path"], meta["size"], meta["e_tag"]) for page in pages for meta in page]
            if not found and prefix:
                meta = obstore.head(self._store, prefix)
                found = [(meta["path"], meta["size"], meta["e_tag"])]
        except FileNotFoundError:  # so obstore says it
            raise FetchError(f"{self.name}: there is no such bucket or object: check spec.model.source") from None
        except (BaseError, OSError) as error:
            raise self._plain(error) from None
        return found

    def _plain(self, error: Exception) -> FetchError:
        """In our words: obstore's hold addresses and bodies."""
        host = self._root.partition("://")[2].partition("/")[0]
        text = str(error)
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
        if refused or any(sign in text for sign in REFUSALS):
            return FetchError(f"{self.name}: {host} refused: check {SECRET} (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
        return BrokenError(f"{self.name}: {host} gave no listing")


KNOWN = frozenset({
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region", "aws_default_region",
    "aws_endpoint_url", "aws_skip_signature", "aws_virtual_hosted_style_request", "aws_request_payer",
    "aws_web_identity_token_file", "aws_role_arn", "aws_role_session_name", "aws_sts_endpoint",
    "aws_container_credentials_relative_uri", "aws_container_credentials_full_uri",
    "aws_container_authorization_token_file",
})  # fmt: skip
"""Settings that are passed on, by their environment names in lower case."""


def look(source: S3Source, credentials: Credentials) -> Listing:
    """Raises FetchError, BrokenError."""
    bucket = Bucket(source, credentials)
    start = len(source.prefix) + 1 if source.prefix else 0
    files = []
    for key, size, etag in bucket.objects(source.prefix):
        if key.endswith("/"):
            continue  # how some tools write down a folder
        path = key.rpartition("/")[2] if key == source.prefix else key[start:]
        files.append(Remote(path, size, partial(bucket.address, key), etag=etag))
    return listing(bucket.name, identity_of(bucket.name, files), files)
