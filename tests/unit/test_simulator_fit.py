"""A profile of an engine: fitted to measurements, written to a file and read again."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.__main__ import main
from simulator.fit import HandOver, Measured, Prompt, Step, fit
from simulator.profile import H200_8B, Profile, read, write

TRUE = Profile(
    overhead=0.03,
    pace=0.0012,
    step=0.03,
    per_request=0.002,
    per_token=4e-6,
    kv_tokens=20_000,
    batch_tokens=2048,
    batch_requests=128,
    transfer_base=0.02,
    transfer=1e-5,
    attention=4e-7,
    front=0.01,
    crowding=0.15,
)


def measured(true: Profile, noise: float = 0.0, seed: int = 1) -> Measured:
    """What a machine would show that is just so, but for the noise."""
    chance = random.Random(seed)

    def seen(seconds: float) -> float:
        return seconds * (1 + chance.uniform(-noise, noise))

    def prompt(tokens: int) -> float:
        return true.front + true.overhead + true.prompt_seconds(tokens)

    batches = [(count, count * (length + 20.0)) for length in (32, 256, 512) for count in (1, 2, 4, 8, 16)]
    moved = [true.transfer_base + true.transfer * n + true.step_seconds(1, n) for n in (128, 512, 1024)]
    return Measured(
        prompts=[Prompt(n, seen(prompt(n))) for n in (16, 64, 256, 512, 1024, 1800) for _ in range(3)],
        steps=[Step(count, context, seen(true.step_seconds(count, context))) for count, context in batches],
        hand_overs=[HandOver(n, seen(seconds)) for n, seconds in zip((128, 512, 1024), moved, strict=True)],
        crowded=[
            Prompt(512, seen(prompt(512) * (1 + true.crowding))),
            Step(4, 1000.0, seen(true.step_seconds(4, 1000.0) * (1 + true.crowding))),
        ],
        kv_tokens=true.kv_tokens,
        batch_tokens=true.batch_tokens,
        batch_requests=true.batch_requests,
    )


def test_a_profile_is_found_again_in_what_it_makes_of_engines() -> None:
    found = fit(measured(TRUE))
    assert vars(found.profile) == pytest.approx(vars(TRUE), rel=1e-6)
    assert max(abs(one.error) for one in found.residuals) < 1e-6


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_noise_moves_what_the_profile_says_by_no_more_than_itself(seed: int) -> None:
    found = fit(measured(TRUE, noise=0.05, seed=seed)).profile
    for tokens in (100, 400, 1500):
        assert found.prompt_seconds(tokens) == pytest.approx(TRUE.prompt_seconds(tokens), rel=0.15)
    for requests in (1, 5, 12):
        said, true = found.step_seconds(requests, 300.0 * requests), TRUE.step_seconds(requests, 300.0 * requests)
        assert said == pytest.approx(true, rel=0.08)
    assert min(vars(found).values()) >= 0


def test_one_hand_over_that_seemed_to_take_no_time_does_not_decide() -> None:
    seen = measured(TRUE)
    odd = replace(seen.hand_overs[0], seconds=0.0)
    found = fit(replace(seen, hand_overs=[odd, *seen.hand_overs[1:], *seen.hand_overs, *seen.hand_overs])).profile
    assert found.transfer_base + 512 * found.transfer == pytest.approx(
        TRUE.transfer_base + 512 * TRUE.transfer, rel=0.4
    )


def test_a_cost_that_is_not_there_is_none() -> None:
    plain = replace(TRUE, attention=0.0, per_token=0.0, crowding=0.0, front=0.0)
    assert vars(fit(measured(plain)).profile) == pytest.approx(vars(plain), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("field", ["prompts", "steps", "hand_overs"])
def test_nothing_measured_is_no_profile_and_the_message_says_of_what(field: str) -> None:
    with pytest.raises(ValueError, match=field.replace("_", "-")):
        fit(replace(measured(TRUE), **{field: []}))  # type: ignore[arg-type]


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write(TRUE, file)
    assert read(file) == TRUE


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"pace": -1.0}, "pace"),
        ({"pace": "fast"}, "pace"),
        ({"kv_tokens": 0}, "kv_tokens"),
        ({"speed": 1.0}, "speed"),
    ],
)
def test_a_profile_of_another_shape_is_refused_with_the_field_named(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(vars(H200_8B) | changed))
    with pytest.raises(ValueError, match=rf"profile\.json is no profile: .*{named}"):
        read(file)
    said = CliRunner().invoke(main, ["--profile", str(file), "--minutes", "1"])
    assert said.exit_code != 0
    assert "--profile" in said.output
    assert named in said.output


def test_a_profile_without_one_of_its_fields_or_that_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({name: value for name, value in vars(H200_8B).items() if name != "step"}))
    with pytest.raises(ValueError, match="step"):
        read(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="the file"):
        read(file)


def test_the_simulator_runs_on_a_profile_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write(H200_8B.slower(2), file)
    said = CliRunner().invoke(main, ["--profile", str(file), "--minutes", "1", "--rate", "2", "4"])
    assert said.exit_code == 0, said.output
    assert "builtin" in said.output
