"""`make demo`: from a bare machine to a model's answer, in one command that can be repeated and that shows every step.

What needs no cluster (building Kubernetes, the engine, the models, the images) goes on side by side, and is kept in
the user's cache. Then: a cluster of three nodes, the chart by Helm, the sample deployment, Ready, a question. Nothing
here is known to the operator: a person could type every step, and the last lines say how.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from local import build, cache, images, toolchain
from local.choice import choose
from local.engine import build as engine
from local.engine import models
from local.errors import LocalError
from local.layout import Mount
from local.programs import attempt, run
from local.provider import Provider
from local.question import ask, forwarded
from local.readiness import Kubectl, explain_pods, wait_until_ready
from local.steps import Steps

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "headrace"
SAMPLE = REPOSITORY / "manifests" / "samples" / "cpu-demo.yaml"
APPLY_CRDS = ("apply", "--server-side", "--field-manager=helm", "--force-conflicts", "--filename", str(CHART / "crds"))
RELEASE, SYSTEM_NAMESPACE = "headrace", "headrace-system"
NAMESPACE, NAME, MODEL = "demo", "chat", "smollm2"
NODES = 3
READY_SECONDS = 300.0
# Long enough (64 tokens and more) for the gateway to have it computed by a prefill engine.
MANNERS = (
    "You are a helpful assistant that knows geography well. People ask you about countries, their capitals, their "
    "rivers, their mountains and their neighbours. Answer in one short and complete sentence, name the place that was "
    "asked for, and do not add anything that was not asked. If you do not know the answer, say so in one sentence."
)
QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Prepared:
    """What the cluster needs and does not make itself."""

    operator: build.Built
    runtime: build.Built
    mounts: tuple[Mount, ...]


@dataclass
class DiskUse:
    """The most disk that was in use at once beyond what was at the start, looked at every second."""

    folder: Path
    peak: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        start = shutil.disk_usage(self.folder).free
        thread = threading.Thread(target=self._watch, args=(start,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self, start: int) -> None:
        while not self._ended.wait(1):
            self.peak = max(self.peak, start - shutil.disk_usage(self.folder).free)


def demo(console: Console) -> None:
    """The whole way. Every step finds what an earlier run left, and does only what is missing."""
    began = monotonic()
    provider = choose()
    cache.root().mkdir(parents=True, exist_ok=True)
    disk = DiskUse(cache.root())
    steps = Steps()
    with disk.watched():
        prepared = prepare(provider, console)
        provider.up(NODES, prepared.mounts, False, steps)
        provider.load([prepared.operator.archive, prepared.runtime.archive], steps)
        with steps.step(f"Headrace {prepared.operator.reference.rpartition(':')[2]} installed with Helm"):
            install(provider, prepared, console)
        kubectl = Kubectl(provider.kubeconfig(), NAMESPACE)
        with steps.step(f"{SAMPLE.relative_to(REPOSITORY)} applied"):
            apply_sample(kubectl)
        seconds = wait_until_ready(kubectl, NAME, READY_SECONDS, console)
        steps.say(f"Ready {seconds:.1f} s after it was applied")
        question(kubectl, console)
    console.print()
    console.out(kubectl("get", "infd", NAME))
    console.print(
        f"\n[bold]{monotonic() - began:.0f} s in all; at most {disk.peak / 1e9:.1f} GB of disk more than before[/]"
    )
    console.out(what_next(provider), highlight=False)


def prepare(provider: Provider, console: Console) -> Prepared:
    """Everything that is built or downloaded, each once per user. The longest, Kubernetes, starts first."""
    work: dict[str, Callable[[], object]] = {}
    if provider.name == "bare":
        work["Kubernetes and CoreDNS, from source (the first time 6 to 8 minutes)"] = _kubernetes
    work["engine on CPU and the test models"] = lambda: (engine.environment(), models.folder())
    work["images of operator and runtime"] = lambda: [build.build(build.TARGETS[name]) for name in build.LOCAL_TARGETS]
    side_by_side(work, console)
    mounts = (
        Mount(engine.environment(), Path("/opt/headrace/engine")),
        Mount(models.folder(), Path("/opt/headrace/models")),
    )
    operator, runtime = (build.build(build.TARGETS[name]) for name in build.LOCAL_TARGETS)
    return Prepared(operator, runtime, mounts)


def _kubernetes() -> None:
    toolchain.kubernetes()
    images.coredns_image()


def side_by_side(work: dict[str, Callable[[], object]], console: Console) -> None:
    """Runs all of `work` at once and shows each until it is done. A failure is raised when the rest has ended."""
    columns = (SpinnerColumn(finished_text="[green]✓[/]"), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(len(work)) as pool:
        tasks = {pool.submit(do): progress.add_task(what, total=1) for what, do in work.items()}
        waiting: set[Future[object]] = set(tasks)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is None:
                    progress.update(tasks[future], completed=1)
    for future in tasks:
        future.result()


def install(provider: Provider, prepared: Prepared, console: Console) -> None:
    """The chart, installed or upgraded; its CRDs first and apart, since Helm never updates them.

    They are applied in Helm's name: with another one, Helm 4 would see a conflict when it installs them itself.

    Raises:
        LocalError: the operator did not come up; its pod's last words have been printed by then.
    """
    kubectl = Kubectl(provider.kubeconfig(), SYSTEM_NAMESPACE)
    kubectl(*APPLY_CRDS)
    result = attempt(
        *(toolchain.helm(), "upgrade", "--install", RELEASE, CHART, "--kubeconfig", kubectl.kubeconfig),
        *("--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--wait", "--timeout", "90s"),
        *(word for value in image_values(prepared) for word in ("--set-string", value)),
    )
    if result.returncode:
        explain_pods(kubectl, f"app.kubernetes.io/instance={RELEASE}", console)
        raise LocalError(f"the operator did not come up: {result.stderr.strip()}")


def image_values(prepared: Prepared) -> list[str]:
    """The chart's values for images that were built here. The engine comes from the node: its image is the slim one."""
    chosen = {"operator": prepared.operator, "gateway": prepared.runtime, "engine": prepared.runtime}
    return [
        f"images.{name}.{part}={value}"
        for name, built in chosen.items()
        for part, value in zip(("repository", "tag"), built.reference.rsplit(":", 1), strict=True)
    ]


