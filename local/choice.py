"""Which kind of local cluster this machine gets, and why it gets none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from local import bare, current, kind
from local.errors import LocalError
from local.provider import Provider

# In the order in which they are tried: name -> (why it cannot work here, how to make one).
KINDS: Mapping[str, tuple[Callable[[], str | None], Callable[[], Provider]]] = {
    "kind": (kind.obstacle, kind.Kind),
    "bare": (bare.obstacle, bare.Bare.of_machine),
    "current": (current.obstacle, current.Current.of_environment),
}


def choose(wanted: str | None = None) -> Provider:
    """The kind of cluster named by `wanted` or $CLUSTER, else the first that can work here: kind, bare, current.

    Raises:
        LocalError: the wanted one cannot work here, or none can.
    """
    wanted = wanted or os.environ.get("CLUSTER") or None
    if reason := why_none(wanted):
        raise LocalError(reason)
    candidates = [wanted] if wanted else list(KINDS)
    name = next(name for name in candidates if KINDS[name][0]() is None)
    return KINDS[name][1]()


def why_none(wanted: str | None = None) -> str | None:
    """One sentence that says what is missing for a cluster here; None if there is a way.

    Without `wanted`, $CLUSTER decides which kinds are looked at, as in `choose`.
    """
    wanted = wanted or os.environ.get("CLUSTER") or None
    if wanted and wanted not in KINDS:
        return f"CLUSTER={wanted} is not one of {', '.join(KINDS)}"
    reasons = {name: KINDS[name][0]() for name in ([wanted] if wanted else KINDS)}
    if None in reasons.values():
        return None
    words = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"no cluster can be had on this machine ({words})"
