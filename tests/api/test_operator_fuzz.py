"""The transition fuzz in short: some leaves of the CRD changed and changed back, and operators that it must catch (all:
`make fuzz`)."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from local.api_server import api_server, obstacle
from sweep.fuzz.campaign import Campaign, campaign
from sweep.fuzz.command import chosen, play

pytestmark = pytest.mark.timeout(600)

SEED = 1


@pytest.fixture(scope="module")
def own_kubeconfig() -> Iterator[Path]:
    """An API server of its own: a campaign changes the CRD under everybody's feet."""
    if reason := obstacle():
        pytest.skip(reason)
    with api_server() as kubeconfig:
        yield kubeconfig


@pytest.fixture
async def made(own_kubeconfig: Path) -> AsyncIterator[Campaign]:
    async with campaign(own_kubeconfig, jobs=4, seed=SEED) as found:
        yield found


async def test_edits_there_and_back_hold_every_invariant_and_planted_bugs_do_not(made: Campaign) -> None:
    what = chosen(SEED, quick=True)
    result = await play(made, what, Progress(console=Console(quiet=True)))
    assert [(violation.case.name, violation.back, violation.lines) for violation in result.violations] == []
    assert len(result.tally.leaves) == what.leaves
    assert [one.mutant.name for one in result.killed if one.case is None] == []
    assert len(result.killed) == len(what.mutants)
