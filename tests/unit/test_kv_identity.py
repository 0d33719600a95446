"""Which engines share KV blocks, and which never do."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import Engine, KvTiers, Parallelism, Transfer
from headrace_runtime.kv.identity import Geometry, Group, Identity, Parallel, settings_digest

GEOMETRY = Geometry(
    engine="vllm 0.32.0",
    device="cpu avx512",
    layout="LBHNC",
    dtype="bfloat16",
    groups=(Group(128, ("model.layers.0", "model.layers.1")),),
    blocks=1,
    bytes=262144,
    tokens_per_hash=128,
    hashing="sha256_cbor 00ff",
    parallel=Parallel(1, 1, 1, 1, 1, replicated=False),
)
IDENTITY = Identity("sha256:aa", settings_digest(Engine()), GEOMETRY.canonical(), 1)
OTHERS: dict[str, Any] = {
    "engine": "vllm 0.33.0",
    "device": "cpu amx",
    "layout": "BLHNC",
    "dtype": "fp8",
    "groups": (Group(128, ("model.layers.0",)), Group(128, ("model.layers.1",))),
    "blocks": 2,
    "bytes": 262148,
    "tokens_per_hash": 64,
    "hashing": "sha256 00ff",
    "parallel": Parallel(2, 1, 1, 1, 2, replicated=False),
}


def test_equal_engines_share_a_folder() -> None:
    assert IDENTITY.folder() == replace(IDENTITY).folder()
    assert len(IDENTITY.folder()) == 32
    assert set(IDENTITY.folder()) <= set("0123456789abcdef")


@pytest.mark.parametrize("name", [field.name for field in fields(Geometry)])
def test_another_geometry_has_another_folder(name: str) -> None:
    other = replace(GEOMETRY, **{name: OTHERS[name]})
    assert replace(IDENTITY, geometry=other.canonical()).folder() != IDENTITY.folder()


@pytest.mark.parametrize("name", [field.name for field in fields(Parallel)])
def test_another_way_to_cut_a_block_has_another_folder(name: str) -> None:
    was: bool | int = getattr(GEOMETRY.parallel, name)
    parallel = replace(GEOMETRY.parallel, **{name: not was if isinstance(was, bool) else was + 1})
    other = replace(GEOMETRY, parallel=parallel)
    assert replace(IDENTITY, geometry=other.canonical()).folder() != IDENTITY.folder()


@pytest.mark.parametrize("change", [{"weights": "sha256:ab"}, {"settings": "sha256:00"}, {"format": 2}])
def test_other_weights_settings_or_format_have_another_folder(change: dict[str, Any]) -> None:
    assert replace(IDENTITY, **change).folder() != IDENTITY.folder()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"quantization": "fp8"},
        {"max_model_len": 8192},
        {"extra_args": {"hf-overrides": "{}"}},
        {"env": {"VLLM_ATTENTION_BACKEND": "X"}},
    ],
)
def test_what_changes_the_numbers_changes_the_settings(change: dict[str, Any]) -> None:
    assert settings_digest(Engine(**change)) != settings_digest(Engine())


def test_where_blocks_go_changes_nothing_about_them() -> None:
    engine = Engine(
        transfer=Transfer(),
        kv_tiers=KvTiers(host_bytes=1),
        kv_events=True,
        kv_cache_bytes=1 << 30,
        parallelism=Parallelism(data=2),
    )
    assert settings_digest(engine) == settings_digest(Engine())


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.integers() | st.text(max_size=8), min_size=1, max_size=5))
def test_options_count_whatever_their_order(options: dict[str, int | str]) -> None:
    turned = dict(reversed(options.items()))
    assert settings_digest(Engine(extra_args=options)) == settings_digest(Engine(extra_args=turned))


def test_the_digest_of_settings_shows_none_of_them() -> None:
    assert "hunter2" not in settings_digest(Engine(env={"TOKEN": "hunter2"}))
