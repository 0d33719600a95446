"""What the engine's tier of KV blocks on disk says of itself, as the agent's state has it. Called by `agent.py`."""

import logging
from pathlib import Path

from headrace_runtime.contract import KvState, NodeContract
from headrace_runtime.kv import report

log = logging.getLogger(__name__)

UNVERIFIED = KvState(
    ready=False,
    reason="WeightsUnverified",
    message="KV blocks are not kept on disk: nothing says which weights they belong to, since model.integrity.policy "
    "is Off",
)


class KvTier:
    """Of one pod. The engine writes its state into the pod's run directory (`kv/report.py`)."""

    def __init__(self, contract: NodeContract, run_dir: Path) -> None:
        tiers = contract.engine.kv_tiers
        self._wanted = tiers is not None and tiers.disk is not None
        self._run_dir = run_dir
        self._weights: str | None = None
        self._started = False

    def engine_starts(self, weights: str | None) -> None:
        """A new engine, started with this digest of its weights: what the last one said is over."""
        self._weights, self._started = weights, True
        if self._wanted:
            report.clear(self._run_dir)

    def state(self) -> KvState | None:
        """None: no tier is wanted, or it has said nothing yet."""
        if not self._wanted or not self._started:
            return None
        if self._weights is None:
            return UNVERIFIED
        try:
            return report.read(self._run_dir)
        except OSError as error:
            log.warning("the state of the KV tier cannot be read: %s", error)
            return KvState(ready=False, message="the engine's word on its KV blocks cannot be read")
