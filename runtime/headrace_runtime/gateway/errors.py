"""The answers that the gateway writes itself: OpenAI-shaped errors, as a JSON body or as the last event of a stream.

Pure. An engine's own errors are passed on as they came; these are for what never reached an engine, or never came back.
"""

import math
from collections.abc import Sequence

import orjson

from headrace_runtime.contract import RoleName
from headrace_runtime.gateway.gate import Cause, Refusal

RETRY_AFTER_SECONDS = 1


class RequestError(Exception):
    """One error answer: HTTP status and the fields of OpenAI's error object. Raised anywhere before the first token."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, retry: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry = retry
        """Whether the same request may well succeed a moment later: the answer then carries `Retry-After`."""

    @property
    def kind(self) -> str:
        """The `type` of OpenAI's error object."""
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self) -> bytes:
        """The same as one server-sent event."""
        return b"data: %b\n\n" % self.body()

    def headers(self) -> list[tuple[str, str]]:
        found = [("content-type", "application/json")]
        if self.retry:
            found.append(("retry-after", str(RETRY_AFTER_SECONDS)))
        return found


class EngineAnsweredError(Exception):
    """No engine gave a first token, and the last one said why: its `status` and `body` are the answer."""

    def __init__(self, error: RequestError, status: int, body: bytes) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = status
        self.body = body


_REFUSALS: dict[Cause, tuple[int, str, str]] = {
    "key_requests": (429, "requests", "This key may send {limit} requests per minute."),
    "key_tokens": (429, "tokens", "This key may use {limit} tokens per minute."),
    "key_concurrency": (429, "requests", "This key may have {limit} requests under way, and more are waiting."),
    "too_many_tokens": (429, "tokens", "The request alone is more than the {limit} tokens that a minute allows."),
    "queue_full": (503, "server_error", "The deployment is at its limit, and its queue is full."),
    "queue_wait": (503, "server_error", "The deployment is at its limit, and the request has waited its time."),
    "hold_full": (503, "server_error", "No engine is running, and {limit} requests wait for one already."),
    "hold_wait": (503, "server_error", "No engine is running, and the request has waited its time for one."),
    "leaving": (503, "server_error", "This gateway is about to end: another one answers."),
}
"""HTTP status, OpenAI's `type`, and the message."""


class NotAdmittedError(RequestError):
    """A request that was not let in, with the time of a better try and OpenAI's `x-ratelimit-` headers."""

    def __init__(self, refusal: Refusal, limits: Sequence[tuple[str, str]] = ()) -> None:
        status, self._kind, message = _REFUSALS[refusal.cause]
        code = "rate_limit_exceeded" if status == 429 else "overloaded"
        super().__init__(status, message.format(limit=refusal.limit), code)
        self.cause = refusal.cause
        self._seconds = refusal.seconds
        self._limits = limits

    @property
    def kind(self) -> str:
        return self._kind

    def headers(self) -> list[tuple[str, str]]:
        # OpenAI's own clients try again after any 429, unless they are told so.
        again = ("x-should-retry", "false") if self._seconds is None else ("retry-after", _whole(self._seconds))
        return [*super().headers(), again, *self._limits]


def _whole(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))


class NoKeyError(RequestError):
    """The caller did not say who it is, or is nobody known."""

    def __init__(self, given: bool) -> None:
        message = "This API key is not known." if given else "An API key is needed: send `Authorization: Bearer KEY`."
        super().__init__(401, message, "invalid_api_key")

    def headers(self) -> list[tuple[str, str]]:
        return [*super().headers(), ("www-authenticate", "Bearer")]


def malformed(message: str, param: str | None = None) -> RequestError:
    return RequestError(400, message, "invalid_request", param=param)


def unknown_model(model: str, served: Sequence[str]) -> RequestError:
    names = ", ".join(f"`{name}`" for name in served)
    message = f"The model `{model[:200]}` does not exist. This deployment serves {names}."
    return RequestError(404, message, "model_not_found", param="model")


def unknown_route(path: str) -> RequestError:
    return RequestError(404, f"There is no route {path[:200]}.", "unknown_url")


def method_not_allowed(method: str, path: str) -> RequestError:
    return RequestError(405, f"{path} does not take {method[:20]}.", "method_not_allowed")


def body_too_large(limit: int) -> RequestError:
    return RequestError(413, f"The request body is larger than {limit} bytes.", "request_too_large")


def head_too_large(limit: int) -> RequestError:
    return RequestError(431, f"The request's head is larger than {limit} bytes.", "request_too_large")


def too_slow(what: str, seconds: float) -> RequestError:
    return RequestError(408, f"The request's {what} did not arrive within {seconds:g} s.", "request_timeout")


def too_many_connections(limit: int) -> RequestError:
    return RequestError(503, f"This gateway holds {limit} connections, its limit.", "overloaded", retry=True)


def too_much_held() -> RequestError:
    return RequestError(503, "This gateway holds as many bytes of requests as it may.", "overloaded", retry=True)


class NoEngineError(RequestError):
    """Nobody is there to ask, or nobody is left."""


def no_engine(canary: str | None) -> NoEngineError:
    of = f" of revision {canary[:64]}" if canary else ""
    return NoEngineError(503, f"No engine{of} is ready to answer.", "no_engine_ready", retry=True)


def adapter_not_loaded(adapter: str) -> RequestError:
    message = f"No engine has loaded the adapter `{adapter}` yet."
    return RequestError(503, message, "adapter_not_loaded", param="model", retry=True)


def engines_failed(tries: int, cause: str) -> RequestError:
    message = f"No engine gave a first token in {tries} tries; the last one: {cause}."
    return RequestError(503, message, "engine_failed", retry=True)


def transfer_failed(role: RoleName, cause: str) -> RequestError:
    message = f"The KV transfer failed at the {role} engine ({cause}) and the deployment forbids to compute it again."
    return RequestError(502, message, "kv_transfer_failed", retry=True)


def stream_broken() -> RequestError:
    """After the first token: what was sent stays, the stream ends with this event."""
    return RequestError(500, "The engine was lost while it answered; the answer is incomplete.", "engine_lost")


def internal() -> RequestError:
    return RequestError(500, "The gateway failed on this request; its log names the cause.", "internal_error")
