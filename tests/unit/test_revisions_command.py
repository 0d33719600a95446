"""`history`, `rollback` and `restart`: what they would change, and what they say, without a cluster."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator.__main__ import main
from headrace_operator.desired.history import record
from headrace_operator.history import Record, records
from headrace_operator.plan.revision import engine_revision
from headrace_operator.revisions import changes, lines, merge_patch, way_back
from headrace_operator.state import Object
from headrace_operator.testing import Sample

FIRST = Sample().split(1, 2)
SECOND = Sample().split(1, 2).set("engine.dtype", "float16").set("drain.timeout", "10s")
NOW = Sample().split(3, 4).set("engine.image", "example.org/broken:1").set("gateway.replicas", 3)


def revision(sample: Sample) -> str:
    return engine_revision(sample.spec())


def found(*samples: Sample) -> dict[str, Record]:
    return records(record(one.subject(), revision(one), number) for number, one in enumerate(samples, 1))


def deployment(sample: Sample, **said: Any) -> Object:
    return {**sample.build(), "status": {"revision": said}}


HISTORY = found(FIRST, SECOND, NOW)


def test_goes_back_to_the_last_good_revision_and_leaves_sizes_and_gateway_alone() -> None:
    back = way_back(deployment(NOW, good=[revision(SECOND), revision(FIRST)]), HISTORY, None)
    assert back.record.revision == revision(SECOND)
    assert [str(change) for change in back.changes] == [
        'spec.drain: (default) -> {"timeout": "10s"}',
        'spec.engine.dtype: (default) -> "float16"',
        'spec.engine.image: "example.org/broken:1" -> (default)',
    ]
    assert back.patch["spec"]["engine"] == {"image": None, "dtype": "float16"}
    assert back.patch["spec"].keys() == {"drain", "engine"}


def test_the_revision_of_the_spec_itself_is_no_way_back() -> None:
    back = way_back(deployment(SECOND, good=[revision(SECOND), revision(FIRST)]), HISTORY, None)
    assert back.record.revision == revision(FIRST)


@pytest.mark.parametrize("to", [revision(FIRST), "1"])
def test_a_revision_is_named_by_its_hash_or_its_number(to: str) -> None:
    assert way_back(deployment(NOW), HISTORY, to).record.revision == revision(FIRST)


def test_nothing_to_do() -> None:
    assert way_back(deployment(NOW), HISTORY, "3").changes == ()


def test_a_spec_that_is_not_valid_can_be_gone_back_from() -> None:
    broken = deployment(Sample().split(1, 2).set("engine.dtype", "float17"), good=[revision(FIRST)])
    back = way_back(broken, HISTORY, None)
    assert back.patch["spec"]["engine"]["dtype"] is None


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(click.ClickException, match=f"no revision 7 .* {revision(FIRST)} "):
        way_back(deployment(NOW), HISTORY, "7")
    with pytest.raises(click.ClickException, match="name one with --to"):
        way_back(deployment(NOW, good=[]), HISTORY, None)


def test_a_revision_that_does_not_go_with_the_rest_is_refused() -> None:
    broken = deployment(Sample().split(1, 2).set("networkPolicy", {"mode": "Never"}))
    with pytest.raises(click.ClickException, match=r"spec\.networkPolicy\.mode"):
        way_back(broken, HISTORY, "1")


def test_the_history_is_a_table_with_what_each_revision_changed() -> None:
    said = {"current": revision(SECOND), "failed": revision(NOW), "good": [revision(SECOND), revision(FIRST)]}
    first, second, now = list(lines(deployment(NOW, **said), HISTORY))[1:]
    assert first.split()[:3] == [revision(FIRST), "1", "good"]
    assert second.split() == [revision(SECOND), "2", "current,good", "drain,", "engine.dtype"]
    assert now.split()[:3] == [revision(NOW), "3", "failed"]
    assert "engine.image" in now


values = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, as a server does it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


@settings(max_examples=200, deadline=None)
@given(objects, objects)
def test_a_merge_patch_makes_the_one_of_the_other_and_names_no_more(before: Object, after: Object) -> None:
    assert merged(before, merge_patch(before, after)) == after
    assert (merge_patch(before, after) == {}) == (before == after)
    assert list(changes(after, after)) == []


@pytest.mark.parametrize("command", ["history", "rollback", "restart"])
def test_where_there_is_no_cluster_it_is_said_in_a_sentence(command: str, tmp_path: Path) -> None:
    empty = tmp_path / "config"
    empty.write_text("{}")
    result = CliRunner().invoke(main, [command, "chat", "--kubeconfig", str(empty)])
    assert result.exit_code == 1
    assert "kubeconfig" in result.output
    assert "Traceback" not in result.output
