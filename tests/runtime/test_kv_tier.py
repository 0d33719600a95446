"""KV blocks on disk, with real engines: they outlive the engine, are those of its own model alone, and never wrong."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_runtime.contract import KvDisk
from tests.runtime.kv_tiers import BLOCK, BLOCKS, PROMPT, Node, Run, node, prompt
from tests.runtime.processes import RUNTIME

pytestmark = pytest.mark.timeout(600)

CHECK = Path(__file__).parent / "kv_check.py"
SIZE = 256 * 1024**2


@pytest.fixture(scope="module")
def machine(
    engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("kv")
    with node(engine_python, folder, model("tiny"), KvDisk(path=str(folder / "kv"), size_bytes=SIZE)) as made:
        yield made


@pytest.fixture(scope="module")
def said(machine: Node) -> str:
    """What an engine answered to prompt 1, before it was killed."""
    first = machine.start()
    said = first.keep(prompt(1))
    assert first.from_disk() == 0
    first.kill()
    return said


@pytest.fixture(scope="module")
def engine(machine: Node, said: str) -> Run:
    """Finds the disk as the killed one left it."""
    return machine.start(kv_events=True)


def test_a_prompt_comes_from_disk_after_its_engine_was_killed(engine: Run, said: str) -> None:
    assert engine.state().blocks >= BLOCKS
    assert engine.say(prompt(1)) == said
    assert engine.from_disk() == BLOCKS * BLOCK
    state = engine.until("the state has counted it", lambda state: state.found == BLOCKS)
    assert (state.ready, state.loaded, state.damaged) == (True, BLOCKS, 0)
    assert 0 < state.bytes_used <= SIZE == state.bytes_limit


def test_an_unseen_prompt_takes_nothing_from_disk(engine: Run) -> None:
    before = engine.from_disk()
    engine.keep(prompt(2))
    assert engine.from_disk() == before


def test_blocks_of_another_salt_are_not_shared(engine: Run) -> None:
    before = engine.from_disk()
    said = engine.keep(prompt(3), cache_salt="one tenant")
    engine.forget()
    engine.keep(prompt(3), cache_salt="another tenant")
    engine.keep(prompt(3))
    assert engine.from_disk() == before
    assert engine.say(prompt(3), cache_salt="one tenant") == said
    assert engine.from_disk() == before + BLOCKS * BLOCK


def test_damaged_blocks_are_computed_anew(engine: Run, machine: Node) -> None:
    before = engine.from_disk()
    said = engine.keep(prompt(4))
    damage(machine)
    engine.forget()
    assert engine.keep(prompt(4)) == said, "computed, and stored again"
    assert engine.from_disk() == before
    engine.until("the damage is counted", lambda state: state.damaged > 0)


def damage(machine: Node) -> None:
    """A flipped byte in each block on disk: they begin on pages, after tables of fewer than 64."""
    for extent in Path(machine.disk.path).rglob("*"):
        if extent.is_file() and extent.stat().st_size > 1024**2:
            with extent.open("r+b") as file:
                for offset in range(extent.stat().st_size - 5000, 64 * 4096, -16384):
                    file.seek(offset)
                    (byte,) = file.read(1)
                    file.seek(offset)
                    file.write(bytes([byte ^ 1]))


def test_other_weights_read_none_of_it(engine: Run, machine: Node) -> None:
    engine.kill()
    other = machine.start(weights="sha256:" + "cd" * 32)
    state = other.state()
    assert (state.ready, state.blocks) == (True, 0)
    other.say(prompt(1))
    assert other.from_disk() == 0
    other.kill()


def test_a_restarted_prefill_engine_ships_blocks_from_disk_over_nixl(machine: Node) -> None:
    prefill = machine.start("prefill")
    said = prefill.keep(prompt(5))
    prefill.kill()
    prefill = machine.start("prefill")
    decode = machine.start("decode")
    asked = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
    handed = prefill.server.complete(prompt(5), 1, **asked)["kv_transfer_params"]
    assert prefill.from_disk() == BLOCKS * BLOCK
    assert decode.say(prompt(5), kv_transfer_params=handed) == said
    assert decode.server.prompt_tokens("external_kv_transfer") == PROMPT
    assert decode.server.prompt_tokens("local_compute") == 0
    assert decode.from_disk() == 0, "what comes over the network is not read from disk as well"
    decode.forget()
    assert decode.say(prompt(5)) == said
    assert decode.from_disk() == BLOCKS * BLOCK, "and with no prefill engine it is its own disk that has them"
    prefill.kill()
    decode.kill()


def test_vllm_is_what_the_tier_takes_it_for(engine_python: Path, tmp_path: Path) -> None:
    """`kv_check.py` says what is checked, in the engine's own environment."""
    env = {"PYTHONPATH": str(RUNTIME), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([engine_python, CHECK], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
