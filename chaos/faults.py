"""The faults of the cluster's world, each a function of the cluster and the engine that is struck.

Each does its harm at once and returns how the system's own word of it, and its end, are told. Nothing here waits.
"""

import functools
import json
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from chaos.kinds import Pod, is_ready, name, restarts, uid
from chaos.machine import command_of, processes_of, signal_all
from chaos.scenario import Fault
from chaos.world import Blow
from headrace_operator.api import conditions as c
from headrace_runtime.contract import NodeState
from local import layout, toolchain
from local.errors import LocalError
from local.programs import attempt, run

if TYPE_CHECKING:
    from chaos.cluster import Cluster


# Runs in an engine's pod. The core is the child of vLLM's server that holds the model. For `memory` the core is made
# the kernel's first choice, and then memory is taken until the container's limit is met: in a file, which counts for
# the container and for no process, since the kernel ends who holds most. What it ends then is the cluster's affair: the
# core, or all of the container (the kubelet's choice since it knows cgroup v2).
IN_A_POD = """
import os, pathlib, re, signal, sys, time
act, server = sys.argv[1], int(sys.argv[2])
def said(pid, key):
    try:
        return re.search(rf"^{key}:\\s+(\\w+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]
    except (OSError, TypeError):
        return "0"
pids = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
core = max((pid for pid in pids if said(pid, "PPid") == str(server)), key=lambda pid: int(said(pid, "VmRSS")))
if act == "memory":
    pathlib.Path(f"/proc/{core}/oom_score_adj").write_text("1000")
    taken, piece = os.memfd_create("taken"), bytes(16 << 20)
    while said(core, "VmRSS") != "0":
        print(time.monotonic(), flush=True)
        try:
            os.write(taken, piece)
        except OSError:  # no memory left, and the core has not ended yet
            time.sleep(0.01)
else:
    number = signal.SIGKILL if act in ("core", "server") else getattr(signal, act)
    os.kill(server if act == "server" else core, number)
print(time.monotonic())
"""


def in_pod(act: str, cluster: "Cluster", pod: str) -> Blow:
    """To a process of the engine; its agent starts the engine again in the same pod."""
    before = cluster.agent(pod)

    def whole() -> bool:
        state = cluster.agent(pod)
        return state.engine_restarts > before.engine_restarts and state.phase == "Ready" and cluster.all_serve()

    at = _execute(cluster, pod, act, before)
    return Blow(pod, detected=lambda: cluster.leaves_out(pod), whole=whole, at=at)


def out_of_memory(cluster: "Cluster", pod: str) -> Blow:
    """The kernel ends the engine's core, and the agent starts it again; or the container, and the kubelet does."""
    before, state = cluster.pods("engine")[pod], cluster.agent(pod)

    def whole() -> bool:
        now = cluster.agent(pod)
        anew = restarts(cluster.pods("engine")[pod]) > restarts(before) or now.engine_restarts > state.engine_restarts
        return anew and now.phase == "Ready" and cluster.all_serve()

    at = _execute(cluster, pod, "memory", state)
    return Blow(pod, detected=lambda: cluster.leaves_out(pod), whole=whole, at=at)


def stop_engine(cluster: "Cluster", pod: str) -> Blow:
    state = cluster.agent(pod)
    at = _execute(cluster, pod, "SIGSTOP", state)

    def undo() -> None:
        if cluster.agent(pod).engine_pid == state.engine_pid:  # else it was ended meanwhile, which heals as well
            _execute(cluster, pod, "SIGCONT", state)

    return Blow(pod, detected=lambda: cluster.leaves_out(pod), whole=cluster.all_serve, undo=undo, at=at)


def _execute(cluster: "Cluster", pod: str, act: str, state: NodeState) -> float:
    """When it was done: the clock is the machine's, in a pod too."""
    words = ("--kubeconfig", cluster.kubectl.kubeconfig, "--namespace", cluster.kubectl.namespace, "exec", pod, "--")
    done = attempt(toolchain.kubectl(), *words, "python3.11", "-c", IN_A_POD, act, str(state.engine_pid), timeout=60)
    if not done.stdout.split():
        raise LocalError(f"{act} was not done in {pod}: {done.stderr.strip()[-300:]}")
    return float(done.stdout.split()[-1])


