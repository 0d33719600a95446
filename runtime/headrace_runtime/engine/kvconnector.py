"""vLLM's offloading connector, told of requests as they come. Loaded by vLLM, which `connectors.py` points here.

Two things are known only here, before the scheduler gets to a request: which blocks it will need, so that the disk does
not drop them while the request waits in the queue; and that its blocks come from a prefill engine over the network, so
that they are not read from the disk as well.

`OffloadingConnector` of vLLM 0.32 (vllm/distributed/kv_transfer/kv_connector/v1/offloading_connector.py).
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector as Connector


class OffloadingConnector(Connector):  # type: ignore[misc] # vLLM is not there to be type-checked
    """Found by its name: `kv_connector` together with `kv_connector_module_path`."""

    def on_new_request(self, request: Any) -> None:
        super().on_new_request(request)
        scheduler = self.connector_scheduler
        state = scheduler._req_status[request.request_id]
        if (request.kv_transfer_params or {}).get("do_remote_prefill"):
            state.max_load_tokens = 0
            return
        state.update_offload_keys()
        keys = [key for group in state.group_states for key in group.offload_keys]
        scheduler.manager.touch(keys, state.req_context)
