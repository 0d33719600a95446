"""The file that `record` writes and `replay` reads: what sizes were decided from, moment by moment, as lines of JSON.

A header begins each session of recording; every line after it is one moment: what the spec says of sizes, what the
status says of them, the pods, and what each gateway had counted. Only the fields of these models are written, and no
model has a place for a prompt, a key, an environment variable or a pod template. Reading and writing are pure but for
the file; lines are whole or absent, so that a file that was cut off is read up to there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.state import Object, Observed, Pod, Termination
from headrace_runtime.contract import GatewayFigures

FORMAT: Final = "headrace.dev/recording-v1"
SPEC: Final = (
    ("suspend",),
    ("paused",),
    ("scaling",),
    ("slo",),
    ("parallelism",),
    ("engine", "device"),
    ("disaggregation", "roleChange"),
    ("rollout", "maxSurge"),
    ("rollout", "maxUnavailable"),
)
"""Of the spec, what sizes are decided by."""
ROLE: Final = (("name",), ("replicas",), ("scaling",), ("parallelism",), ("engine", "device"))
NO_MODEL: Final = {"source": "node:///not/recorded"}


class RecordingError(ValueError):
    """A file that is no recording, or one of another version: the text says which line."""


class _Written(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class RecordedPod(_Written):
    """An engine's pod or a gateway's."""

    name: str
    component: Literal["engine", "gateway"]
    role: str = ""
    revision: str = ""
    ready: bool = False
    going: bool = False
    failed: bool = False
    created: AwareDatetime | None = None
    ready_since: AwareDatetime | None = None
    gang: str = ""
    rank: int = 0
    ranks: int = 1
    restarted: bool = False
    """One of its containers has failed before."""

    @classmethod
    def of(cls, pod: Pod) -> Self | None:
        """None: it says nothing of sizes."""
        if pod.component not in ("engine", "gateway"):
            return None
        known = {name: getattr(pod, name) for name in cls.model_fields if name != "restarted"}
        return cls(**known, restarted=bool(pod.terminations))

    def pod(self) -> Pod:
        """As the operator sees it. Its address is its name."""
        known = self.model_dump(exclude={"restarted"})
        failed = Termination("engine", "Error", 1, self.created) if self.restarted and self.created else None
        return Pod(**known, ip=self.name, terminations=(failed,) if failed is not None else ())


class Moment(_Written):
    """Everything at one time."""

    at: AwareDatetime
    """By the recorder's clock."""
    elapsed: float = Field(ge=0, allow_inf_nan=False)
    """Seconds since the session began, by a clock that nobody sets."""
    generation: int = 1
    spec: dict[str, Any]
    status: dict[str, Any]
    pods: tuple[RecordedPod, ...] = ()
    gateways: dict[str, GatewayFigures | None] = Field(default={})
    """What each ready one had counted, by its pod; None: it gave no usable answer."""

    def deployment(self) -> tuple[InferenceDeploymentSpec, InferenceDeploymentStatus]:
        """What was read of the object. ValidationError: it was no InferenceDeployment that this version knows."""
        spec = InferenceDeploymentSpec.model_validate({"model": NO_MODEL, **self.spec})
        return spec, InferenceDeploymentStatus.model_validate(self.status)

    def observed(self) -> Observed:
        return Observed(pods=tuple(pod.pod() for pod in self.pods))


class Header(_Written):
    """Begins a session."""

    format: Literal["headrace.dev/recording-v1"] = FORMAT
    written_by: str
    """Version of Headrace."""
    namespace: str
    name: str
    uid: str
    every: float = Field(gt=0, allow_inf_nan=False)
    """Seconds between two moments."""


class Session(BaseModel):
    """What was recorded without a break."""

    model_config = ConfigDict(frozen=True)
    header: Header
    moments: tuple[Moment, ...] = ()


