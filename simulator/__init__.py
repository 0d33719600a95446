"""A fleet of prefill and decode engines that exists in numbers only: `python -m simulator --help`.

Routing is the gateway's own (`gateway/affinity.py`, `gateway/routing.py`), sizes are decided by the operator's own
policy (`plan/scaling`); engines, transfers, cold starts and failures are modelled. Every figure it gives is
*simulated*.
"""
