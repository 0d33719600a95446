"""One cluster for all tests of this folder: the one that is up, or one that is brought up and taken down again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import images, programs, toolchain
from local.choice import choose, why_none
from local.provider import Provider
from local.steps import Steps

HERE = Path(__file__).parent
NODES = 3


@dataclass(frozen=True)
class Cluster:
    """The cluster under test. Whoever kills or cuts a node starts or heals it again."""

    provider: Provider
    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Runs kubectl and returns its output; a failure raises with its words."""
        options = ("--kubeconfig", str(self.kubeconfig))
        return programs.run(toolchain.kubectl(), *options, *arguments, stdin=stdin, timeout=timeout)

    def run(self, *command: str, timeout: float = 60) -> str:
        """Runs a command where pods and Services can be reached, by name too."""
        return programs.run(*self.provider.inside(command), env={"KUBECONFIG": str(self.kubeconfig)}, timeout=timeout)

    def load(self, *archives: Path) -> None:
        """Puts images into all nodes that lack them."""
        self.provider.load(archives, Steps())


def _is_here(item: pytest.Item) -> bool:
    return item.path.is_relative_to(HERE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_here(item):
            item.add_marker(pytest.mark.cluster)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is not there yet before any test's clock runs: the first time that takes minutes."""
    wanted = any(_is_here(item) for item in session.items) and not session.config.option.collectonly
    if wanted and why_none() is None and choose().name == "bare":
        toolchain.kubernetes()
        toolchain.kubectl()
        images.coredns_image()
        images.debian_base()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_none():
        pytest.skip(reason)
    provider = choose()
    ours = not provider.status().up
    if ours:
        provider.up(NODES, (), fresh=False, steps=Steps())
    try:
        yield Cluster(provider, provider.kubeconfig())
    finally:
        if ours:
            provider.down(Steps())
