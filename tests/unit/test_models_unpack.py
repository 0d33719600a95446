import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_runtime.models.errors import CacheTooSmallError, CancelledError, FetchError, UnsafePathError
from headrace_runtime.models.progress import Progress
from headrace_runtime.models.unpack import Unpacking


def tarred(*entries: tuple[str, bytes, bytes | str]) -> bytes:
    """A tar of (name, type, body or where a link leads)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, what in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if isinstance(what, str):
                entry.linkname = what
                tar.addfile(entry)
            else:
                entry.size = len(what)
                tar.addfile(entry, io.BytesIO(what))
    return packed.getvalue()


FILE, FOLDER, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
Unpack = Callable[..., Path]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """Unpacks into `tmp_path/cache/tree`."""

    def act(packed: bytes, grow: Callable[[int], None] = lambda _: None, progress: Progress | None = None) -> Path:
        tree = tmp_path / "cache" / "tree"
        tree.mkdir(parents=True)
        (tmp_path / "packed").write_bytes(packed)
        unpacking = Unpacking(tree, grow, progress or Progress())
        kind = "tar+gzip" if packed[:2] == b"\x1f\x8b" else "tar"
        unpacking.unpack(tmp_path / "packed", kind, "https://host/x.tar")
        unpacking.finish("https://host/x.tar")
        found = {path: hashlib.sha256((tree / path).read_bytes()).hexdigest() for path in unpacking.digests}
        assert unpacking.digests == found
        return tree

    return act


def test_files_folders_and_inner_links_are_unpacked_and_hashed(unpack: Unpack) -> None:
    long = "folder/" + "n" * 150 + ".json"
    entries = [
        (".", FOLDER, b""),
        ("folder", FOLDER, b""),
        ("folder/a", FILE, b"aa"),
        ("./b", FILE, b""),
        (long, FILE, b"l"),
    ]
    links = [("folder/link", LINK, "a"), ("up", LINK, "folder/a"), ("hard", HARD, "folder/a")]
    tree = unpack(tarred(*entries, *links))
    assert (tree / "folder/a").read_bytes() == (tree / "up").read_bytes() == (tree / "hard").read_bytes() == b"aa"
    assert (tree / "b").read_bytes() == b""
    assert (tree / long).read_bytes() == b"l"


def test_gzip_is_unpacked(unpack: Unpack) -> None:
    assert (unpack(gzip.compress(tarred(("a", FILE, b"x" * 100_000)))) / "a").stat().st_size == 100_000


def test_modes_and_owners_of_the_archive_do_not_count(unpack: Unpack) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("tool")
        entry.mode, entry.uid = 0o6777, 12345
        tar.addfile(entry, io.BytesIO(b""))
    stat = (unpack(packed.getvalue()) / "tool").stat()
    assert stat.st_mode & 0o7111 == 0
    assert stat.st_uid != 12345


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("../evil", FILE, b"x")], "no path within"),
        ([("/tmp/evil", FILE, b"x")], "no path within"),
        ([("a/../../evil", FILE, b"x")], "no path within"),
        ([("..", FOLDER, b"")], "no path within"),
        ([("out", LINK, "..")], "leads out"),
        ([("out", LINK, "/etc/passwd")], "leads out"),
        ([("a/out", LINK, "../../x")], "leads out"),
        ([("out", LINK, "a"), ("out/evil", FILE, b"x")], "which is no folder"),
        ([("a", FOLDER, b""), ("out", LINK, "a"), ("out/evil", FILE, b"x")], "which is no folder"),
        ([("out", LINK, "a"), ("out", FILE, b"x")], "there already"),
        ([("a", FILE, b"x"), ("a", FILE, b"y")], "there already"),
        ([("a", FILE, b"x"), ("a", FOLDER, b"")], "which is no folder"),
        ([("d", FOLDER, b""), ("d/up", LINK, ".."), ("out", LINK, "d/up/..")], "a link to no file of it"),
        ([("dangling", LINK, "nothing")], "a link to no file of it"),
        ([("one", LINK, "two"), ("two", LINK, "one")], "a link to no file of it"),
        ([("hard", HARD, "../../etc/passwd")], "no path within"),
        ([("hard", HARD, "nothing")], "a link to no file of it"),
        ([("device", tarfile.CHRTYPE, b"")], "neither file, folder nor link"),
        ([("disk", tarfile.BLKTYPE, b"")], "neither file, folder nor link"),
        ([("pipe", tarfile.FIFOTYPE, b"")], "neither file, folder nor link"),
        ([(".wh.config.json", FILE, b"")], "a container image is no model"),
    ],
)
def test_an_archive_that_would_reach_out_is_refused(
    unpack: Unpack, tmp_path: Path, entries: list[tuple[str, bytes, bytes | str]], words: str
) -> None:
    with pytest.raises(FetchError, match=words):
        unpack(tarred(*entries))
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "packed"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"tree"}


@pytest.mark.parametrize("keep", [100, 600, 1024, 10_240])
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
def test_a_truncated_archive_is_refused(unpack: Unpack, keep: int, squeeze: Callable[[bytes], bytes]) -> None:
    whole = tarred(("a", FILE, bytes(range(256)) * 38))
    packed = squeeze(whole)
    assert len(whole) == 20_480
    with pytest.raises(FetchError, match=r"no whole tar(\+gzip)? archive"):
        unpack(packed[: min(keep, len(packed) - 9)])


def test_what_is_no_archive_is_refused(unpack: Unpack) -> None:
    with pytest.raises(FetchError, match="no whole tar archive"):
        unpack(b"<html>" * 1000)


def test_a_bomb_meets_the_budget_before_the_disk(unpack: Unpack, tmp_path: Path) -> None:
    room = [1 << 20]

    def grow(count: int) -> None:
        room[0] -= count
        if room[0] < 0:
            raise CacheTooSmallError("full")

    with pytest.raises(CacheTooSmallError):
        unpack(gzip.compress(tarred(("bomb", FILE, bytes(8 << 20)))), grow)
    assert (tmp_path / "cache" / "tree" / "bomb").stat().st_size <= 1 << 20


def test_unpacking_ends_when_nobody_wants_it(unpack: Unpack) -> None:
    progress = Progress()
    progress.cancelled.set()
    with pytest.raises(CancelledError):
        unpack(tarred(("a", FILE, b"x")), progress=progress)


def test_a_file_of_the_model_may_not_stand_where_an_archive_put_a_link(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(tarred(("config", LINK, "a"), ("a", FILE, b"x")))
    tree = tmp_path / "tree"
    tree.mkdir()
    unpacking = Unpacking(tree, lambda _: None, Progress())
    unpacking.unpack(tmp_path / "packed", "tar", "oci://x")
    with pytest.raises(UnsafePathError):
        unpacking.adopt(tmp_path / "packed", "config/evil", "", "oci://x")
    with pytest.raises(FetchError):
        unpacking.adopt(tmp_path / "packed", "config", "", "oci://x")