def moment(
    at: datetime, elapsed: float, obj: Object, pods: Iterable[Pod], told: Mapping[str, GatewayFigures | None]
) -> Moment:
    """The moment, of an InferenceDeployment as it was read and its pods."""
    spec = obj["spec"]
    roles = [_picked(role, ROLE) for role in spec.get("roles") or []]
    return Moment(
        at=at,
        elapsed=round(elapsed, 6),
        generation=obj["metadata"].get("generation", 1),
        spec=_picked(spec, SPEC) | ({"roles": roles} if roles else {}),
        status=_status(obj.get("status") or {}),
        pods=tuple(found for pod in pods if (found := RecordedPod.of(pod)) is not None),
        gateways=dict(told),
    )


def _picked(words: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> Object:
    """What a value on the wire has at these paths."""
    found: Object = {}
    for *outer, last in paths:
        source, place = words, found
        for step in outer:
            source = source.get(step) or {}
        if source.get(last) is None:
            continue
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = source[last]
    return found


def _status(words: Mapping[str, Any]) -> Object:
    """Through the model, so that only fields that it knows are kept."""
    status = InferenceDeploymentStatus.model_validate(words)
    return status.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude_defaults=True,
        include={"roles": {"__all__": {"name", "desired", "ready"}}, "scaling": True, "revision": {"updating"}},
    )


def line(value: Header | Moment) -> str:
    """One line of the file, with its end."""
    return value.model_dump_json(by_alias=True, exclude_defaults=not isinstance(value, Header)) + "\n"


def sessions(file: Path) -> Iterator[Session]:
    """Every session of a file, in order. A last line without its end was cut off and is left out.

    RecordingError: the file is no recording.
    """
    header: Header | None = None
    moments: list[Moment] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.endswith("\n"):
                break
            read = _read(file, number, text, first=header is None)
            if isinstance(read, Moment):
                moments.append(read)
                continue
            if header is not None:
                yield Session(header=header, moments=tuple(moments))
            header, moments = read, []
    if header is None:
        raise RecordingError(f"{file}: is empty; `headrace record` writes recordings")
    yield Session(header=header, moments=tuple(moments))


def _read(file: Path, number: int, text: str, *, first: bool) -> Header | Moment:
    try:
        words = json.loads(text)
        if not isinstance(words, dict):
            raise RecordingError(f"{file}, line {number}: is no JSON object; `headrace record` writes recordings")
        if first and words.get("format") != FORMAT:
            raise RecordingError(f"{file}: does not begin with the header of a recording ({FORMAT})")
        if "format" in words:
            return Header.model_validate_json(text)
        found = Moment.model_validate_json(text)
        found.deployment()
    except ValidationError as error:
        said = error.errors()[0]
        place = ".".join(map(str, said["loc"]))
        raise RecordingError(f"{file}, line {number}: {place}: {said['msg']}") from error
    except json.JSONDecodeError as error:
        raise RecordingError(f"{file}, line {number}: is no JSON: {error.msg}") from error
    return found


class Writer:
    """Appends a session to a file, a whole line at a time. RecordingError: the file holds something else."""

    def __init__(self, file: Path, header: Header) -> None:
        if file.exists() and file.stat().st_size:
            _mend(file)
            self._same(file, header)
        self._out = file.open("a", encoding="utf-8")
        self._write(header)

    def write(self, found: Moment) -> None:
        self._write(found)

    def close(self) -> None:
        self._out.close()

    def _write(self, value: Header | Moment) -> None:
        self._out.write(line(value))
        self._out.flush()

    @staticmethod
    def _same(file: Path, header: Header) -> None:
        with file.open(encoding="utf-8", errors="replace") as lines:
            first = _read(file, 1, next(lines, "null"), first=True)
        assert isinstance(first, Header)
        if (first.namespace, first.name) != (header.namespace, header.name):
            raise RecordingError(f"{file}: records {first.namespace}/{first.name}: choose another file with -o")


def _mend(file: Path) -> None:
    """Take away a last line that was cut off."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("rb+") as out:
            out.truncate(whole)
