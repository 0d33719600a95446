"""The operator's command line. `run` is the operator; `plan` shows what it would make, without any cluster.

Settings come from the environment (`settings.py`); `operation.py` puts the parts together.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import click
import yaml

from headrace_operator import names, revisions
from headrace_operator.api.manifest import read_checksums
from headrace_operator.api.parse import parse
from headrace_operator.api.problems import sentence
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.commands.explain import explain
from headrace_operator.commands.record import record
from headrace_operator.commands.replay import replay
from headrace_operator.commands.simulate import simulate
from headrace_operator.desired import contracts, desired_objects
from headrace_operator.errors import SettingsError
from headrace_operator.plan import make_plan
from headrace_operator.settings import Settings, load
from headrace_operator.state import Object, Observed, Ref, Subject


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace", prog_name="headrace")
def main() -> None:
    """Headrace: InferenceDeployments become Ray clusters that serve vLLM, prefill and decode apart."""


def _settings_help() -> str:
    rows = [
        f"  HEADRACE_{name.upper()}  {field.description} (default: {field.default!r})"
        for name, field in Settings.model_fields.items()
    ]
    return "\b\nEnvironment:\n" + "\n".join(rows)


@main.command(epilog=_settings_help())
def run() -> None:
    """Look after all InferenceDeployments, until a signal comes.

    Inside a pod with its service account, elsewhere with the kubeconfig.
    """
    try:
        settings = load()
        _log(settings)
        asyncio.run(_run(settings))
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


async def _run(settings: Settings) -> None:
    # Here, so that `plan` needs neither kopf nor the client.
    from headrace_operator import operation  # noqa: PLC0415

    await operation.run(settings)


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of objects that name none.")
@click.option(
    "--contracts",
    "shape",
    type=click.Choice(["local"]),
    help="Print the contract for `headrace-runtime local` in place of the objects.",
)
@click.option("--simulate", "steps", is_flag=True, help="Print every step on the way there in place of the objects.")
@click.option(
    "--from",
    "old",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --simulate: start from the deployment of the same name in this file. Default: from nothing.",
)
def plan(file: Path, namespace: str, shape: Literal["local"] | None, steps: bool, old: Path | None) -> None:
    """Print every object that the operator would make of the InferenceDeployments in FILE.

    Nothing is sent anywhere. ConfigMaps in FILE are read where a deployment names one as its manifest.
    """
    if old is not None and not steps:
        raise click.UsageError("--from needs --simulate")
    documents = _documents(file)
    config_maps = {d["metadata"]["name"]: d.get("data") or {} for d in documents if d.get("kind") == "ConfigMap"}
    wanted = [d for d in documents if d.get("kind") == names.KIND]
    if not wanted:
        raise click.ClickException(f"{file}: holds no {names.KIND}")
    settings = _settings()
    for document in wanted:
        subject = _subject(document, namespace, config_maps, settings)
        _say_of_sizes(subject.spec)
        if steps:
            _print_steps(document, documents, namespace, old)
            continue
        step = make_plan(subject.spec, Observed())
        if shape == "local":
            _print_local(subject, step.revision)
            continue
        objects = desired_objects(subject, step)
        click.echo(
            f"# {subject.ref}: revision {step.revision}, {len(objects)} objects, and the Secret with Ray's token"
        )
        click.echo(yaml.safe_dump_all(objects, sort_keys=False), nl=False)


def _print_steps(document: Object, documents: list[Object], namespace: str, old: Path | None) -> None:
    # Here, since it is the whole operator with a cluster in memory.
    from headrace_operator import simulation  # noqa: PLC0415

    name, before = document["metadata"]["name"], None
    if old is not None:
        found = [d for d in _documents(old) if d.get("kind") == names.KIND and d["metadata"]["name"] == name]
        if not found:
            raise click.ClickException(f"{old}: holds no {names.KIND} {name}")
        before = found[0]
        if not isinstance(problems := parse(before), InferenceDeploymentSpec):
            raise click.ClickException(f"{old}: {sentence(problems)}")
    maps = [d for d in documents if d.get("kind") == "ConfigMap"]
    where = document["metadata"].get("namespace", namespace)
    click.echo(f"# {where}/{name}: ready/all engine pods of each role and revision after each pass")
    if (document["spec"].get("rollout") or {}).get("canary"):
        click.echo("# steps of rollout.canary are passed by time: nobody asks anything")
    for line in simulation.table(asyncio.run(simulation.simulate(document, before, maps))):
        click.echo(line)


def _say_of_sizes(spec: InferenceDeploymentSpec) -> None:
    """Of roles whose sizes are decided while they serve."""
    bounds = [f"{one.name} {one.scaling.min} to {one.scaling.max}" for one in spec.roles if one.scaling is not None]
    if bounds:
        told = "roles are shown at their least, or at the sizes that they have"
        click.echo(f"# scaling.mode {spec.scaling.mode} decides sizes ({', '.join(bounds)}): {told}", err=True)


def _print_local(subject: Subject, revision: str) -> None:
    try:
        contract = contracts.local(subject, revision)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(contracts.serialise(contract), nl=False)


def _settings() -> Settings:
    try:
        return load()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def _documents(file: Path) -> list[dict[str, Any]]:
    try:
        return list(_objects(yaml.safe_load_all(file.read_text())))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file}: is not YAML: {error}") from error


def _objects(documents: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if isinstance(document, dict):
            yield document


def _subject(document: Object, namespace: str, config_maps: dict[str, dict[str, str]], settings: Settings) -> Subject:
    """The parsed deployment, or every problem on the terminal."""
    spec = parse(document)
    if not isinstance(spec, InferenceDeploymentSpec):
        raise click.ClickException(sentence(spec))
    meta = document["metadata"]
    ref = Ref(meta.get("namespace", namespace), meta["name"], "00000000-0000-0000-0000-000000000000")
    manifest = spec.model.integrity.manifest
    if manifest is None or manifest.config_map_ref is None:
        return Subject(ref, 1, spec, settings.defaults)
    name = manifest.config_map_ref.name
    if name not in config_maps:
        click.echo(f"# {ref}: the ConfigMap {name} is not in the file: its checksums are missing below", err=True)
        return Subject(ref, 1, spec, settings.defaults)
    files = read_checksums(config_maps[name])
    if files is None:
        raise click.ClickException(f"ConfigMap {name}: needs the key SHA256SUMS, as sha256sum writes it")
    return Subject(ref, 1, spec, settings.defaults, manifest=files)


class _JsonLines(logging.Formatter):
    """One JSON object a line, for collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    # kopf tells of every event it sees; what matters is told by the worker.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))


for command in (revisions.history, revisions.rollback, revisions.restart, explain, record, replay, simulate):
    main.add_command(command)

if __name__ == "__main__":
    main()
