"""Rules of `engine/arguments.py` that no single command line shows; those are in tests/golden/engine_arguments."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_operator.api import options as api_options
from headrace_runtime.contract import (
    OWNED_OPTIONS,
    Engine,
    KvDisk,
    KvTiers,
    Model,
    NodeContract,
    Place,
    Transfer,
    owned_option,
)
from headrace_runtime.engine import arguments

PLACE = Place(name="chat-serve-5f2a-0", address="10.0.0.7")


def contract(**engine: Any) -> NodeContract:
    return NodeContract(
        namespace="team-a",
        deployment="chat",
        revision="5f2a",
        role="decode",
        model=Model(source="node:///m", served_name="m"),
        engine=Engine(**engine),
    )


def test_nothing_asked_for_adds_nothing_but_who_and_where() -> None:
    argv = arguments.command(contract(), PLACE).argv
    assert [word.partition("=")[0] for word in argv] == [
        "/var/run/headrace/model",
        "--host",
        "--port",
        "--served-model-name",
        "--shutdown-timeout",
        "--scheduler-cls",
        "--worker-extension-cls",
        "--disable-uvicorn-access-log",
    ]


@pytest.mark.parametrize(
    ("spelled", "means"),
    [
        ("host", "host"),
        ("served_model_name", "served-model-name"),
        ("no-enable-lora", "enable-lora"),
        ("kv-transfer-config.kv_role", "kv-transfer-config"),
        ("tensor-parallel", "tensor-parallel-size"),
    ],
)
def test_owned_option_is_refused_however_it_is_spelled(spelled: str, means: str) -> None:
    assert owned_option(spelled) == means
    with pytest.raises(arguments.ClashError, match=rf"engine\.extraArgs\.{spelled}\b"):
        arguments.command(contract(extra_args={spelled: "x"}), PLACE)


@pytest.mark.parametrize("spelled", ["enforce-eager", "max-num-seqs", "host-pool", "quantization-config"])
def test_other_options_are_free(spelled: str) -> None:
    assert owned_option(spelled) is None


def test_owned_variable_is_refused_by_name_without_its_value() -> None:
    with pytest.raises(arguments.ClashError, match=r"engine\.env\.VLLM_API_KEY") as refusal:
        arguments.command(contract(env={"VLLM_API_KEY": "hunter2"}), PLACE)
    assert "hunter2" not in str(refusal.value)


def test_operator_and_runtime_refuse_the_same_options() -> None:
    assert set(api_options.OWNED) == OWNED_OPTIONS


def test_whatever_we_set_is_owned_or_only_a_default() -> None:
    everything = contract(
        device="cpu",
        dtype="bfloat16",
        max_model_len=4096,
        quantization="awq",
        kv_cache_dtype="fp8",
        kv_cache_bytes=1 << 30,
        parallelism={"tensor": 2, "pipeline": 2, "data": 2, "context": 2, "expert": True},
        transfer=Transfer(),
        kv_tiers=KvTiers(host_bytes=1 << 30),
    )
    words = arguments.command(everything, PLACE).argv[1:]
    names = {word.removeprefix("--").partition("=")[0] for word in words}
    assert names - OWNED_OPTIONS == {"enforce-eager", "disable-uvicorn-access-log"}


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{2,20}", fullmatch=True).filter(lambda name: owned_option(name) is None),
        st.booleans() | st.integers() | st.text(max_size=20),
        max_size=5,
    )
)
def test_extra_options_come_last_and_once_in_the_order_given(extra: dict[str, bool | int | str]) -> None:
    plain = arguments.command(contract(), PLACE).argv
    argv = arguments.command(contract(extra_args=extra), PLACE).argv
    assert argv[: len(plain)] == plain
    assert [word.partition("=")[0] for word in argv[len(plain) :]] == [
        f"--no-{name}" if value is False else f"--{name}" for name, value in extra.items()
    ]


def test_without_a_digest_of_the_weights_no_block_is_kept_on_disk() -> None:
    tiers = KvTiers(host_bytes=1 << 30, disk=KvDisk(size_bytes=1 << 30))
    (unknown,), (known,) = (
        [word for word in arguments.command(contract(kv_tiers=tiers), PLACE, weights).argv if "DiskTier" in word]
        or [""]
        for weights in (None, "sha256:5f2a")
    )
    assert unknown == ""
    assert '"weights":"sha256:5f2a"' in known
    assert "OffloadingConnector" in " ".join(arguments.command(contract(kv_tiers=tiers), PLACE).argv)


@pytest.mark.parametrize(
    ("address", "events"),
    [("10.0.0.7", "tcp://10.0.0.7:5557"), ("fd00::7", "tcp://[fd00::7]:5557"), ("127.0.0.3", "ipc:///run/e/kv-events")],
)
def test_the_gateway_connects_to_where_the_engine_publishes(address: str, events: str) -> None:
    assert arguments.kv_events_of(Place(name="e", address=address, run_dir="/run/e")).publish == events


def test_the_warm_parent_of_an_engine_that_transfers_blocks_imports_the_connector_ahead():
    modules = arguments.zygote_argv("python3", Engine(transfer=Transfer(), kv_tiers=KvTiers(host_bytes=1)))[3:]
    assert modules == tuple(f"headrace_runtime.engine.{name}" for name in ("nixl", "kvconnector", "kvspec", "kvtier"))


def test_the_warm_parent_of_an_engine_alone_needs_no_connector():
    assert arguments.zygote_argv("python3", Engine()) == ("python3", *arguments.ZYGOTE)
