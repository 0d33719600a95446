"""A deployment is recorded while the operator decides its sizes, and the recording is replayed: the built-in policy
takes the same decisions then, at the same moments and in the same words."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from headrace_operator.__main__ import main
from headrace_operator.api.status import ScalingDecision
from headrace_operator.commands.recording import Header, Writer, moment, sessions
from headrace_operator.commands.replaying import Run, needed, recorded, replayed
from headrace_operator.facts import read_pod
from headrace_operator.readings import EVERY_SECONDS, Readings
from headrace_operator.testing import START, Sample, Scene
from headrace_runtime.contract import GatewayFigures
from tests.worlds.traffic import Traffic

TARGETS = {"ttft": {"target": "500ms"}, "itl": {"target": "50ms"}}
NEVER = """
from headrace_operator.plan.scaling import Answer, Ask

def never(ask: Ask) -> Answer:
    return Answer({role.name: role.size for role in ask.roles}, "Sized", "As it is.")
"""
ROLES = [{"name": name, "scaling": {"min": 1, "max": 8}} for name in ("prefill", "decode")]


def sample() -> Sample:
    return Sample().set("roles", ROLES).set("slo", TARGETS).set("scaling", {"mode": "SLO"})


class Noting(Readings):
    """Writes down every reading that the operator takes, with what it saw beside it."""

    def __init__(self, scene: Scene, writer: Writer) -> None:
        super().__init__()
        self._scene, self._writer = scene, writer

    def note(self, uid: str, now: float, told: Mapping[str, GatewayFigures | None], ready: Mapping[str, int]) -> None:
        super().note(uid, now, told, ready)
        scene = self._scene
        pods = [
            read_pod(obj)
            for (kind, _, _), obj in sorted(scene.cluster.objects.items())
            if kind == "Pod" and obj["metadata"]["namespace"] == scene.ref.namespace
        ]
        elapsed = (scene.clock - START).total_seconds()
        self._writer.write(moment(scene.clock, elapsed, scene.object, pods, told))


async def live(scene: Scene, traffic: Traffic, seconds: float) -> None:
    end = scene.clock + timedelta(seconds=seconds)
    while scene.clock < end:
        traffic.flow()
        look = await scene.reconcile()
        changed = scene.kubelet()
        scene.clock += timedelta(seconds=0 if changed else look.seconds or 60.0)


async def recording(file: Path, rates: tuple[float, ...]) -> list[ScalingDecision]:
    """A file, and what the operator decided while it was written, oldest first."""
    scene = Scene(sample())
    await scene.settle()
    head = Header(written_by="test", namespace="demo", name="chat", uid=scene.ref.uid, every=EVERY_SECONDS)
    writer = Writer(file, head)
    scene.world = replace(scene.world, readings=Noting(scene, writer))
    traffic = Traffic(scene, rates[0])
    made: list[ScalingDecision] = []
    for rate in rates:
        traffic.rate = rate
        await live(scene, traffic, 240.0)
        said = [ScalingDecision.model_validate(one) for one in scene.status["scaling"]["lastDecisions"]]
        made += sorted((one for one in said if one not in made), key=lambda one: one.time)
    writer.close()
    return made


def decided(run: Run) -> list[ScalingDecision]:
    return [one for step in run.steps for one in step.decisions]


@pytest.fixture(scope="module")
def recorded_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Load that rises, in SLO mode."""
    path = tmp_path_factory.mktemp("recording") / "chat.jsonl"
    asyncio.run(recording(path, (8.0, 30.0)))
    return path.read_text()


