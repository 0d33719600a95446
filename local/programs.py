"""Runs other programs: no shell, text in and out, and a failure that says which program failed with which words.

Everything in this package that starts a short-lived program comes through here. Long-lived ones are started by
`sandbox` (nodes) and `api_server` (a control plane for tests).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep

from local.errors import LocalError

LAST_WORDS = 1500  # characters of a failed program's output that are shown


def run(
    *command: str | Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Runs a program to its end and returns what it wrote to standard output, stripped.

    `env` is added to this process's environment; `timeout` is in seconds.

    Raises:
        LocalError: the program is missing, ended with another status than 0, or ran too long.
    """
    result = attempt(*command, stdin=stdin, env=env, cwd=cwd, timeout=timeout)
    if result.returncode:
        words = (result.stderr.strip() or result.stdout.strip())[-LAST_WORDS:]
        raise LocalError(f"{shown(command)} ended with status {result.returncode}: {words}")
    return result.stdout.strip()


def attempt(
    *command: str | Path,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """As `run`, for callers to whom a status other than 0 is an answer."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(
            words,
            # An empty input, never the terminal's: a program that asks something must fail, not wait.
            input=stdin if stdin is not None else "",
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            timeout=timeout,
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LocalError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{shown(command)} did not end within {timeout:.0f} s") from error


def shown(command: tuple[str | Path, ...]) -> str:
    """A command as one short line for an error message."""
    line = " ".join(str(word) for word in command)
    return line if len(line) <= 160 else line[:157] + "..."


def found(program: str) -> str | None:
    """The path of a program, looked for in the system's folders too: a user's PATH often lacks the sbin ones."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return shutil.which(program, path=path)


def wait_until(what: str, condition: Callable[[], bool], limit: float, step: float = 0.1) -> None:
    """Returns once `condition` holds; looks every `step` seconds.

    Raises:
        LocalError: it did not hold within `limit` seconds.
    """
    end = monotonic() + limit
    while not condition():
        if monotonic() > end:
            raise LocalError(f"waited {limit:.0f} s in vain: {what}")
        sleep(step)
