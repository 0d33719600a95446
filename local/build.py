"""Builds the project's own images: `operator`, `runtime` and, where vLLM's image can be pulled, `engine`.

One archive a target, in the user's cache under a key of everything that goes into it: what is there is never built
twice. With buildah all storage lies in the cache too, so the user's own images, networks and firewall rules are never
touched; with Docker the image stays in its store as well, under the same name. Called by `python -m local images` and
by the demo.
"""

from __future__ import annotations

import configparser
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal

import click

from headrace_operator import __version__
from local import cache, images, kind, packages
from local.errors import LocalError
from local.programs import attempt, run
from local.steps import Steps

REPOSITORY = Path(__file__).resolve().parent.parent
Tool = Literal["docker", "buildah"]
KEPT_BUILDS = 2
PULL_SECONDS = 120.0
AUTHORITY = "/run/secrets/ca"  # where the Dockerfiles mount the build secret `ca`


@dataclass(frozen=True)
class Target:
    """One image: a stage of a Dockerfile, and the files of the repository that go into it."""

    name: str
    dockerfile: str
    sources: tuple[str, ...]


TARGETS = {
    target.name: target
    for target in (
        Target(
            "operator",
            "operator/Dockerfile",
            (
                "operator/headrace_operator",
                "operator/requirements.lock",
                "runtime/headrace_runtime/__init__.py",
                "runtime/headrace_runtime/contract",
            ),
        ),
        Target("runtime", "runtime/Dockerfile", ("runtime/headrace_runtime", "runtime/requirements.lock")),
        Target("engine", "runtime/Dockerfile", ("runtime/headrace_runtime", "runtime/engine-requirements.lock")),
    )
}
LOCAL_TARGETS = ("operator", "runtime")
"""What a cluster without GPUs needs; `engine` starts from an image of many GB."""


@dataclass(frozen=True)
class Built:
    """An image's archive, as `docker save` writes them."""

    reference: str
    archive: Path
    seconds: float
    """What the build took; 0 when the archive was there."""

    @property
    def bytes(self) -> int:
        return self.archive.stat().st_size


def tool(wanted: str = "auto") -> Tool:
    """The program that builds: Docker if its daemon answers, else buildah, which needs no daemon.

    Raises:
        LocalError: neither is there, or not the wanted one.
    """
    obstacle = kind.obstacle()
    if wanted in ("auto", "docker") and obstacle is None:
        return "docker"
    if wanted == "docker":
        raise LocalError(f"Docker cannot build here: {obstacle}; --tool buildah needs no daemon")
    if os.geteuid() != 0:
        raise LocalError(f"images are built by Docker ({obstacle}), or without it by root with buildah")
    packages.require("buildah", "unshare")
    return "buildah"


def build(target: Target, wanted: str = "auto") -> Built:
    """The target's image, built now if nothing that goes into it has been built before.

    The tag holds the key of what went in: other content never hides behind a name that a node already has.

    Raises:
        LocalError: no tool, or the build failed; with the last words of the tool.
    """
    began = monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        # A copy: what is built is what was hashed, whoever edits the sources meanwhile.
        context = Path(scratch) / "context"
        key = _snapshot(target, context)
        reference = f"headrace.dev/{target.name}:{__version__}-{key}"

        def make(folder: Path) -> None:
            words = ("--file", target.dockerfile, "--target", target.name, "--tag", reference, *_secrets(Path(scratch)))
            if tool(wanted) == "docker":
                run("docker", "build", *words, ".", cwd=context, env={"DOCKER_BUILDKIT": "1"})
                run("docker", "save", "--output", folder / f"{target.name}.tar", reference)
            else:
                _with_buildah(words, context, reference, folder / f"{target.name}.tar")

        name = f"image-{target.name}"
        present = (cache.root() / f"{name}-{key}").is_dir()
        folder = cache.kept(name, key, make)
    if not present:
        _forget_old_builds(name, folder)
    return Built(reference, folder / f"{target.name}.tar", 0.0 if present else monotonic() - began)


