"""The simulated fleet: the same figures each time, and figures that can be checked by hand."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.__main__ import main as headrace
from headrace_operator.commands.recording import sessions
from headrace_operator.plan.scaling import Aim, Target
from simulator import recorded
from simulator.__main__ import main
from simulator.engine import Journey
from simulator.fleet import Fleet, Outcome, Scaler, Setting
from simulator.load import Wave, denser, joined, read
from simulator.profile import H200_8B, Profile
from simulator.request import Request
from simulator.scalers import PlusMinusOne, Product, Static

AIM = Aim(Target(0.5), Target(0.05))
SIZES = {"prefill": 2, "decode": 1}
LARGE, LARGE_AIM = H200_8B.slower(20), Aim(Target(10.0), Target(1.0))
"""A large model: a fleet of it has few requests, and a test little to do."""


def run(requests: list[Request], scaler: Scaler | None = None, **fields: float) -> Outcome:
    setting = Setting(H200_8B, AIM, SIZES, **fields)  # type: ignore[arg-type]
    return Fleet(setting, scaler or Static(SIZES)).run(requests)


def test_no_requests_are_no_work() -> None:
    assert run([]).journeys == []


def test_a_lone_request_takes_its_prompt_its_transfer_and_its_steps() -> None:
    (journey,) = run([Request(1.0, 4000, 101, ())]).journeys
    step = H200_8B.step_seconds(1, 4050.5)
    assert journey.first == pytest.approx(1.0 + 4000 * H200_8B.pace + 0.002 + 4000e-6 + step, rel=1e-3)
    assert journey.gap == pytest.approx(step, rel=1e-3)


SERVE = Profile(
    overhead=0.1, pace=0.001, step=0.1, per_request=0.01, per_token=0.0, kv_tokens=10_000, batch_tokens=400, front=0.05
)
"""Times that are easy to add up."""


def serve(requests: list[Request], engines: int = 1, **fields: float) -> list[Journey]:
    setting = Setting(replace(SERVE, **fields), AIM, {"serve": engines}, routing="LeastLoaded")  # type: ignore[arg-type]
    return list(Fleet(setting, Static({"serve": engines})).run(requests).journeys)


def test_one_engine_that_does_both_computes_the_prompt_and_writes_on() -> None:
    (journey,) = serve([Request(1.0, 300, 11, ())])
    assert journey.first == pytest.approx(1.0 + 0.05 + 0.1 + 0.3)
    assert journey.end == pytest.approx(journey.first + 10 * 0.11)


def test_a_prompt_longer_than_a_step_has_room_for_is_computed_in_several() -> None:
    (journey,) = serve([Request(0.0, 1000, 1, ())])
    assert journey.first == journey.end == pytest.approx(0.05 + 3 * 0.1 + 1.0)


def test_what_comes_waits_for_the_step_and_its_prompt_holds_up_the_answers() -> None:
    first, second = serve([Request(0.0, 100, 21, ()), Request(0.33, 200, 2, ())])
    # Its steps end at 0.25, 0.36, 0.47: the second comes to it at 0.38, and shares the step that begins at 0.47.
    assert second.first == pytest.approx(0.47 + 0.11 + 0.2)
    assert second.end == pytest.approx(0.78 + 0.12)
    assert first.end == pytest.approx(0.9 + 16 * 0.11)


def test_later_parts_of_a_prompt_look_back_at_what_is_before_them() -> None:
    (journey,) = serve([Request(0.0, 800, 1, ())], attention=1e-6)
    assert journey.first == pytest.approx(0.05 + 2 * 0.1 + 0.8 + 800 * 400 * 1e-6)


def test_engines_of_one_machine_slow_each_other_while_both_are_busy() -> None:
    first, second = serve([Request(0.0, 300, 1, ()), Request(0.2, 300, 1, ())], 2, crowding=0.5)
    # The first has 0.2 of its 0.4 s behind it when the second begins; when it ends, the second has 0.2 of its 0.4 s.
    assert first.end == pytest.approx(0.25 + 0.2 * 1.5)
    assert second.end == pytest.approx(0.55 + 0.2)


def test_a_short_prompt_is_computed_where_its_answer_is_written() -> None:
    asked = [Request(0.0, 20, 5, ()), Request(9.0, 2000, 5, ())]
    short, long = run(asked).journeys
    assert (short.alone, long.alone) == (True, False)
    assert short.first == pytest.approx(20 * H200_8B.pace, rel=1e-3)


def test_with_room_for_one_answer_they_are_written_one_after_the_other() -> None:
    first, second = serve([Request(0.0, 300, 11, ()), Request(0.01, 300, 11, ())], kv_tokens=400)
    assert first.end is not None
    assert second.first == pytest.approx(first.end + 0.1 + 0.3)


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 3000), st.integers(1, 60)), max_size=12),
    engines=st.integers(1, 3),
    crowding=st.floats(0, 1),
    kv_tokens=st.integers(1, 5000),
)
def test_every_request_is_answered_and_none_sooner_than_it_would_be_alone(
    asked: list[tuple[float, int, int]], engines: int, crowding: float, kv_tokens: int
) -> None:
    requests = [Request(at, prompt, output, ()) for at, prompt, output in sorted(asked)]
    for journey in serve(requests, engines, crowding=crowding, kv_tokens=kv_tokens):
        assert journey.first is not None
        assert journey.end is not None
        one = journey.request
        assert journey.first >= one.at + SERVE.front + SERVE.overhead + SERVE.prompt_seconds(one.prompt) - 1e-6
        assert journey.end >= journey.first + (one.output - 1) * SERVE.step_seconds(1, one.prompt) - 1e-6


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    ids = tuple(range(8))
    asked = [Request(float(at), 8 * 512, 10, ids) for at in (0, 10)]
    first, second = run(asked).journeys
    assert second.computed < first.computed / 2


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    load = Wave(4, 12, period=60, seconds=90)
    first, again = (run(load.requests(3), Product(startup=30), cold_start=30, failures=60) for _ in range(2))
    assert [j.end for j in first.journeys] == [j.end for j in again.journeys]
    assert first.events == again.events
    assert [j.end for j in run(load.requests(4)).journeys] != [j.end for j in run(load.requests(3)).journeys]


def test_every_request_is_answered_though_engines_fail() -> None:
    ran = run(Wave(8, 8, seconds=100).requests(), failures=90.0, cold_start=20.0)
    assert all(journey.end is not None for journey in ran.journeys)
    assert any(journey.tries for journey in ran.journeys)


def test_the_policy_grows_with_the_load_and_goes_back() -> None:
    setting = Setting(LARGE, LARGE_AIM, SIZES, cold_start=30.0)
    wave = Wave(0.3, 2.0, period=2400, seconds=2400, prompt=4000)
    ran = Fleet(setting, Product(startup=30)).run(wave.requests())
    prefill = [event for event in ran.events if event.role == "prefill"]
    assert max(event.after for event in prefill) >= 4
    assert prefill[-1].after < max(event.after for event in prefill)
    assert ran.attained() > 0.9


def test_a_role_change_takes_no_cold_start() -> None:
    aim = Aim(LARGE_AIM.ttft, LARGE_AIM.itl, cap=6, role_change=True)
    fleet = Fleet(Setting(LARGE, aim, {"prefill": 2, "decode": 4}, cold_start=300.0), Product(startup=300))
    ran = fleet.run(Wave(1.2, 1.2, seconds=480, prompt=4000, spread=0.0).requests())
    assert len(fleet.engines) == 6
    assert {event.role for event in ran.events} == {"prefill", "decode"}


def test_one_more_or_fewer_waits_for_what_it_has_started() -> None:
    ran = run(Wave(30, 30, seconds=60, prompt=4000).requests(), PlusMinusOne(), cold_start=25)
    assert ran.events
    assert all(abs(event.after - event.before) == 1 for event in ran.events)


def test_copies_of_a_trace_share_no_beginnings() -> None:
    laid = denser([Request(0.0, 512, 1, (1,)), Request(1.0, 512, 1, (1,))], 2)
    assert [request.ids for request in laid] == [(1,), (1,), (3,), (3,)]
    assert joined(laid, laid)[4].at == laid[-1].at


def test_a_trace_is_read_as_it_was_recorded() -> None:
    folder = os.environ.get("HEADRACE_TRACES")
    if not folder or not (Path(folder) / "azure_2023_conv.csv.xz").exists():
        pytest.skip("HEADRACE_TRACES names no folder with azure_2023_conv.csv.xz")
    requests = read(Path(folder) / "azure_2023_conv.csv.xz")
    assert len(requests) == 19_366
    assert requests[0].at == 0.0


def test_the_command_line_puts_the_policy_beside_others() -> None:
    ran = CliRunner().invoke(main, ["--minutes", "2", "--policy", "no_such_module:decide"])
    assert ran.exit_code != 0, "a module that cannot be imported is the user's mistake, and named"
    assert "--policy" in ran.output
    ran = CliRunner().invoke(main, ["--minutes", "1", "--rate", "2", "4", "--events"])
    assert ran.exit_code == 0, ran.output
    assert "builtin" in ran.output
    assert "oracle" in ran.output


def test_the_command_line_says_what_is_wrong_with_a_load() -> None:
    assert "--rate" in CliRunner().invoke(main, ["--rate", "9", "1"]).output
    assert "no request" in CliRunner().invoke(main, ["--minutes", "0.1", "--rate", "0", "0.0001"]).output


@pytest.mark.parametrize(
    ("option", "value"),
    [("--minutes", "inf"), ("--minutes", "0"), ("--ttft", "nan"), ("--itl", "-1"), ("--slower", "0"), ("--rate", "x")],
)
def test_a_number_that_is_none_is_refused_by_its_option(option: str, value: str) -> None:
    ran = CliRunner().invoke(main, [option, value, *(["9"] if option == "--rate" else [])])
    assert ran.exit_code == 2
    assert option in ran.output


def test_headrace_simulate_is_the_simulator() -> None:
    ran = CliRunner().invoke(headrace, ["simulate", "--help"])
    assert ran.exit_code == 0
    assert "--cold-start" in ran.output
    ran = CliRunner().invoke(headrace, ["simulate", "--minutes", "1", "--rate", "2", "4"])
    assert ran.exit_code == 0, ran.output
    assert "oracle" in ran.output


def test_a_shell_completes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = BashComplete(headrace, {}, "headrace", "_HEADRACE_COMPLETE")
    assert [found.value for found in shell.get_completions([], "sim")] == ["simulate"]
    assert [found.value for found in shell.get_completions(["simulate"], "--cold")] == ["--cold-start"]
    monkeypatch.setitem(sys.modules, "simulator.__main__", None)
    assert shell.get_completions(["simulate"], "--cold") == []


def test_where_the_simulator_is_not_installed_headrace_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simulator.__main__", None)
    ran = CliRunner().invoke(headrace, ["simulate", "--minutes", "1"])
    assert ran.exit_code == 1
    assert "pip install 'headrace[simulator]'" in ran.output
    assert "simulate" in CliRunner().invoke(headrace, ["--help"]).output


def test_a_run_is_recorded_as_its_gateway_and_status_would_have_told_it(tmp_path: Path) -> None:
    file, scaler = tmp_path / "run.jsonl", Product(startup=30)
    fleet = Fleet(Setting(LARGE, LARGE_AIM, SIZES, cold_start=30.0), scaler)
    ran = fleet.run(Wave(0.3, 2.0, period=2400, seconds=1500, prompt=4000).requests())
    recorded.write(file, fleet, scaler, ran.journeys)
    (session,) = sessions(file)
    last = session.moments[-1].gateways[recorded.GATEWAY]
    assert last is not None
    assert last.demand is not None
    assert last.arrivals == last.demand.requests == len(ran.journeys)
    assert last.roles[0].ttft.samples >= last.roles[1].itl.samples > 0.9 * len(ran.journeys)
    assert sum(pod.role == "prefill" and pod.ready for pod in session.moments[0].pods) == SIZES["prefill"]
    replay = CliRunner().invoke(headrace, ["replay", str(file), "-o", "json"])
    assert replay.exit_code == 0, replay.output
    was, again = json.loads(replay.stdout)["runs"]
    # Only the first one must be the same: from then on latencies are those of the recorded sizes.
    first, replayed = (run["decisions"][0] for run in (was, again))
    assert [first[key] for key in ("role", "from", "to")] == [replayed[key] for key in ("role", "from", "to")]
    assert again["sizes"][0] == was["sizes"][0] == SIZES


def test_a_recording_is_written_to_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    options = ["--minutes", "1", "--rate", "2", "4", "--record", str(file)]
    assert CliRunner().invoke(main, options).exit_code == 0
    assert [len(session.moments) for session in sessions(file)] == [3]
    assert "is there already" in CliRunner().invoke(main, options).output
    ran = CliRunner().invoke(main, ["--role-change", "--record", str(tmp_path / "other")])
    assert ran.exit_code == 2
    assert "--role-change" in ran.output


def test_the_simulator_stands_without_the_benches_which_are_in_no_wheel() -> None:
    files = Path(recorded.__file__).parent.glob("*.py")
    assert not [
        file.name for file in files if re.search(r"^(from|import) (bench|local|tests)\b", file.read_text(), re.M)
    ]
