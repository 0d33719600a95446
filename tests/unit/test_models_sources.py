import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.models import command, http, hub, registry, s3, web
from headrace_runtime.models.credentials import Credentials
from headrace_runtime.models.errors import FetchError, UnsafePathError
from headrace_runtime.models.listing import Address, Checksum, Remote, identity_of, listing, safe_path, wanted
from headrace_runtime.models.room import Entry, leaving, on_disk
from headrace_runtime.models.sources import (
    HubSource,
    OciSource,
    S3Source,
    Source,
    SourceError,
    WebSource,
    fetched,
    name_of,
    parse,
)
from headrace_runtime.models.transfer import pieces

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (f"hf://acme/tiny-1.5@{COMMIT}", HubSource("acme/tiny-1.5", COMMIT)),
        ("oci://ghcr.io/acme/tiny:v1", OciSource("ghcr.io", "acme/tiny", "v1", None)),
        ("oci://localhost:5000/tiny", OciSource("localhost:5000", "tiny", "latest", None)),
        (f"oci://ghcr.io/acme/tiny@sha256:{HEX}", OciSource("ghcr.io", "acme/tiny", None, f"sha256:{HEX}")),
        (f"oci://ghcr.io/acme/tiny:v1@sha256:{HEX}", OciSource("ghcr.io", "acme/tiny", "v1", f"sha256:{HEX}")),
        ("s3://models/llm/tiny/", S3Source("models", "llm/tiny")),
        ("s3://models", S3Source("models", "")),
        ("https://host/models/tiny/", WebSource("https://host/models/tiny/", None)),
        ("https://host/models/tiny/SHA256SUMS", WebSource("https://host/models/tiny/", None)),
        (f"https://host/tiny.tar.gz#sha256={HEX}", WebSource("https://host/tiny.tar.gz", HEX)),
        ("http://127.0.0.1:80/tiny.tar", WebSource("http://127.0.0.1:80/tiny.tar", None)),
    ],
)
def test_every_form_of_a_source_is_read(text: str, source: Source) -> None:
    assert parse(text) == source


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://acme/tiny", "needs a commit, all 40 hex digits"),
        ("hf://acme/tiny@main", "needs a commit"),
        (f"hf://tiny@{COMMIT}", "write hf://OWNER/NAME@COMMIT"),
        ("oci://ghcr.io", "write oci://REGISTRY/REPOSITORY:TAG"),
        ("oci://jo:hunter2@ghcr.io/tiny", "oci://ghcr.io/"),
        ("oci://ghcr.io/tiny@sha512:00", "must be sha256: and 64 hex digits"),
        ("oci://ghcr.io/tiny:a b", "is no tag"),
        ("s3:///prefix", "names no bucket"),
        ("https://jo:hunter2@host/x", "credentials in an address are refused"),
        ("http://host/x", "is not encrypted"),
        ("https:///x", "names no host"),
        ("https://host/x#sha256=00", "64 hex digits"),
        ("https://[/x", "names no host"),
        ("ftp://host/x", "cannot be fetched from 'ftp'"),
        ("tiny", "cannot be fetched from"),
        ("", "cannot be fetched from"),
    ],
)
def test_what_is_no_source_is_told_what_to_write(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        parse(text)
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=80))
@settings(deadline=None)
def test_any_text_is_a_source_or_a_source_error(text: str) -> None:
    for scheme in ("", "hf://", "oci://", "s3://", "https://"):
        try:
            parse(scheme + text)
        except SourceError:
            continue


def test_mounted_sources_are_not_fetched() -> None:
    assert [fetched(text) for text in ("node:///x", "pvc://c/x", "hf://a/b", "s3://b")] == [False, False, True, True]


def test_a_name_holds_no_query() -> None:
    assert name_of(parse("https://host/tiny/?sig=hunter2")) == "https://host/tiny/"


# ---- listings ---------------------------------------------------------------------------------------------------


