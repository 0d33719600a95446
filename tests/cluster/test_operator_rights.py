"""What the operator may do, what it did in these tests, and what it takes: looked at after everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.permissions import ELECTION_RULES, RULES, allowed
from local import toolchain
from local.bare import Bare
from local.demo import RELEASE, SYSTEM_NAMESPACE
from local.programs import run

ACCOUNT = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{RELEASE}"
MEGABYTES = 120
REVIEW = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
# Runs in the operator's pod: memory of the process that takes most, without this one.
MEMORY = """
import os, pathlib, re
def kilobytes(path, key):
    return int(re.search(rf"^{key}:\\s+(\\d+) kB", path.read_text(), re.M)[1])
folders = [path for path in pathlib.Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())]
most = max(folders, key=lambda path: kilobytes(path / "status", "VmRSS"))
print(kilobytes(most / "smaps_rollup", "Rss"), kilobytes(most / "smaps_rollup", "Pss"))
"""
NEEDED = {
    "test_deployment_bad_input.py",
    "test_deployment_changes.py",
    "test_deployment_drain.py",
    "test_deployment_kv.py",
    "test_deployment_external.py",
}
# Held to remove what is no longer wanted; of these kinds a deployment always wants the same objects, by the same names.
NEVER_PRUNED = {
    (group, resource, "delete")
    for group, resource in (
        ("", "serviceaccounts"),
        ("", "services"),
        ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
    )
}


def rules(headrace: Any, account: str) -> set[tuple[str, str, str]]:
    """What the API server says that a service account may do in the deployments' namespace."""
    review = json.dumps({**REVIEW, "spec": {"namespace": headrace.kubectl.namespace}})
    words = ("--kubeconfig", headrace.kubectl.kubeconfig, f"--as={account}", "create", "--raw")
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = json.loads(run(toolchain.kubectl(), *words, path, "--filename=-", stdin=review))
    return {
        (group, resource, verb)
        for rule in answer["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_it_may_do_what_the_list_says_and_nothing_else(headrace: Any, chat: Any) -> None:
    anybody = rules(headrace, f"system:serviceaccount:{SYSTEM_NAMESPACE}:default")
    assert rules(headrace, ACCOUNT) - anybody == set(allowed())


@pytest.mark.parametrize(
    "question",
    [
        "get secrets",
        "list secrets",
        "create pods --subresource=exec",
        f"update {names.PLURAL}",
        f"patch {names.PLURAL}",
        "get nodes",
        "create clusterroles",
    ],
)
def test_it_may_not(headrace: Any, chat: Any, question: str) -> None:
    said = headrace.kubectl.words("auth", "can-i", *question.split(), f"--as={ACCOUNT}")
    assert said.splitlines()[0] == "no"


def calls(headrace: Any) -> Iterator[dict[str, Any]]:
    """Every call of the operator that the API server has written down."""
    provider = headrace.cluster.provider
    if not isinstance(provider, Bare) or not provider.layout.audit_log.exists():
        pytest.skip("this cluster keeps no record of calls: `python -m local up --fresh` makes a bare one that does")
    for line in provider.layout.audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == ACCOUNT and "objectRef" in event:
            yield event


def used(headrace: Any) -> set[tuple[str, str, str]]:
    """The rights that it made use of."""
    found = set()
    for call in calls(headrace):
        target = call["objectRef"]
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        # An apply that makes the object needs the right to create it.
        made = call["verb"] == "patch" and call.get("responseStatus", {}).get("code") == 201
        found |= {
            (target.get("apiGroup", ""), resource, verb) for verb in (call["verb"], *(["create"] if made else []))
        }
    return found


def test_it_was_never_refused(headrace: Any, chat: Any) -> None:
    # Not by its status: a namespace that is being deleted refuses new objects with 403 too, whoever asks.
    refused = [call for call in calls(headrace) if call["annotations"]["authorization.k8s.io/decision"] != "allow"]
    assert [(call["verb"], call["requestURI"]) for call in refused] == []
    assert used(headrace) <= set(allowed((*RULES, *ELECTION_RULES), called_only=True))


def test_it_holds_no_right_that_it_does_not_use(headrace: Any, chat: Any, request: pytest.FixtureRequest) -> None:
    run_too = {item.path.name for item in request.session.items}
    if missing := NEEDED - run_too:
        pytest.skip(f"what it uses shows only when {', '.join(sorted(missing))} ran before, in the same session")
    exercised = used(headrace)
    print(f"{len(exercised)} rights used of {len(set(allowed()))}")
    assert set(allowed(called_only=True)) - exercised <= NEVER_PRUNED


def test_it_stays_small(headrace: Any, chat: Any) -> None:
    said = headrace.system("exec", headrace.operator_pod(), "--", "python3", "-c", MEMORY)
    resident, proportional = (int(word) / 1000 for word in said.split())
    print(f"the operator's memory: {resident:.0f} MB resident, {proportional:.0f} MB its own share")
    assert proportional <= MEGABYTES
