"""kopf that watches InferenceDeployments and does nothing: the floor under every operator on kopf.

`python -m bench.noop`, run by `scale` with KUBECONFIG. It says on one line of standard output, whenever 0.2 s have
brought something new, how many InferenceDeployments it has seen, and when (Unix seconds).
"""

import asyncio
import sys
import time
from typing import Any

import kopf

from headrace_operator import names
from headrace_operator.handlers import kopf_settings


def registry(seen: set[str]) -> kopf.OperatorRegistry:
    hooks = kopf.OperatorRegistry()

    @kopf.on.login(registry=hooks)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=hooks)
    async def changed(uid: str, **_: Any) -> None:
        seen.add(uid)

    return hooks


async def report(seen: set[str]) -> None:
    """Until cancelled."""
    told = -1
    while True:
        if len(seen) != told:
            told = len(seen)
            sys.stdout.write(f"{told} {time.time():.3f}\n")
            sys.stdout.flush()
        await asyncio.sleep(0.2)


async def main() -> None:
    seen: set[str] = set()
    telling = asyncio.create_task(report(seen))
    try:
        await kopf.operator(registry=registry(seen), settings=kopf_settings(), standalone=True, clusterwide=True)
    finally:
        telling.cancel()


if __name__ == "__main__":
    asyncio.run(main())
