"""What a person does with a cluster: an API server that serves our kinds, with a namespace to work in, and commands
that are typed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from click.testing import CliRunner, Result

from headrace_operator.__main__ import main
from headrace_operator.api.crd import crd
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, Kind
from headrace_operator.cluster.client import APPLY, KubernetesCluster
from headrace_operator.errors import ClusterError
from headrace_operator.state import Ref

CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")


@asynccontextmanager
async def in_namespace(kubeconfig: Path, namespace: str) -> AsyncIterator[KubernetesCluster]:
    """A client of an API server on which InferenceDeployments can be made in this namespace, which is new."""
    async with await KubernetesCluster.connect(kubeconfig=kubeconfig) as cluster:
        body = crd()
        path = f"/apis/{CRD.api_version}/{CRD.plural}/{body['metadata']['name']}"
        await cluster._call("PATCH", path, {"fieldManager": "test", "force": "true"}, body, content_type=APPLY)
        await cluster._call("POST", "/api/v1/namespaces", None, {"metadata": {"name": namespace}})
        async with asyncio.timeout(60):
            while not await _served(cluster, namespace):
                await asyncio.sleep(0.1)
        yield cluster


async def _served(cluster: KubernetesCluster, namespace: str) -> bool:
    try:
        await cluster.list_children(INFERENCE_DEPLOYMENT, Ref(namespace, "chat", ""))
    except ClusterError:
        return False
    return True


async def typed(kubeconfig: Path, namespace: str, *words: str) -> Result:
    """`headrace WORDS` in this namespace, ended."""
    arguments = [*words, "-n", namespace, "--kubeconfig", str(kubeconfig)]
    return await asyncio.to_thread(CliRunner().invoke, main, arguments)