def _snapshot(target: Target, context: Path) -> str:
    """Copies what goes into the image to `context`, and returns the key of that."""
    parts: list[str | bytes] = [target.name, images.DEBIAN, *images.DEBIAN_PACKAGES]
    files = [file for source in (target.dockerfile, *target.sources) for file in _files(REPOSITORY / source)]
    for file in sorted(files):
        name = file.relative_to(REPOSITORY)
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, context / name)
        parts += [str(name), (context / name).read_bytes()]
    return cache.key(*parts)


def _with_buildah(words: tuple[str, ...], context: Path, reference: str, archive: Path) -> None:
    with cache.locked("buildah"):
        _provide_debian()
        # chroot and the machine's own network: with buildah's defaults a build writes firewall rules into the machine.
        how = ("--layers", "--force-rm", "--isolation=chroot", "--network=host", "--pull=false")
        run(*_buildah(), "bud", *how, *words, ".", cwd=context)
        run(*_buildah(), "push", "--quiet", reference, f"docker-archive:{archive}:{reference}")


def _buildah() -> tuple[str, ...]:
    """buildah on a storage of its own: `root` for images, `run` for what lives as long as a build.

    In a mount namespace of its own: the mounts that it makes, and would leave behind, end with it.
    """
    storage = cache.root() / "buildah"
    alone = ("unshare", "--mount", "--propagation", "private")
    return (*alone, "buildah", "--root", str(storage / "root"), "--runroot", str(storage / "run"))


def _provide_debian() -> None:
    """Debian's image in buildah's storage: pulled where a registry can be reached, else made from Debian's packages."""
    if attempt(*_buildah(), "inspect", "--type", "image", images.DEBIAN).returncode == 0:
        return
    if attempt(*_buildah(), "pull", "--quiet", images.DEBIAN, timeout=PULL_SECONDS).returncode:
        run(*_buildah(), "pull", "--quiet", f"oci-archive:{images.debian_base()}")


def _secrets(folder: Path) -> list[str]:
    """Build secrets that let pip in the build reach what it reaches on this machine; the image keeps neither."""
    settings = _pip_settings()
    words = []
    if authority := next((os.environ[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if os.environ.get(name)), None):
        settings["cert"] = AUTHORITY
        words.append(f"--secret=id=ca,src={authority}")
    if settings:
        lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
        file = folder / "pip.conf"
        file.touch(mode=0o600)  # an index's address may hold a password
        file.write_text("\n".join(lines) + "\n")
        words.append(f"--secret=id=pip-conf,src={file}")
    return words


def _pip_settings() -> dict[str, str]:
    """Which package index pip uses here: its configuration files, then its variables, as pip itself ranks them."""
    names = ("index-url", "extra-index-url", "trusted-host")
    home = Path.home()
    files: list[str | Path] = [
        "/etc/pip.conf",
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        os.environ.get("PIP_CONFIG_FILE", ""),
    ]
    parser = configparser.RawConfigParser()
    parser.read([file for file in files if file])
    found = dict(parser["global"]) if parser.has_section("global") else {}
    for name in names:
        if value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}"):
            found[name] = value
    return {name: " ".join(found[name].split()) for name in names if name in found}


def _forget_old_builds(name: str, newest: Path) -> None:
    """Keeps the last few archives of a target: each is hundreds of MB, and made again in seconds."""
    old = [folder for folder in cache.root().glob(f"{name}-*") if folder != newest and folder.is_dir()]
    old.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in old[KEPT_BUILDS - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return [
        file
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md"
    ]


@click.command("images")
@click.argument("targets", nargs=-1, type=click.Choice(list(TARGETS)))
@click.option("--tool", "wanted", type=click.Choice(["auto", "docker", "buildah"]), default="auto", show_default=True)
def main(targets: tuple[str, ...], wanted: str) -> None:
    """Build the project's images into the user's cache: operator and runtime, or the TARGETS.

    `engine`, the image of GPU engines, starts from vLLM's own image: it needs a registry and some 30 GB.
    """
    for name in targets or LOCAL_TARGETS:
        with Steps().step(f"image {name}"):
            built = build(TARGETS[name], wanted)
        click.echo(f"{built.reference}  {built.bytes / 1e6:.0f} MB  {built.archive}")
