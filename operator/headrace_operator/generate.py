"""The files that are made from code, and the check that they are as the code would make them.

`python -m headrace_operator.generate` writes them, `--check` only compares and fails on a difference. A generated file
is a line of `GENERATORS`: its path in the repository and the function that gives its text.
"""

import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from headrace_operator import permissions
from headrace_operator.api.crd import crd_yaml, role_crd_yaml
from headrace_operator.api.reference import api_docs_markdown

CRD_FILE: Final = "inferencedeployments.headrace.dev.yaml"
ROLE_CRD_FILE: Final = "inferenceroles.headrace.dev.yaml"

GENERATORS: Final[Mapping[str, Callable[[], str]]] = {
    f"crds/{CRD_FILE}": crd_yaml,
    f"charts/headrace/crds/{CRD_FILE}": crd_yaml,
    f"crds/{ROLE_CRD_FILE}": role_crd_yaml,
    f"charts/headrace/crds/{ROLE_CRD_FILE}": role_crd_yaml,
    "charts/headrace/templates/_permissions.tpl": permissions.chart_template,
    "docs/api.md": api_docs_markdown,
}

REPOSITORY: Final = Path(__file__).parents[2]


def write(root: Path) -> list[str]:
    """Write every generated file under `root` and name those that changed."""
    changed = []
    for path, text in _texts().items():
        file = root / path
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            changed.append(path)
    return changed


def differences(root: Path) -> str:
    """A unified diff from the files under `root` to what they should be; empty when nothing differs."""
    return "".join(_difference(root, path, text) for path, text in _texts().items())


def _texts() -> dict[str, str]:
    return {path: make() for path, make in GENERATORS.items()}


def _difference(root: Path, path: str, wanted: str) -> str:
    file = root / path
    have = file.read_text() if file.exists() else ""
    lines = difflib.unified_diff(have.splitlines(True), wanted.splitlines(True), path, f"{path} as generated")
    return "".join(lines)


@click.command(help="Write the files that are generated from code: CRDs, the chart's copy of them, the API page.")
@click.option("--check", is_flag=True, help="Write nothing; show the difference and fail if there is one.")
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=REPOSITORY, help="The repository's root folder."
)
def main(check: bool, root: Path) -> None:
    if not check:
        for path in write(root):
            click.echo(f"wrote {path}")
        return
    if difference := differences(root):
        click.echo(difference, nl=False)
        sys.exit("Generated files differ from the code: run `make generate` and commit the result.")


if __name__ == "__main__":
    main()
