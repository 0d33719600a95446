"""What a user does in each scenario, and what must hold meanwhile. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_operator.testing import Sample


@dataclass(frozen=True)
class Scenario:
    """From a settled `start` (None: from nothing) through each of `edits`, waiting until all is quiet after each."""

    name: str
    story: str
    start: Sample | None
    edits: tuple[Sample, ...]
    floors: Mapping[str, int] = field(default_factory=dict)
    """Ready engines of each role that there must be at any moment."""
    deleted: bool = False
    """The user deletes the deployment: in the clean run at the end, else in the moment before the cut."""
    passes: int | None = None
    """How many passes the operator makes after each edit but the last. None: until all is quiet."""

    @property
    def counts(self) -> bool:
        """Whether creations and deletions must be as many as in the clean run. Where the user interferes half-way they
        hang on how far the operator was."""
        return not self.deleted and self.passes is None


def _sample(prefill: int, decode: int) -> Sample:
    return Sample().split(prefill, decode)


def _changing(prefill: int, decode: int) -> Sample:
    return _sample(prefill, decode).set("disaggregation", {"roleChange": {"enabled": True}})


def _external(prefill: int, decode: int) -> Sample:
    """Somebody else scales both roles, up to these sizes."""
    sizes = {"prefill": prefill, "decode": decode}
    roles = [{"name": name, "scaling": {"min": 1, "max": most}} for name, most in sizes.items()]
    return Sample().set("roles", roles).set("scaling.mode", "External")


def _invalid() -> Sample:
    """Past the API server's rules, and refused by the operator."""
    return _sample(2, 2).set("engine.dtype", "float16").set("observability", {"podMonitor": True})


def _half() -> Sample:
    return _sample(2, 2).set("engine.dtype", "float16")


SCENARIOS = (
    Scenario("create", "from nothing to Ready", None, (_sample(1, 2),)),
    Scenario("update", "a new revision of both roles", _sample(2, 2), (_half(),), {"prefill": 2, "decode": 2}),
    Scenario("scale", "one role up, the other down, and back", _sample(1, 2), (_sample(2, 1), _sample(1, 2)),
             {"prefill": 1, "decode": 1}),
    Scenario("role-change", "an engine goes over to the other role, and comes back", _changing(2, 1),
             (_changing(1, 2), _changing(2, 1)), {"prefill": 1, "decode": 1}),
    Scenario("role-gone", "an engine goes over to the other role, is ended there, and is wanted again", _changing(2, 1),
             (_changing(1, 2), _changing(1, 1), _changing(1, 2)), {"prefill": 1, "decode": 1}),
    Scenario("delete", "a user deletes it while engines are added", _sample(1, 1), (_sample(2, 2),), deleted=True),
    Scenario("invalid", "an edit that is refused, and then taken back", _sample(2, 2), (_invalid(), _sample(2, 2)),
             {"prefill": 2, "decode": 2}),
    Scenario("revert", "a rollout taken back half-way", _sample(2, 2), (_half(), _sample(2, 2)),
             {"prefill": 2, "decode": 2}, passes=3),
    Scenario("hands", "sizes that somebody else decides, who is then held to fewer, and back", _sample(1, 3),
             (_external(2, 3), _external(2, 2), _sample(1, 2)), {"prefill": 1, "decode": 2}),
    Scenario("join", "two roles become one", _sample(1, 1), (Sample().serve(2),)),
)  # fmt: skip


def chosen(names: tuple[str, ...]) -> tuple[Scenario, ...]:
    """The scenarios of these names, or all. ValueError: no such scenario."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no scenario named {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else SCENARIOS
