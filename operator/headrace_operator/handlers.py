"""The only door to kopf: it tells us that something changed, and nothing more.

Two hooks: cleanup, and an event of our own kind (there is an object to look after, or there no longer is). Children are
watched by `cluster/mirror.py`: a task and a queue for each of them cost more than all else. All work is done by
`worker.py`. kopf keeps no state of its own: without its change handlers, timers and daemons it writes neither
annotations nor finalizers, and posting and peering are off.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import kopf

from headrace_operator import names
from headrace_operator.settings import Settings
from headrace_operator.state import Ref
from headrace_operator.worker import Workers

logger = logging.getLogger(__name__)

GROWING = (0.5, 1.0, 2.0, 5.0, 10.0)


def registry(workers: Workers) -> kopf.OperatorRegistry:
    """The hooks, bound to one set of workers."""
    hooks = kopf.OperatorRegistry()

    @kopf.on.login(registry=hooks)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.cleanup(registry=hooks)
    async def cleanup(**_: Any) -> None:
        await workers.close()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=hooks)
    async def changed(type: str | None, meta: Mapping[str, Any], **_: Any) -> None:  # noqa: A002 - kopf's word
        if type == "DELETED" or meta.get("deletionTimestamp"):
            workers.end(meta["uid"])
        else:
            ref = Ref(meta["namespace"], meta["name"], meta["uid"])
            # No type: it was listed, and may be as old as the hills.
            workers.notice(ref, meta["generation"], fresh=type == "ADDED")

    return hooks


class Pauses:
    """Seconds before a call that failed is tried again, for ever: an API server may be away for hours."""

    def __iter__(self) -> Iterator[float]:
        return chain(GROWING, repeat(GROWING[-1]))


def kopf_settings() -> kopf.OperatorSettings:
    """kopf as quiet and as quick as it can be; the reasons stand beside each line."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # each log line would be an Event
    settings.scanning.disabled = True  # kinds and namespaces are fixed: no watch on CRDs and namespaces
    settings.peering.standalone = True  # who works is decided before kopf runs: election.py
    settings.queueing.idle_timeout = 1.0  # a queue per object is kept this long: memory
    settings.watching.inactivity_timeout = 45.0  # a watch that died without a word
    settings.networking.error_backoffs = Pauses()  # kopf ends the process when they do
    return settings


async def run(
    workers: Workers,
    settings: Settings,
    stop: asyncio.Event | threading.Event | None = None,
    claim_signals: Callable[[], None] | None = None,
) -> None:
    """Run until `stop` is set, or until a signal comes. kopf takes the signals of the process for itself;
    `claim_signals` is called when it has, for a caller who wants them back."""
    before = asyncio.all_tasks()
    try:
        tasks = await kopf.spawn_tasks(
            registry=registry(workers),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not settings.namespace_list,
            namespaces=settings.namespace_list,
            stop_flag=stop,
        )
        if claim_signals is not None:
            claim_signals()
        await kopf.run_tasks(tasks, ignored=before)
    finally:
        await workers.close()
