"""vLLM's scheduler, for requests that go on where another engine was lost. Loaded by vLLM (`--scheduler-cls`, which
`arguments.py` sets); vLLM itself is unchanged.

A request may bring the tokens that its client has already (`contract.REPLAY_FIELD` in `vllm_xargs`). To vLLM it then
is a request that was preempted after those tokens, which vLLM knows how to take up again: it computes the prompt and
them in one go, or finds them in its caches, and holds them as output. So limits, stop tokens, penalties, bad words,
seeds and the worker's state are what they would have been. Two things a preempted request need not do are added: the
grammar of a structured output reads the tokens before it may mask the next one, and the first event of the request
begins with them, so that the front end (text, stop strings, tool calls, reasoning, logprobs, usage) sees one
undisturbed request. Their logprobs are placeholders of 0.

What cannot be taken up (no token ids, ids out of the vocabulary, prompts given as embeddings, prompt logprobs) ends
with an error of that request alone. One that is over already (a stop token, `max_tokens`) ends at once, as it did.
Replayed tokens count in vLLM's metrics as prompt tokens, and as generated ones. A prefill that hands its KV to another
engine (`do_remote_decode`) takes them for prompt: it still gives one new token for `max_tokens: 1`.

`vllm/v1/core/sched/scheduler.py` of vLLM 0.32. The workers' half is `replay_worker.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.diffusion_scheduler import DiffusionAsyncScheduler, DiffusionScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request, RequestStatus

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.engine.arguments import WORKER_EXTENSION

logger = init_logger(f"vllm.{__name__}")


@dataclass(frozen=True, slots=True)
class Replay:
    """What a request brings."""

    prompt: list[int]
    token_ids: list[int]


def scheduler(*, vllm_config: Any, **parts: Any) -> Any:
    """The scheduler that vLLM would take for this configuration, able to replay. vLLM calls this as a class."""
    is_async = vllm_config.scheduler_config.async_scheduling
    if vllm_config.diffusion_config is not None:  # writes whole blocks of tokens over and over: nothing to go on from
        kind = DiffusionAsyncScheduler if is_async else DiffusionScheduler
    else:
        kind = AsyncReplayScheduler if is_async else ReplayScheduler
    return kind(vllm_config=vllm_config, **parts)


class ReplayScheduler(Scheduler):  # type: ignore[misc] # vLLM is not there to be type-checked
    """Costs a request without a replay one look into its `extra_args`, and a step without one nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replays: dict[str, Replay] = {}
        """By request, until its first output."""
        self._ended: dict[str, RequestStatus] = {}
        """Requests that are over as they come: never scheduled, ended by the next `update_from_output`."""
        workers = self.vllm_config.parallel_config.worker_extension_cls
        self._workers_can = self.use_v2_model_runner or workers == WORKER_EXTENSION

    def add_request(self, request: Request) -> None:
        asked = replay_of(request)
        if asked not in (None, []) and request.request_id not in self.requests:
            self._take_up(request, asked)
        super().add_request(request)

    def _take_up(self, request: Request, asked: object) -> None:
        vocabulary = self.vllm_config.model_config.get_vocab_size()
        problem = problem_with(request, asked, vocabulary) if self._workers_can else "the workers cannot replay"
        if problem:
            logger.error("request %s cannot be taken up: %s", request.request_id, problem)
            self._ended[request.request_id] = RequestStatus.FINISHED_ERROR
            return
        replay = Replay(list(request.prompt_token_ids), list(asked))  # type: ignore[call-overload] # was looked at
        waiting = request.status
        request.append_output_token_ids(replay.token_ids)
        over = check_stop(request, self.max_model_len)
        ended, request.status = request.status, waiting
        if is_prefill(request):
            hold_as_prompt(request, replay)
            del request.sampling_params.extra_args[REPLAY_FIELD]  # prompt to the workers too
        elif over:
            self._replays[request.request_id] = replay
            self._ended[request.request_id] = ended
        else:
            # Until it is scheduled: connectors and the prefix cache look for the KV of its prompt.
            hold_as_prompt(request, replay)
            self._replays[request.request_id] = replay

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        if request.request_id in self._ended:
            return False
        for_grammar = request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        ready = bool(super()._handle_blocked_waiting_request(request))
        replay = self._replays.get(request.request_id)
        if replay and ready and for_grammar and not self._read_by_grammar(request, replay):
            self._ended[request.request_id] = RequestStatus.FINISHED_ERROR
            return False
        return ready

    def _read_by_grammar(self, request: Request, replay: Replay) -> bool:
        """Whether the grammar allows the tokens; it has read them then."""
        held, request.prompt_token_ids = request.prompt_token_ids, replay.prompt  # where it looks for reasoning's end
        accepted = self.structured_output_manager.accept_tokens(request, list(replay.token_ids))
        request.prompt_token_ids = held
        if not accepted:
            logger.error("request %s cannot be taken up: its grammar refuses the tokens", request.request_id)
        return bool(accepted)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output = super().schedule(*args, **kwargs)
        if self._replays:
            for new in output.scheduled_new_reqs:
                replay = self._replays.get(new.req_id)
                request = self.requests[new.req_id]
                if replay and not request.num_output_tokens:
                    hold_as_output(request, replay)
                    new.prompt_token_ids = request.prompt_token_ids
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        scheduled = scheduler_output.num_scheduled_tokens
        replays = {name: replay for name, replay in self._replays.items() if name in scheduled}
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        if replays:
            for output in (output for group in outputs.values() for output in group.outputs):
                replay = replays.get(output.request_id)
                if replay and output.new_token_ids:
                    begin_with(output, replay)
                    self._replays.pop(output.request_id, None)
        for name, status in list(self._ended.items()):
            self._end(name, status, outputs)
        return outputs

    def _end(self, name: str, status: RequestStatus, outputs: dict[int, EngineCoreOutputs]) -> None:
        replay = self._replays.get(name)
        for request in self.finish_requests(name, status):
            output = EngineCoreOutput(
                request_id=name,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=request.stop_reason,
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
            if replay and output.finish_reason != FinishReason.ERROR:
                if request.sampling_params.num_logprobs is not None:
                    output.new_logprobs = placeholders([], width=1)
                begin_with(output, replay)
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._replays.pop(request.request_id, None)
        self._ended.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)