def remote(path: str, size: int | None = 1, etag: str | None = None, **more: bool) -> Remote:
    return Remote(path, size, lambda: Address("https://host/x"), etag=etag, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", ".", "a\0b", "a\\b", "x" * 300, "a/" * 600 + "x"])
def test_a_path_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(UnsafePathError, match="no path within the model's folder"):
        safe_path(path, "s3://bucket")


@given(st.text(max_size=60))
@settings(deadline=None)
def test_a_safe_path_stays_within_its_folder(path: str) -> None:
    try:
        safe = safe_path(path, "x")
    except UnsafePathError:
        return
    folder = Path("/cache/model")
    assert Path(str(folder / safe)).resolve().is_relative_to(folder)
    assert folder / safe != folder


def test_a_listing_with_nothing_or_twice_the_same_is_refused() -> None:
    with pytest.raises(FetchError, match="holds no files"):
        listing("s3://bucket", "id", [])
    with pytest.raises(FetchError, match="lists a file twice"):
        listing("s3://bucket", "id", [remote("a/b"), remote("a//b")])


def test_an_identity_changes_with_the_bytes_and_not_with_their_order() -> None:
    one, two, other = remote("a", etag='"1"'), remote("b", etag='"2"'), remote("b", etag='"3"')
    assert identity_of("s", [one, two]) == identity_of("s", [two, one])
    assert len({identity_of("s", [one, two]), identity_of("s", [one, other]), identity_of("t", [one, two])}) == 3


def test_a_hub_gives_safetensors_once_and_nothing_of_git() -> None:
    tensors = {"model-1.safetensors", "model.safetensors.index.json", "tokenizer.model", "sub/config.json"}
    others = {"pytorch_model.bin", "original/consolidated.00.pth", "model.gguf", ".gitattributes"}
    assert wanted(tensors | others) == tensors
    assert wanted({"pytorch_model.bin", ".gitattributes"}) == {"pytorch_model.bin"}


@given(st.integers(0, 10_000), st.integers(1, 999), st.booleans())
@settings(deadline=None)
def test_pieces_cover_a_file_without_overlap(size: int, piece_bytes: int, ranges: bool) -> None:
    cut = pieces(remote("a", size, ranges=ranges), piece_bytes)
    assert [piece.start for piece in cut] == [0, *(piece.stop for piece in cut[:-1])]
    assert cut[-1].stop == size
    assert all(size == 0 or piece.start < (piece.stop or 0) for piece in cut)
    assert len(cut) == 1 or (ranges and all((p.stop or 0) - p.start <= piece_bytes for p in cut))


def test_a_file_of_unknown_size_is_one_piece() -> None:
    assert [piece.stop for piece in pieces(remote("a", None), 5)] == [None]


def test_a_commit_is_known_before_the_hub_is_asked() -> None:
    assert hub.identity(HubSource("acme/tiny", COMMIT)) == f"hf://acme/tiny@{COMMIT}#1"


# ---- the sources' own -------------------------------------------------------------------------------------------


def test_sums_are_what_sha256sum_writes() -> None:
    text = f"{HEX}  ./config.json\n{HEX.upper()} *sub/a b.bin\n\n{HEX}  SHA256SUMS\n"
    assert web.parse_sums(text.encode(), "x") == {"config.json": HEX, "sub/a b.bin": HEX}


@pytest.mark.parametrize("text", [b"<html>", b"\xff", f"{HEX[1:]}  a".encode()])
def test_what_are_no_sums_is_refused(text: bytes) -> None:
    with pytest.raises(FetchError, match="is not what sha256sum writes"):
        web.parse_sums(text, "https://host/")


OCI_LAYER = "application/vnd.oci.image.layer.v1"


@pytest.mark.parametrize(
    ("kind", "path", "folder", "how"),
    [
        ("application/vnd.cncf.model.weight.v1.raw", "a", False, None),
        ("application/vnd.cncf.model.weight.v1.tar", "a", False, "tar"),
        ("application/vnd.cncf.model.weight.v1.tar+gzip", None, False, "tar+gzip"),
        ("application/vnd.kitops.modelkit.model.v1.tar+gzip", None, False, "tar+gzip"),
        (f"{OCI_LAYER}.tar", "model.safetensors", False, None),
        (f"{OCI_LAYER}.tar", None, False, "tar"),
        (f"{OCI_LAYER}.tar+gzip", "folder", True, "tar+gzip"),
        (f"{OCI_LAYER}.tar+gzip", "a.tar.gz", False, None),
        ("application/octet-stream", "a", False, None),
        ("application/vnd.acme.config+json", "config.json", False, None),
    ],
)
def test_a_layer_says_how_it_is_packed(kind: str, path: str | None, folder: bool, how: str | None) -> None:
    assert registry.packed(kind, path, folder=folder, name="oci://x") == how


def test_zstd_is_refused_by_name() -> None:
    with pytest.raises(FetchError, match="zstd cannot be read: push it raw"):
        registry.packed("application/vnd.cncf.model.weight.v1.tar+zstd", None, folder=False, name="oci://x")


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("settings_", "address"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9/models/llm/a%20b?X-Amz"),
        ({"AWS_REGION": "eu-west-1"}, "https://models.s3.eu-west-1.amazonaws.com/llm/a%20b?X-Amz"),
        (
            {"AWS_ENDPOINT_URL": "https://models.s3.host", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            "https://models.s3.host/llm/a%20b?X-Amz",
        ),
        ({"AWS_SKIP_SIGNATURE": "true"}, "https://models.s3.us-east-1.amazonaws.com/llm/a%20b"),
    ],
)
def test_buckets_stand_in_the_path_or_in_the_host(settings_: dict[str, str], address: str) -> None:
    bucket = s3.Bucket(S3Source("models", "llm"), Credentials(KEYS, settings_))
    assert bucket.address("llm/a b").url.startswith(address)


# ---- credentials ------------------------------------------------------------------------------------------------


def test_credentials_are_files_and_go_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "HF_TOKEN").write_text("secret\n")
    (tmp_path / "..data").mkdir()
    known = Credentials.of(tmp_path, {"HF_TOKEN": "other", "HF_ENDPOINT": "https://mirror", "AWS_REGION": "x"})
    assert (known.get("HF_TOKEN"), known.get("HF_ENDPOINT"), known.get("none")) == ("secret", "https://mirror", None)
    assert known.aws() == {"AWS_REGION": "x"}
    assert "secret" not in repr(known)


