"""The forms of a source, before the operator and before the agents' fetcher: what one takes the other can read."""

import re

import pytest

from headrace_operator.api.sources import FETCHED, FORMS, SCHEMES, fetched
from headrace_runtime.models import sources
from headrace_runtime.models.errors import FetchError

COMMIT, DIGEST = "0123456789abcdef0123456789abcdef01234567", "0" * 64
GOOD = [
    f"hf://Qwen/Qwen3-8B@{COMMIT}",
    f"hf://a/b.c_d@{COMMIT}",
    "oci://registry:5000/model",
    "oci://ghcr.io/models/qwen3-8b:1.0_x",
    f"oci://ghcr.io/models/qwen3@sha256:{DIGEST}",
    f"oci://localhost:5000/a/b:tag@sha256:{DIGEST}",
    "s3://models",
    "s3://models/qwen3/8b/",
    "https://example.org/",
    "https://example.org:8443/models/qwen3/",
    "https://example.org/a.tar.gz?version=2",
    f"https://example.org/a.tar.gz#sha256={DIGEST}",
]
BAD = [
    "hf://Qwen3-8B",
    "hf://Qwen/Qwen3-8B",
    "hf://Qwen/Qwen3-8B@main",
    f"hf://Qwen/Qwen3-8B@{COMMIT[:-1]}",
    f"hf://Qwen/../etc@{COMMIT}x",
    "oci://ghcr.io",
    "oci://ghcr.io/",
    "oci://ghcr.io/Models/qwen3",
    "oci://me:word@ghcr.io/models/qwen3",
    "oci://ghcr.io/models/qwen3:",
    f"oci://ghcr.io/models/qwen3@sha512:{DIGEST}",
    "s3://",
    "s3://Models/a",
    "s3://a/b",
    "https://me:word@example.org/a",
    "https:///a",
    "https://example.org/a#sha256=00",
]


def taken(source: str) -> bool:
    scheme, _, rest = source.partition("://")
    return re.fullmatch(FORMS[scheme].pattern, rest) is not None


@pytest.mark.parametrize("source", GOOD)
def test_what_the_spec_takes_the_fetcher_reads(source: str) -> None:
    assert taken(source)
    sources.parse(source)


@pytest.mark.parametrize("source", BAD)
def test_what_is_wrong_is_refused(source: str) -> None:
    assert not taken(source)


def test_the_fetcher_refuses_it_too_but_for_what_it_would_take_as_a_default() -> None:
    lenient = {"oci://ghcr.io/models/qwen3:"}
    for source in set(BAD) - lenient:
        with pytest.raises(FetchError):
            sources.parse(source)


def test_both_agree_on_what_is_fetched() -> None:
    assert {scheme for scheme in FORMS if fetched(f"{scheme}://x")} == set(FETCHED)
    assert {scheme for scheme in FORMS if sources.fetched(f"{scheme}://x")} == set(FETCHED)
    assert SCHEMES == ("node://", "pvc://", "hf://", "oci://", "s3://", "https://")
