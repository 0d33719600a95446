"""The operator's own figures, and the small HTTP server that shows them beside the liveness check.

`/healthz` is answered by the event loop that all workers run on: no answer means that it is stuck. `/metrics` is
Prometheus' text format. Counters are module constants, registered once.
"""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

LEADER = Gauge("headrace_operator_leader", "1 while this process is the one that works, 0 while it stands by")
WORKERS = Gauge("headrace_workers", "InferenceDeployments that are looked after")
PASS_SECONDS = Histogram(
    "headrace_pass_seconds",
    "Seconds of one pass over one object",
    buckets=(0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 3, 10, 30),
)
CALLS = Counter("headrace_api_calls", "Calls to the API server", ("method", "resource"))
POLICY_FAILURES = Counter("headrace_policy_failures", "Own scaling policies that gave no answer", ("policy", "reason"))
ERRORS = Counter("headrace_errors", "Passes that failed", ("reason",))


async def serve(port: int) -> web.AppRunner:
    """Serve until the runner is cleaned up."""
    app = web.Application()
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    return runner


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