def delete_pod(cluster: "Cluster", pod: str) -> Blow:
    whole = _replaced(cluster, pod)
    at = time.monotonic()
    cluster.kubectl("delete", "pod", pod, "--wait=false")
    return Blow(pod, detected=lambda: cluster.leaves_out(pod), whole=whole, at=at)


def evict_pod(cluster: "Cluster", pod: str) -> Blow:
    whole = _replaced(cluster, pod)
    namespace = cluster.kubectl.namespace
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    words = ("--kubeconfig", cluster.kubectl.kubeconfig, "create", "--filename=-", "--raw")
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    at = time.monotonic()
    run(toolchain.kubectl(), *words, path, stdin=json.dumps(eviction))
    return Blow(pod, detected=lambda: cluster.leaves_out(pod), whole=whole, at=at)


def _replaced(cluster: "Cluster", pod: str) -> Callable[[], bool]:
    """Whether the pod is another one by now, and all serve."""
    before = uid(cluster.pods("engine")[pod])
    return lambda: before not in map(uid, cluster.pods("engine").values()) and cluster.all_serve()


def kill_node(cluster: "Cluster", pod: str) -> Blow:
    return _lose_node(cluster, pod, cluster.provider.kill, cluster.provider.start)


def cut_node(cluster: "Cluster", pod: str) -> Blow:
    return _lose_node(cluster, pod, cluster.provider.cut, cluster.provider.heal)


def _lose_node(cluster: "Cluster", pod: str, lose: Callable[[str], None], restore: Callable[[str], None]) -> Blow:
    """The node of an engine."""
    node = cluster.pods("engine")[pod]["spec"]["nodeName"]
    at = time.monotonic()
    lose(node)
    return Blow(
        pod,
        detected=lambda: cluster.leaves_out(pod),
        whole=lambda: cluster.node_is_ready(node) and cluster.all_serve(),
        undo=lambda: restore(node),
        at=at,
    )


def cut_link(cluster: "Cluster", pod: str) -> Blow:
    """Packets between this engine and the prefill engine vanish: no refusal, no end of a connection."""
    (prefill,) = cluster.pods("engine", "prefill").values()
    engine = cluster.pods("engine")[pod]
    one, other = prefill["status"]["podIP"], engine["status"]["podIP"]
    namespace = layout.parse_node(engine["spec"]["nodeName"]).namespace
    rules = [("-s", one, "-d", other), ("-s", other, "-d", one)]

    def change(option: str) -> None:
        for rule in rules:
            words = ["iptables", "-w", option, "FORWARD", *rule, "-j", "DROP"]
            run("nsenter", f"--net=/run/netns/{namespace}", *words)

    at = time.monotonic()
    change("-I")
    return Blow(pod, detected=lambda: False, whole=cluster.all_serve, undo=lambda: change("-D"), at=at)


def kill_head(cluster: "Cluster", _: str) -> Blow:
    """Its container starts again in the same pod, with the GCS's storage as it was."""
    (pod,) = cluster.pods("head").values()
    at = _kill_pods_processes(pod, "headrace_runtime")

    def whole() -> bool:
        return _again(cluster, "head", pod) and _ray(cluster)

    return Blow(name(pod), detected=cluster.ray_is_broken, whole=whole, at=at)


def lose_gcs(cluster: "Cluster", _: str) -> Blow:
    """The pod goes, and its storage with it."""
    (pod,) = cluster.pods("head").values()
    at = time.monotonic()
    cluster.kubectl("delete", "pod", name(pod), "--grace-period=0", "--force", "--wait=false")

    def whole() -> bool:
        # A new one: what the deployment says of Ray lags behind the pod that is gone.
        return any(uid(new) != uid(pod) and is_ready(new) for new in cluster.pods("head").values()) and _ray(cluster)

    return Blow(name(pod), detected=cluster.ray_is_broken, whole=whole, at=at)


