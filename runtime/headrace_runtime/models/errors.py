"""What can go wrong with a model that is fetched. Every message is fit for a status: it says what was asked of which
host, what came back and what to do, and holds no secret, no query of an address and no path of a node."""

from __future__ import annotations

from typing import ClassVar, Literal


class FetchError(Exception):
    """The model could not be fetched. Whoever asked may ask again later: what was fetched so far is kept."""

    reason: ClassVar[Literal["FetchFailed", "CacheTooSmall"]] = "FetchFailed"


class CacheTooSmallError(FetchError):
    """The cache has no room for the model, and nothing that may go from it."""

    reason = "CacheTooSmall"


class UnsafePathError(FetchError):
    """A file of the model would lie outside its folder, or is none: a device, a link that leads out."""


class BrokenError(FetchError):
    """The connection broke, or the server is unwell: worth another try at once."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds that the server asked for."""


class CancelledError(Exception):
    """Whoever asked for the model, to fetch or to read it, no longer wants it."""
