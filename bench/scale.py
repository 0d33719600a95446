"""Many InferenceDeployments on a real control plane with kwok nodes: what the operator costs, and how long it takes.

The operator is the real program with its real requests, in a process of its own; etcd, API server, controllers and
scheduler are real; pods are ready as soon as they are scheduled, and `hollow` answers for their agents and gateways.
All cores of a small machine are full while deployments are made, so seconds are the machine's; what is the operator's
own is its writes, its processor time and its memory. kopf that does nothing runs on the same objects, in the same run.
"""

import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from bench import programs
from bench.fleet import Eyes, Fleet, sample
from bench.kube import Api
from bench.plane import plane
from bench.report import Check, Options, Report, at_most
from bench.storm import ROLLED, Storm, Writes
from headrace_operator.apply import stamp
from headrace_operator.desired import desired_objects
from headrace_operator.plan import make_plan
from headrace_operator.state import Object, Observed, Subject
from headrace_operator.testing import DIGEST
from headrace_runtime.contract import AGENT_PORT
from local.errors import LocalError

OBJECTS, QUICK_OBJECTS = (100, 1000), (20,)
PODS = 4
"""Of a deployment: head, prefill, decode, gateway."""
MANY = 1000
KUBERAY = ("KubeRay default", "KubeRay tuned")
RECORDED = {
    "all Ready, s": ("113", "82.2"),
    "operator: processor s until Ready": ("23.2", "15.7"),
    "operator: ms per object": ("23", "16"),
    "operator: peak memory MB": ("253", "283"),
    "API server: processor s until Ready": ("117", "92"),
    "writes per object": ("11.0", "11.1"),
    "of them Events": ("4.0", ""),
    "writes per pod": ("2.75", "2.78"),
    "idle: writes": ("0", "0"),
    "idle: operator, millicores": ("2.8", "2.0"),
    "edit to pod, idle: longest ms": ("86", "25"),
    "restart: to the pod of a waiting edit, s": ("17.0", "19.2"),
    "delete all: s": ("49", "54"),
}
"""1,000 RayClusters of 4 pods, KubeRay at feeaf72f with kwok 0.8.0 on two cores, each arm once, with its lease and its
chart's settings or 10 workers at 1000 QPS. Another run than ours: beside it, and no ratio is made of it."""


def run(options: Options) -> Report:
    sizes = options.objects or (QUICK_OBJECTS if options.quick else OBJECTS)
    columns = ("", *(f"{size:,} objects" for size in sizes), *KUBERAY)
    report = Report("scale", "many deployments on kwok nodes (agents and gateways simulated)", columns)
    runs = {size: _measured(size, options.quick, report) for size in sizes}
    _tell(report, runs)
    for size, figures in runs.items():
        if figures:
            report.checks += _checks(size, figures)
    return report


def minimum() -> Counter[str]:
    """The fewest writes that make one object whole: each child once, the Secret, what only the first load can tell
    (the weights' digest, into the contracts of engines), and a status that says that all is there."""
    subject = sample().subject()
    first, last = _stamped(subject), _stamped(replace(subject, pinned_digest=DIGEST))
    kinds = Counter(kind for kind, _ in first)
    again = sum(first[key] != obj for key, obj in last.items())
    return kinds + Counter({"Secret": 1, "ConfigMap with the digest": again, "status": 1})


def roll_minimum() -> int:
    """The same for new engines: what is new or differs, what is no longer wanted, and a status."""
    before, after = (_stamped(one.subject()) for one in (sample(), sample().set("engine.env", ROLLED["env"])))
    return sum(before.get(key) != obj for key, obj in after.items()) + len(before.keys() - after.keys()) + 1


def _stamped(subject: Subject) -> dict[tuple[str, str], Object]:
    objects = desired_objects(subject, make_plan(subject.spec, Observed()))
    return {(obj["kind"], obj["metadata"]["name"]): stamp(obj) for obj in objects}


def _measured(size: int, quick: bool, report: Report) -> dict[str, float]:
    """The figures of one size, as far as it came: what breaks first is a finding, and a check that fails."""
    with tempfile.TemporaryDirectory(prefix="headrace-scale-logs-") as folder, plane() as control:
        logs, api = Path(folder), Api(control.kubeconfig)
        hollow = [sys.executable, "-m", "bench.hollow", str(control.kubeconfig)]
        with programs.running(hollow, logs / "hollow.log") as answering:
            programs.wait_for(f"http://127.0.0.1:{AGENT_PORT}/healthz", answering, logs / "hollow.log")
            eyes = Eyes(api)
            storm = Storm(control, Fleet(api, eyes, size), logs, quick)
            try:
                storm.run()
            except (RuntimeError, LocalError) as error:
                report.checks.append(Check(f"{size:,} objects: {error}", len(storm.figures), "to the end", ok=False))
            finally:
                eyes.close()
            return storm.figures | _counted(storm.writes, size, report)


def _counted(writes: Writes, size: int, report: Report) -> dict[str, float]:
    if not writes:
        return {}
    done = Counter[str]()
    for (verb, resource, ok), count in writes.items():
        done[f"{verb} {resource}" if ok else f"refused {verb} {resource}"] += count
    report.notes.append(f"{size:,} objects, writes: " + ", ".join(f"{n} {what}" for what, n in done.most_common()))
    total, events = writes.total(), done["create events"]
    return {
        "writes per object": total / size,
        "of them Events": events / size,
        "writes per object ÷ minimum": total / size / minimum().total(),
        "writes per pod": total / size / PODS,
    }


def _tell(report: Report, runs: dict[int, dict[str, float]]) -> None:
    least = minimum()
    parts = " + ".join(f"{count} {kind}" for kind, count in sorted(least.items()))
    report.notes.insert(
        0, f"minimum of a deployment of {PODS} pods: {parts} = {least.total()} writes; a gateway's pod is"
    )
    report.notes.insert(1, f"  made by its Deployment. Minimum of a roll of both roles: {roll_minimum()} writes.")
    report.notes.insert(
        2, "KubeRay's columns are recorded (1,000 RayClusters of 4 pods, feeaf72f, 2 cores): another run"
    )
    for name in dict.fromkeys(name for figures in runs.values() for name in figures):
        cells = [f"{figures[name]:.4g}" if name in figures else "" for figures in runs.values()]
        report.rows.append([name, *cells, *RECORDED.get(name, ("", ""))])


def _checks(size: int, figures: dict[str, float]) -> list[Check]:
    """The limits. Those on seconds and on processor time are set for 1,000 objects on two cores."""
    limits = {
        "writes per object ÷ minimum": 1.10,
        "writes per pod": 1.5,
        "idle: writes": 0.0,
        "restart: writes": 20.0,
        "delete all: writes": 0.0,
    }
    if size >= MANY:
        limits |= {
            "all Ready, s": 82.0 * size / MANY,
            "operator: ms per object": 2 * 16.0,
            "operator: peak memory MB": 250.0 * size / MANY,
            "idle: operator, millicores": 10.0 * size / MANY,
            "edit to pod, idle: longest ms": 100.0,
            "edit to pod while all roll: ms": 2000.0,
            "restart: each has had a pass, s": 5.0 * size / MANY,
        }
    named = (f"{size:,} objects, {name}" for name in limits)
    return [
        at_most(what, figures[name], limit)
        for what, (name, limit) in zip(named, limits.items(), strict=True)
        if name in figures
    ]
