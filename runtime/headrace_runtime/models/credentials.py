"""What a source asks for before it gives anything: from a folder, a file for each key of a Secret.

    HF_TOKEN                                            hf://
    .dockerconfigjson, or username and password         oci://
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN     s3://
    username and password, or token                     https://

HF_ENDPOINT, AWS_ENDPOINT_URL, AWS_REGION and what else of AWS's settings stands in the process' environment (a role
of the pod's service account, say) holds where the folder does not say otherwise.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from headrace_runtime.models.errors import FetchError

SECRET = "the Secret of spec.model.credentialsSecretRef"  # noqa: S105 - its name in messages
MAX_BYTES = 1 << 20


class Credentials:
    """Values by name. Shows none of them when it is printed."""

    def __init__(self, values: Mapping[str, str], environment: Mapping[str, str] | None = None) -> None:
        self._values, self._environment = dict(values), dict(environment or {})

    @classmethod
    def of(cls, folder: Path | None, environment: Mapping[str, str] | None = None) -> Credentials:
        """Read `folder` now: a Secret may have been filled or changed since. Raises FetchError."""
        if folder is None:
            return cls({}, environment)
        try:
            files = [file for file in folder.iterdir() if file.is_file() and file.stat().st_size <= MAX_BYTES]
            return cls({file.name: file.read_text().strip() for file in files}, environment)
        except (OSError, UnicodeDecodeError) as error:
            raise FetchError(
                f"{SECRET} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}"
            ) from None

    def get(self, name: str) -> str | None:
        return self._values.get(name) or self._environment.get(name) or None

    def aws(self) -> dict[str, str]:
        """AWS's settings by their environment names."""
        return {name: value for name, value in (self._environment | self._values).items() if name.startswith("AWS_")}

    def basic(self) -> tuple[str, str] | None:
        """User name and password, where both are given."""
        name, word = self._values.get("username"), self._values.get("password")
        return (name, word) if name and word else None

    def of_registry(self, registry: str) -> tuple[str, str] | None:
        """User name and password for a registry: from `.dockerconfigjson`, else those of `basic`. Raises FetchError."""
        text = self._values.get(".dockerconfigjson")
        if text is None:
            return self.basic()
        try:
            entries = json.loads(text)["auths"]
            entry = next((entries[name] for name in _names(registry) if name in entries), None)
            if entry is None:
                return None
            if "auth" in entry:
                name, _, word = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
                return name, word
            return str(entry["username"]), str(entry["password"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FetchError(f"{SECRET}: .dockerconfigjson is not what `docker login` writes") from None

    def __repr__(self) -> str:
        return f"Credentials({', '.join(sorted(self._values))})"


def _names(registry: str) -> list[str]:
    """How a registry may be called in a Docker configuration."""
    names = [registry, f"https://{registry}", f"https://{registry}/v2/", f"https://{registry}/v1/"]
    return [*names, "https://index.docker.io/v1/"] if registry == "docker.io" else names


def basic_header(name: str, word: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{word}".encode()).decode()
