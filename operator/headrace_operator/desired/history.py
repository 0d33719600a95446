"""The record of a revision: a ControllerRevision with what its engines are made from. Pure.

Made before the first engine of a revision and never changed again; `headrace_operator.history` reads it.
"""

from headrace_operator import history, names
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Subject


def record(subject: Subject, revision: str, number: int) -> Object:
    """The record of the subject's spec under its number in the history."""
    data: Object = {"spec": history.words_of(subject.spec)}
    if subject.manifest is not None:
        data["checksums"] = dict(subject.manifest)
    name = names.record(subject.name, revision)
    return {
        "apiVersion": "apps/v1",
        "kind": history.KIND,
        "metadata": metadata(subject.ref, name, "history", {names.REVISION: revision}),
        "data": data,
        "revision": number,
    }
