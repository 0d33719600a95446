"""What the zygote does before any vLLM: reading orders. Real engines are in tests/runtime."""

import json
import os
from pathlib import Path

import pytest

from headrace_runtime.engine import zygote

START = {"argv": ["/model", "--port=8000"], "env": {"A": "b"}, "log": "/tmp/engine.log"}


def test_order_is_read_back() -> None:
    assert zygote.parse(json.dumps({"start": START}).encode()) == START


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"stop": 1}', b'{"start": {}}', json.dumps({"start": {**START, "argv": "/model"}}).encode()],
)
def test_line_that_is_no_order_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="stdin"):
        zygote.parse(line)


def test_refusal_quotes_no_environment() -> None:
    with pytest.raises(ValueError, match="stdin") as refusal:
        zygote.parse(json.dumps({"start": {"env": {"TOKEN": "hunter2"}}}).encode())
    assert "hunter2" not in str(refusal.value)


def test_orders_cut_anywhere_are_the_same_orders() -> None:
    begun: list[zygote.Start] = []

    class Counting(zygote.Zygote):
        def fork(self, start: zygote.Start) -> int:
            begun.append(start)
            return 1

        def report(self, **words: float) -> None:
            assert words == {"started": 1}

    one = Counting(orders=-1, reports=-1)
    text = (json.dumps({"start": START}) + "\n").encode() * 3
    for cut in range(0, len(text), 7):
        assert one.obey(text[cut : cut + 7])
    assert len(begun) == 3


def test_fork_leads_its_group_when_its_pid_is_known(tmp_path: Path) -> None:
    reports, orders = os.pipe()
    warm = zygote.Zygote(orders, reports)
    for turn in range(10):
        pid = warm.fork(zygote.Start(argv=[], env={}, log=str(tmp_path / "absent" / "log")))
        assert os.getpgid(pid) == pid, f"fork {turn} is still in its parent's group"
        os.waitpid(pid, 0)
    for end in (reports, orders):
        os.close(end)
