"""`headrace simulate`: the simulator, where it is installed.

The simulator shares the gateway's routing and so needs the runtime's libraries, which the operator's image does not
have. It is imported when it is asked for; its options are its own (`simulator/__main__.py`).
"""

from typing import Any

import click


class Deferred(click.Command):
    """Hands everything over to the simulator's command."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The simulator's own context. ClickException: something that it needs is not installed."""
        try:
            from simulator.__main__ import main  # noqa: PLC0415 - see the module
        except ModuleNotFoundError as error:
            if extra.get("resilient_parsing"):  # a shell that completes the line has no use for a message
                return super().make_context(info_name, args, parent, **extra)
            raise click.ClickException(
                f"the simulator is not installed here (there is no module {error.name}): "
                "pip install 'headrace[simulator]', or `make install` in a clone of the repository"
            ) from error
        return main.make_context(info_name, args, parent, **extra)


simulate = Deferred("simulate", short_help="Try policies on a fleet that exists in numbers only.")
