"""System packages: says which are missing, and installs them where it may (root on Debian or Ubuntu).

A program is looked for first, so on a machine that has everything apt is never started.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from local import cache
from local.errors import LocalError
from local.programs import attempt, found, run

# Program or file -> the Debian package that holds it.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "openssl": "openssl",
    "mmdebstrap": "mmdebstrap",
    "gcc": "gcc libc6-dev",
    "buildah": "buildah",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/bin/python3.11": "python3.11",
    "/usr/lib/x86_64-linux-gnu/libnuma.so.1": "libnuma1",
}


def require(*programs: str) -> None:
    """Returns once every one of `programs` (keys of PACKAGES) is there.

    Raises:
        LocalError: some are missing and cannot be installed from here; it names their packages.
    """
    wanted = missing(*programs)
    if not wanted:
        return
    names = " ".join(wanted)
    if not installable():
        raise LocalError(f"these system packages are missing (names as in Debian): {names}")
    with cache.locked("apt"):
        _install(wanted)
    if still := missing(*programs):
        raise LocalError(f"installed {names}, and yet these are missing: {' '.join(still)}")


def missing(*programs: str) -> list[str]:
    """The packages of those programs that are not on this machine, sorted, each once."""
    return sorted({package for program in programs if not _there(program) for package in PACKAGES[program].split()})


def installable() -> bool:
    """Whether missing packages can be installed without asking: by root, with apt."""
    return os.geteuid() == 0 and _has_apt()


def _there(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else found(program) is not None


def _has_apt() -> bool:
    release = platform.freedesktop_os_release()
    return "debian" in f"{release.get('ID', '')} {release.get('ID_LIKE', '')}" and found("apt-get") is not None


def _install(names: list[str]) -> None:
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    command = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *names)
    run("apt-get", "update", "--quiet", env=quiet)
    # dpkg now and then loses its own temporary folder in mid-install; the same command then works.
    if attempt(*command, env=quiet).returncode:
        run(*command, env=quiet)
