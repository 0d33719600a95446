"""Scenarios of the chaos suite, fewer strikes of each: all of them run in `make chaos`."""

from pathlib import Path

import pytest

from local.engine import models
from local.errors import LocalError

HERE = Path(__file__).parent


def _is_here(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_here(item):
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(600))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is not there yet before any test's clock runs."""
    if any(_is_here(item) for item in session.items) and not session.config.option.collectonly:
        try:
            models.folder()
        except LocalError as problem:
            raise pytest.UsageError(problem.message) from problem
