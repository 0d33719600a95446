"""What an image must carry for a contract, found out before anything is started."""

from typing import Any

import pytest

from headrace_runtime.contract import Engine, Model, NodeContract, RayNode
from headrace_runtime.node.preflight import lacks


def contract(**model: Any) -> NodeContract:
    return NodeContract(
        namespace="team-a",
        deployment="chat",
        revision="5f2a",
        role="serve",
        model=Model(source="node:///m", served_name="m", **model),
        engine=Engine(),
        ray=RayNode(address="head:6379"),
    )


def test_an_image_with_all_of_it_lacks_nothing() -> None:
    assert lacks(contract(), vllm="0.32.0", ray="2.60.0") is None
    assert lacks(contract(loader="Streamer"), vllm="0.32.0", ray="2.60.0", loader="0.15.7") is None


@pytest.mark.parametrize(("vllm", "ray", "reason"), [(None, "2.60.0", "EngineMissing"), ("0.32.0", None, "RayMissing")])
def test_says_which_of_engine_and_ray_is_missing(vllm: str | None, ray: str | None, reason: str) -> None:
    verdict = lacks(contract(), vllm, ray)
    assert verdict is not None
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("loader", "package"), [("Streamer", "runai-model-streamer"), ("FastSafetensors", "fastsafetensors")]
)
def test_a_loader_whose_library_is_missing_names_its_field_and_the_fix(loader: str, package: str) -> None:
    verdict = lacks(contract(loader=loader), vllm="0.32.0", ray="2.60.0", loader=None)
    assert verdict is not None
    assert verdict.reason == "LoaderMissing"
    assert f"spec.model.loader {loader} needs {package}" in verdict.message


@pytest.mark.parametrize("loader", ["Auto", "Safetensors"])
def test_loaders_of_vllm_itself_need_nothing_more(loader: str) -> None:
    assert lacks(contract(loader=loader), vllm="0.32.0", ray="2.60.0") is None
