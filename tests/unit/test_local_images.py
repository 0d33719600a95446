"""Image archives: what is written can be read, and a name is never made up."""

from __future__ import annotations

import json
import tarfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from local.errors import LocalError
from local.images import NAME, REFERENCE, ArchivedImage, read_names, write_oci
from local.imports import known_digests, renamed_index

DIGEST = "sha256:" + "a" * 64


def layer(folder: Path) -> Path:
    path = folder / "layer.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    return path


def archive(folder: Path, name: str, value: Any) -> Path:
    path = folder / "archive.tar"
    data = json.dumps(value).encode()
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, BytesIO(data))
    return path


def index(**annotations: str) -> dict[str, Any]:
    return {
        "manifests": [
            {"digest": DIGEST, "annotations": {NAME if k == "name" else REFERENCE: v for k, v in annotations.items()}}
        ]
    }


def test_an_archive_says_its_name_and_the_same_digest_every_time(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        write_oci("localhost/thing:1", layer(tmp_path), tmp_path / name, ["/file"])
    one, two = read_names(tmp_path / "one.tar"), read_names(tmp_path / "two.tar")
    assert one == two
    assert [(image.name, image.named_for_containerd) for image in one] == [("localhost/thing:1", True)]


def test_every_blob_of_an_archive_has_the_digest_that_it_is_called_by(tmp_path: Path) -> None:
    write_oci("localhost/thing:1", layer(tmp_path), tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        blobs = [entry for entry in tar if entry.name.startswith("blobs/")]
        for entry in blobs:
            stream = tar.extractfile(entry)
            assert stream is not None
            assert sha256(stream.read()).hexdigest() == Path(entry.name).name
    assert len(blobs) == 3


def test_the_name_that_buildah_writes_is_given_to_containerd_too(tmp_path: Path) -> None:
    path = archive(tmp_path, "index.json", index(reference="localhost/thing:1"))
    assert read_names(path) == [ArchivedImage("localhost/thing:1", DIGEST, named_for_containerd=False)]
    renamed = json.loads(renamed_index(json.dumps(index(reference="localhost/thing:1")).encode()))
    assert renamed["manifests"][0]["annotations"][NAME] == "localhost/thing:1"


def test_an_image_that_is_named_already_keeps_its_name() -> None:
    named = index(name="localhost/thing:1", reference="1")
    assert json.loads(renamed_index(json.dumps(named).encode())) == named


@pytest.mark.parametrize("reference", ["latest", "", "localhost/thing"])
def test_an_image_without_a_full_name_is_refused(tmp_path: Path, reference: str) -> None:
    path = archive(tmp_path, "index.json", index(reference=reference))
    with pytest.raises(LocalError, match="no full name"):
        read_names(path)


def test_an_archive_of_docker_save_is_read(tmp_path: Path) -> None:
    entry = {"Config": "a" * 64 + ".json", "RepoTags": ["localhost/thing:1"], "Layers": []}
    path = archive(tmp_path, "manifest.json", [entry])
    assert read_names(path) == [ArchivedImage("localhost/thing:1", DIGEST, named_for_containerd=True)]


def test_an_archive_of_docker_save_without_a_tag_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, "manifest.json", [{"Config": "a" * 64 + ".json", "RepoTags": None}])
    with pytest.raises(LocalError, match="without a name"):
        read_names(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(LocalError, match="cannot be read"):
        read_names(tmp_path / "text.tar")
    with pytest.raises(LocalError, match="neither"):
        read_names(layer(tmp_path))


def test_containerds_listing_is_read() -> None:
    header = "REF TYPE DIGEST SIZE PLATFORMS LABELS"
    listing = f"{header}\nlocalhost/thing:1 application/manifest+json {DIGEST} 2.0 MiB linux/amd64 -"
    assert known_digests(listing) == {"localhost/thing:1": DIGEST}
    assert known_digests(header) == {}
