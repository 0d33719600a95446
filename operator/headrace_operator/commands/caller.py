"""What every command for people has in common: whose cluster it speaks to, and how a failure reads."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from headrace_operator import names
from headrace_operator.cluster import INFERENCE_DEPLOYMENT
from headrace_operator.errors import ClusterError, Conflict, SettingsError
from headrace_operator.state import Object, Ref

if TYPE_CHECKING:
    from headrace_operator.cluster.client import KubernetesCluster

T = TypeVar("T")

namespace_option = click.option(
    "-n", "--namespace", default="default", show_default=True, help="Namespace of the deployment."
)
kubeconfig_option = click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: the service account of a pod, or else $KUBECONFIG, or ~/.kube/config.",
)
output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the answer."
)


def call(kubeconfig: Path | None, work: "Callable[[KubernetesCluster], Awaitable[T]]") -> T:
    """Do something in the caller's cluster; what fails is told in a sentence (ClickException)."""
    # Here, so that `plan` needs no client.
    from headrace_operator.cluster.client import KubernetesCluster  # noqa: PLC0415

    async def connected() -> T:
        async with await KubernetesCluster.connect(kubeconfig=kubeconfig) as cluster:
            return await work(cluster)

    try:
        return asyncio.run(connected())
    except Conflict as error:
        raise click.ClickException("the deployment was changed by somebody else just now: try again") from error
    except (ClusterError, SettingsError) as error:
        raise click.ClickException(str(error)) from error


async def the_deployment(cluster: "KubernetesCluster", namespace: str, name: str) -> tuple[Ref, Object]:
    """One InferenceDeployment. ClickException: there is none."""
    obj = await cluster.get(INFERENCE_DEPLOYMENT, namespace, name)
    if obj is None:
        raise click.ClickException(f"no {names.KIND} {name} in the namespace {namespace}: see -n")
    return Ref(namespace, name, obj["metadata"]["uid"]), obj
