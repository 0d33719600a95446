"""Starts vLLM engines on CPU in seconds: imports vLLM once, then forks each engine from the warm process.

Run as `python3 -m headrace_runtime.engine.zygote [MODULE...]` by the agent (`node/`), one per pod; each MODULE is one
that this engine needs and not all do. The engine's environment (`arguments.Command.env`) is already set: libraries read
some of it while they load (OMP_NUM_THREADS, HF_HUB_OFFLINE).
Most of a cold start of `vllm serve` on CPU is importing, twice: in the API server, and in EngineCore, which the CPU
platform spawns anew. Here both are forks. Not for GPUs: a process must not be forked once CUDA runs in it.

Protocol: one JSON object per line.

    in   {"start": {"argv": [...], "env": {...}, "log": "PATH"}}
             argv follows `vllm serve`; env is added to the zygote's own; output is appended to the log
    out  {"ready": 13.1}
             once, when vLLM is imported: the seconds it took. Lines in may be sent before it.
    out  {"started": 123}
             one per line in, in their order. The pid is also the process group and the session.
    out  {"exited": 123, "status": 1}
             exit code, or minus the number of a signal. Its whole group has been killed by then.

An engine that ends by itself has failed: its status is never 0, though vLLM's own is 0 when EngineCore dies. To end
one, signal it or its group. Closing stdin ends the zygote with status 0, and every engine with it; a line that it does
not understand ends it with status 2.

Nothing outlives its parent: the zygote and every fork, down to EngineCore's helpers, ask the kernel for SIGKILL when
their parent dies (prctl(2), PR_SET_PDEATHSIG; it is the thread that started the zygote that counts). The zygote never
starts a thread itself, since only the forking thread lives on in a child.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NoReturn, TypedDict

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)

WARM = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.render.entry",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.renderers.hf",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
    "headrace_runtime.engine.replay",
    "headrace_runtime.engine.replay_worker",
    "compressed_tensors",
    "model_hosting_container_standards.sagemaker",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
"""What an API server and an EngineCore on CPU import, by its roots: found by asking a started engine what it had loaded
and this process had not. Leaving one out costs time, nothing else."""


class Start(TypedDict):
    """One engine to fork."""

    argv: list[str]
    env: dict[str, str]
    log: str


class Zygote:
    """The warm parent: reads orders, forks engines, reports their ends."""

    def __init__(self, orders: int, reports: int) -> None:
        """`orders` and `reports` are file descriptors, used past Python's buffers: a fork would copy those."""
        self.orders = orders
        self.reports = reports
        self.unread = b""

    def run(self) -> int:
        """Serve until `orders` ends. Returns the exit status: 0, or 2 after a line that was not understood."""
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.orders, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == woken:
                        os.read(woken, 4096)
                        for pid, status in bury_the_dead():
                            self.report(exited=pid, status=status)
                    elif not (chunk := os.read(self.orders, 65536)):
                        return 0
                    elif not self.obey(chunk):
                        return 2

    def obey(self, chunk: bytes) -> bool:
        """Fork an engine for each line that is complete now. False when one is not understood."""
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        for line in lines:
            try:
                start = parse(line)
            except ValueError as problem:
                sys.stderr.write(f"zygote: {problem}\n")
                return False
            self.report(started=self.fork(start))
        return True

    def fork(self, start: Start) -> int:
        """The pid of a new engine, which leads its own group by now: whoever is told the pid may signal the group."""
        grouped, group = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(group)
            os.close(grouped)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(self.reports)
            become_engine(start)
        os.close(group)
        os.read(grouped, 1)
        os.close(grouped)
        return pid

    def report(self, **words: float) -> None:
        os.write(self.reports, json.dumps(words).encode() + b"\n")


def parse(line: bytes) -> Start:
    """The order in one line. Raises ValueError, which quotes nothing of it: an environment may hold a token."""
    try:
        match json.loads(line):
            case {"start": {"argv": [*argv], "env": {**env}, "log": str(log)}}:
                return Start(argv=[str(word) for word in argv], env={str(k): str(v) for k, v in env.items()}, log=log)
    except ValueError:
        pass
    raise ValueError('stdin: a line that is not {"start": {"argv": [...], "env": {...}, "log": "PATH"}}')


def become_engine(start: Start) -> NoReturn:
    """In the forked child: run `vllm serve`, and never come back."""
    status = 1
    try:
        log = os.open(start["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.environ.update(start["env"])
        sys.argv = ["vllm", "serve", *start["argv"]]
        importlib.import_module("vllm.entrypoints.cli.main").main()
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code or 1
        elif end.code:
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()  # the child's last words: without them a failed engine looks like one that chose to end
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def bury_the_dead() -> Iterator[tuple[int, int]]:
    """(pid, status) of each engine that ended. Its group is killed first, while its pid still cannot be another's."""
    with suppress(ChildProcessError):
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(dead.si_pid, signal.SIGKILL)
            _, status = os.waitpid(dead.si_pid, 0)
            yield dead.si_pid, os.waitstatus_to_exitcode(status)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends; end now if `parent` already has."""
    if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def bind_forks_to_their_parents() -> None:
    """From now on each `os.fork` here, and in the children of it, gives a process that dies with its parent."""
    parent = os.getpid()

    def remember() -> None:
        nonlocal parent
        parent = os.getpid()

    os.register_at_fork(before=remember, after_in_child=lambda: die_with(parent))


def import_vllm(modules: Sequence[str]) -> None:
    """Import what engines will need, and keep vLLM from starting Pythons anew where there is no CUDA to protect.

    `CpuPlatform.check_and_update_config` sets VLLM_WORKER_MULTIPROC_METHOD to spawn whatever the user chose, so the
    function that reads it is replaced, before the modules that import it by name are loaded. And the registry asks a
    new process about a model's class, which imports everything once more, unless an earlier engine cached the answer.
    """
    import vllm.utils.system_utils as system  # noqa: PLC0415 - takes seconds, and the tests of `parse` need none of it

    system.get_mp_context = lambda: multiprocessing.get_context("fork")
    for module in (*WARM, *modules):
        importlib.import_module(module)
    from vllm.model_executor.models import registry  # noqa: PLC0415

    registry._run_in_subprocess = lambda ask: ask()


def main() -> NoReturn:
    reports = os.dup(1)
    os.dup2(2, 1)  # what libraries print while they load is no report
    die_with(os.getppid())
    bind_forks_to_their_parents()
    began = time.monotonic()
    import_vllm(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    zygote = Zygote(orders=0, reports=reports)
    zygote.report(ready=round(time.monotonic() - began, 1))
    status = zygote.run()
    sys.stderr.flush()
    os._exit(status)  # what vLLM registered to run at exit belongs to the engines


if __name__ == "__main__":
    main()
