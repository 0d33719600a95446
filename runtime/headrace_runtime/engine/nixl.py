"""vLLM's NIXL connector with a progress thread that rests. Loaded by vLLM, which `arguments.py` points here.

NIXL's Python API creates each agent with `pthrDelay = 0`: the thread that drives transfers polls without pause, a whole
processor core per engine, idle or not (nixl/_api.py, `nixl_agent.__init__`; NIXL 1.5.1 has no setting for it). With 50
microseconds between polls an idle engine takes 0.02 of a core, and two engines on two cores served 48 requests/s, not
19. Measured on CPU; a transfer takes milliseconds on any device, so the pause is small beside it.
"""

from typing import Any

import nixl._api
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlConnector as Connector

PAUSE_MICROSECONDS = 50


class RestingBindings:
    """NIXL's native module, whose agents get the pause just before they are created."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def nixlAgent(self, name: str, config: Any) -> Any:  # noqa: N802 - the native module's name
        config.pthrDelay = PAUSE_MICROSECONDS
        return self._native.nixlAgent(name, config)


class NixlConnector(Connector):  # type: ignore[misc] # vLLM is not there to be type-checked
    """Found by its name: `kv_connector` together with `kv_connector_module_path`."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        if not isinstance(nixl._api.nixlBind, RestingBindings):
            nixl._api.nixlBind = RestingBindings(nixl._api.nixlBind)
        super().__init__(vllm_config, role, kv_cache_config)
