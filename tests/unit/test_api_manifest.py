"""Checksums as `sha256sum` writes them."""

import pytest

from headrace_operator.api.manifest import read_checksums

ONE, TWO = "0" * 64, "ab" * 32


def test_reads_text_and_binary_lines_with_any_path() -> None:
    text = f"{ONE}  config.json\n{TWO} *./sub dir/model.safetensors\n\n"

    assert read_checksums({"SHA256SUMS": text}) == {"config.json": ONE, "sub dir/model.safetensors": TWO}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"SHA256SUMS": ""},
        {"sha256sums": f"{ONE}  a"},
        {"SHA256SUMS": f"{ONE}  a\nnot a line"},
        {"SHA256SUMS": f"{ONE[:-1]}  a"},
        {"SHA256SUMS": f"{TWO.upper()}  a"},
        {"SHA256SUMS": f"{ONE}  "},
    ],
)
def test_half_a_manifest_is_none(data: dict[str, str]) -> None:
    assert read_checksums(data) is None
