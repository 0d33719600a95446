"""Names of children: deterministic, within 63 characters, told apart by their parts."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_operator import names

long_names = st.from_regex(r"[a-z][-a-z0-9]{50,70}[a-z0-9]", fullmatch=True)
deployments = st.from_regex(r"[a-z]([-a-z0-9]{0,250}[a-z0-9])?", fullmatch=True)


def test_short_names_are_the_parts_in_a_row() -> None:
    assert names.engine_pod("chat", "decode", "0123456789", 3) == "chat-decode-0123456789-3"
    assert names.service("chat") == "chat"
    assert names.gateway_url("demo", "chat") == "http://chat.demo.svc"
    assert names.ray_address("demo", "chat") == "chat-head.demo.svc:6379"


@settings(max_examples=50, deadline=None)
@given(deployments)
def test_every_name_is_a_dns_label(deployment: str) -> None:
    for name in (
        names.service(deployment),
        names.gateway(deployment),
        names.ray_token(deployment),
        names.engine_pod(deployment, "prefill", "0123456789", 999),
    ):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name), name


@settings(max_examples=50, deadline=None)
@given(st.lists(long_names, min_size=2, max_size=5, unique=True))
def test_long_names_that_are_cut_stay_apart(deployments: list[str]) -> None:
    assert len({names.engine_pod(d, "decode", "0123456789", 0) for d in deployments}) == len(deployments)
    assert len({names.label(d) for d in deployments}) == len(deployments)
