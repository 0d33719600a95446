"""Process trees that can be found and ended whole: each lives in cgroups and namespaces of its own.

There are no pid files. What runs is found by its cgroup, so a command killed at any moment leaves nothing that the
next one does not see. The machine's cgroups get one folder, `headrace-local`, with one folder per sandbox (the hub
and each node) in it.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from local.layout import NAME
from local.programs import wait_until

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"})
INIT = Path(__file__).with_name("node-init.sh")
# The daemons see a plain environment: nothing of the caller's (tokens, proxies) gets into a node.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C"}


def hierarchies(membership: str) -> list[str]:
    """The folders under /sys/fs/cgroup that a sandbox needs, from the text of /proc/self/cgroup.

    One per hierarchy of version 1, named by its controllers (`systemd` has none), and `unified` for version 2.
    """
    folders = []
    for line in membership.split():
        _, names, _ = line.split(":", 2)
        if not names:
            folders.append("unified")
        elif names.startswith("name="):
            folders.append(names.removeprefix("name="))
        elif CONTROLLERS.intersection(names.split(",")):
            folders.append(names)
    return sorted(folders)


def obstacle() -> str | None:
    """Why no sandbox can be made here, or None."""
    if os.geteuid() != 0:
        return "the bare cluster needs root"
    there = {controller for folder in hierarchies(_membership()) for controller in folder.split(",")}
    if absent := sorted(CONTROLLERS - there):
        return f"the bare cluster needs cgroup v1, and these controllers are not on it: {', '.join(absent)}"
    return None


def launch(
    name: str, namespace: str, folder: Path, daemons: Mapping[str, str], role: str, pass_fd: int | None = None
) -> None:
    """Starts a sandbox: `node-init.sh` as the first process of new namespaces, which keeps `daemons` running.

    Args:
        name: the sandbox, and the host name inside.
        namespace: an existing network namespace to run in.
        folder: holds its logs and what it mounts.
        daemons: name -> shell command; a name is also the name of its log file.
        role: `node` (hides the machine's folders from pods) or `hub`.
        pass_fd: one open file that the daemons inherit.
    """
    (folder / "daemons").write_text("".join(f"{daemon} {command}\n" for daemon, command in daemons.items()))
    _create_cgroups(name)
    joins = "".join(f"echo $$ > {_group(hierarchy, name)}/cgroup.procs && " for hierarchy in _hierarchies())
    isolate = [
        "nsenter",
        f"--net=/run/netns/{namespace}",
        "unshare",
        *["-m", "-u", "-i", "-C", "-p", "-f", "--kill-child", "--mount-proc"],
    ]
    command = [*isolate, "--propagation", "private", "bash", str(INIT), name, str(folder), role]
    with (folder / "init.log").open("a") as log:
        # bash is in the cgroups before it forks, and setsid leaves no child that would be ours to wait for.
        subprocess.run(
            ["bash", "-c", joins + "exec setsid --fork " + shlex.join(command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=ENVIRONMENT,
            pass_fds=[] if pass_fd is None else [pass_fd],
            check=True,
        )


def init_pid(name: str) -> int | None:
    """The first process of a sandbox, as the machine numbers it; None if it does not run."""
    for pid in _processes(_group("pids", name)):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            (numbers,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            # Numbered 1 in the namespace directly below the machine's: containers' first processes are deeper.
            if len(numbers) == len(_own_numbers()) + 1 and numbers[-1] == "1":
                return pid
    return None


def names() -> list[str]:
    """The sandboxes that have cgroups, running or not."""
    top = _group("pids")
    return sorted(entry.name for entry in top.iterdir() if entry.is_dir()) if top.is_dir() else []


def other_clusters() -> list[str]:
    """The clusters of other names that run on this machine."""
    return sorted(hub.parent.name for hub in (CGROUPS / "pids").glob("*/hub") if hub.parent.name != NAME)


def end(name: str = "", limit: float = 30) -> None:
    """SIGKILLs every process of one sandbox, or of all, and removes the cgroups. Harmless when there is nothing."""
    groups = [_group(hierarchy, name) for hierarchy in _hierarchies()]

    def emptied() -> bool:
        pids = {pid for group in groups for pid in _processes(group)}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(f"the processes of {name or 'the cluster'} end", emptied, limit, step=0.02)
    # The kernel frees a cgroup a moment after its last process is gone.
    wait_until(
        f"the cgroups of {name or 'the cluster'} go",
        lambda: [_removed(group) for group in groups].count(False) == 0,
        limit,
        step=0.02,
    )


def inside(name: str, *command: str) -> list[str]:
    """The command line that runs `command` in the mount namespace of a running sandbox."""
    return ["nsenter", f"--target={init_pid(name)}", "--mount", "--", *command]


def _membership() -> str:
    return Path("/proc/self/cgroup").read_text()


def _hierarchies() -> list[str]:
    return [folder for folder in hierarchies(_membership()) if (CGROUPS / folder).is_dir()]


def _group(hierarchy: str, name: str = "") -> Path:
    return CGROUPS / hierarchy / NAME / name


def _own_numbers() -> list[str]:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("NSpid:"))
    return line.split()[1:]


def _create_cgroups(name: str) -> None:
    for hierarchy in _hierarchies():
        group = _group(hierarchy, name)
        group.mkdir(parents=True, exist_ok=True)
        if "cpuset" in hierarchy.split(","):
            # A new cpuset is empty and takes no process until it is given what its parent has.
            for folder in (group.parent, group):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (folder / file).write_text((folder.parent / file).read_text())


def _folders(group: Path) -> Iterator[Path]:
    """The cgroup and all below it, the deepest first."""
    for folder, _, _ in os.walk(group, topdown=False):
        yield Path(folder)


def _processes(group: Path) -> list[int]:
    pids: list[int] = []
    for folder in _folders(group):
        with suppress(OSError):  # it went away while it was read
            pids += [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    return pids


def _removed(group: Path) -> bool:
    for folder in _folders(group):
        with suppress(OSError):  # busy for now, or gone already
            folder.rmdir()
    return not group.exists()
