"""LoRA adapters of the spec, as the agents are told of them. Pure; called by `contracts.py` and reconcile.

They stand in the node contract and in no revision: an agent reads its contract again and loads what is new. The digest
that the first load found is pinned by name and source, as that of the model is.
"""

import json
from collections.abc import Iterable, Mapping

from headrace_operator.api.status import AdapterStatus
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.state import Object, Subject
from headrace_runtime import contract


def adapters(subject: Subject) -> tuple[contract.Adapter, ...]:
    """All that the spec names, in its order."""
    model, lora = subject.spec.model, subject.spec.engine.lora
    checked = model.integrity.policy != "Off"
    return tuple(
        contract.Adapter(
            name=adapter.name,
            source=adapter.source,
            path=_mounted_at(adapter.source, lora.folder if lora else None),
            integrity=contract.Integrity(
                policy=model.integrity.policy,
                digest=subject.pinned_adapters.get(adapter.name) if checked else None,
                allow_pickle=model.integrity.allow_pickle,
            ),
        )
        for adapter in model.adapters
    )


def _mounted_at(source: str, folder: str | None) -> str:
    """Where it is in an engine's container; empty where it is fetched."""
    if folder is None or not source.startswith(f"{folder}/"):
        return ""
    return f"{contract.ADAPTERS_MOUNT}/{source.removeprefix(f'{folder}/')}"


def pinned_digests(
    children: Mapping[tuple[str, str], Object], reported: Iterable[AdapterStatus], spec: InferenceDeploymentSpec
) -> dict[str, str]:
    """The digests that were reported of adapters that still have their source, by name.

    A status does not say which source a digest is of; the contracts of the engines do.
    """
    sources = {adapter.name: adapter.source for adapter in spec.model.adapters}
    written = {
        (adapter["name"], adapter["source"])
        for (kind, _), obj in children.items()
        if kind == "ConfigMap" and (text := obj.get("data", {}).get(contract.CONTRACT_FILE)) is not None
        for adapter in json.loads(text).get("model", {}).get("adapters", [])
    }
    return {
        status.name: status.digest
        for status in reported
        if status.digest is not None and (status.name, sources.get(status.name)) in written
    }
