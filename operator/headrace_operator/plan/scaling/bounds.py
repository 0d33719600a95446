"""What no policy can pass: each role's bounds, and the accelerators of all roles together. Pure.

Every answer goes through `granted`, that of a policy of one's own too. These are sizes: that pods do not pass the cap
half-way through a change is what `Aim.spare` sets aside for.
"""

from collections.abc import Callable, Mapping

from headrace_operator.plan.scaling.inputs import LATE_SECONDS, Aim, Ask, Role

Worse = Callable[[Role, int], float]
"""How badly off a role is with so many engines."""


def granted(wants: Mapping[str, int], roles: tuple[Role, ...], aim: Aim, worse: Worse) -> dict[str, int]:
    """The wanted sizes within all bounds. Where the cap is short, every role has its least first, and each further
    engine goes to the role that is worst off. A role that is not in `wants` keeps its size.

    Where even the least of all roles does not fit, that is what is granted: the spec contradicts itself, and
    `too_small` says so.
    """
    wanted = {role.name: min(role.most, max(role.least, wants.get(role.name, role.size))) for role in roles}
    if aim.cap is None or _used(wanted, roles) <= room(roles, aim):
        return wanted
    sizes = {role.name: min(role.least, wanted[role.name]) for role in roles}
    while True:
        free = room(roles, aim) - _used(sizes, roles)
        short = [r for r in roles if sizes[r.name] < wanted[r.name] and r.accelerators <= free]
        if not short:
            return sizes
        sizes[max(short, key=lambda role: worse(role, sizes[role.name])).name] += 1


def allowed(wants: Mapping[str, int], ask: Ask) -> dict[str, int]:
    """What any policy may have of what it wants: all bounds hold, no role gets smaller while figures are missing, and
    engines do not change their role more often than the spec says. Where the cap is short, roles grow evenly."""
    wants = {role.name: wants.get(role.name, role.size) for role in ask.roles}
    if not seen(ask) or (swaps(wants, ask) and not rested(ask)):
        wants = {role.name: max(role.size, wants[role.name]) for role in ask.roles}
    return granted(wants, ask.roles, ask.aim, lambda _, engines: -engines)


def swaps(sizes: Mapping[str, int], ask: Ask) -> bool:
    """Engines change their role on the way to these sizes."""
    moves = {sizes[role.name] > role.size for role in ask.roles if sizes[role.name] != role.size}
    return ask.aim.role_change and len(moves) == 2


def rested(ask: Ask) -> bool:
    """The last change of role was long enough ago for another one."""
    return all(change.age >= ask.aim.role_change_pause for change in ask.changes if change.swap)


def seen(ask: Ask) -> bool:
    """There are figures of how much came, and they are not late."""
    newest = min(ask.windows, key=lambda window: window.age, default=None)
    return newest is not None and newest.rate is not None and newest.age <= LATE_SECONDS


def room(roles: tuple[Role, ...], aim: Aim) -> int:
    """Accelerators for the roles' sizes: what rollouts need is set aside, unless not even the least would be left."""
    assert aim.cap is not None
    least = _used({role.name: role.least for role in roles}, roles)
    return aim.cap - aim.spare if least <= aim.cap - aim.spare else aim.cap


def too_small(roles: tuple[Role, ...], aim: Aim) -> bool:
    """The cap leaves no room for the least of each role."""
    return aim.cap is not None and _used({role.name: role.least for role in roles}, roles) > aim.cap


def _used(sizes: Mapping[str, int], roles: tuple[Role, ...]) -> int:
    return sum(sizes[role.name] * role.accelerators for role in roles)