class AsyncReplayScheduler(ReplayScheduler, AsyncScheduler):  # type: ignore[misc] # as above
    """The same where steps overlap."""


def replay_of(request: Request) -> object:
    """What the request asks to replay, unchecked; None if nothing."""
    sampling = request.sampling_params
    return (sampling.extra_args or {}).get(REPLAY_FIELD) if sampling is not None else None


def problem_with(request: Request, asked: object, vocabulary: int) -> str:
    """Why the request cannot be taken up with these tokens; empty if it can. Quotes nothing of them."""
    if not isinstance(asked, list) or not all(type(token) is int for token in asked):
        return f"{REPLAY_FIELD} is not a list of token ids"
    if min(asked) < 0 or max(asked) >= vocabulary:
        return f"{REPLAY_FIELD} holds ids outside of the vocabulary of {vocabulary}"
    if request.prompt_token_ids is None or request.prompt_is_token_ids is not None:
        return "its prompt holds embeddings"
    if request.sampling_params.prompt_logprobs is not None:
        return "it asks for logprobs of its prompt"
    if request.resumable:
        return "its prompt is still being streamed"
    return ""


def is_prefill(request: Request) -> bool:
    params: Mapping[str, Any] = request.kv_transfer_params or {}
    return bool(params.get("do_remote_decode"))


def hold_as_prompt(request: Request, replay: Replay) -> None:
    request.prompt_token_ids = replay.prompt + replay.token_ids
    request.num_prompt_tokens = len(request.prompt_token_ids)
    request._output_token_ids.clear()


def hold_as_output(request: Request, replay: Replay) -> None:
    request.prompt_token_ids = replay.prompt
    request.num_prompt_tokens = len(replay.prompt)
    request._output_token_ids.extend(replay.token_ids)


def begin_with(output: EngineCoreOutput, replay: Replay) -> None:
    """Put the replayed tokens before those of this output."""
    output.new_token_ids = replay.token_ids + output.new_token_ids
    if (new := output.new_logprobs) is not None:
        old = placeholders(replay.token_ids, width=new.logprobs.shape[1])
        pairs = zip(old[:3], new[:3], strict=True)
        output.new_logprobs = LogprobsLists(*(np.concatenate(pair).astype(pair[1].dtype) for pair in pairs))


def placeholders(token_ids: list[int], width: int) -> LogprobsLists:
    """A row for each token, as if it had been certain. The front end makes one entry of equal ids."""
    ids = np.repeat(np.array(token_ids, dtype=np.int32).reshape(-1, 1), width, axis=1)
    return LogprobsLists(ids, np.zeros(ids.shape, dtype=np.float32), np.ones(len(token_ids), dtype=np.int32))
