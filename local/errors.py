"""The one error of this package: a sentence for a person, which names what is wrong and how to mend it."""

from __future__ import annotations

import click


class LocalError(click.ClickException):
    """Shown by the command line as `Error: ...` with exit status 1; its message is one or a few plain sentences."""
