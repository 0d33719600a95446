"""What the operator may do in a cluster: the one list that the chart's roles are made from and the tests compare with.

The tests hold it from both sides: every call that the operator makes is in here, and what is in here is called, or is
named in `held_for` as held without being called. Pure; written out by `generate.py`, never read by a running operator.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from headrace_operator import names

RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Rule:
    """One rule of a role. Resources may name a subresource (`pods/status`); no wildcard is ever used."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    held_for: tuple[str, ...] = ()
    """Those of the verbs that are never called, but which the API server wants to see; `why` says what for."""
    own_name: bool = False
    """Only for the object that is named as the release is."""


APPLIED = ("get", "list", "watch", "create", "patch", "delete")
"""`get` sees, before an object is first applied, that its name is not somebody else's. Server-side apply is `patch`,
and also `create` where the object does not exist yet."""

RULES: tuple[Rule, ...] = (
    Rule(names.GROUP, (names.PLURAL,), ("get", "list", "watch"), "what is looked after"),
    Rule(names.GROUP, (f"{names.PLURAL}/status",), ("patch",), "its status, and nothing else of it"),
    Rule(
        names.GROUP,
        (f"{names.PLURAL}/finalizers",),
        ("update",),
        "for owner references that block deletion, where OwnerReferencesPermissionEnforcement is on",
        held_for=("update",),
    ),
    Rule(names.GROUP, (names.ROLE_PLURAL,), APPLIED, "roles that somebody else scales"),
    Rule(names.GROUP, (f"{names.ROLE_PLURAL}/status",), ("patch",), "how many engines they have"),
    Rule(
        "",
        ("pods",),
        APPLIED,
        "heads and engines; a gateway may get, list and watch pods, and who grants that must hold it",
    ),
    Rule("", ("configmaps", "serviceaccounts", "services"), APPLIED, "contracts, gateways' identities, addresses"),
    Rule("apps", ("deployments",), APPLIED, "gateways"),
    Rule("apps", ("controllerrevisions",), APPLIED, "the history of revisions"),
    Rule("policy", ("poddisruptionbudgets",), APPLIED, "how many engines and gateways may be evicted at a time"),
    Rule("", ("persistentvolumeclaims",), APPLIED, "disks for KV blocks, where a spec asks for claims"),
    Rule(RBAC, ("rolebindings", "roles"), APPLIED, "a gateway's right to watch the pods of its namespace"),
    Rule("", ("secrets",), ("create",), "the token of a Ray cluster, made once and never read back"),
    Rule("", ("events",), ("create", "list"), "what happened, and why a pod hangs"),
)
"""Held in every namespace that the operator looks after, and nowhere else."""

LEASES = "coordination.k8s.io"
ELECTION_RULES: tuple[Rule, ...] = (
    Rule(LEASES, ("leases",), ("create",), "the Lease that decides who works, once: a name cannot be asked for here"),
    Rule(LEASES, ("leases",), ("get", "patch"), "that Lease and no other", own_name=True),
)
"""Held in the operator's own namespace."""


def allowed(rules: tuple[Rule, ...] = RULES, *, called_only: bool = False) -> Iterator[tuple[str, str, str]]:
    """Rules as (group, resource, verb); with `called_only` without those that are held but never called."""
    for rule in rules:
        for resource in rule.resources:
            for verb in rule.verbs:
                if not (called_only and verb in rule.held_for):
                    yield rule.group, resource, verb


def chart_template() -> str:
    """The text of `charts/headrace/templates/_permissions.tpl`."""
    return (
        "{{- /* Made by `make generate` from headrace_operator/permissions.py; never edited. */ -}}\n"
        + _define("headrace.rules", RULES)
        + "\n"
        + _define("headrace.electionRules", ELECTION_RULES)
    )


def _define(name: str, rules: tuple[Rule, ...]) -> str:
    return f'{{{{- define "{name}" -}}}}\n' + "".join(map(_yaml, rules)) + "{{- end }}\n"


def _yaml(rule: Rule) -> str:
    def words(items: tuple[str, ...]) -> str:
        return "[" + ", ".join(f'"{item}"' for item in items) + "]"

    return (
        f"# {rule.why}\n"
        f"- apiGroups: {words((rule.group,))}\n"
        f"  resources: {words(rule.resources)}\n"
        + ('  resourceNames: [{{ include "headrace.fullname" . | quote }}]\n' if rule.own_name else "")
        + f"  verbs: {words(rule.verbs)}\n"
    )
