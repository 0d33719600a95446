"""`manifests/install.yaml`: the chart with its default values as plain objects, for those who install without Helm.

`python -m local.chart` writes it, `--check` only compares. Rendered by the same helm that the demo and the tests use.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import click

from local import toolchain
from local.programs import run

REPOSITORY = Path(__file__).resolve().parent.parent
CHART = REPOSITORY / "charts" / "headrace"
INSTALL = REPOSITORY / "manifests" / "install.yaml"
NAMESPACE = "headrace-system"
HEAD = f"""# Made by `make generate` from charts/headrace; never edited. Install and upgrade with:
#   kubectl apply --server-side -f manifests/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def render(*arguments: str | Path, namespace: str = NAMESPACE, release: str = "headrace") -> str:
    """The objects that `helm install` would make, as YAML.

    Raises:
        LocalError: helm refuses the values or the chart; its words say which.
    """
    return run(toolchain.helm(), "template", release, CHART, "--namespace", namespace, *arguments) + "\n"


def install_manifest() -> str:
    """The text of `manifests/install.yaml`: the namespace, the CRDs, and the rest."""
    return HEAD + render("--include-crds")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; show the difference and fail if there is one.")
def main(check: bool) -> None:
    """Write manifests/install.yaml from the chart."""
    wanted = install_manifest()
    have = INSTALL.read_text() if INSTALL.exists() else ""
    if not check:
        INSTALL.write_text(wanted)
        return
    lines = list(difflib.unified_diff(have.splitlines(True), wanted.splitlines(True), INSTALL.name, "as generated"))
    if lines:
        click.echo("".join(lines), nl=False)
        sys.exit("manifests/install.yaml differs from the chart: run `make generate` and commit the result.")


if __name__ == "__main__":
    main()
