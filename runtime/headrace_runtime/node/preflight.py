"""Whether this image carries what the contract needs, asked before anything is started.

An image without vLLM or Ray would end in a crash loop that explains nothing; the agent stays and says it instead. Asks
the interpreter's own package metadata, since the programs run in the same interpreter: no import, milliseconds.
"""

from importlib.metadata import PackageNotFoundError, version

from headrace_runtime.contract import NodeContract
from headrace_runtime.node.decide import Verdict


def installed(package: str) -> str | None:
    """The version of an installed distribution; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


LOADERS = {"Streamer": "runai-model-streamer", "FastSafetensors": "fastsafetensors"}
"""The distribution that each `Model.loader` needs beside vLLM."""


def loader_version(contract: NodeContract) -> str | None:
    """Of the distribution that the contract's loader needs. None: it is not there, or none is needed."""
    package = LOADERS.get(contract.model.loader)
    return installed(package) if package else None


def lacks(contract: NodeContract, vllm: str | None, ray: str | None, loader: str | None = None) -> Verdict | None:
    """What the image lacks, by the versions that are installed; None if nothing."""
    if vllm is None:
        return Verdict("EngineMissing", "the image has no vLLM; set spec.engine.image to one that carries vllm and ray")
    if contract.ray is not None and ray is None:
        return Verdict("RayMissing", "the image has no Ray; set spec.engine.image to one that carries vllm and ray")
    package = LOADERS.get(contract.model.loader)
    if package is not None and loader is None:
        fix = "set spec.engine.image to one that carries it, or spec.model.loader to Auto"
        return Verdict("LoaderMissing", f"spec.model.loader {contract.model.loader} needs {package}: {fix}")
    return None
