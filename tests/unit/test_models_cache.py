import hashlib
import os
from pathlib import Path

import pytest

from headrace_runtime.models import record
from headrace_runtime.models.cache import Cache
from headrace_runtime.models.errors import FetchError
from headrace_runtime.models.journal import Journal
from headrace_runtime.models.listing import Address, Checksum, Remote
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.trees import physical

KEY, OTHER = "a" * 32, "b" * 32


class Clock:
    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def made(cache: Cache, key: str = KEY, body: bytes = b"weights") -> None:
    """A model of one file, the way a fetch makes one."""
    with cache.making(key) as making:
        assert making
        making.reserve(len(body), 0)
        (making.empty_tree() / "sub").mkdir()
        (making.tree / "sub" / "model").write_bytes(body)
        making.commit("s3://x", {"sub/model": hashlib.sha256(body).hexdigest()}, 1.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None, Clock())


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.path.iterdir()}


WHOLE = {KEY, f"{KEY}.lock", f"{KEY}.record.json", "room.lock"}


def test_an_empty_cache_holds_nothing(cache: Cache) -> None:
    assert cache.hold(KEY) is None
    assert list(cache.records()) == []
    assert names(cache) == {f"{KEY}.lock", "room.lock"}


def test_a_model_appears_whole_and_read_only(cache: Cache) -> None:
    made(cache)
    folder = cache.hold(KEY)
    assert folder
    assert (folder / "sub/model").read_bytes() == b"weights"
    assert {path.stat().st_mode & 0o222 for path in (folder, folder / "sub", folder / "sub/model")} == {0}
    assert names(cache) == WHOLE


def test_nothing_is_shown_before_it_is_complete(cache: Cache) -> None:
    with cache.making(KEY) as making:
        assert making
        making.reserve(10, 0)
        making.empty_tree()
        assert cache.hold(KEY) is None
    assert cache.hold(KEY) is None


def test_only_one_makes_a_model(cache: Cache, tmp_path: Path) -> None:
    with cache.making(KEY) as making, Cache(tmp_path / "cache", None).making(KEY) as other:
        assert making
        assert other is None
    made(cache)
    with cache.making(KEY) as again:
        assert again is None


def test_what_runs_is_not_removed_until_it_is_given_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 30_000, Clock())
    made(cache)
    folder = cache.hold(KEY)
    assert folder
    with pytest.raises(FetchError, match=r"takes 0\.0 MB|takes 20|in use"):
        cache.make_room(OTHER, 25_000)
    cache.release(folder)
    cache.make_room(OTHER, 25_000)
    assert not folder.exists()


def test_release_of_what_is_not_held_does_nothing(cache: Cache) -> None:
    cache.release(cache.path / OTHER)


@pytest.mark.parametrize("left", [f"{KEY}.gone/sub/x", f"{KEY}.record.json", f"{KEY}.record.json.77.tmp", f"{KEY}/x"])
def test_what_a_crash_leaves_is_swept(tmp_path: Path, left: str) -> None:
    file = tmp_path / "cache" / left
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    if "/" in left:
        file.parent.chmod(0o555)
    assert names(Cache(tmp_path / "cache", None, Clock())) == {"room.lock"}


@pytest.mark.parametrize("left", ["lost+found/x", "README", "A" * 32, "a" * 31, f"{KEY}.other", f"x{KEY}"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, left: str) -> None:
    file = tmp_path / "cache" / left
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    cache = Cache(tmp_path / "cache", 10_000)
    cache.make_room(KEY, 10_000)
    assert file.read_bytes() == b"x"


def test_a_link_in_the_cache_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary").write_bytes(b"x")
    (tmp_path / "cache").mkdir()
    for name in (KEY, f"{KEY}.partial", f"{KEY}.gone", f"{OTHER}.gone"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "home")
    (tmp_path / "home").chmod(0o700)
    made(Cache(tmp_path / "cache", None, Clock()))
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"diary"}
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in (tmp_path / "cache").iterdir()} == WHOLE


def test_a_link_in_place_of_a_download_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    cache = Cache(tmp_path / "cache", None, Clock())
    (cache.path / f"{KEY}.partial").symlink_to(tmp_path / "home")
    made(cache)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(("days", "kept"), [(1, True), (8, False)])
def test_the_rest_of_a_download_is_kept_for_a_week(tmp_path: Path, days: int, kept: bool) -> None:
    clock = Clock()
    cache = Cache(tmp_path / "cache", None, clock)
    with cache.making(KEY) as making:
        assert making
        making.reserve(10, 0)
    clock.now += days * 86_400
    assert (f"{KEY}.partial" in names(Cache(tmp_path / "cache", None, clock))) == kept


