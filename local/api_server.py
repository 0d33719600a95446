"""etcd and a Kubernetes API server alone, for tests: up in 3 s, without root or cgroups.

Ordinary child processes on free ports of loopback, in a temporary folder. They end with the block that started them,
and die with the process that did (PR_SET_PDEATHSIG), however it ends. What a controller would do (garbage
collection, service accounts) does not happen.
"""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from local import certificates, control_plane, packages, toolchain
from local.certificates import ADMIN, FRONT_PROXY_CLIENT, KUBELET_CLIENT
from local.control_plane import ControlPlane
from local.errors import LocalError
from local.programs import wait_until

READY_WITHIN = 60.0
END_WITHIN = 5.0


PROGRAMS = ("openssl", "setpriv")


def obstacle() -> str | None:
    """Why no API server can run here, or None."""
    if sys.platform != "linux":
        return f"the API server is built and run on Linux only, and this is {sys.platform}"
    if not packages.installable() and (names := packages.missing(*PROGRAMS)):
        return f"the API server needs these system packages (names as in Debian): {' '.join(names)}"
    return None


@contextmanager
def api_server() -> Iterator[Path]:
    """Runs an API server while the block runs, and gives the path of a kubeconfig with all rights.

    Call it from the main thread: when the thread that starts the servers ends, the kernel ends them.

    Raises:
        LocalError: it cannot be built or does not start here; the message holds its last words.
    """
    packages.require(*PROGRAMS)
    program = toolchain.kubernetes()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-api-")))
        certificates.create_authorities(home / "pki")
        for identity in (certificates.api_server(["127.0.0.1"]), ADMIN, KUBELET_CLIENT, FRONT_PROXY_CLIENT):
            certificates.issue(home / "pki", identity)
        for last in (False, False, True):  # another process can take a free port before the server does
            plane = ControlPlane(program, home / "pki", home, "127.0.0.1", *free_ports())
            try:
                stack.enter_context(_started(plane))
                break
            except PortTakenError:
                if last:
                    raise
        kubeconfig = home / "kubeconfig"
        certificates.write_kubeconfig(kubeconfig, home / "pki", ADMIN, f"https://127.0.0.1:{plane.api_port}")
        yield kubeconfig


def answers(port: int, context: ssl.SSLContext) -> bool:
    """Whether the API server at this port of loopback says that it is ready. Nobody needs rights to ask."""
    try:
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class PortTakenError(LocalError):
    """Somebody else listens on a port that was free a moment ago."""


@contextmanager
def _started(plane: ControlPlane) -> Iterator[None]:
    context = ssl.create_default_context(cafile=str(plane.pki / "ca.crt"))
    commands = {"etcd": control_plane.etcd(plane), "kube-apiserver": control_plane.api_server_alone(plane)}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(child(command, plane.data / f"{name}.log")) for name, command in commands.items()
        }

        def ready() -> bool:
            for name, process in processes.items():
                if process.poll() is not None:
                    words = (plane.data / f"{name}.log").read_text()
                    error = PortTakenError if "address already in use" in words else LocalError
                    raise error(f"{name} ended at once: {words[-1500:]}")
            return answers(plane.api_port, context)

        wait_until("the API server is ready", ready, READY_WITHIN, step=0.05)
        yield


@contextmanager
def child(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block lasts: told to end, then killed. It dies with the thread that started it."""
    with log.open("wb") as out:
        # A session of its own: Ctrl-C is for the parent, which then ends its children in order.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports() -> tuple[int, int, int]:
    """Three different ports of loopback on which nobody listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        first, second, third = (int(one.getsockname()[1]) for one in sockets)
        return first, second, third
