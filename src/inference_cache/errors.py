"""Every error that this package raises on purpose, drawn as a tree.

::

    InferenceCacheError
    ├── ContractError                 a contract file is wrong; lists every mistake at once
    ├── KeyFormatError (ValueError)   a key or a part of one is not in the keyspace's shape
    ├── UsageError (ValueError)       an argument, option or URL is wrong
    │   ├── InvalidText               a text to embed is empty, too long, or no text
    │   └── InvalidVectors            vectors of another count, shape, dtype or layout than declared
    ├── MissingExtra (ImportError)    an optional dependency is not installed; names the extra
    ├── UnsafeServer                  its configuration may lose what exists nowhere else
    ├── BlobError                     the only copy of a value was not delivered
    │   ├── BlobLost                  it is not there, or not all of it
    │   └── BlobCorrupt               what is there is not what was stored; carries the damage
    ├── SessionError                  the cache answered, and the session is not what the caller takes it for
    │   ├── SessionLost               it existed, and all or part of it is gone: evicted, expired, rolled back
    │   ├── SessionUnknown            there is no trace of it: never created, deleted, or lost unseen
    │   ├── SessionExists             create() found it already there
    │   ├── SessionConflict           its state was changed by somebody else first
    │   ├── SessionUncertain          a repeated update came too late to tell whether it took place before
    │   └── SessionCorrupt            what is stored is not what was written
    └── CacheError                    talking to the cache did not give an answer
        ├── CacheUnavailable          no usable server: the caller may degrade and try later
        │   ├── Unreachable           refused, reset, unresolvable, or cut in mid-reply
        │   ├── DeadlineExceeded      the call's deadline passed (also a TimeoutError)
        │   ├── ServerLoading         LOADING: alive, data not there yet
        │   ├── ServerBusy            out of connections, or a script blocks it (BUSY, max clients)
        │   └── ClusterUnavailable    CLUSTERDOWN, MASTERDOWN or slots that nobody serves
        ├── WriteRefused              reads work, writes do not
        │   ├── ServerFull            OOM: above maxmemory and nothing may be evicted
        │   ├── ServerReadOnly        READONLY: a replica
        │   └── PersistenceFailed     MISCONF: snapshots or the AOF cannot be written
        ├── AccessDenied              wrong or missing password, or an ACL that says no
        ├── NotValkey                 what answers does not speak RESP
        └── CommandRejected           any other error reply; carries its code

Catch :class:`CacheError` to degrade, :class:`CacheUnavailable` to try again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = [
    "AccessDenied",
    "BlobCorrupt",
    "BlobError",
    "BlobLost",
    "CacheError",
    "CacheUnavailable",
    "ClusterUnavailable",
    "CommandRejected",
    "ContractError",
    "ContractProblem",
    "DeadlineExceeded",
    "InferenceCacheError",
    "InvalidText",
    "InvalidVectors",
    "KeyFormatError",
    "MissingExtra",
    "NotValkey",
    "PersistenceFailed",
    "ServerBusy",
    "ServerFull",
    "ServerLoading",
    "ServerReadOnly",
    "SessionConflict",
    "SessionCorrupt",
    "SessionError",
    "SessionExists",
    "SessionLost",
    "SessionUncertain",
    "SessionUnknown",
    "Unreachable",
    "UnsafeServer",
    "UsageError",
    "WriteRefused",
]


class InferenceCacheError(Exception):
    """Base of every error raised on purpose by this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractProblem:
    """One mistake in a contract file.

    ``key`` is the dotted path of the value, ``found`` what stands there (``repr``), ``allowed`` what
    may stand there, ``suggestion`` the nearest known name where a name was misspelt.
    """

    file: str
    key: str
    found: str
    allowed: str
    suggestion: str | None = None

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"{self.file}: {self.key}: found {self.found}, allowed: {self.allowed}{hint}"


class ContractError(InferenceCacheError):
    """A contract that cannot be used. ``problems`` holds every mistake, not just the first."""

    def __init__(self, problems: Sequence[ContractProblem]) -> None:
        self.problems = tuple(problems)
        noun = "mistake" if len(self.problems) == 1 else "mistakes"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} {noun} in the contract:\n{lines}")


class KeyFormatError(InferenceCacheError, ValueError):
    """A key, or a part of one, that the keyspace cannot hold."""


class UsageError(InferenceCacheError, ValueError):
    """A wrong argument, option or URL; the message says what to write instead."""


