"""Who answers an ask for sizes: the built-in policy, or one of the user's own.

The rim around `plan/scaling`. Called by `reconcile.py` once per pass where `scaling.mode` is SLO. It gives an answer
whatever happens.
"""

from headrace_operator.plan.scaling import Answer, Ask, decide


class Policy:
    """All policies of this process, by the names that specs give them. Nothing is started before it is asked for."""

    async def decide(self, name: str, ask: Ask) -> Answer:
        """The answer of the policy of this name, within all bounds. `Answer.policy` says whose it is."""
        return decide(ask)

    async def close(self) -> None:
        """End what was started. Asked again, it starts anew."""
