"""Whom a fetch tells its secrets, and whom it believes: registries that hand out tokens, and servers with TLS."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace_runtime.models import fetching, http
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials, basic_header
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.registry import INDEX, MANIFEST, Registry
from headrace_runtime.models.sources import OciSource
from tests.wire.model_servers import Files, Handler, folder, serving

WEIGHTS = bytes(range(256)) * 3000
LOGIN = Credentials({"username": "jo", "password": "hunter2"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1 << 18)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None)


# ---- a registry that hands out tokens -----------------------------------------------------------------------------


class TokenHandler(Handler):
    """A registry that wants a token, and hands them out to who logs in."""

    issued: list[str]
    seconds: float = 300.0

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        parts, sent = urlsplit(self.path), self.headers.get("Authorization", "")
        if parts.path == "/token":
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            assert asked == {"service": "registry", "scope": "repository:acme/tiny:pull", "account": "x"}
            self.issued.append(sent)
            allowed = sent == basic_header("jo", "hunter2")
            body = json.dumps({"token": f"t{len(self.issued)}", "expires_in": self.seconds} if allowed else {}).encode()
            self.answer(200 if allowed else 401, body, {})
        elif sent.startswith("Bearer t"):
            super().do_GET()
        else:
            realm = f"http://{self.headers['Host']}/token?account=x"
            challenge = f'Bearer realm="{realm}",service="registry",scope="repository:acme/tiny:pull"'
            self.answer(401, b"", {"WWW-Authenticate": challenge})

    def body(self, path: str, body: bytes) -> None:
        if "/manifests/" in path:
            kind = INDEX if b'"manifests"' in body else MANIFEST
            self.answer(200, body, {"Content-Type": kind})
        else:
            super().body(path, body)


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def artifact(bodies: Mapping[str, bytes]) -> tuple[dict[str, bytes], str]:
    """What a registry serves of an artifact of `bodies`, and its digest."""
    kind = "application/vnd.cncf.model.weight.v1.raw"
    layers = [
        {
            "mediaType": kind,
            "digest": digest_of(body),
            "size": len(body),
            "annotations": {"org.cncf.model.filepath": path},
        }
        for path, body in bodies.items()
    ]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}).encode()
    place = "v2/acme/tiny"
    served = {f"{place}/blobs/{digest_of(body)}": body for body in bodies.values()}
    names = ("v1", digest_of(manifest))
    return served | {f"{place}/manifests/{name}": manifest for name in names}, digest_of(manifest)


@pytest.fixture
def handler() -> type[TokenHandler]:
    return type("Counting", (TokenHandler,), {"issued": []})


@pytest.mark.parametrize(("seconds", "least", "most"), [(300, 1, 1), (0.0001, 4, 20)])
def test_tokens_are_asked_for_and_renewed(
    cache: Cache, handler: type[TokenHandler], seconds: float, least: int, most: int
) -> None:
    handler.seconds = seconds
    served, _ = artifact({"model.safetensors": WEIGHTS, "config.json": b"{}"})
    files = Files(served)
    with serving(files, handler) as url:
        path = fetch(f"oci://{urlsplit(url).netloc}/acme/tiny:v1", cache, LOGIN, Progress())
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert least <= len(handler.issued) <= most
    assert not any("hunter2" in str(request) or "Basic" in request[2] for request in files.requests)


def test_a_refused_token_says_what_to_do(cache: Cache, handler: type[TokenHandler]) -> None:
    served, _ = artifact({"config.json": b"{}"})
    wrong = Credentials({"username": "jo", "password": "wrong"})
    with serving(Files(served), handler) as url:
        with pytest.raises(FetchError, match=r"a token to read it: .* answered 401: check the Secret"):
            fetch(f"oci://{urlsplit(url).netloc}/acme/tiny:v1", cache, wrong, Progress())


def test_a_login_is_not_sent_where_nobody_encrypts() -> None:
    registry = Registry(OciSource("ghcr.io", "acme/tiny", "v1", None), http.Http(), LOGIN)
    with pytest.raises(FetchError, match=r"its tokens come from evil\.example unencrypted"):
        registry._meet('Bearer realm="http://evil.example/token"')


def test_a_manifest_that_is_another_than_asked_for_is_refused(cache: Cache, handler: type[TokenHandler]) -> None:
    served, digest = artifact({"config.json": b"{}"})
    other, _ = artifact({"config.json": b"[]"})
    served[f"v2/acme/tiny/manifests/{digest}"] = other["v2/acme/tiny/manifests/v1"]
    with serving(Files(served), handler) as url:
        with pytest.raises(FetchError, match="and got one that comes to sha256:"):
            fetch(f"oci://{urlsplit(url).netloc}/acme/tiny@{digest}", cache, LOGIN, Progress())


def test_an_index_of_one_is_followed_and_of_two_is_refused(cache: Cache, handler: type[TokenHandler]) -> None:
    served, digest = artifact({"config.json": b"{}"})
    for count in (1, 2):
        entries = [{"digest": digest, "mediaType": MANIFEST, "size": 1}] * count
        served[f"v2/acme/tiny/manifests/i{count}"] = json.dumps({"manifests": entries}).encode()
    with serving(Files(served), handler) as url:
        host = urlsplit(url).netloc
        assert (fetch(f"oci://{host}/acme/tiny:i1", cache, LOGIN, Progress()) / "config.json").is_file()
        with pytest.raises(FetchError, match="is an index of 2 manifests: name the one that is meant"):
            fetch(f"oci://{host}/acme/tiny:i2", cache, LOGIN, Progress())


@pytest.mark.parametrize(
    "manifest", [b"<html>", b"[]", b'{"layers": 1}', b'{"layers": [{}]}', b'{"layers": [{"digest": "md5:00"}]}', b"{}"]
)
def test_what_is_no_manifest_is_refused(cache: Cache, handler: type[TokenHandler], manifest: bytes) -> None:
    with serving(Files({"v2/acme/tiny/manifests/v1": manifest}), handler) as url:
        with pytest.raises(FetchError, match=r"is no manifest|is not what the OCI image specification says"):
            fetch(f"oci://{urlsplit(url).netloc}/acme/tiny:v1", cache, LOGIN, Progress())


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its certificate for 127.0.0.1, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models")])
    now = datetime.fromtimestamp(time.time(), UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def encrypted(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_an_authority_that_is_trusted_here_is_believed(
    cache: Cache, certificate: Path, encrypted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    files = Files(folder({"model.safetensors": WEIGHTS}), cut_after=200_000)
    with serving(files, encrypted=encrypted) as url:
        path = fetch(f"{url}/model/", cache, Credentials({}), Progress())
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_certificate_that_nobody_trusts_is_refused_at_once(cache: Cache, encrypted: ssl.SSLContext) -> None:
    files = Files(folder({"config.json": b"{}"}))
    with serving(files, encrypted=encrypted) as url:
        with pytest.raises(FetchError, match=r"no certificate that is trusted here: is SSL_CERT_FILE set\?"):
            fetch(f"{url}/model/", cache, LOGIN, Progress())
    assert files.requests == []


def test_a_redirect_to_a_road_without_encryption_is_not_taken(
    cache: Cache, certificate: Path, encrypted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    plain = Files({"config.json": b"{}"})
    with serving(plain) as elsewhere:
        redirecting = Files(redirects={"config.json": f"{elsewhere}/config.json"})
        with serving(redirecting, encrypted=encrypted) as url:
            with pytest.raises(FetchError, match="sends us on to an address that is not encrypted"):
                fetch(f"{url}/config.json", cache, Credentials({}), Progress())
