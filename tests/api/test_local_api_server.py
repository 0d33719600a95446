"""The API server that the tests of this folder share is a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

from local import programs, toolchain


def test_it_answers_with_its_version_and_stores_objects(api_kubeconfig: Path) -> None:
    kubectl = (toolchain.kubectl(), "--kubeconfig", api_kubeconfig)
    version = json.loads(programs.run(*kubectl, "get", "--raw", "/version"))
    assert version["gitVersion"] == f"v{toolchain.KUBERNETES_VERSION}"
    programs.run(*kubectl, "create", "configmap", "kept", "--from-literal=key=value")
    assert programs.run(*kubectl, "get", "configmap", "kept", "--output=jsonpath={.data.key}") == "value"
    programs.run(*kubectl, "delete", "configmap", "kept")


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    # Its temporary folder is under tmp_path: what runs from there is found by its command line.
    launcher = subprocess.Popen(
        [sys.executable, "-m", "local", "api-server"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launcher.stdout is not None
    with launcher, launcher.stdout:
        assert launcher.stdout.readline().startswith(str(tmp_path))
        assert _running(tmp_path)
        launcher.send_signal(signal.SIGKILL)
    end = monotonic() + 10
    while _running(tmp_path):
        assert monotonic() < end, "etcd or the API server outlived its launcher"
        sleep(0.05)


def _running(folder: Path) -> list[bytes]:
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        found += [words] if str(folder).encode() in words else []
    return found
