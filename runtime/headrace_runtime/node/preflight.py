"""Whether this image carries what the contract needs, asked before anything is started.

An image without vLLM or Ray would end in a crash loop that explains nothing; the agent stays and says it instead. Asks
the interpreter's own package metadata, since the programs run in the same interpreter: no import, milliseconds.
"""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from headrace_runtime.contract import NodeContract
from headrace_runtime.node.decide import Verdict


def installed(package: str) -> str | None:
    """The version of an installed distribution; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


OLDEST_VLLM = (0, 32)
"""What our connectors build upon changed with it."""
NIXL = ("nixl", "nixl-cu13", "nixl-cu12")
"""Distributions that bring NIXL: images have it under one of these names."""
LOADERS = {"Streamer": "runai-model-streamer", "FastSafetensors": "fastsafetensors"}
"""The distribution that each `Model.loader` needs beside vLLM."""


def loader_version(contract: NodeContract) -> str | None:
    """Of the distribution that the contract's loader needs. None: it is not there, or none is needed."""
    package = LOADERS.get(contract.model.loader)
    return installed(package) if package else None


@dataclass(frozen=True)
class Installed:
    """Versions of what an engine's image carries. None: it does not, or, of loader and connector, none is needed."""

    vllm: str | None = None
    ray: str | None = None
    loader: str | None = None
    connector: str | None = None


def found(contract: NodeContract) -> Installed:
    """In this interpreter, for this contract."""
    nixl = next(filter(None, map(installed, NIXL)), None) if contract.engine.transfer is not None else None
    return Installed(installed("vllm"), installed("ray"), loader_version(contract), nixl)


def lacks(contract: NodeContract, image: Installed) -> Verdict | None:
    """What the image lacks, by the versions that are installed; None if nothing."""
    if image.vllm is None:
        return Verdict("EngineMissing", "the image has no vLLM; set spec.engine.image to one that carries vllm and ray")
    if contract.ray is not None and image.ray is None:
        return Verdict("RayMissing", "the image has no Ray; set spec.engine.image to one that carries vllm and ray")
    if (version := _release(image.vllm)) is not None and version < OLDEST_VLLM:
        oldest = ".".join(map(str, OLDEST_VLLM))
        fix = f"{oldest} or a later one is needed: set spec.engine.image to one that carries it"
        return Verdict("EngineTooOld", f"the image has vLLM {image.vllm}; {fix}")
    if contract.engine.transfer is not None and image.connector is None:
        fix = "set spec.engine.image to one that carries nixl, which moves KV blocks between prefill and decode"
        return Verdict("ConnectorMissing", f"the image, with vLLM {image.vllm}, has no NIXL; {fix}")
    package = LOADERS.get(contract.model.loader)
    if package is not None and image.loader is None:
        fix = "set spec.engine.image to one that carries it, or spec.model.loader to Auto"
        return Verdict("LoaderMissing", f"spec.model.loader {contract.model.loader} needs {package}: {fix}")
    return None


def _release(version: str) -> tuple[int, int] | None:
    """Major and minor. None: somebody's own build, which no number tells anything about."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers and "dev" not in version else None
