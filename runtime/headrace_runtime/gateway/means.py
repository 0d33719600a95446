"""What all requests of a gateway share. Made by `flow.py` for each, as the contract is when it begins."""

import itertools
from dataclasses import dataclass

from headrace_runtime.contract import GatewayContract
from headrace_runtime.gateway.affinity import Affinity
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.kept import Allowance
from headrace_runtime.gateway.telemetry import Telemetry
from headrace_runtime.gateway.upstream import Pool


@dataclass(frozen=True, slots=True)
class Means:
    contract: GatewayContract
    fleet: Fleet
    pool: Pool
    telemetry: Telemetry
    turn: "itertools.count[int]"
    kept: Allowance
    affinity: Affinity
