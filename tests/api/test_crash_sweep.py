"""The crash-point sweep in short: some points of some scenarios, and a planted bug that it must notice (all: `make
sweep`)."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sweep import scenarios
from sweep.planted import PLANTED
from sweep.proxy import Cut, Way
from sweep.suite import Suite, cuts, suite

pytestmark = pytest.mark.timeout(300)

SEED = 1


@pytest.fixture
async def made(api_kubeconfig: Path) -> AsyncIterator[Suite]:
    async with suite(api_kubeconfig, jobs=4) as found:
        yield found


@pytest.mark.parametrize("name", ["create", "role-change"])
async def test_an_operator_that_was_cut_off_ends_where_the_clean_one_does(made: Suite, name: str) -> None:
    (scenario,) = scenarios.chosen((name,))
    clean = await made.clean(scenario)
    assert clean.complaints == ()
    draw = random.Random(SEED)
    by_way = [draw.choice(points) for way in Way if (points := [cut for cut in cuts(clean) if cut.way is way])]
    result = await made.sweep(scenario, clean, by_way)
    assert [(str(f.cut), f.differences) for f in result.failures] == []


async def test_a_second_clean_run_is_the_same_run(made: Suite) -> None:
    (scenario,) = scenarios.chosen(("invalid",))
    first, second = await made.clean(scenario), await made.clean(scenario)
    assert (first.objects, first.counts, len(first.writes)) == (second.objects, second.counts, len(second.writes))


async def test_a_cut_that_never_comes_is_a_failure(made: Suite) -> None:
    (scenario,) = scenarios.chosen(("invalid",))
    clean = await made.clean(scenario)
    assert "the cut never came" in (await made.point(scenario, clean, Cut(Way.BEFORE, 1000)))[0]


async def test_a_planted_bug_is_noticed(made: Suite) -> None:
    bug = next(one for one in PLANTED if one.name == "token-remembered")
    assert (await made.catch(bug, random.Random(SEED))).ok