def test_no_credentials_are_none() -> None:
    assert Credentials.of(None).get("HF_TOKEN") is None
    assert Credentials({}).basic() is None
    assert Credentials({}).of_registry("ghcr.io") is None


def test_a_secret_that_is_not_mounted_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"credentialsSecretRef cannot be read: No such file"):
        Credentials.of(tmp_path / "none")


@pytest.mark.parametrize(
    ("registry_", "auths"),
    [
        ("ghcr.io", {"ghcr.io": {"auth": base64.b64encode(b"jo:hunter2").decode()}}),
        ("ghcr.io", {"https://ghcr.io": {"username": "jo", "password": "hunter2"}}),
        ("docker.io", {"https://index.docker.io/v1/": {"username": "jo", "password": "hunter2"}}),
    ],
)
def test_a_docker_configuration_is_read(registry_: str, auths: dict[str, object]) -> None:
    known = Credentials({".dockerconfigjson": json.dumps({"auths": auths})})
    assert known.of_registry(registry_) == ("jo", "hunter2")
    assert known.of_registry("quay.io") is None


@pytest.mark.parametrize("text", ["", "{}", '{"auths": {"ghcr.io": {"auth": "%"}}}'])
def test_a_broken_docker_configuration_is_named(text: str) -> None:
    with pytest.raises(FetchError, match=r"\.dockerconfigjson is not what `docker login` writes"):
        Credentials({".dockerconfigjson": text}).of_registry("ghcr.io")


# ---- patience ---------------------------------------------------------------------------------------------------


def test_pauses_grow_are_spread_and_end() -> None:
    assert [round(http.pause(failures, 1.0), 1) for failures in (1, 2, 3, 7, 100)] == [0.1, 0.3, 0.9, 30.0, 30.0]
    assert http.pause(3, 0.0) == pytest.approx(http.pause(3, 1.0) / 2)


@pytest.mark.parametrize(("text", "seconds"), [("3", 3.0), ("-1", 0.0), ("9e9", 300.0), ("", None), ("Fri", None)])
def test_a_server_may_say_when_to_come_back(text: str, seconds: float | None) -> None:
    assert http.retry_after(text) == seconds


def test_the_next_page_is_of_the_same_host() -> None:
    url = "https://hub/api/tree"
    assert http.next_page({"Link": '</api/tree?cursor=2>; rel="next"'}, url) == "https://hub/api/tree?cursor=2"
    assert http.next_page({"Link": '<https://evil/x>; rel="next"'}, url) is None
    assert http.next_page({"Link": '</x>; rel="last"'}, url) is None
    assert http.next_page({}, url) is None


@pytest.mark.parametrize(("text", "count"), [("5", 5), ("5K", 5000), ("5Ki", 5120), ("2Ti", 2 << 40)])
def test_a_size_is_read(text: str, count: int) -> None:
    assert command.size(text) == count


@pytest.mark.parametrize("text", ["", "G", "5X", "-1", "5 Gi", "1.5G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        command.size(text)


# ---- room -------------------------------------------------------------------------------------------------------

ENTRIES = [
    Entry("old", 10, 1.0, busy=False),
    Entry("new", 10, 2.0, busy=False),
    Entry("running", 10, 0.0, busy=True),
    Entry("rest", 10, 3.0, busy=False, whole=False),
]


def test_nothing_goes_while_there_is_room() -> None:
    assert leaving(ENTRIES, 10, 50) == []


def test_rests_go_first_then_the_least_recently_used() -> None:
    assert [entry.name for entry in leaving(ENTRIES, 20, 40) or []] == ["rest", "old"]


def test_nothing_goes_where_it_would_not_be_enough() -> None:
    assert leaving(ENTRIES, 31, 40) is None


@given(
    st.lists(st.builds(Entry, st.text(max_size=3), st.integers(0, 99), st.floats(0, 9), st.booleans(), st.booleans())),
    st.integers(0, 300),
    st.integers(0, 300),
)
@settings(deadline=None)
def test_the_limit_holds_and_nothing_in_use_goes(entries: list[Entry], need: int, limit: int) -> None:
    gone = leaving(entries, need, limit)
    if gone is None:
        assert sum(entry.bytes for entry in entries if entry.busy) + need > limit
    else:
        assert not any(entry.busy for entry in gone)
        assert sum(e.bytes for e in entries) - sum(e.bytes for e in gone) + need <= limit


def test_a_file_takes_whole_blocks() -> None:
    assert [on_disk(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_a_checksum_is_part_of_what_a_file_is() -> None:
    one, two = (Remote("a", 1, lambda: Address("x"), Checksum("sha256", digit * 64)) for digit in "ab")
    assert identity_of("s", [one]) != identity_of("s", [two])
