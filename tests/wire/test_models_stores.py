"""Models from a real OCI registry (distribution) and a real S3 server that checks signatures (gofakes3)."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin

import obstore
import pytest
from obstore.store import S3Store

from headrace_runtime.local import free_ports
from headrace_runtime.models import fetching, record
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials, basic_header
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
from local import toolchain
from local.programs import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WEIGHTS = random.Random(2).randbytes(3_000_000)
BODIES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/tokenizer.json": b"[]"}
# bcrypt of "hunter2": registries take no other.
HTPASSWD = "jo:$2b$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8."
RAW = "application/vnd.cncf.model.weight.v1.raw"


@pytest.fixture(scope="session")
def program() -> Path:
    return toolchain.stores()


@contextmanager
def running(words: list[str | Path], url: str, folder: Path) -> Iterator[None]:
    """A server, from when it answers."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except URLError as error:
            return hasattr(error, "code")

    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        wait_until(f"{words[1]} answers: {folder}/server.log", answers, 60)
        yield
    finally:
        server.kill()
        server.wait(30)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def tarred(bodies: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, body in bodies.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return packed.getvalue()


# ---- OCI --------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    body: bytes
    kind: str
    notes: dict[str, str]


@dataclass
class Pushing:
    """A registry as who pushes to it sees it: the distribution protocol's own calls."""

    host: str
    headers: dict[str, str]

    def call(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> str:
        headers = self.headers | ({"Content-Type": kind} if kind else {})
        url = urljoin(f"http://{self.host}/", path)
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)) as answer:
            return str(answer.headers.get("Location", ""))

    def blob(self, repository: str, body: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        place = self.call("POST", f"/v2/{repository}/blobs/uploads/", b"")
        self.call("PUT", f"{place}&digest={digest}", body, "application/octet-stream")
        return digest

    def artifact(self, repository: str, tag: str, layers: list[Layer]) -> str:
        kind = "application/vnd.oci.image.manifest.v1+json"
        config = {"mediaType": "application/vnd.cncf.model.config.v1+json"}
        document = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": config | {"digest": self.blob(repository, b"{}"), "size": 2},
            "layers": [
                {
                    "mediaType": layer.kind,
                    "digest": self.blob(repository, layer.body),
                    "size": len(layer.body),
                    "annotations": layer.notes,
                }
                for layer in layers
            ],
        }
        body = json.dumps(document).encode()
        self.call("PUT", f"/v2/{repository}/manifests/{tag}", body, kind)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"


@pytest.fixture(scope="module")
def registry(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushing]:
    folder = tmp_path_factory.mktemp("registry")
    host = f"127.0.0.1:{free_ports(1)[0]}"
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"inmemory": {}},
        "http": {"addr": host},
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with running([program, "registry", "serve", folder / "config.yml"], f"http://{host}/v2/", folder):
        yield Pushing(host, {"Authorization": basic_header("jo", "hunter2")})


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1 << 20)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None)


LOGIN = Credentials({"username": "jo", "password": "hunter2"})


def test_a_model_pack_of_raw_files_is_fetched(registry: Pushing, cache: Cache) -> None:
    layers = [Layer(body, RAW, {"org.cncf.model.filepath": path}) for path, body in BODIES.items()]
    digest = registry.artifact("acme/tiny", "v1", layers)
    path = fetch(f"oci://{registry.host}/acme/tiny:v1", cache, LOGIN, Progress())
    assert contents(path) == BODIES
    known = record.read(path)
    assert known
    assert known.source == f"oci://{registry.host}/acme/tiny:v1@{digest}"


def test_a_tag_and_its_digest_are_one_copy(registry: Pushing, cache: Cache) -> None:
    digest = registry.artifact("acme/one", "latest", [Layer(b"{}", RAW, {"org.cncf.model.filepath": "config.json"})])
    first = fetch(f"oci://{registry.host}/acme/one", cache, LOGIN, Progress())
    assert fetch(f"oci://{registry.host}/acme/one@{digest}", cache, Credentials({}), Progress()) == first


