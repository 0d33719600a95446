"""A pod as the API gives it → an engine as the gateway sees it."""

from typing import Any

import pytest

from headrace_runtime.contract import Endpoint, KvEvents
from headrace_runtime.gateway.discovery import endpoint_of, endpoints_of

LABELS = {"headrace.dev/role": "decode", "headrace.dev/revision": "r1", "headrace.dev/kv-layout": "k1"}


def pod(name: str = "chat-decode-r1-0", **changes: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": LABELS, **changes.pop("metadata", {})}
    status = {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}], **changes}
    return {"metadata": metadata, "status": status}


def test_a_ready_pod_is_an_engine() -> None:
    assert endpoint_of(pod()) == Endpoint(
        name="chat-decode-r1-0",
        url="http://10.0.0.7:8000",
        role="decode",
        revision="r1",
        kv_layout="k1",
        kv_events=KvEvents(publish="tcp://10.0.0.7:5557", replay="tcp://10.0.0.7:5558"),
    )


@pytest.mark.parametrize(
    "conditions",
    [[], [{"type": "Ready", "status": "False"}], [{"type": "Initialized", "status": "True"}]],
    ids=["none yet", "not ready", "another condition"],
)
def test_a_pod_that_is_not_ready_is_known_but_takes_nothing(conditions: list[Any]) -> None:
    endpoint = endpoint_of(pod(conditions=conditions))
    assert endpoint is not None
    assert not endpoint.ready


@pytest.mark.parametrize(
    "metadata",
    [{"deletionTimestamp": "2026-01-01T00:00:00Z"}, {"annotations": {"headrace.dev/draining": "2026-01-01T00:00:00Z"}}],
    ids=["deleted", "annotated"],
)
def test_a_pod_that_is_leaving_is_draining(metadata: dict[str, Any]) -> None:
    endpoint = endpoint_of(pod(metadata=metadata))
    assert endpoint is not None
    assert endpoint.draining


def test_one_that_is_leaving_and_ready_stays_until_somebody_else_serves() -> None:
    gone = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    endpoint = endpoint_of(pod(metadata=gone))
    assert endpoint is not None
    assert endpoint.stays
    for other in (
        pod(),
        pod(metadata=gone, conditions=[{"type": "Ready", "status": "False"}]),
        pod(metadata={**gone, "annotations": {"headrace.dev/draining": "true"}}),
        pod(metadata={**gone, "labels": {}}),
    ):
        endpoint = endpoint_of(other)
        assert endpoint is not None
        assert not endpoint.stays


@pytest.mark.parametrize(
    "changes",
    [{"podIP": None}, {"phase": "Succeeded"}, {"phase": "Failed"}],
    ids=["no address", "ended", "failed"],
)
def test_a_pod_without_an_engine_to_ask_is_none(changes: dict[str, Any]) -> None:
    assert endpoint_of(pod(**changes)) is None


def test_the_role_is_what_the_label_says_now_whatever_the_name() -> None:
    changed = endpoint_of(pod(metadata={"labels": {**LABELS, "headrace.dev/role": "prefill"}}))
    before = endpoint_of(pod())
    assert before is not None
    assert changed == before.model_copy(update={"role": "prefill"})


@pytest.mark.parametrize("labels", [{}, {**LABELS, "headrace.dev/role": "prefil"}], ids=["taken", "misspelt"])
def test_a_pod_whose_label_names_no_role_gets_nothing_new_and_is_not_lost(labels: dict[str, str]) -> None:
    endpoint = endpoint_of(pod(metadata={"labels": labels}))
    assert endpoint is not None
    assert endpoint.draining


def test_of_an_engine_over_several_pods_only_rank_0_is_asked() -> None:
    ranks = {
        name: pod(name, metadata={"labels": {**LABELS, "headrace.dev/rank": rank}})
        for rank, name in (("0", "chat-decode-r1-0"), ("1", "chat-decode-r1-0-r1"), ("2", "chat-decode-r1-0-r2"))
    }
    assert [endpoint.name for endpoint in endpoints_of(ranks)] == ["chat-decode-r1-0"]


def test_reads_a_pod_that_has_no_status_yet() -> None:
    assert endpoint_of({"metadata": {"name": "new", "labels": LABELS}}) is None


def test_writes_an_ipv6_address_as_urls_want_it() -> None:
    endpoint = endpoint_of(pod(podIP="fd00::7"))
    assert endpoint is not None
    assert endpoint.url == "http://[fd00::7]:8000"


def test_engines_come_in_the_order_of_their_names() -> None:
    pods = {name: pod(name) for name in ("b", "a")}
    assert [endpoint.name for endpoint in endpoints_of(pods)] == ["a", "b"]
    assert endpoints_of({}) == ()
