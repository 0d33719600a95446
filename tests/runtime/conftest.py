"""Real engines as processes of this machine, in the environment and with the models of `python -m local.engine`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from local.engine import build, models
from local.errors import LocalError

HERE = Path(__file__).parent


def _is_here(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_here(item):
            item.add_marker(pytest.mark.runtime)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is not there yet before any test's clock runs: a minute and a half the first time."""
    if any(_is_here(item) for item in session.items) and not session.config.option.collectonly:
        try:
            models.folder()
        except LocalError as problem:
            raise pytest.UsageError(problem.message) from problem


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The interpreter of the engine's environment."""
    return build.python()


@pytest.fixture(scope="session")
def model() -> Callable[[str], Path]:
    """The folder of a test model: `smollm2` or `tiny`."""
    folder = models.folder()
    return lambda name: folder / name
