"""What an agent says of its engine's KV blocks on disk."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace_runtime.contract import Engine, KvDisk, KvState, KvTiers, Model, NodeContract, NodeState
from headrace_runtime.kv import report
from headrace_runtime.node.kv import KvTier
from headrace_runtime.node.metrics import StateCollector

DISK = KvTiers(host_bytes=1 << 30, disk=KvDisk(size_bytes=1 << 30))
SAID = KvState(ready=True, bytes_used=4096, bytes_limit=8192, blocks=3, looked_up=5, found=2, stored=4)


def tier(folder: Path, tiers: KvTiers | None = DISK) -> KvTier:
    contract = NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", served_name="m"),
        engine=Engine(kv_tiers=tiers),
    )
    return KvTier(contract, folder)


@pytest.mark.parametrize("tiers", [None, KvTiers(host_bytes=1 << 30)])
def test_without_a_disk_there_is_nothing_to_say(tmp_path: Path, tiers: KvTiers | None) -> None:
    none = tier(tmp_path, tiers)
    none.engine_starts(None)
    assert none.state() is None


def test_what_the_engine_says_is_the_state_once_it_says_something(tmp_path: Path) -> None:
    kv = tier(tmp_path)
    assert kv.state() is None
    kv.engine_starts("sha256:aa")
    assert kv.state() is None
    report.write(report.path(tmp_path, 0), SAID)
    assert kv.state() == SAID


def test_what_an_ended_engine_said_is_over(tmp_path: Path) -> None:
    report.write(report.path(tmp_path, 0), SAID)
    kv = tier(tmp_path)
    kv.engine_starts("sha256:aa")
    assert kv.state() is None


def test_weights_that_nobody_read_keep_blocks_off_the_disk(tmp_path: Path) -> None:
    kv = tier(tmp_path)
    kv.engine_starts(None)
    assert (state := kv.state())
    assert (state.ready, state.reason) == (False, "WeightsUnverified")
    assert "model.integrity.policy" in state.message


def test_half_a_word_of_the_engine_is_no_state_and_no_crash(tmp_path: Path) -> None:
    kv = tier(tmp_path)
    kv.engine_starts("sha256:aa")
    report.path(tmp_path, 0).write_text("{")
    assert (state := kv.state())
    assert not state.ready


def test_copies_of_an_engine_share_bytes_and_add_up_what_they_did() -> None:
    sick = KvState(ready=False, reason="DiskSlow", message="slow", bytes_used=100, blocks=9, stored=1, dropped=7)
    both = report.together([SAID, sick])
    assert both == KvState(
        ready=False,
        reason="DiskSlow",
        message="slow",
        bytes_used=4096,
        bytes_limit=8192,
        blocks=9,
        looked_up=5,
        found=2,
        stored=5,
        dropped=7,
    )
    assert report.together([]) is None


def test_every_number_is_a_metric_with_a_stable_name() -> None:
    registry = CollectorRegistry()
    state = NodeState(
        pod="p", role="serve", revision="r", phase="Ready", kv=SAID.model_copy(update={"reason": "DiskFull"})
    )
    registry.register(StateCollector(lambda: state))
    shown = generate_latest(registry).decode()
    for line in (
        "headrace_kv_ready 1.0",
        'headrace_kv_reason{reason="DiskFull"} 1.0',
        "headrace_kv_bytes 4096.0",
        "headrace_kv_limit_bytes 8192.0",
        "headrace_kv_blocks 3.0",
        "headrace_kv_lookups_total 5.0",
        "headrace_kv_hits_total 2.0",
        "headrace_kv_misses_total 3.0",
        "headrace_kv_stored_total 4.0",
        "headrace_kv_loaded_total 0.0",
        "headrace_kv_damaged_total 0.0",
        "headrace_kv_evicted_total 0.0",
        "headrace_kv_dropped_total 0.0",
    ):
        assert f"\n{line}\n" in shown
