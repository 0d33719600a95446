"""The command line: `python -m local VERB`. Each verb is one call on the provider that this machine gets."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from local import build, demo, toolchain
from local.api_server import api_server
from local.choice import choose
from local.layout import Mount
from local.steps import Steps

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class MountType(click.ParamType[Mount]):
    """`SRC:DST`, checked before anything is started."""

    name = "SRC:DST"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Mount:
        return Mount.parse(value)


ARCHIVE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A real Kubernetes of several nodes on this machine.

    CLUSTER=bare (namespaces; root on cgroup v1), kind (Docker) or current (the kubeconfig's cluster) says which kind;
    without it the first of kind, bare, current that can work here is taken.
    """


@main.command()
@click.option("--nodes", default=3, show_default=True, metavar="N", help="How many nodes.")
@click.option(
    "--mount", "mounts", multiple=True, type=MountType(), help="Show a folder to all pods, read-only. May be repeated."
)
@click.option("--fresh", is_flag=True, help="Take down what is there first.")
def up(nodes: int, mounts: Sequence[Mount], fresh: bool) -> None:
    """Bring up a cluster, or say what is already there."""
    steps = Steps()
    provider = choose()
    provider.up(nodes, mounts, fresh, steps)
    steps.total(f"up; KUBECONFIG={provider.kubeconfig()}")


@main.command()
def down() -> None:
    """Remove the cluster and every trace of it."""
    choose().down(Steps())


@main.command()
def status() -> None:
    """Show the nodes: running, connected, Ready. Exit status 1 if no cluster is up."""
    found = choose().status()
    if not found.up:
        click.echo(f"no {found.provider} cluster is up")
        sys.exit(1)
    table = Table("node", "running", "connected", "Ready")
    for node in found.nodes:
        table.add_row(node.name, *("yes" if fact else "no" for fact in (node.running, node.connected, node.ready)))
    Console().print(table)


@main.command("load-image")
@click.argument("archives", nargs=-1, required=True, type=ARCHIVE, metavar="TAR...")
def load_image(archives: Sequence[Path]) -> None:
    """Put images into every running node, from OCI or docker archives."""
    choose().load(archives, Steps())


@main.command()
@click.argument("mounts", nargs=-1, required=True, type=MountType())
def mount(mounts: Sequence[Mount]) -> None:
    """Show folders to the pods of a running cluster, read-only."""
    choose().mount(mounts, Steps())


@main.command("kill-node")
@click.argument("node")
def kill_node(node: str) -> None:
    """Take a node's power away."""
    choose().kill(node)


@main.command("start-node")
@click.argument("node")
def start_node(node: str) -> None:
    """Boot a killed node on its old disk."""
    choose().start(node)


@main.command("cut-node")
@click.argument("node")
def cut_node(node: str) -> None:
    """Cut a node off the network; it runs on."""
    choose().cut(node)


@main.command("heal-node")
@click.argument("node")
def heal_node(node: str) -> None:
    """Give a cut node its network back."""
    choose().heal(node)


@main.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kubectl(arguments: Sequence[str]) -> None:
    """Run kubectl against the cluster."""
    _become([str(toolchain.kubectl()), *arguments], choose().kubeconfig())


@main.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def helm(arguments: Sequence[str]) -> None:
    """Run helm against the cluster."""
    _become([str(toolchain.helm()), *arguments], choose().kubeconfig())


@main.command("exec", context_settings=PASSED_ON)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def execute(command: Sequence[str]) -> None:
    """Run a command where pods and Services can be reached, by name too."""
    provider = choose()
    _become(provider.inside(command), provider.kubeconfig())


@main.command()
def shell() -> None:
    """Open a shell where pods and Services can be reached."""
    provider = choose()
    _become(provider.inside([os.environ.get("SHELL", "/bin/sh")]), provider.kubeconfig())


@main.command()
def kubeconfig() -> None:
    """Print the path of the cluster's kubeconfig."""
    click.echo(choose().kubeconfig())


@main.command("api-server")
def serve_api() -> None:
    """Run etcd and an API server alone, until Ctrl-C; print the kubeconfig's path."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with api_server() as path:
        click.echo(path)
        ended.wait()


main.add_command(build.main)
main.add_command(demo.main)
main.add_command(demo.down)


def _become(command: list[str], path: Path) -> None:
    """Replaces this process by the command, with the cluster's kubeconfig and its clients in the environment."""
    search = os.pathsep.join([str(toolchain.clients()), os.environ.get("PATH", os.defpath)])
    os.execvpe(command[0], command, {**os.environ, "KUBECONFIG": str(path), "PATH": search})