def test_a_download_under_way_counts_with_all_that_it_will_be(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100_000, Clock())
    with cache.making(KEY) as making:
        assert making
        making.reserve(60_000, 0)
        assert cache.under_way(KEY) == (physical(cache.path / f"{KEY}.partial"), 60_000)
        with pytest.raises(FetchError, match="is in use: make the cache larger"):
            cache.make_room(OTHER, 50_000)
        cache.make_room(OTHER, 30_000)


def test_a_crash_between_record_and_rename_shows_nothing(cache: Cache) -> None:
    with cache.making(KEY) as making:
        assert making
        making.reserve(1, 0)
        making.empty_tree()
        record.write(cache.path / KEY, record.Record("s3://x", "", {}, 1.0))
    assert cache.hold(KEY) is None
    made(Cache(cache.path, None, Clock()))
    assert cache.hold(KEY)


# ---- the journal of a download ----------------------------------------------------------------------------------


def remote(path: str, digest: str | None = "a" * 64) -> Remote:
    checksum = Checksum("sha256", digest) if digest else None
    return Remote(path, 100, lambda: Address("x"), checksum, etag='"1"')


FILES = (remote("a"), remote("b", None))


def journal(folder: Path, files: tuple[Remote, ...] = FILES, boot: str = "boot", piece_bytes: int = 10) -> Journal:
    return Journal(folder / "journal", files, piece_bytes, boot)


def filled(folder: Path) -> None:
    one = journal(folder)
    one.note_piece(0, 3)
    one.note_piece(1, 4)
    one.note_whole(0, "c" * 64)
    one.note_piece(1, 5)
    one.close()


def test_a_journal_remembers_over_a_kill(tmp_path: Path) -> None:
    filled(tmp_path)
    again = journal(tmp_path)
    assert (again.pieces(0), again.pieces(1), again.pieces(2)) == ({3}, {4, 5}, set())
    assert (again.whole(0), again.whole(1)) == ("c" * 64, None)


def test_an_empty_journal_knows_nothing(tmp_path: Path) -> None:
    assert journal(tmp_path).pieces(0) == set()


def test_a_line_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / "journal").open("ab") as file:
        file.write(b"p 0 1")
    assert journal(tmp_path).pieces(0) == {3}


def test_after_a_new_boot_only_what_can_be_checked_counts(tmp_path: Path) -> None:
    filled(tmp_path)
    again = journal(tmp_path, boot="other")
    assert (again.pieces(0), again.pieces(1), again.whole(0)) == ({3}, set(), None)


@pytest.mark.parametrize(
    ("files", "piece_bytes"), [((FILES[0],), 10), (FILES, 20), ((remote("a", "b" * 64), FILES[1]), 10)]
)
def test_a_journal_of_another_plan_counts_as_none(tmp_path: Path, files: tuple[Remote, ...], piece_bytes: int) -> None:
    filled(tmp_path)
    assert journal(tmp_path, files, piece_bytes=piece_bytes).pieces(0) == set()


@pytest.mark.parametrize("text", [b"", b"\n", b"[]\np 0 1\n", b"\xff\xfe\n", b'{"plan": 1}\nq\n'])
def test_a_damaged_journal_counts_as_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "journal").write_bytes(text)
    assert journal(tmp_path).pieces(0) == set()


def test_what_is_forgotten_stays_forgotten(tmp_path: Path) -> None:
    filled(tmp_path)
    one = journal(tmp_path)
    one.forget(0)
    one.close()
    assert (journal(tmp_path).pieces(0), journal(tmp_path).whole(0)) == (set(), None)


# ---- progress ---------------------------------------------------------------------------------------------------


def test_a_rate_is_of_the_last_ten_seconds() -> None:
    clock = Clock()
    progress = Progress(clock)
    assert progress.rate() == 0.0
    progress.show(0, 1000)
    for _ in range(100):
        clock.now += 1.0
        progress.add(5)
    assert progress.rate() == pytest.approx(5.0)
    clock.now += 30.0
    assert progress.rate() < 1.0
    assert (progress.fetched, progress.total) == (500, 1000)


def test_a_total_that_was_too_small_grows() -> None:
    progress = Progress()
    progress.add(5)
    assert progress.total == 5


def test_unused_locks_do_not_pile_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", None, Clock())
    for number in range(20):
        assert cache.hold(f"{number:032x}") is None
    assert names(Cache(tmp_path / "cache", None, Clock())) == {"room.lock"}
    assert len(os.listdir("/proc/self/fd")) < 200  # noqa: PTH208