def _ray(cluster: "Cluster") -> bool:
    return cluster.status(c.RAY_READY) == "True" and cluster.all_serve()


def kill_gateway(cluster: "Cluster", _: str) -> Blow:
    """The one of them that was killed least often."""
    pod = min(cluster.pods("gateway").values(), key=restarts)
    at = _kill_pods_processes(pod, "headrace_runtime")
    return Blow(
        name(pod),
        detected=lambda: not is_ready(cluster.pods("gateway")[name(pod)]),
        whole=lambda: _again(cluster, "gateway", pod) and cluster.all_serve(),
        at=at,
    )


def _again(cluster: "Cluster", component: str, pod: Pod) -> bool:
    """Whether this pod's container was started again and is Ready."""
    now = cluster.pods(component)[name(pod)]
    return restarts(now) > restarts(pod) and is_ready(now)


def kill_operator(cluster: "Cluster", _: str) -> Blow:
    leader = cluster.leader()
    pod = cluster.operator_pods()[leader.rpartition("_")[0]]
    at = _kill_pods_processes(pod, "headrace")

    def whole() -> bool:
        now = cluster.operator_pods()[name(pod)]
        back = restarts(now) > restarts(pod) and is_ready(now)
        return back and cluster.leader() not in ("", leader) and cluster.status(c.READY) == "True"

    return Blow(name(pod), detected=lambda: False, whole=whole, at=at)


def stop_api_server(cluster: "Cluster", _: str) -> Blow:
    pids = [pid for pid in processes_of(f"/{layout.NAME}/") if "kube-apiserver" in command_of(pid)[:2]]
    return _stopped("the API server", pids, lambda: cluster.status(c.READY) == "True" and cluster.all_serve())


def stop_dns(cluster: "Cluster", _: str) -> Blow:
    pods = cluster.dns_pods().values()
    pids = [pid for pod in pods for pid in processes_of(uid(pod)) if "coredns" in command_of(pid)[0]]

    def whole() -> bool:
        # A server that hung is ended by its kubelet, and started anew.
        return all(map(is_ready, cluster.dns_pods().values())) and cluster.all_serve()

    return _stopped("DNS", pids, whole)


def _stopped(what: str, pids: Sequence[int], whole: Callable[[], bool]) -> Blow:
    if not pids:
        raise LocalError(f"{what} has no process on this machine: this needs the bare cluster")
    at = time.monotonic()
    signal_all(pids, signal.SIGSTOP)
    return Blow(what, detected=lambda: False, whole=whole, undo=lambda: signal_all(pids, signal.SIGCONT), at=at)


def _kill_pods_processes(pod: Pod, program: str) -> float:
    """SIGKILL to every process of a pod that runs `program`, from outside, as the kernel would. Gives when."""
    pids = [pid for pid in processes_of(uid(pod)) if program in shlex.join(command_of(pid))]
    if not pids:
        raise LocalError(f"no process of {name(pod)} runs {program} on this machine: this needs the bare cluster")
    at = time.monotonic()
    signal_all(pids, signal.SIGKILL)
    return at


FAULTS: Mapping[Fault, Callable[["Cluster", str], Blow]] = {
    "engine_killed": functools.partial(in_pod, "core"),
    "front_end_killed": functools.partial(in_pod, "server"),
    "engine_out_of_memory": out_of_memory,
    "engine_stopped": stop_engine,
    "pod_deleted": delete_pod,
    "pod_evicted": evict_pod,
    "node_killed": kill_node,
    "node_cut": cut_node,
    "link_cut": cut_link,
    "head_killed": kill_head,
    "gcs_lost": lose_gcs,
    "gateway_killed": kill_gateway,
    "operator_killed": kill_operator,
    "api_server_away": stop_api_server,
    "dns_away": stop_dns,
}
