"""The file between `record` and `replay`: what is read of it is what decided."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.commands.recording import Header, Moment, RecordingError, Writer, line, moment, sessions
from headrace_operator.plan.sizes import ask_of
from headrace_operator.state import Object, Observed, Pod, Termination
from headrace_runtime.contract import GatewayFigures

NOW = datetime(2026, 3, 1, 3, 0, 0, 123456, tzinfo=UTC)
HEADER = Header(written_by="test", namespace="demo", name="chat", uid="u", every=30.0)

pods = st.builds(
    Pod,
    name=st.text("abc", min_size=1, max_size=3),
    component=st.sampled_from(["engine", "gateway", "head"]),
    role=st.sampled_from(["prefill", "decode"]),
    revision=st.sampled_from(["r1", "r2"]),
    ready=st.booleans(),
    going=st.booleans(),
    failed=st.booleans(),
    created=st.just(NOW),
    ready_since=st.none() | st.just(NOW),
    terminations=st.just(()) | st.just((Termination("engine", "Error", 1, NOW),)),
)
bounds = st.tuples(st.integers(0, 3), st.integers(3, 9)).map(lambda found: {"min": found[0], "max": found[1]})
roles = st.fixed_dictionaries(
    {"scaling": bounds},
    optional={
        "parallelism": st.fixed_dictionaries({"tensor": st.sampled_from([1, 2])}),
        "engine": st.fixed_dictionaries(
            {
                "device": st.fixed_dictionaries({"resource": st.sampled_from(["cpu", "nvidia.com/gpu"])}),
                "image": st.just("example.org/secret"),
            }
        ),
    },
)
specs = st.fixed_dictionaries(
    {
        "model": st.just({"source": "node:///models/tiny"}),
        "roles": st.tuples(roles, roles).map(
            lambda both: [{"name": "prefill", **both[0]}, {"name": "decode", **both[1]}]
        ),
        "scaling": st.fixed_dictionaries({"mode": st.just("SLO")}, optional={"maxAccelerators": st.integers(1, 50)}),
        "slo": st.fixed_dictionaries({"ttft": st.just({"target": "500ms"})}),
    },
    optional={
        "rollout": st.fixed_dictionaries({"maxSurge": st.integers(0, 3)}),
        "disaggregation": st.fixed_dictionaries({"roleChange": st.just({"enabled": True, "cooldown": "5m"})}),
        "engine": st.fixed_dictionaries({"env": st.just([{"name": "TOKEN", "value": "secret"}])}),
    },
)
statuses = st.fixed_dictionaries(
    {},
    optional={
        "revision": st.just({"current": "r1", "updating": "r2"}),
        "roles": st.just([{"name": "prefill", "desired": 2, "ready": 1}, {"name": "decode", "desired": 0}]),
        "scaling": st.just({"sizes": [{"name": "prefill", "size": 3}, {"name": "decode", "size": 1}]}),
    },
)


@settings(deadline=None)
@given(spec=specs, status=statuses, there=st.lists(pods, max_size=5, unique_by=lambda pod: pod.name))
def test_what_is_read_asks_the_policy_what_the_operator_asked(spec: Any, status: Any, there: list[Pod]) -> None:
    obj: Object = {"metadata": {"name": "chat", "uid": "u"}, "spec": spec, "status": status}
    text = line(moment(NOW, 30.0, obj, there, {"gateway": None}))
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    assert "secret" not in text
    read = Moment.model_validate_json(text)
    read_spec, read_status = read.deployment()
    whole, said = InferenceDeploymentSpec.model_validate(spec), InferenceDeploymentStatus.model_validate(status)
    assert [role.accelerators for role in effective_roles(read_spec)] == [
        role.accelerators for role in effective_roles(whole)
    ]
    engines = Observed(pods=tuple(there))
    assert ask_of(read_spec, read.observed(), read_status, (), NOW) == ask_of(whole, engines, said, (), NOW)


def test_nothing_observed_is_a_moment_too() -> None:
    empty = moment(NOW, 0.0, {"metadata": {}, "spec": {}}, (), {})
    assert Moment.model_validate_json(line(empty)) == empty
    assert empty.observed() == Observed()


def test_a_line_that_is_no_moment_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    writer = Writer(file, HEADER)
    writer.write(moment(NOW, 0.0, {"metadata": {}, "spec": {}}, (), {"g": GatewayFigures(start="a", seconds=1.0)}))
    writer.close()
    for broken in (
        '{"at": "never"}\n',
        "[]\n",
        "{\n",
        '{"at":"2026-03-01T03:00:00Z","elapsed":-1,"spec":{},"status":{}}\n',
    ):
        file.write_text(line(HEADER) + broken)
        with pytest.raises(RecordingError, match=r"chat\.jsonl, line 2: "):
            list(sessions(file))


def test_a_recording_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text(line(HEADER).replace("recording-v1", "recording-v2"))
    with pytest.raises(RecordingError, match="header of a recording"):
        list(sessions(file))