@pytest.fixture
def file(recorded_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text(recorded_text)
    return path


async def test_the_built_in_policy_takes_the_decisions_that_were_recorded(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    made = await recording(file, (8.0, 30.0, 8.0, 8.0, 8.0))
    assert {one.to > one.from_ for one in made} == {True, False}, "it grew, and it went back"
    found = list(sessions(file))
    again = await replayed(found, "builtin", tmp_path)
    assert decided(again) == made
    was = recorded(found)
    assert [step.sizes for step in again.steps] == [step.sizes for step in was.steps]
    assert again.engine_seconds == was.engine_seconds > 0
    # What the last moment decided stands in no later one.
    assert decided(was) == made[: len(decided(was))]
    assert len(made) - len(decided(was)) <= len(again.steps[-1].decisions)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def test_the_same_file_gives_the_same_output(file: Path) -> None:
    first, again = call(file), call(file)
    assert first.exit_code == 0, first.output
    assert first.output == again.output
    said = first.output.splitlines()
    assert said[0].startswith("chat.jsonl: demo/chat, 2026-01-01 00:00:")
    assert "Open loop" in first.output
    assert any(line.split()[:3] == ["TIME", "NEEDED", "RECORDED"] for line in said)
    assert any("prefill 1 -> " in line and "requests/s foreseen" in line for line in said)


def test_own_policies_stand_beside_the_built_in_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "mine.py").write_text(NEVER)
    own = "mine:never"
    ran = call(file, "--policy", "builtin", "--policy", own, "-o", "json")
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    was, built_in, mine = said["runs"]
    assert [run["name"] for run in (was, built_in, mine)] == ["recorded", "builtin", own]
    assert was["sizes"] == built_in["sizes"]
    assert mine["changes"] == 0 < built_in["changes"]
    assert mine["engineSeconds"] < built_in["engineSeconds"]
    assert mine["secondsBelowNeed"] > built_in["secondsBelowNeed"]
    assert mine["failed"] == 0
    assert said["openLoop"] is True


def test_a_policy_that_fails_is_told_with_its_reason(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    ran = call(file, "--policy", "no_such_module:decide")
    assert ran.exit_code == 0, ran.output
    assert "no_such_module:decide failed" in ran.output
    assert "cannot be imported" in ran.output


def test_targets_and_bounds_can_be_others_than_the_recorded_ones(file: Path) -> None:
    strict = json.loads(call(file, "--ttft", "80ms", "-o", "json").stdout)["runs"][1]
    small = json.loads(call(file, "--bounds", "prefill=1:2", "-o", "json").stdout)["runs"][1]
    usual = json.loads(call(file, "-o", "json").stdout)["runs"][1]
    assert strict["engineSeconds"] > usual["engineSeconds"] > small["engineSeconds"]
    assert max(sizes["prefill"] for sizes in small["sizes"]) == 2


def test_a_plot_is_an_svg_with_a_line_for_each_run_and_role(file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "sizes.svg"
    assert call(file, "--plot", plot).exit_code == 0
    tree = ElementTree.parse(plot)
    paths = [node for node in tree.iter() if node.tag.endswith("path")]
    assert len(paths) == 2 * 3, "recorded, builtin and needed, of two roles"
    assert all(node.get("d", "").startswith("M") for node in paths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot", "sizes.png"], "only SVG"),
        (["--ttft", "fast"], "spec.slo.ttft.target"),
        (["--bounds", "prefill=4"], "decode=1:8"),
        (["--bounds", "prefill=4:2"], "MIN <= MAX"),
    ],
)
def test_a_wrong_option_is_named(file: Path, options: list[str], said: str) -> None:
    ran = call(file, *options)
    assert ran.exit_code in (1, 2)
    assert said in ran.output


def test_of_fixed_sizes_without_targets_it_says_what_is_missing(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[1:]:
        line["spec"] = {"roles": [{"name": "prefill", "replicas": 1}, {"name": "decode", "replicas": 1}]}
        line["status"].pop("scaling", None)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "spec.slo: has no target" in call(file).output
    assert "none has: give prefill or decode scaling.max" in call(file, "--ttft", "500ms").output
    half = call(file, "--ttft", "500ms", "--bounds", "decode=1:8")
    assert half.exit_code == 1
    assert "--itl 50ms" in half.output
    ran = call(file, "--ttft", "500ms", "--itl", "50ms", "--bounds", "prefill=1:8", "--bounds", "decode=1:8")
    assert ran.exit_code == 0, ran.output
    assert "prefill 1 -> " in ran.output


async def test_one_that_slept_is_decided_about_as_if_it_had_not(file: Path) -> None:
    file.write_text(
        file.read_text().replace('"scaling":{"sizes"', '"scaling":{"asleepSince":"2026-01-01T00:00:00Z","sizes"')
    )
    (session,) = sessions(file)
    said = session.moments[-1].deployment()[1].scaling
    assert said is not None
    assert said.asleep_since is not None
    run = await replayed([session], "builtin", file.parent)
    assert all(step.verdict for step in run.steps[1:])
    assert run.changes > 0


async def test_after_a_break_nothing_is_known_of_before(file: Path) -> None:
    text = file.read_text()
    file.write_text(text + text)
    found = list(sessions(file))
    assert len(found) == 2
    run = await replayed(found, "builtin", file.parent)
    half = len(run.steps) // 2
    assert needed(run)[half - 1] is not None
    assert needed(run)[half] is None
    assert not run.steps[half].decisions


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    for text, said in (("", "is empty"), ("{}\n", "header"), ("nonsense\n", "line 1: is no JSON")):
        file.write_text(text)
        ran = call(file)
        assert ran.exit_code == 1
        assert said in ran.output
