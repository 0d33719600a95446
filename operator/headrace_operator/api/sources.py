"""Where models and adapters may come from, and what their integrity may ask for: forms, and checks over several fields.

Pure. `rules.py` lists the checks beside their CEL twins. The forms are those that the agents' fetcher reads
(`headrace_runtime/models/sources.py`); a test shows the same cases to both.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

Problems = Iterator[Problem]


class Form(NamedTuple):
    """What must follow `scheme://`, as a regular expression that Python and CEL (RE2) read alike, and the fix."""

    pattern: str
    needs: str


_HOST: Final = "[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?"
_DIGEST: Final = "sha256:[0-9a-f]{64}"
FORMS: Final[dict[str, Form]] = {
    "node": Form("(/[^/]+)+", "needs an absolute path: write node:///folder/of/the/files"),
    "pvc": Form("[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*", "needs a claim's name and a path: write pvc://claim/path"),
    "hf": Form(
        "[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+@[0-9a-f]{40}",
        "needs a repository and a commit, all 40 hex digits: write hf://owner/name@commit",
    ),
    "oci": Form(
        f"{_HOST}(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@{_DIGEST})?",
        "is no reference: write oci://registry/repository:tag, or @sha256:digest after it",
    ),
    "s3": Form("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", "needs a bucket and a prefix: write s3://bucket/prefix"),
    "https": Form(
        f"{_HOST}/[^#]*(#sha256=[0-9a-f]{{64}})?",
        "is no address without credentials: write https://host/folder/, or https://host/file#sha256=digest",
    ),
}
MOUNTED: Final = ("node", "pvc")
FETCHED: Final = ("hf", "oci", "s3", "https")
SCHEMES: Final = tuple(f"{scheme}://" for scheme in (*MOUNTED, *FETCHED))

CEL_FORMS: Final = (
    " && ".join(
        f"(!self.startsWith('{scheme}://') || self.matches('^{scheme}://{form.pattern}$'))"
        for scheme, form in FORMS.items()
    )
    + " && (self.startsWith('node://') || self.startsWith('pvc://') ? !self.matches('/[.]{1,2}(/|$)') : true)"
)


def cel_fetched(text: str) -> str:
    """CEL: whether a source is one that is fetched."""
    return f"!({text}.startsWith('node://') || {text}.startsWith('pvc://'))"


_CEL_FETCHES: Final = (
    f"({cel_fetched('self.source')} || has(self.adapters) && self.adapters.exists(a, {cel_fetched('a.source')}))"
)
CEL_CREDENTIALS: Final = f"!has(self.credentialsSecretRef) || {_CEL_FETCHES}"
CEL_TRUST: Final = (
    "!has(self.integrity) || !has(self.integrity.trustUnchanged) || self.integrity.trustUnchanged != 'Boot' || "
    + cel_fetched("self.source")
)
CEL_OFF: Final = "!has(self.policy) || self.policy != 'Off' || !(has(self.signature) || has(self.rescan))"


def scheme_of(source: str) -> str:
    return source.partition("://")[0]


def fetched(source: str) -> bool:
    """Whether it is fetched into the node's cache; others are mounted."""
    return scheme_of(source) in FETCHED


def fetches(spec: InferenceDeploymentSpec) -> bool:
    """Whether engines fetch anything now."""
    return fetched(spec.model.source) or any(fetched(adapter.source) for adapter in spec.model.adapters)


def caches(spec: InferenceDeploymentSpec) -> bool:
    """Whether engines have the node's cache. Adapters come to running pods, whose volumes cannot change: so it does not
    depend on what they are, and one folder for them stands in its place."""
    lora = spec.engine.lora
    return fetched(spec.model.source) or (lora is not None and lora.folder is None)


def source(spec: InferenceDeploymentSpec) -> Problems:
    sources = {"spec.model.source": spec.model.source}
    sources |= {f"spec.model.adapters[{at}].source": one.source for at, one in enumerate(spec.model.adapters)}
    if spec.engine.lora is not None and spec.engine.lora.folder is not None:
        sources["spec.engine.lora.folder"] = spec.engine.lora.folder
    for path, source in sources.items():
        scheme, _, rest = source.partition("://")
        form = FORMS[scheme]
        if not re.fullmatch(form.pattern, rest):
            yield Problem(path, f"{_shown(source)} {form.needs}")
        if scheme in MOUNTED and {".", ".."} & set(rest.split("/")):
            yield Problem(path, f"{source!r} may not hold . or .. as a folder: write the path out")


def _shown(source: str) -> str:
    """Without what may be a password, or a token: messages stand in a status."""
    scheme, _, rest = source.partition("://")
    host, slash, path = rest.partition("/")
    return repr(f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}")


def credentials(spec: InferenceDeploymentSpec) -> Problems:
    if spec.model.credentials_secret_ref is not None and not fetches(spec):
        yield Problem("spec.model.credentialsSecretRef", "nothing is fetched from a source that is mounted: remove it")


def trust(spec: InferenceDeploymentSpec) -> Problems:
    if spec.model.integrity.trust_unchanged == "Boot" and not fetched(spec.model.source):
        yield Problem(
            "spec.model.integrity.trustUnchanged",
            "no record is kept of a model that is mounted: set Never, or fetch the model",
        )


def off(spec: InferenceDeploymentSpec) -> Problems:
    integrity = spec.model.integrity
    for field, given in (("signature", integrity.signature), ("rescan", integrity.rescan)):
        if integrity.policy == "Off" and given is not None:
            yield Problem(f"spec.model.integrity.{field}", 'policy "Off" checks nothing: remove it, or set Enforce')
