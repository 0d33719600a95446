"""The process's own settings, read once from the environment (`HEADRACE_…`) and handed down as values.

Nothing else in the package reads the environment. The chart sets these variables; `--help` of `run` lists them.
"""

from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace_operator.api.types import Bytes
from headrace_operator.errors import SettingsError
from headrace_operator.ownpolicy.process import Limits
from headrace_operator.state import Defaults

LEAST_POLICY_MEMORY = 64 * 1024**2


class Settings(BaseSettings):
    """Field `log_level` is the variable `HEADRACE_LOG_LEVEL`, and so on. Lists are separated by commas."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", frozen=True, extra="forbid")

    namespaces: str = Field(default="", description="namespaces to look after, separated by commas; empty: all")
    engine_image: str = Field(
        default="headrace.dev/engine:0.1.0", min_length=1, description="engine image where a spec names none"
    )
    gateway_image: str = Field(default="headrace.dev/runtime:0.1.0", min_length=1, description="image of the gateway")
    head_image: str = Field(default="", description="image of the Ray head; empty: the engine's image")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level logged")
    log_format: Literal["text", "json"] = Field(default="text", description="text for people, json for collectors")
    resync_seconds: float = Field(
        default=60.0,
        ge=1,
        description="how often an object that nobody woke is looked at again, in seconds; "
        "less often where there are many: two a second in all",
    )
    concurrency: int = Field(default=16, ge=1, description="objects looked at in the same moment, at most")
    kv_node_disk_limit: str = Field(
        default="",
        description="what KV blocks of all deployments in one folder of a node may take of its disk, such as 500Gi; "
        "engines that start later keep to it; empty: each deployment has its own limit only",
    )
    model_cache_path: str = Field(
        default="/var/lib/headrace/models",
        pattern=r"^(/[^/\s:]+)+$",
        description="folder of each node that models are fetched into (hf, oci, s3 and https sources)",
    )
    model_cache_size: str = Field(
        default="",
        description="what that folder may take of its disk, such as 500Gi: models that nothing runs on go, the least "
        "recently used first; empty: as much as the disk holds",
    )
    policies: str = Field(
        default="",
        pattern=r"^\s*([A-Za-z_][\w.]*:[A-Za-z_]\w*\s*(,\s*|$))*$",
        description="own scaling policies that specs may name, package.module:function, separated by commas",
    )
    policy_path: str = Field(
        default="",
        pattern=r"^((/[^/\s:]+)+)?$",
        description="folder where Python finds them too, after its own places; empty: they are installed",
    )
    policy_seconds: float = Field(default=1.0, ge=0.01, le=30, description="what one answer of theirs may take")
    policy_memory: str = Field(default="256Mi", description="private memory of the process of each, such as 256Mi")
    lease: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*)?$",
        description="namespace/name of the Lease that decides which of several operators works; empty: there is one",
    )
    port: int = Field(default=8080, ge=0, le=65535, description="port of /healthz and /metrics; 0: none")
    instance: str = Field(default="headrace", description="reporter in Events: the pod's name")

    @field_validator("policy_memory")
    @classmethod
    def _enough_memory(cls, text: str) -> str:
        if Bytes(TypeAdapter(Bytes).validate_python(text)).bytes < LEAST_POLICY_MEMORY:
            raise ValueError("Python alone needs 64Mi: give more")
        return text

    @field_validator("kv_node_disk_limit", "model_cache_size")
    @classmethod
    def _a_size(cls, text: str) -> str:
        return str(TypeAdapter(Bytes).validate_python(text)) if text else ""

    @property
    def namespace_list(self) -> tuple[str, ...]:
        """The namespaces, empty for all."""
        return tuple(part.strip() for part in self.namespaces.split(",") if part.strip())

    @property
    def policy_names(self) -> frozenset[str]:
        """The own policies that specs may name."""
        return frozenset(part.strip() for part in self.policies.split(",") if part.strip())

    @property
    def policy_limits(self) -> Limits:
        """What each of them may take."""
        return Limits(self.policy_seconds, Bytes(self.policy_memory).bytes, self.policy_path)

    @property
    def defaults(self) -> Defaults:
        """The part that `desired` needs."""
        return Defaults(
            self.engine_image,
            self.gateway_image,
            self.head_image or None,
            kv_node_bytes=_bytes(self.kv_node_disk_limit),
            model_cache_path=self.model_cache_path,
            model_cache_bytes=_bytes(self.model_cache_size),
        )


def _bytes(size: str) -> int | None:
    return Bytes(size).bytes if size else None


def load() -> Settings:
    """From the environment. SettingsError names every variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        lines = (f"HEADRACE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise SettingsError("; ".join(lines)) from error
