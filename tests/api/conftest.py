"""One real API server (with etcd) for the tests of this folder; each pytest process has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local import toolchain
from local.api_server import api_server, obstacle

HERE = Path(__file__).parent


def _is_here(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_here(item):
            item.add_marker(pytest.mark.api)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is not there yet before any test's clock runs: the first time that takes minutes."""
    if any(_is_here(item) for item in session.items) and not session.config.option.collectonly and obstacle() is None:
        toolchain.kubernetes()


@pytest.fixture(scope="session")
def api_kubeconfig() -> Iterator[Path]:
    """The kubeconfig, with all rights, of an empty API server without controllers."""
    if reason := obstacle():
        pytest.skip(reason)
    with api_server() as kubeconfig:
        yield kubeconfig
