"""What an image must carry for a contract, found out before anything is started."""

from dataclasses import replace
from typing import Any

import pytest

from headrace_runtime.contract import Engine, Model, NodeContract, RayNode, Transfer
from headrace_runtime.node.preflight import Installed, found, lacks

WHOLE = Installed(vllm="0.32.0", ray="2.60.0")


def contract(engine: Engine | None = None, **model: Any) -> NodeContract:
    return NodeContract(
        namespace="team-a",
        deployment="chat",
        revision="5f2a",
        role="serve",
        model=Model(source="node:///m", served_name="m", **model),
        engine=engine or Engine(),
        ray=RayNode(address="head:6379"),
    )


def split() -> NodeContract:
    return contract(Engine(transfer=Transfer()))


def test_an_image_with_all_of_it_lacks_nothing() -> None:
    assert lacks(contract(), WHOLE) is None
    assert lacks(contract(loader="Streamer"), replace(WHOLE, loader="0.15.7")) is None
    assert lacks(split(), replace(WHOLE, connector="1.5.1")) is None


@pytest.mark.parametrize(("missing", "reason"), [("vllm", "EngineMissing"), ("ray", "RayMissing")])
def test_says_which_of_engine_and_ray_is_missing(missing: str, reason: str) -> None:
    verdict = lacks(contract(), replace(WHOLE, **{missing: None}))
    assert verdict is not None
    assert verdict.reason == reason


def test_an_engine_that_is_too_old_is_told_with_both_versions() -> None:
    verdict = lacks(contract(), replace(WHOLE, vllm="0.9.2"))
    assert verdict is not None
    assert verdict.reason == "EngineTooOld"
    assert "vLLM 0.9.2; 0.32 or a later one" in verdict.message
    assert "spec.engine.image" in verdict.message


@pytest.mark.parametrize("version", ["0.32.0+cpu", "0.33.1", "1.0.0rc1", "0.1.dev9999+gabcdef", "unknown"])
def test_later_engines_and_builds_of_ones_own_are_not_refused(version: str) -> None:
    assert lacks(contract(), replace(WHOLE, vllm=version)) is None


def test_engines_that_hand_over_prompts_need_nixl() -> None:
    verdict = lacks(split(), WHOLE)
    assert verdict is not None
    assert verdict.reason == "ConnectorMissing"
    assert "vLLM 0.32.0" in verdict.message
    assert "nixl" in verdict.message


@pytest.mark.parametrize(
    ("loader", "package"), [("Streamer", "runai-model-streamer"), ("FastSafetensors", "fastsafetensors")]
)
def test_a_loader_whose_library_is_missing_names_its_field_and_the_fix(loader: str, package: str) -> None:
    verdict = lacks(contract(loader=loader), WHOLE)
    assert verdict is not None
    assert verdict.reason == "LoaderMissing"
    assert f"spec.model.loader {loader} needs {package}" in verdict.message


@pytest.mark.parametrize("loader", ["Auto", "Safetensors"])
def test_loaders_of_vllm_itself_need_nothing_more(loader: str) -> None:
    assert lacks(contract(loader=loader), WHOLE) is None


def test_only_what_the_contract_needs_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_runtime.node.preflight.installed", {"vllm": "0.32.0", "nixl-cu12": "1.5.1"}.get)
    assert found(contract()) == Installed(vllm="0.32.0")
    assert found(split()) == Installed(vllm="0.32.0", connector="1.5.1")
