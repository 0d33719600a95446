"""Puts an image archive into the containerd of one node, unless the node has it already."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from local.errors import LocalError
from local.images import NAME, REFERENCE, ArchivedImage, read_names
from local.programs import run, wait_until

NAMESPACE = "k8s.io"  # where the kubelet looks


def import_archive(archive: Path, address: Path) -> bool:
    """Imports the archive through the containerd that answers at `address`; False if it has all of its images.

    Raises:
        LocalError: it is no image archive, or the import failed.
    """
    images = read_names(archive)
    client = ("ctr", "--address", str(address), "--namespace", NAMESPACE, "images")
    wait_until(f"containerd listens at {address}", lambda: _listens(address), 60, step=0.05)
    there = known_digests(run(*client, "list"))
    if images and all(_is_there(image, there, address) for image in images):
        return False
    if all(image.named_for_containerd for image in images):
        run(*client, "import", archive)
    else:
        _import_renamed(archive, images, [*client, "import", "-"])
    return True


def _listens(path: Path) -> bool:
    """Asked without a program, which would outlive a command that is killed while it waits."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _is_there(image: ArchivedImage, there: dict[str, str], address: Path) -> bool:
    manifest = there.get(image.name)
    if manifest is None or manifest == image.digest:
        return manifest is not None
    words = run("ctr", "--address", address, "--namespace", NAMESPACE, "content", "get", manifest)
    config: dict[str, str] = json.loads(words).get("config", {})
    return config.get("digest") == image.digest


def known_digests(listing: str) -> dict[str, str]:
    """Image name -> digest, from the table of `ctr images list`."""
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2}


def renamed_index(index: bytes) -> bytes:
    """An archive's index with every image's name also in the annotation that containerd reads."""
    value = json.loads(index)
    for entry in value["manifests"]:
        annotations = entry.setdefault("annotations", {})
        annotations.setdefault(NAME, annotations.get(REFERENCE))
    return json.dumps(value).encode()


def _import_renamed(archive: Path, images: list[ArchivedImage], command: list[str]) -> None:
    """Streams the archive to containerd with another index; a copy on disk would take longer than the import."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            _copy(archive, process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended early and says why
        words = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        names = ", ".join(image.name for image in images)
        raise LocalError(f"{archive}: containerd did not take {names}: {words}")


def _copy(archive: Path, out: IO[bytes]) -> None:
    with tarfile.open(archive, "r:") as source, tarfile.open(fileobj=out, mode="w|") as target:
        for entry in source:
            content = source.extractfile(entry) if entry.isfile() else None
            if content is not None and entry.name == "index.json":
                index = renamed_index(content.read())
                entry.size, content = len(index), io.BytesIO(index)
            target.addfile(entry, content)
