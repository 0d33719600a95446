"""What bench coldstart reads of an agent and its engine, and what it makes of the page cache."""

import hashlib
from pathlib import Path

from bench import coldstart
from bench.coldstart import IMPORTED, LOADED, Row, Start


def test_an_engine_tells_what_the_load_took() -> None:
    line = "(EngineCore pid=7) INFO 11-21 20:12:01 [default_loader.py:502] Loading weights took 0.31 seconds"
    assert LOADED.findall(line) == ["0.31"]


def test_an_agent_tells_what_the_import_took() -> None:
    assert IMPORTED.findall("INFO headrace_runtime.node.launch: engine imported in 13.1 s") == ["13.1"]


def test_a_phase_that_never_was_is_no_zero() -> None:
    phases = dict.fromkeys(("fetches", "verifies", "imports", "loads"))
    row = Row("a start", [Start({**phases, "to a token": 2.0, "all": 3.0}, fetched=0)])
    assert row.cells() == ["a start", "-", "-", "-", "-", "2.00 (2.00..2.00)", "3.00 (3.00..3.00)"]


def test_dropping_a_folder_harms_no_file(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 4096 * 3)
    before = hashlib.sha256(file.read_bytes()).digest()
    assert 0.0 <= coldstart.drop(tmp_path) <= 1.0
    assert hashlib.sha256(file.read_bytes()).digest() == before
