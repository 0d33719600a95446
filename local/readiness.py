"""Waits for an InferenceDeployment to become Ready, shows how far it is, and explains when it does not get there.

Reads the API through kubectl and changes nothing. Called by the demo.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from local import toolchain
from local.errors import LocalError
from local.programs import attempt, run

MARKS = {"True": "[green]yes[/]", "False": "[yellow]no[/]", "Unknown": "[dim]?[/]"}
LOG_LINES = 30


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one namespace of one cluster."""

    kubeconfig: Path
    namespace: str

    def __call__(self, *words: str) -> str:
        return run(*self._command(), *words)

    def words(self, *words: str) -> str:
        """The output whatever the exit status: for reports."""
        result = attempt(*self._command(), *words)
        return (result.stdout + result.stderr).strip()

    def _command(self) -> tuple[str | Path, ...]:
        return (toolchain.kubectl(), "--kubeconfig", self.kubeconfig, "--namespace", self.namespace)


def wait_until_ready(kubectl: Kubectl, name: str, limit: float, console: Console) -> float:
    """Returns the seconds it took once the condition Ready is True for what is in the spec now.

    Raises:
        LocalError: not within `limit` seconds; everything that says why has been printed by then.
    """
    began = monotonic()
    seen: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            current = json.loads(kubectl("get", "inferencedeployment", name, "--output=json"))
            conditions = current.get("status", {}).get("conditions", [])
            if console.is_terminal:
                live.update(_table(conditions, monotonic() - began), refresh=True)
            else:
                _say_changes(conditions, seen, monotonic() - began, console.out)
            if is_ready(current):
                return monotonic() - began
            if monotonic() - began > limit:
                break
            sleep(0.5)
    explain(kubectl, name, console)
    raise LocalError(f"{name} did not become Ready within {limit:.0f} s; the reasons stand above")


def is_ready(deployment: dict[str, Any]) -> bool:
    """Whether Ready is True, and said of the newest spec."""
    return any(
        condition["type"] == "Ready"
        and condition["status"] == "True"
        and condition.get("observedGeneration") == deployment["metadata"]["generation"]
        for condition in deployment.get("status", {}).get("conditions", [])
    )


def explain(kubectl: Kubectl, name: str, console: Console) -> None:
    """Prints what a person would look at: the conditions, and all that `explain_pods` shows."""
    current = json.loads(kubectl("get", "inferencedeployment", name, "--output=json"))
    console.print(_table(current.get("status", {}).get("conditions", []), None))
    explain_pods(kubectl, f"headrace.dev/deployment={name}", console)


def explain_pods(kubectl: Kubectl, selector: str, console: Console) -> None:
    """Prints the pods, the namespace's last events, and the last lines of every pod that is not ready."""
    console.rule("pods")
    console.out(kubectl.words("get", "pods", "--output=wide", "--selector", selector))
    console.rule("events")
    console.out("\n".join(kubectl.words("get", "events", "--sort-by=.lastTimestamp").splitlines()[-LOG_LINES:]))
    for pod in json.loads(kubectl("get", "pods", "--output=json", "--selector", selector))["items"]:
        if not all(status.get("ready") for status in pod.get("status", {}).get("containerStatuses", [{}])):
            name = pod["metadata"]["name"]
            console.rule(f"log of {name}")
            console.out(kubectl.words("logs", name, f"--tail={LOG_LINES}", "--all-containers"))


def _table(conditions: list[dict[str, str]], seconds: float | None) -> Table:
    title = None if seconds is None else f"{seconds:.0f} s"
    table = Table("condition", "", "reason", "message", box=None, title=title, title_justify="left")
    for condition in conditions:
        mark = MARKS.get(condition["status"], condition["status"])
        table.add_row(condition["type"], mark, condition.get("reason", ""), condition.get("message", ""))
    return table


def _say_changes(
    conditions: list[dict[str, str]], seen: dict[str, str], seconds: float, say: Callable[[str], None]
) -> None:
    """One line for each condition that reads otherwise than before; where there is no terminal to draw a table on."""
    for condition in conditions:
        line = f"{condition['status']} {condition.get('reason', '')}: {condition.get('message', '')}"
        if seen.get(condition["type"]) != line:
            seen[condition["type"]] = line
            say(f"{seconds:7.1f} s    {condition['type']} {line}")
