"""Builds what tests of this folder are run against."""

from __future__ import annotations

from pathlib import Path

import pytest

from local import toolchain

STORES = Path(__file__).with_name("test_models_stores.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before any test's clock runs: the first time takes minutes."""
    if any(item.path == STORES for item in session.items) and not session.config.option.collectonly:
        toolchain.stores()
