"""Models over real HTTP on loopback: files, archives and a hub, through every way in which the road may break."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_runtime.models import fetching, http, record
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.credentials import Credentials, basic_header
from headrace_runtime.models.errors import CacheTooSmallError, CancelledError, FetchError
from headrace_runtime.models.fetching import fetch
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.trees import physical
from local.programs import wait_until
from tests.wire.model_servers import COMMIT, Files, HubHandler, folder, hub, serving, sums

NOBODY = Credentials({})
WEIGHTS = random.Random(1).randbytes(3_000_000)
BODIES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/tokenizer.json": b"[]"}


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def models_of(cache: Cache) -> list[str]:
    """Names of the complete models, and of halves of them."""
    return sorted(path.name for path in cache.path.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.0001)
    monkeypatch.setattr(fetching, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1 << 19)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None)


@pytest.fixture
def files() -> Files:
    return Files(folder(BODIES))


@pytest.fixture
def server(files: Files) -> Iterator[str]:
    with serving(files) as url:
        yield url


# ---- what is fetched --------------------------------------------------------------------------------------------


def test_a_folder_is_what_its_sums_list(server: str, cache: Cache) -> None:
    progress = Progress()
    path = fetch(f"{server}/model/", cache, NOBODY, progress)
    assert contents(path) == BODIES
    assert progress.fetched == progress.total == sum(map(len, BODIES.values()))
    assert models_of(cache) == [path.name]


def test_a_folder_may_be_named_by_its_sums(server: str, cache: Cache) -> None:
    assert contents(fetch(f"{server}/model/SHA256SUMS", cache, NOBODY, Progress())) == BODIES


def test_one_file_is_a_model(server: str, cache: Cache) -> None:
    path = fetch(f"{server}/model/model.safetensors", cache, NOBODY, Progress())
    assert contents(path) == {"model.safetensors": WEIGHTS}


def test_what_was_read_is_on_record_and_trusted_until_it_is_touched(server: str, cache: Cache) -> None:
    path = fetch(f"{server}/model/", cache, NOBODY, Progress())
    known = record.read(path)
    assert known
    assert known.source == f"{server}/model/"
    listed = {line.split("  ")[1]: line.split("  ")[0] for line in sums(BODIES).decode().splitlines()}
    assert record.unchanged(path, known, record.boot_id()) == listed
    (path / "config.json").chmod(0o644)
    (path / "config.json").write_bytes(b"[]")
    assert "config.json" not in record.unchanged(path, known, record.boot_id())


def test_a_model_that_is_there_is_not_fetched_again(server: str, files: Files, cache: Cache) -> None:
    first = fetch(f"{server}/model/", cache, NOBODY, Progress())
    files.sent = 0
    assert fetch(f"{server}/model/", cache, NOBODY, Progress()) == first
    assert files.sent < 1000


def test_a_changed_source_is_another_model(server: str, files: Files, cache: Cache) -> None:
    first = fetch(f"{server}/model/", cache, NOBODY, Progress())
    files.bodies.update(folder({**BODIES, "config.json": b"[1]"}))
    second = fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert (first / "config.json").read_bytes() == b"{}"
    assert (second / "config.json").read_bytes() == b"[1]"


def test_a_copy_that_agrees_goes_before_what_the_source_has_become(server: str, files: Files, cache: Cache) -> None:
    first = fetch(f"{server}/model/", cache, NOBODY, Progress())
    known = record.read(first)
    assert known
    promised = {path: file.sha256 for path, file in known.files.items()}
    files.bodies.update(folder({**BODIES, "config.json": b"[1]"}))
    assert fetch(f"{server}/model/", cache, NOBODY, Progress(), lambda digests: digests == promised) == first


def test_an_empty_file_is_a_file(server: str, files: Files, cache: Cache) -> None:
    files.bodies.update(folder({"empty": b"", "config.json": b"{}"}, "some"))
    assert contents(fetch(f"{server}/some/", cache, NOBODY, Progress())) == {"empty": b"", "config.json": b"{}"}


def test_a_token_is_not_sent_to_a_hub_without_encryption(cache: Cache) -> None:
    credentials = Credentials({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "http://hub.example"})
    with pytest.raises(FetchError, match=r"hub\.example is not encrypted, and HF_TOKEN would be seen"):
        fetch(f"hf://acme/tiny@{COMMIT}", cache, credentials, Progress())


def test_a_hub_gives_a_commit_page_by_page(cache: Cache) -> None:
    others = {".gitattributes": b"*", "pytorch_model.bin": b"pickle" * 1000, "README.md": b"# tiny"}
    files = Files(hub({**BODIES, **others}, pages=2), authorization="Bearer hf_secret")
    with serving(files, HubHandler) as url:
        credentials = Credentials({"HF_TOKEN": "hf_secret"}, {"HF_ENDPOINT": url})
        path = fetch(f"hf://acme/tiny@{COMMIT}", cache, credentials, Progress())
    assert contents(path) == {**BODIES, "README.md": b"# tiny"}


def test_a_commit_that_is_there_needs_no_network(cache: Cache) -> None:
    with serving(Files(hub(BODIES)), HubHandler) as url:
        first = fetch(f"hf://acme/tiny@{COMMIT}", cache, Credentials({"HF_ENDPOINT": url}), Progress())
    away = Credentials({"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert fetch(f"hf://acme/tiny@{COMMIT}", cache, away, Progress()) == first


def test_a_source_that_is_away_gives_what_was_fetched_of_it_last(files: Files, cache: Cache) -> None:
    with serving(files) as url:
        first = fetch(f"{url}/model/", cache, NOBODY, Progress())
    assert fetch(f"{url}/model/", cache, NOBODY, Progress()) == first


def test_a_token_stays_with_its_host_when_the_hub_sends_us_elsewhere(cache: Cache) -> None:
    elsewhere = Files({"blob": WEIGHTS})
    files = Files(hub(BODIES), authorization="Bearer hf_secret")
    with serving(elsewhere) as other, serving(files, HubHandler) as url:
        blob = other.replace("127.0.0.1", "localhost") + "/blob"
        files.redirects[f"acme/tiny/resolve/{COMMIT}/model.safetensors"] = blob
        credentials = Credentials({"HF_TOKEN": "hf_secret", "HF_ENDPOINT": url})
        assert contents(fetch(f"hf://acme/tiny@{COMMIT}", cache, credentials, Progress())) == BODIES
    assert elsewhere.requests
    assert {authorization for _, _, authorization in elsewhere.requests} == {""}


# ---- a road that breaks -----------------------------------------------------------------------------------------


def test_a_server_that_breaks_off_every_few_bytes_costs_no_byte_twice(server: str, files: Files, cache: Cache) -> None:
    files.cut_after = 100_000
    path = fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert contents(path) == BODIES
    assert files.sent < sum(map(len, BODIES.values())) + 1000


def test_a_server_that_resets_its_connections_is_asked_again(server: str, files: Files, cache: Cache) -> None:
    files.cut_after, files.reset = 400_000, True
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_connections_are_used_again(server: str, files: Files, cache: Cache) -> None:
    files.bodies.update(folder({f"file-{number}": b"x" * number for number in range(60)}, "many"))
    fetch(f"{server}/many/", cache, NOBODY, Progress())
    assert len(files.requests) > 100
    assert files.connections <= 20


def test_a_server_that_goes_away_in_the_middle_is_named(files: Files, cache: Cache) -> None:
    files.cut_after = 0
    with serving(files) as url, pytest.raises(FetchError, match=r"the connection to 127\.0\.0\.1:\d+ broke"):
        fetch(f"{url}/model/", cache, NOBODY, Progress())


def test_proxies_of_the_environment_are_used(
    server: str, files: Files, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.replace("http://", "http://jo:hun%20ter@"))
    monkeypatch.setenv("no_proxy", "other.example")
    files.bodies = {f"http://localhost:1/{path}": body for path, body in files.bodies.items()}
    assert contents(fetch("http://localhost:1/model/", cache, NOBODY, Progress())) == BODIES


def test_a_server_without_ranges_serves_whole_files(server: str, files: Files, cache: Cache) -> None:
    files.ranges = False
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_a_server_that_says_no_length_serves_what_has_a_digest(server: str, files: Files, cache: Cache) -> None:
    files.ranges, files.chunked = False, True
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_a_server_that_is_unwell_for_a_while_is_waited_for(server: str, files: Files, cache: Cache) -> None:
    files.refuse = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"}), (500, {}), (502, {})]
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_a_server_that_never_comes_is_given_up_and_named(cache: Cache) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:1 cannot be reached \(Connection refused\)"):
        fetch("http://127.0.0.1:1/model/", cache, NOBODY, Progress())


@pytest.mark.parametrize(("status", "words"), [(401, "credentialsSecretRef"), (404, "no such thing"), (418, "418")])
def test_a_refusal_is_final_and_says_what_to_do(
    server: str, files: Files, cache: Cache, status: int, words: str
) -> None:
    files.refuse = [(status, {})]
    with pytest.raises(FetchError, match=words):
        fetch(f"{server}/model/?token=hunter2", cache, Credentials({"password": "hunter2"}), Progress())
    assert len(files.requests) == 1


def test_no_message_holds_a_secret(server: str, files: Files, cache: Cache) -> None:
    files.refuse = [(403, {})]
    credentials = Credentials({"username": "jo", "password": "hunter2"})
    with pytest.raises(FetchError) as caught:
        fetch(f"{server}/model/?sig=hunter2", cache, credentials, Progress())
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {credentials!r}"


def test_no_log_holds_a_signed_address(
    server: str, files: Files, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    files.bodies["blob"] = WEIGHTS
    files.redirects["model/model.safetensors"] = f"{server}/blob?X-Amz-Signature=hunter2"
    files.cut_after = 1_000_000
    fetch(f"{server}/model/?sig=hunter2", cache, NOBODY, Progress())
    assert "fetched" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_password_is_sent(server: str, files: Files, cache: Cache) -> None:
    files.authorization = basic_header("jo", "hunter2")
    credentials = Credentials({"username": "jo", "password": "hunter2"})
    assert contents(fetch(f"{server}/model/", cache, credentials, Progress())) == BODIES


# ---- wrong bytes ------------------------------------------------------------------------------------------------


def test_a_wrong_digest_is_refused_and_nothing_is_shown(server: str, files: Files, cache: Cache) -> None:
    files.bodies["model/config.json"] = b"[]"
    with pytest.raises(FetchError, match=r"config\.json: its sha256 digest is 4f53"):
        fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert all(name.endswith(".partial") for name in models_of(cache))
    files.bodies["model/config.json"] = b"{}"
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_git_names_are_checked_too(cache: Cache) -> None:
    files = Files(hub(BODIES))
    files.bodies[f"acme/tiny/resolve/{COMMIT}/config.json"] = b"[]"
    with serving(files, HubHandler) as url, pytest.raises(FetchError, match=r"config\.json: its git digest"):
        fetch(f"hf://acme/tiny@{COMMIT}", cache, Credentials({"HF_ENDPOINT": url}), Progress())


def test_a_file_that_changes_on_the_way_is_refused(server: str, files: Files, cache: Cache) -> None:
    files.cut_after, files.versions = 100_000, (number // 3 for number in itertools.count())
    with pytest.raises(FetchError, match="changed while it was fetched"):
        fetch(f"{server}/model/model.safetensors", cache, NOBODY, Progress())


def test_bytes_that_an_earlier_run_left_wrong_are_fetched_anew(server: str, files: Files, cache: Cache) -> None:
    files.bodies["model/zzz"] = b"x"
    files.bodies["model/SHA256SUMS"] = sums({**BODIES, "zzz": b"y"})
    with pytest.raises(FetchError, match="zzz"):
        fetch(f"{server}/model/", cache, NOBODY, Progress())
    (partial,) = cache.path.glob("*.partial")
    with (partial / "files" / "1").open("r+b") as file:  # the weights
        file.write(b"wrong")
    journal = (partial / "journal").read_text().splitlines()
    (partial / "journal").write_text("".join(f"{line}\n" for line in journal if not line.startswith("f ")))
    files.bodies["model/zzz"] = b"y"
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == {**BODIES, "zzz": b"y"}


def test_a_path_that_leads_out_is_refused(server: str, files: Files, cache: Cache, tmp_path: Path) -> None:
    files.bodies["model/SHA256SUMS"] = sums({"../../evil": b"x"})
    files.bodies["evil"] = b"x"
    with pytest.raises(FetchError, match=r"'\.\./\.\./evil', which is no path within"):
        fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert not list(tmp_path.rglob("evil"))


# ---- one cache, many who ask ------------------------------------------------------------------------------------


def test_two_who_ask_at_once_share_one_download_and_both_see_it(
    server: str, files: Files, cache: Cache, tmp_path: Path
) -> None:
    second, watched = Cache(tmp_path / "cache", None), Progress()
    files.hold.clear()
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(fetch, f"{server}/model/", cache, NOBODY, Progress())
        wait_until("a download began", lambda: files.sent > 60_000, 30)
        two = threads.submit(fetch, f"{server}/model/", second, NOBODY, watched)
        wait_until("the second sees it", lambda: watched.total > 3_000_000, 30)
        files.hold.set()
        assert one.result(30) == two.result(30)
    assert files.sent < 1.5 * sum(map(len, BODIES.values()))


def test_a_fetch_ends_when_nobody_wants_it_any_more_and_goes_on_later(server: str, files: Files, cache: Cache) -> None:
    files.hold.clear()
    progress = Progress()
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(fetch, f"{server}/model/", cache, NOBODY, progress)
        wait_until("a download began", lambda: files.sent > 60_000, 30)
        progress.cancelled.set()
        files.hold.set()
        with pytest.raises(CancelledError):
            work.result(30)
    assert contents(fetch(f"{server}/model/", cache, NOBODY, Progress())) == BODIES


def test_the_least_recently_used_makes_room_and_what_is_held_stays(server: str, files: Files, tmp_path: Path) -> None:
    clock = iter(range(1, 1000))
    cache = Cache(tmp_path / "cache", 7_000_000, lambda: float(next(clock)))
    sizes = {name: random.Random(name).randbytes(3_000_000) for name in ("a", "b", "c")}
    for name, body in sizes.items():
        files.bodies.update(folder({"weights": body}, name))
    first, second = (fetch(f"{server}/{name}/", cache, NOBODY, Progress()) for name in ("a", "b"))
    cache.release(second)
    third = fetch(f"{server}/c/", cache, NOBODY, Progress())
    assert models_of(cache) == sorted([first.name, third.name])
    assert physical(cache.path) <= 7_000_000
    with pytest.raises(CacheTooSmallError, match=r"takes 3\.1 MB, the model cache may hold 7\.0 MB, and 6\.0 MB"):
        fetch(f"{server}/b/", cache, NOBODY, Progress())
    cache.release(first)
    fetch(f"{server}/b/", cache, NOBODY, Progress())
    assert first.name not in models_of(cache)


def test_a_model_larger_than_the_cache_removes_nothing(server: str, files: Files, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1_000_000)
    files.bodies.update(folder({"weights": b"x" * 10_000}, "small"))
    small = fetch(f"{server}/small/", cache, NOBODY, Progress())
    cache.release(small)
    with pytest.raises(CacheTooSmallError, match=r"the model takes 3\.1 MB, the model cache may hold 1\.0 MB"):
        fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert small.name in models_of(cache)


def test_a_length_that_nobody_told_counts_as_it_comes(server: str, files: Files, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1_000_000)
    files.ranges, files.chunked = False, True
    with pytest.raises(CacheTooSmallError):
        fetch(f"{server}/model/", cache, NOBODY, Progress())
    assert physical(cache.path) < 1_500_000


def test_a_cache_that_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match="the model cache cannot be used: Not a directory"):
        Cache(tmp_path / "file" / "cache", None)


def test_many_agents_of_a_node_come_to_one_copy(server: str, files: Files, tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def ask() -> Path:
        cache = Cache(tmp_path / "cache", None)
        barrier.wait(30)
        return fetch(f"{server}/model/", cache, NOBODY, Progress())

    with ThreadPoolExecutor(6) as threads:
        paths = {work.result(60) for work in [threads.submit(ask) for _ in range(6)]}
    assert len(paths) == 1
    assert [path for path, _, _ in files.requests].count("model/config.json") <= 2 * 6
    assert files.sent < 1.5 * sum(map(len, BODIES.values()))