def test_layers_that_are_archives_are_unpacked_beside_files(registry: Pushing, cache: Cache) -> None:
    folder = {"org.opencontainers.image.title": "sub", "io.deis.oras.content.unpack": "true"}
    layers = [
        Layer(tarred({"model.safetensors": WEIGHTS}), "application/vnd.cncf.model.weight.v1.tar", {}),
        Layer(gzip.compress(tarred({"sub/a": b"a"}), 1), "application/vnd.oci.image.layer.v1.tar+gzip", folder),
        Layer(b"{}", "application/vnd.oci.image.layer.v1.tar", {"org.opencontainers.image.title": "config.json"}),
    ]
    registry.artifact("acme/packed", "v1", layers)
    path = fetch(f"oci://{registry.host}/acme/packed:v1", cache, LOGIN, Progress())
    assert contents(path) == {"model.safetensors": WEIGHTS, "sub/a": b"a", "config.json": b"{}"}


def test_a_docker_login_is_understood(registry: Pushing, cache: Cache) -> None:
    registry.artifact("acme/login", "v1", [Layer(b"{}", RAW, {"org.cncf.model.filepath": "config.json"})])
    auth = base64.b64encode(b"jo:hunter2").decode()
    login = Credentials({".dockerconfigjson": json.dumps({"auths": {registry.host: {"auth": auth}}})})
    assert contents(fetch(f"oci://{registry.host}/acme/login:v1", cache, login, Progress())) == {"config.json": b"{}"}


@pytest.mark.parametrize("login", [{}, {"username": "jo", "password": "wrong"}])
def test_a_registry_that_refuses_is_named_with_what_to_do(
    registry: Pushing, cache: Cache, login: dict[str, str]
) -> None:
    with pytest.raises(FetchError, match=r"answered 401: check the Secret of spec\.model\.credentialsSecretRef"):
        fetch(f"oci://{registry.host}/acme/tiny:v1", cache, Credentials(login), Progress())


def test_a_tag_that_is_not_there_is_named(registry: Pushing, cache: Cache) -> None:
    with pytest.raises(FetchError, match=r"acme/tiny, manifest none: .* answered 404"):
        fetch(f"oci://{registry.host}/acme/tiny:none", cache, LOGIN, Progress())


def test_a_layer_that_leads_out_leaves_nothing_outside(registry: Pushing, cache: Cache, tmp_path: Path) -> None:
    registry.artifact("acme/evil", "v1", [Layer(tarred({"../../../evil": b"x"}), "application/x.tar", {})])
    with pytest.raises(FetchError, match="no path within the model's folder"):
        fetch(f"oci://{registry.host}/acme/evil:v1", cache, LOGIN, Progress())
    assert not list(tmp_path.rglob("evil"))


# ---- S3 ---------------------------------------------------------------------------------------------------------

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}


@pytest.fixture(scope="module")
def s3(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    words: list[str | Path] = [program, "s3", address, "models", *KEYS.values()]
    with running(words, f"http://{address}/", tmp_path_factory.mktemp("s3")):
        store = S3Store(
            "models",
            access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            endpoint=f"http://{address}",
            region="us-east-1",
            client_options={"allow_http": True},
        )
        for path, body in BODIES.items():
            obstore.put(store, f"llm/tiny chat/{path}", body)
        obstore.put(store, "llm/tiny chat-2/other", b"x")
        yield f"http://{address}"


def test_every_object_under_a_prefix_is_fetched(s3: str, cache: Cache) -> None:
    path = fetch("s3://models/llm/tiny chat/", cache, Credentials(KEYS, {"AWS_ENDPOINT_URL": s3}), Progress())
    assert contents(path) == BODIES


def test_one_object_is_a_model(s3: str, cache: Cache) -> None:
    credentials = Credentials(KEYS | {"AWS_ENDPOINT_URL": s3})
    path = fetch("s3://models/llm/tiny chat/config.json", cache, credentials, Progress())
    assert contents(path) == {"config.json": b"{}"}


def test_a_wrong_key_is_refused_and_not_shown(s3: str, cache: Cache) -> None:
    credentials = Credentials(KEYS | {"AWS_SECRET_ACCESS_KEY": "wrong", "AWS_ENDPOINT_URL": s3})
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:\d+ refused: check the Secret") as caught:
        fetch("s3://models/llm/tiny chat", cache, credentials, Progress())
    assert "AKIATEST" not in f"{caught.value!r}"


def test_a_prefix_with_nothing_in_it_is_named(s3: str, cache: Cache) -> None:
    with pytest.raises(FetchError, match=r"s3://models/none: there is no such bucket or object"):
        fetch("s3://models/none", cache, Credentials(KEYS | {"AWS_ENDPOINT_URL": s3}), Progress())
