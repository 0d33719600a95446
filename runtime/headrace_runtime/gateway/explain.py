"""Why a request was routed as it was, in one line of plain words: for the header `x-headrace-routing`. Pure.

Numbers and names of engines, nothing else: whoever asks learns how much of the prompt is cached, and no more.
"""

from collections.abc import Sequence

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.routing import Choice, Engine, Need, Policy, Prompt


def explain(need: Need, engines: Sequence[Engine], choices: Sequence[Choice], policy: Policy) -> str:
    if not choices:
        return f"{policy}: none of {len(engines)} engines may serve this request"
    first, loads = choices[0], {engine.name: engine.load for engine in engines}

    def account(endpoint: Endpoint) -> str:
        if need.prompt is None:
            return f"{endpoint.name} ({loads[endpoint.name]} requests in flight)"
        return _account(need.prompt, endpoint.name)

    words = [f"{policy} chose {account(first.decode)} among {len(choices)}"]
    if first.prefill is not None:
        words.append(f"prefill on {account(first.prefill)}")
    if need.prompt is not None and need.split:
        words.append(_way(need.prompt, first))
    if len(choices) > 1:
        words.append(f"next best {account(choices[1].decode)}")
    return ", ".join(words)


def _account(prompt: Prompt, name: str) -> str:
    held, host, disk = (of.get(name, 0.0) for of in (prompt.held, prompt.host, prompt.disk))
    lower = "".join(f", {tokens:.0f} on its {tier}" for tier, tokens in (("host", host), ("disk", disk)) if tokens)
    return (
        f"{name} (holds {held + host + disk:.0f} of {prompt.tokens} prompt tokens{lower}; "
        f"{prompt.waiting.get(name, 0.0):.0f} tokens wait there, {prompt.writing.get(name, 0.0):.0f} are in answers)"
    )


def _way(prompt: Prompt, choice: Choice) -> str:
    """Whence the prompt's blocks come, and what that costs against the other way."""
    decode, prefill = choice.decode.name, choice.prefill
    by_itself = prompt.cost(decode)
    if prefill is None:
        return f"from its own tiers for {by_itself:.0f} tokens of work"
    work = f"for {prompt.cost(prefill.name):.0f} + {prompt.cost(decode, fetched=True):.0f} tokens of work"
    return f"prefill and transfer {work}, {by_itself:.0f} if {decode} were alone"
