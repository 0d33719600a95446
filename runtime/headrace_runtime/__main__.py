"""The runtime's command line: one contract file in, one process out.

The only place that reads the environment. Each command imports its own part alone: an agent loads neither Ray, nor the
Kubernetes client, nor the gateway's event loop.
"""

import ipaddress
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from headrace_runtime import contract as contracts
from headrace_runtime.contract import Place

Command = TypeVar("Command", bound=Callable[..., Any])
CONTRACT_FILE = Path(contracts.CONTRACT_MOUNT) / contracts.CONTRACT_FILE


def ip_address(context: click.Context, option: click.Parameter, value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an IP address", context, option) from None


def port(name: str, default: int, what: str) -> Callable[[Command], Command]:
    return click.option(name, type=click.IntRange(1, 65535), default=default, show_default=True, help=what)


PLACE = Place(name="-", address="-")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
PLACED = (
    click.option("--contract", "file", type=FILE, default=CONTRACT_FILE, show_default=True, help="JSON or YAML."),
    click.option("--name", required=True, envvar="POD_NAME", show_envvar=True, help="The pod's name."),
    click.option(
        "--address", required=True, envvar="POD_IP", show_envvar=True, callback=ip_address, help="The pod's IP address."
    ),
    click.option("--node", default="", envvar="NODE_NAME", show_envvar=True, help="The Kubernetes node's name."),
    port("--engine-port", PLACE.engine_port, "The engine's OpenAI HTTP."),
    port("--agent-port", PLACE.agent_port, "HTTP of the agent, or of the head: health and state."),
    port("--kv-transfer-port", PLACE.kv_transfer_port, "The engine's side channel for KV transfers."),
    click.option(
        "--rank",
        type=click.IntRange(0),
        default=PLACE.rank,
        envvar="HEADRACE_RANK",
        show_envvar=True,
        show_default=True,
        help="Of an engine over several pods: which of them this is.",
    ),
    click.option(
        "--leader",
        default=PLACE.leader,
        envvar="HEADRACE_LEADER",
        show_envvar=True,
        help="HOST:PORT of rank 0's agent, for the other ranks.",
    ),
    port("--gang-port", PLACE.gang_port, "Where rank 0's workers meet those of the other ranks."),
    click.option("--run-dir", default=PLACE.run_dir, show_default=True, help="Sockets and the like; emptied at start."),
)


def placed(command: Command) -> Command:
    """Options of every process that stands at one place."""
    for option in reversed(PLACED):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Headrace's runtime: the processes inside the pods of an InferenceDeployment."""
    # As process 1 of a container it would not be ended by SIGTERM before it has a handler; each command sets its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@main.command()
@placed
def node(file: Path, **place: Any) -> None:
    """The agent that owns one engine; first process of an engine pod."""
    contract = read(file, contracts.NodeContract)
    from headrace_runtime.engine.arguments import ClashError  # noqa: PLC0415
    from headrace_runtime.mounted import ContractFile  # noqa: PLC0415
    from headrace_runtime.node import serve  # noqa: PLC0415
    from headrace_runtime.node.gang import StrayRankError  # noqa: PLC0415
    from headrace_runtime.node.sweep import NotOursError  # noqa: PLC0415

    try:
        serve.main(contract, Place(**place), ContractFile(file, lambda file: parsed(file, contracts.NodeContract)))
    except (ClashError, NotOursError, StrayRankError) as error:
        raise click.UsageError(str(error)) from error


@main.command()
@placed
def head(file: Path, **place: Any) -> None:
    """Ray's head and the supervisors of all engines; first process of the head pod."""
    contract = read(file, contracts.HeadContract)
    from headrace_runtime.head import head as process  # noqa: PLC0415

    process.main(contract, Place(**place), file)


@main.command(hidden=True)
@placed
def fleet(file: Path, **place: Any) -> None:
    """The supervisors' driver; started by `head`."""
    contract = read(file, contracts.HeadContract)
    from headrace_runtime.head import fleet as process  # noqa: PLC0415

    process.main(contract, Place(**place))


@main.command()
@placed
def gateway(file: Path, **place: Any) -> None:
    """The only way in: OpenAI HTTP for clients, prefill and decode behind it."""
    contract = read(file, contracts.GatewayContract)
    from headrace_runtime.gateway import serve  # noqa: PLC0415
    from headrace_runtime.mounted import ContractFile  # noqa: PLC0415

    serve.main(contract, Place(**place), ContractFile(file, lambda file: parsed(file, contracts.GatewayContract)))


@main.command()
@click.argument("source")
@click.option(
    "--into",
    "cache",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The node's cache of models; made if there is none.",
)
@click.option("--size", help="What the cache may hold: 500Gi. Models that nothing runs on make room.")
@click.option("--credentials", type=FOLDER, help="A folder as a Secret is mounted: HF_TOKEN, .dockerconfigjson, ...")
def fetch(source: str, cache: Path, size: str | None, credentials: Path | None) -> None:
    """Fetch a model into a node's cache, as an agent would: to warm the node, or to see what is wrong.

    SOURCE is hf://OWNER/NAME@COMMIT, oci://REGISTRY/REPOSITORY:TAG, s3://BUCKET/PREFIX or https://HOST/PATH. The folder
    is written to standard output. What was fetched before it ended is kept, and gone on with.
    """
    from headrace_runtime.models import command  # noqa: PLC0415

    try:
        limit = command.size(size) if size else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from error
    sys.exit(command.run(source, cache, limit, credentials, os.environ))


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the model, in place of the file's.",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Contracts and logs. [default: a temporary folder]")
def local(file: Path, model: Path | None, run_dir: Path | None) -> None:
    """A whole deployment as processes on this machine; Ctrl-C ends all of them.

    FILE is a LocalContract, JSON or YAML; see runtime/examples.
    """
    contract = read(file, contracts.LocalContract)
    from headrace_runtime import local as process  # noqa: PLC0415

    sys.exit(process.main(contract, model, run_dir))


@main.command("kv-inspect")
@click.argument("folder", type=FOLDER)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Read every block, compare its checksum.")
@click.option("--key-file", type=FILE, help="The Secret's key, in base64: no encrypted block is verified without it.")
def kv_inspect(folder: Path, verify: bool, key_file: Path | None) -> None:
    """What lies in a folder of KV blocks; changes nothing, and may be asked while engines use it.

    FOLDER is a deployment's, NAMESPACE_NAME below the place of spec.kvCache.disk. Exit 1: something in it is damaged.
    """
    from headrace_runtime.kv import inspect  # noqa: PLC0415
    from headrace_runtime.kv.keeper import Refused  # noqa: PLC0415
    from headrace_runtime.kv.opening import read_key  # noqa: PLC0415

    try:
        key = None if key_file is None else read_key(key_file)
    except Refused as refused:
        raise click.BadParameter(refused.message, param_hint="--key-file") from refused
    lines, is_sound = inspect.described(folder, key, verify=verify)
    for line in lines:
        click.echo(line)
    sys.exit(0 if is_sound else 1)


ContractT = TypeVar("ContractT", bound=contracts.Frozen)


def read(file: Path, kind: type[ContractT]) -> ContractT:
    """The contract in `file`. Ends the program with status 2 and every problem, if it is none of this kind."""
    try:
        return parsed(file, kind)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}" for problem in error.errors()]
        raise click.UsageError("\n".join([f"{file} is no {kind.__name__}:", *problems])) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def parsed(file: Path, kind: type[ContractT]) -> ContractT:
    """The contract in `file`, as it is now. Raises OSError, ValueError, or RecursionError for nested nonsense."""
    return kind.model_validate(parse(file))


def parse(file: Path) -> Any:
    """Raises ValueError for a file that is neither JSON nor YAML."""
    text = file.read_text()
    if file.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
    import yaml  # noqa: PLC0415 - an agent in a pod reads JSON

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from error


if __name__ == "__main__":
    main()
