"""`headrace history`, `rollback` and `restart`: what people do with the revisions of one deployment.

They act with the rights of whoever calls them (kubeconfig) and change the spec, as an editor would; the operator does
the rest. What a rollback would change is worked out here, purely; `__main__.py` hangs the commands up.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace_operator.api.parse import parse
from headrace_operator.api.problems import sentence
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.cluster import CONTROLLER_REVISION
from headrace_operator.commands.caller import call, kubeconfig_option, namespace_option, the_deployment
from headrace_operator.history import Record, records, restored
from headrace_operator.state import Object

if TYPE_CHECKING:
    from headrace_operator.cluster.client import KubernetesCluster

SHOWN = 4
"""Changed fields that a line of the history names."""


@dataclass(frozen=True)
class Change:
    """One field that differs. None: it is not there, or has its default."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.before)} -> {_shown(self.after)}"


def _shown(value: Any) -> str:
    return "(default)" if value is None else json.dumps(value, ensure_ascii=False)


def changes(before: Any, after: Any, field: str = "spec") -> Iterator[Change]:
    """Every field in which two values as they are on the wire differ, in order of their names."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from changes(before.get(key), after.get(key), f"{field}.{key}")
    elif _named(before) and _named(after):
        ours, theirs = ({entry["name"]: entry for entry in entries} for entries in (before or (), after or ()))
        for name in sorted({*ours, *theirs}):
            yield from changes(ours.get(name), theirs.get(name), f"{field}[{name}]")
    elif before != after:
        yield Change(field, before, after)


def _named(value: Any) -> bool:
    entries = [] if value is None else value
    return isinstance(entries, list) and all(isinstance(entry, Mapping) and "name" in entry for entry in entries)


def plain(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A spec without what has its default, so that two can be compared; as it is where it cannot be read."""
    parsed = parse({"metadata": {"name": "chat"}, "spec": spec})
    if not isinstance(parsed, InferenceDeploymentSpec):
        return spec
    return parsed.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def merge_patch(before: Any, after: Any) -> Any:
    """What makes `after` of `before` (RFC 7386). Lists are replaced whole."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return after
    patch = {key: merge_patch(before.get(key), value) for key, value in after.items() if before.get(key) != value}
    return patch | {key: None for key in before if key not in after}


@dataclass(frozen=True)
class Return:
    """What going back to a record changes in an object."""

    record: Record
    changes: tuple[Change, ...]
    patch: Object


def way_back(obj: Object, found: Mapping[str, Record], to: str | None) -> Return:
    """The change that brings an object back: to the revision or number `to`, or else to the last good revision that
    is another than the spec's. ClickException: there is none, or the two do not go together."""
    if to is not None:
        record = next((one for one in found.values() if to in (one.revision, str(one.number))), None)
        if record is None:
            known = ", ".join(f"{one.revision} ({one.number})" for one in found.values()) or "none"
            raise click.ClickException(f"--to: no revision {to} in the history; there are: {known}")
        return _return(obj, record)
    good = obj.get("status", {}).get("revision", {}).get("good", [])
    for record in (found[revision] for revision in good if revision in found):
        back = _return(obj, record)
        if back.changes:
            return back
    raise click.ClickException("no other revision in the history was whole and answered: name one with --to")


def _return(obj: Object, record: Record) -> Return:
    spec = restored(record, obj["spec"])
    if not isinstance(spec, dict):
        raise click.ClickException(f"revision {record.revision} does not go with the rest: {sentence(spec)}")
    changed = tuple(changes(plain(obj["spec"]), plain(spec)))
    return Return(record, changed, {"spec": merge_patch(obj["spec"], spec)})


def lines(obj: Object, found: Mapping[str, Record]) -> Iterator[str]:
    """The history as a table, the oldest first."""
    said = obj.get("status", {}).get("revision", {})
    yield f"{'REVISION':<12}{'NUMBER':>6}  {'CREATED':<22}{'STATE':<18}CHANGED"
    before: Mapping[str, Any] | None = None
    for record in found.values():
        marks = [mark for mark in ("current", "updating", "failed") if said.get(mark) == record.revision]
        marks += ["good"] if record.revision in said.get("good", ()) else []
        changed = [change.field.removeprefix("spec.") for change in changes(before, record.words)] if before else []
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        told = ", ".join(changed[:SHOWN]) + more
        line = f"{record.revision:<12}{record.number:>6}  {record.created:<22}{','.join(marks):<18}{told}"
        yield line.rstrip()
        before = record.words


async def _read(cluster: "KubernetesCluster", namespace: str, name: str) -> tuple[Object, dict[str, Record]]:
    """The deployment and its history."""
    ref, obj = await the_deployment(cluster, namespace, name)
    children = await cluster.list_children(CONTROLLER_REVISION, ref)
    return obj, records(child for child in children if ref.owns(child))


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")


@click.command()
@click.argument("name")
@namespace_option
@kubeconfig_option
def history(name: str, namespace: str, kubeconfig: Path | None) -> None:
    """Show the revisions of the InferenceDeployment NAME that can be gone back to.

    CHANGED names fields that differ from the revision above.
    """

    async def show(cluster: "KubernetesCluster") -> None:
        for line in lines(*await _read(cluster, namespace, name)):
            click.echo(line)

    call(kubeconfig, show)


@click.command()
@click.argument("name")
@namespace_option
@kubeconfig_option
@click.option("--to", metavar="REVISION", help="A revision, or its number. Default: the last other one that was good.")
@dry_run_option
def rollback(name: str, namespace: str, kubeconfig: Path | None, to: str | None, dry_run: bool) -> None:
    """Put an earlier revision of the InferenceDeployment NAME back into its spec.

    Only what engines are made from changes; sizes, limits and the like stay. Whoever else writes the spec, a GitOps
    controller say, has to be told too, or puts back what was there.
    """

    async def go_back(cluster: "KubernetesCluster") -> None:
        obj, found = await _read(cluster, namespace, name)
        back = way_back(obj, found, to)
        if not back.changes:
            click.echo(f"{name}: the spec has revision {back.record.revision} already")
            return
        for change in back.changes:
            click.echo(change)
        if not dry_run:
            await cluster.edit(obj, back.patch)
        done = "would go back" if dry_run else "goes back"
        click.echo(f"{name} {done} to revision {back.record.revision}")

    call(kubeconfig, go_back)


@click.command()
@click.argument("name")
@namespace_option
@kubeconfig_option
@dry_run_option
def restart(name: str, namespace: str, kubeconfig: Path | None, dry_run: bool) -> None:
    """Replace every engine of the InferenceDeployment NAME, one after the other, as in a rollout.

    Sets spec.rollout.restartedAt to the time of the call.
    """

    async def mark(cluster: "KubernetesCluster") -> None:
        obj, _ = await _read(cluster, namespace, name)
        before = (obj["spec"].get("rollout") or {}).get("restartedAt")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        click.echo(Change("spec.rollout.restartedAt", before, now))
        if not dry_run:
            await cluster.edit(obj, {"spec": {"rollout": {"restartedAt": now}}})
        click.echo(f"{name}: its engines {'would be' if dry_run else 'are'} replaced one after the other")

    call(kubeconfig, mark)
