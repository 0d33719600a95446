"""Images without a registry: OCI archives written with the standard library, and the three that a cluster starts from.

An archive's index names its image in the annotation that `ctr images import`, `podman load` and `buildah pull oci-
archive:` read. What is made here lives in the user's cache and is never published: the Debian image holds this
machine's package sources.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import cache, packages, toolchain
from local.errors import LocalError
from local.programs import run

PAUSE = "localhost/pause:3.10"
COREDNS = f"localhost/coredns:{toolchain.COREDNS_VERSION}"
DEBIAN = "docker.io/library/debian:bookworm-slim"
DEBIAN_PACKAGES = ("ca-certificates", "libnuma1", "python3")
# Manuals, translations and documentation are two fifths of a small Debian.
DEBIAN_LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")

NAME = "io.containerd.image.name"
REFERENCE = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SYSTEM_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CHUNK = 1 << 20


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive: its full name, and what tells it from others of that name."""

    name: str
    # Of its manifest (OCI) or of its configuration (`docker save` writes no manifest).
    digest: str
    # Whether the archive says the name in containerd's own annotation; without it an import makes up a name.
    named_for_containerd: bool


def pause_image() -> Path:
    """The archive of the image that holds a pod's namespaces."""
    source = Path(__file__).with_name("pause") / "pause.c"

    def make(folder: Path) -> None:
        packages.require("gcc")
        (folder / "root").mkdir()
        run("gcc", "-Os", "-static", "-s", "-o", folder / "root" / "pause", source)
        _pack(folder, PAUSE, ["/pause"])

    return cache.kept("pause", cache.key(source.read_bytes(), PAUSE), make) / "image.tar"


def coredns_image() -> Path:
    """The archive of the cluster's name server."""
    binary = toolchain.coredns()

    def make(folder: Path) -> None:
        (folder / "root").mkdir()
        shutil.copy(binary, folder / "root" / "coredns")
        _pack(folder, COREDNS, ["/coredns"])

    return cache.kept("coredns-image", cache.key(binary.parent.name, COREDNS), make) / "image.tar"


def debian_base() -> Path:
    """The archive of `debian:bookworm-slim` with Python, libnuma and certificate authorities, for `FROM` lines.

    Needs root; 40 s the first time. The packages come from this machine's sources where it runs the same Debian.
    """
    build_key = cache.key(DEBIAN, *DEBIAN_PACKAGES, *DEBIAN_LEFT_OUT, platform.machine())

    def make(folder: Path) -> None:
        packages.require("mmdebstrap")
        run(
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(DEBIAN_PACKAGES)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in DEBIAN_LEFT_OUT),
            "bookworm",
            folder / "layer.tar",
            *_debian_sources(),
            env={"SOURCE_DATE_EPOCH": "0"},
        )
        write_oci(DEBIAN, folder / "layer.tar", folder / "image.tar", command=["bash"])
        (folder / "layer.tar").unlink()

    return cache.kept("debian", build_key, make) / "image.tar"


def write_oci(
    name: str, layer: Path, archive: Path, command: Sequence[str] = (), environment: Sequence[str] = (SYSTEM_PATH,)
) -> None:
    """Writes an OCI archive with one uncompressed layer.

    Args:
        name: the full image name with a tag.
        layer: a tar of the root file system.
        archive: the file to write; it appears whole or not at all.
        command: what a container runs by default.
        environment: `KEY=VALUE` words.
    """
    layer_digest = _sha256(layer)
    config = _json(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
            # buildah counts on an entry for each layer and else refuses to build upon the image.
            "history": [{"created_by": "headrace"}],
            "config": {"Cmd": list(command), "Env": list(environment)},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _described("application/vnd.oci.image.config.v1+json", config),
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": layer_digest,
                    "size": layer.stat().st_size,
                }
            ],
        }
    )
    entry = {**_described(MANIFEST, manifest), "annotations": {NAME: name, REFERENCE: name}}
    half = archive.with_name(archive.name + ".part")
    with tarfile.open(half, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
        for blob in (config, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        tar.add(layer, f"blobs/sha256/{layer_digest.removeprefix('sha256:')}", filter=_anonymous)
    half.rename(archive)


def read_names(archive: Path) -> list[ArchivedImage]:
    """The images of an archive, as written by this module, buildah, podman or `docker save`.

    Raises:
        LocalError: it is not such an archive, or an image in it has no name.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            names = set(tar.getnames())
            if "index.json" in names:
                return _read_index(archive, _load(tar, "index.json"))
            if "manifest.json" in names:
                return _read_manifest(archive, _load(tar, "manifest.json"))
    except (OSError, tarfile.TarError, ValueError) as error:
        raise LocalError(f"{archive}: cannot be read as an image archive: {error}") from error
    raise LocalError(f"{archive}: holds neither index.json (OCI) nor manifest.json (docker save)")


def _read_index(archive: Path, index: dict[str, Any]) -> list[ArchivedImage]:
    images = []
    for entry in index["manifests"]:
        annotations = entry.get("annotations", {})
        name = annotations.get(NAME) or annotations.get(REFERENCE, "")
        if "/" not in name or ":" not in name.rsplit("/", 1)[1]:
            raise LocalError(
                f"{archive}: its image has no full name (found {name!r}); "
                "write it with `buildah push IMAGE oci-archive:FILE:localhost/NAME:TAG`"
            )
        images.append(ArchivedImage(name, str(entry["digest"]), named_for_containerd=NAME in annotations))
    return images


def _read_manifest(archive: Path, manifest: list[dict[str, Any]]) -> list[ArchivedImage]:
    images = []
    for entry in manifest:
        if not entry.get("RepoTags"):
            raise LocalError(f"{archive}: holds an image without a name; write it with `docker save NAME:TAG`")
        digest = re.search(r"[0-9a-f]{64}", entry["Config"])
        if digest is None:
            raise LocalError(f"{archive}: {entry['Config']} is not named by its digest")
        names = entry["RepoTags"]
        images += [ArchivedImage(name, f"sha256:{digest[0]}", named_for_containerd=True) for name in names]
    return images


def _debian_sources() -> list[Path]:
    """This machine's own package sources, if it runs the Debian that is built; else mmdebstrap's defaults are used."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or release.get("VERSION_CODENAME") != "bookworm":
        return []
    places = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
    return [place for place in places if place.is_file() and place.stat().st_size][:1]


def _pack(folder: Path, name: str, command: list[str]) -> None:
    """Turns `folder/root` into `folder/image.tar`."""
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        for entry in sorted((folder / "root").iterdir()):
            tar.add(entry, entry.name, filter=_anonymous)
    write_oci(name, layer, folder / "image.tar", command)
    layer.unlink()
    shutil.rmtree(folder / "root")


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever packs them, and whenever: an image's digest says what is in it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    return entry


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _described(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _load(tar: tarfile.TarFile, name: str) -> Any:
    stream = tar.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is not a file")
    return json.load(stream)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