class InvalidText(UsageError):
    """A text that cannot be embedded: empty, too long, not valid Unicode, or not a ``str``."""


class InvalidVectors(UsageError):
    """Vectors whose count, shape, dtype or memory layout is not the declared one."""


class MissingExtra(InferenceCacheError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, *, module: str, extra: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(
            f"{module!r} is not installed; it comes with an extra: pip install 'inference-cache[{extra}]'"
        )


class SessionError(InferenceCacheError):
    """The cache answered, but the session is not what the caller takes it for.

    ``key`` is the session's root key. It is not part of the message, because ids may be personal.
    """

    def __init__(self, message: str, *, key: bytes) -> None:
        self.key = key
        super().__init__(message)


class SessionLost(SessionError):
    """The session existed, and all or part of it is gone. Its history must not be taken for a fresh start.

    ``how`` is ``"gone"`` (no key is left: evicted, expired, or deleted by somebody else), ``"partial"``
    (some keys are left), ``"replaced"`` (another session was begun under the same id) or ``"rolled_back"``
    (it lacks updates that the server had acknowledged, as after a crash or a restored snapshot).
    """

    def __init__(
        self, message: str, *, key: bytes, how: Literal["gone", "partial", "replaced", "rolled_back"]
    ) -> None:
        self.how = how
        super().__init__(message, key=key)


class SessionUnknown(SessionError):
    """There is no trace of the session, neither in the cache nor in what the client remembers."""


class SessionExists(SessionError):
    """A session of this id is there already."""


class SessionConflict(SessionError):
    """Somebody else changed the state first: read it again and decide anew."""

    def __init__(self, message: str, *, key: bytes, expected_version: int, actual_version: int) -> None:
        self.expected_version = expected_version
        self.actual_version = actual_version
        super().__init__(message, key=key)


class SessionUncertain(SessionError):
    """An update of the state came again so late that the cache no longer knows whether it took place.

    The state has been changed since, in any case.
    """


class SessionCorrupt(SessionError):
    """What is stored under the session's keys is not what was written there."""


class UnsafeServer(InferenceCacheError):
    """The server works, but as it is configured it may lose what exists nowhere else."""


class BlobError(InferenceCacheError):
    """A value that exists nowhere else was not delivered; the server itself is well."""


class BlobLost(BlobError):
    """The value is not there, or some of its chunks are not."""


class BlobCorrupt(BlobError):
    """What is there is not what was stored; ``damage`` is a word of ``inference_cache.blobs.Damage``."""

    def __init__(self, message: str, *, damage: str) -> None:
        self.damage = damage
        super().__init__(message)


class CacheError(InferenceCacheError):
    """Talking to the cache did not give an answer."""

    reason: ClassVar[str] = "error"
    """A short stable word for counting failures by reason."""


class CacheUnavailable(CacheError):
    """No usable server at the moment: degrade, and try again later."""

    reason = "unavailable"


class Unreachable(CacheUnavailable):
    """Refused, reset, unresolvable, or closed in the middle of a reply."""

    reason = "unreachable"


class DeadlineExceeded(CacheUnavailable, TimeoutError):
    """The deadline of the call passed before the whole reply was there."""

    reason = "deadline"


class ServerLoading(CacheUnavailable):
    """The server is loading its data set: an absent key means nothing yet."""

    reason = "loading"


class ServerBusy(CacheUnavailable):
    """The server has no connection left, or is busy in a script."""

    reason = "busy"


class ClusterUnavailable(CacheUnavailable):
    """The cluster, or the primary of a replica, cannot serve this key now."""

    reason = "cluster"


class WriteRefused(CacheError):
    """The server answers but refuses to write."""

    reason = "write_refused"


class ServerFull(WriteRefused):
    """OOM: above maxmemory, and the policy allows nothing to be evicted."""

    reason = "full"


class ServerReadOnly(WriteRefused):
    """READONLY: this is a replica."""

    reason = "read_only"


class PersistenceFailed(WriteRefused):
    """MISCONF: the server stopped writes because it cannot persist."""

    reason = "persistence"


class AccessDenied(CacheError):
    """Wrong or missing credentials, or an ACL that forbids the command or the key."""

    reason = "access"


class NotValkey(CacheError):
    """Whatever listens there does not speak RESP."""

    reason = "not_valkey"


class CommandRejected(CacheError):
    """An error reply without a class of its own; ``code`` is its first word."""

    reason = "rejected"

    def __init__(self, message: str, *, code: str) -> None:
        self.code = code
        super().__init__(message)
