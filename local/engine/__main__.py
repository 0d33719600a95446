"""`python -m local.engine`: the engine on CPU and the test models, made once and kept in the user's cache."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import click

from local.engine import build, models


def timed(what: str, make: Callable[[], Path]) -> None:
    began = monotonic()
    path = make()
    click.echo(f"{what}: {path} ({monotonic() - began:.1f} s)")


@click.group()
def main() -> None:
    """The engine on CPU and the test models, made once and kept in the user's cache."""


@main.command("build")
def build_command() -> None:
    """Build the virtual environment with vLLM for CPU (2.4 GB; half a minute the first time)."""
    timed("engine", build.environment)


@main.command("models")
def models_command() -> None:
    """Make the test models: `smollm2` (a real one, 260 MB) and `tiny` (random, 8 MB). Builds the engine first."""
    timed("models", models.folder)


if __name__ == "__main__":
    main()