def apply_sample(kubectl: Kubectl) -> None:
    namespace = f'{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{NAMESPACE}"}}}}'
    words = ("--kubeconfig", kubectl.kubeconfig, "apply", "--server-side", "--filename", "-")
    run(toolchain.kubectl(), *words, stdin=namespace)
    kubectl("apply", "--server-side", "--filename", str(SAMPLE))


def question(kubectl: Kubectl, console: Console) -> None:
    """Asks, and prints the answer as it comes, with the engines that gave it."""
    console.print(f"\n[bold]{QUESTION}[/]")
    messages = [{"role": "system", "content": MANNERS}, {"role": "user", "content": QUESTION}]
    with forwarded(kubectl.kubeconfig, kubectl.namespace, NAME) as url:
        answer = ask(url, MODEL, messages, lambda piece: console.print(escape(piece), end="", style="green"))
    if "paris" not in answer.text.lower():
        raise LocalError(f"the model answers, but not that it is Paris: {answer.text!r}")
    console.print(
        f"\n[dim]first token after {answer.first_token_seconds:.2f} s, whole answer after {answer.seconds:.2f} s; "
        f"prompt by {answer.prefill or 'the same engine'}, answer by {answer.decode}[/]"
    )


def what_next(provider: Provider) -> str:
    """The commands that a person would try now."""
    return f"""
What to try next:
  export KUBECONFIG={provider.kubeconfig()} PATH={toolchain.kubectl().parent}:$PATH
  kubectl -n {NAMESPACE} get infd,pods -o wide
  kubectl -n {NAMESPACE} describe infd {NAME}
  kubectl -n {NAMESPACE} port-forward service/{NAME} 8080:80 &
  curl -s http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
  kubectl -n {NAMESPACE} delete pod -l headrace.dev/role=decode   # watch it heal: kubectl -n {NAMESPACE} get infd -w
  make demo-down   # removes the cluster; downloads stay in {cache.root()}"""


def remove(console: Console) -> None:
    """Takes away what the demo made: the whole cluster where it was made here, else only what was put into it."""
    provider = choose()
    if provider.name != "current":
        provider.down(Steps())
        return
    kubectl = Kubectl(provider.kubeconfig(), NAMESPACE)
    console.out(kubectl.words("delete", "namespace", NAMESPACE, "--ignore-not-found"))
    result = attempt(
        *(toolchain.helm(), "uninstall", RELEASE, "--kubeconfig", provider.kubeconfig()),
        *("--namespace", SYSTEM_NAMESPACE, "--ignore-not-found", "--wait"),
    )
    console.out((result.stdout + result.stderr).strip())
    console.out(kubectl.words("delete", "--ignore-not-found", "--filename", str(CHART / "crds")))
    console.out(kubectl.words("delete", "namespace", SYSTEM_NAMESPACE, "--ignore-not-found"))


@click.command("demo")
def main() -> None:
    """A cluster, the operator, a model in two roles, and a question to it."""
    demo(Console(highlight=False))


@click.command("demo-down")
def down() -> None:
    """Remove the demo and its cluster; what was built or downloaded stays in the cache."""
    remove(Console(highlight=False))
