"""`headrace record`: what sizes are decided from, out of a cluster into a file (`recording.py`), for `replay`.

Every half minute the deployment, its pods, and through the API server's pod proxy what each gateway has counted. That
needs the caller's own right to `get` on `pods/proxy`, and nothing of the operator's. A gateway that does not answer is
recorded as missing, as the operator would see it.
"""

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from pydantic import ValidationError

from headrace_operator import __version__
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, POD
from headrace_operator.commands.caller import call, kubeconfig_option, namespace_option, the_deployment
from headrace_operator.commands.recording import Header, Moment, RecordingError, Writer, moment
from headrace_operator.errors import ClusterError
from headrace_operator.facts import read_pod
from headrace_operator.readings import EVERY_SECONDS
from headrace_operator.state import Pod, Ref
from headrace_runtime.contract import GATEWAY_ADMIN_PORT, GatewayFigures

if TYPE_CHECKING:
    from headrace_operator.cluster.client import KubernetesCluster

ANSWER_SECONDS: Final = 5.0
"""For one gateway, by way of the API server and its node."""


@dataclass
class Recorder:
    """Takes moments of one deployment. `say` is told what is missing, once for each reason in a row."""

    cluster: "KubernetesCluster"
    ref: Ref
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _began: float | None = None
    _missing: dict[str, str] = field(default_factory=dict)

    async def take(self) -> Moment | None:
        """What there is now. None: the API server gave no answer, which is said. ClickException: the deployment is
        gone."""
        try:
            obj, listed = await asyncio.gather(
                self.cluster.get(INFERENCE_DEPLOYMENT, self.ref.namespace, self.ref.name),
                self.cluster.list_children(POD, self.ref),
            )
        except ClusterError as error:
            self._lacks("the API server", str(error))
            return None
        self._missing.pop("the API server", None)
        if obj is None or obj["metadata"]["uid"] != self.ref.uid:
            raise click.ClickException(f"{self.ref} is gone: what was recorded until now is in the file")
        pods = [read_pod(pod) for pod in listed]
        asked = [pod for pod in pods if pod.component == "gateway" and pod.ready and pod.live]
        told = await asyncio.gather(*(self._figures(pod) for pod in asked))
        elapsed = self.clock()
        self._began = elapsed if self._began is None else self._began
        named = {pod.name: one for pod, one in zip(asked, told, strict=True)}
        return moment(self.now(), elapsed - self._began, obj, pods, named)

    async def _figures(self, pod: Pod) -> GatewayFigures | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                said = await self.cluster.proxied(self.ref.namespace, pod.name, GATEWAY_ADMIN_PORT, "figures")
            found = GatewayFigures.model_validate(said)
        except (TimeoutError, ClusterError, ValidationError) as error:
            self._lacks(pod.name, _why(error))
            return None
        self._missing.pop(pod.name, None)
        return found

    def _lacks(self, what: str, why: str) -> None:
        if self._missing.get(what) != why:
            self._missing[what] = why
            self.say(f"missing: {what}: {why}")


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_SECONDS:.0f} s"
    # What a gateway said in place of figures is not repeated: it may be anything.
    return "an answer that is no figures" if isinstance(error, ValidationError) else str(error)


async def record_into(
    recorder: Recorder, writer: Writer, seconds: float, told: Callable[[Moment], None], stop: asyncio.Event
) -> None:
    """A moment each `EVERY_SECONDS`, for so many seconds, or until `stop` is set."""
    began = recorder.clock()
    due = began
    while due - began <= seconds:
        if await _within(stop, due - recorder.clock()):
            return
        found = await recorder.take()
        if found is not None:
            writer.write(found)
            told(found)
        # A moment that took long is not made good by two close to each other.
        due = max(due + EVERY_SECONDS, recorder.clock())


async def _within(stop: asyncio.Event, seconds: float) -> bool:
    """Waits so long. True, and sooner, where it is set."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        return stop.is_set()
    return True


def _set_by_signals(stop: asyncio.Event) -> None:
    """Also in a script's background, where an interrupt is ignored unless one asks for it."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)


@click.command(short_help="Write what sizes are decided from into a file.")
@click.argument("name")
@namespace_option
@kubeconfig_option
@click.option(
    "--minutes",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, 10_000),
    help="How long; Ctrl-C or SIGTERM ends it.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Appended to, if it is there. Default: NAME.jsonl.",
)
def record(name: str, namespace: str, kubeconfig: Path | None, minutes: float, output: Path | None) -> None:
    """Record what the sizes of the InferenceDeployment NAME are decided from, for `headrace replay`.

    Each half minute, with your own rights: get on pods/proxy is needed, to ask the gateways. No prompt, no key and no
    environment variable is written. The operator need not be asked, nor scaling.mode be SLO.
    """
    file = output or Path(f"{name}.jsonl")
    taken = Counter[str]()

    def told(found: Moment) -> None:
        taken.update(("moments",))
        answered = sum(one is not None for one in found.gateways.values())
        ready = {pod.role for pod in found.pods if pod.role}
        sizes = ", ".join(f"{role} {sum(p.ready for p in found.pods if p.role == role)}" for role in sorted(ready))
        click.echo(f"{found.at:%H:%M:%S}  {answered} of {len(found.gateways)} gateways, ready: {sizes or 'none'}")

    async def run(cluster: "KubernetesCluster") -> None:
        ref, _ = await the_deployment(cluster, namespace, name)
        header = Header(written_by=__version__, namespace=namespace, name=name, uid=ref.uid, every=EVERY_SECONDS)
        try:
            writer = Writer(file, header)
        except (RecordingError, OSError) as error:
            raise click.ClickException(str(error)) from error
        recorder, stop = Recorder(cluster, ref, lambda said: click.echo(said, err=True)), asyncio.Event()
        _set_by_signals(stop)
        try:
            await record_into(recorder, writer, minutes * 60, told, stop)
        finally:
            writer.close()

    call(kubeconfig, run)
    click.echo(f"{file}: {taken['moments']} moments of {namespace}/{name}; headrace replay {file}")
