"""The operator's exceptions. An exception is a surprise: waiting, and a spec that is wrong, are ordinary answers.

HeadraceError
├── ClusterError          the API server refused a call or could not be reached
│   ├── Conflict          somebody else changed the object meanwhile, or it exists already: look again at once
│   │   └── Outdated      not sent: what the pass looked at is not so any more
│   ├── Unreachable       no answer at all: nothing is known
│   └── Fenced            not sent: this process does not lead, or no longer
└── SettingsError         the process's own settings are wrong; it ends
"""


class HeadraceError(Exception):
    """Base of all errors that this package raises itself."""


class ClusterError(HeadraceError):
    """One call to the API server failed.

    `status` is the HTTP status (0: no answer), `reason` the server's CamelCase reason or the exception's name.
    The text names the call and the server's message; a body that was sent is never in it, since it may be a Secret.
    """

    def __init__(self, call: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{call}: {status} {reason}: {message}")
        self.call = call
        self.status = status
        self.reason = reason
        self.message = message


class Conflict(ClusterError):  # noqa: N818 - the name of the answer, as in HTTP
    """409: the object changed or exists already."""


class Outdated(Conflict):
    """A write that was not sent, since it was decided on what is not so any more: the whole pass ends."""


class Unreachable(ClusterError):  # noqa: N818 - likewise
    """The API server gave no answer before the deadline."""


class Fenced(ClusterError):  # noqa: N818 - likewise
    """A write that was not sent, since another operator may lead by now."""


class SettingsError(HeadraceError):
    """The environment of this process names something it cannot work with."""
