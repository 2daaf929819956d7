"""What became of one key of a call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from inference_cache.blobs._frame import Damage
from inference_cache.errors import (
    AccessDenied,
    BlobCorrupt,
    BlobLost,
    CacheError,
    CommandRejected,
    DeadlineExceeded,
    WriteRefused,
)

__all__ = ["INCOMPLETE", "Outcome", "Status"]

INCOMPLETE: Final = "incomplete"
"""The reason of a miss of which the manifest is still there, and some chunk is not."""


class Status(Enum):
    """How it ended. The first three are successes."""

    HIT = "hit"
    """It is there; loaded, found, or its time to live was set."""
    STORED = "stored"
    DELETED = "deleted"
    MISS = "miss"
    """It is not there, or not all of it."""
    CORRUPT = "corrupt"
    """Something else is there; the reason is a :class:`Damage`'s."""
    LATE = "late"
    """The deadline passed. A store or a deletion may or may not have happened."""
    REFUSED = "refused"
    """The server said no: full, read-only, access denied, or an error of its own."""
    UNAVAILABLE = "unavailable"
    """No usable server. A store or a deletion may or may not have happened."""


_GOOD: Final = (Status.HIT, Status.STORED, Status.DELETED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one key."""

    key: bytes
    status: Status
    reason: str
    """A short stable word, as in the counters: the status's own, or a closer one (``checksum``, ``full``)."""
    error: CacheError | None = None
    """What went wrong between here and the server, for LATE, REFUSED and UNAVAILABLE."""

    @property
    def ok(self) -> bool:
        """Whether it is a success: HIT, STORED or DELETED."""
        return self.status in _GOOD

    def require(self) -> Self:
        """The outcome itself when it is a success.

        Raises:
            BlobLost: MISS.
            BlobCorrupt: CORRUPT.
            CacheError: LATE, REFUSED, UNAVAILABLE: the error that says why.
        """
        if self.error is not None:
            raise self.error
        if self.status is Status.MISS:
            what = "some of its chunks are gone" if self.reason == INCOMPLETE else "it is not there"
            raise BlobLost(f"{self.key!r:.200}: {what}: evicted, expired, deleted, or never stored")
        if self.status is Status.CORRUPT:
            raise BlobCorrupt(
                f"{self.key!r:.200}: what is there is not what was stored ({self.reason})", damage=self.reason
            )
        return self

    @classmethod
    def of(cls, key: bytes, status: Status) -> Self:
        """An outcome whose reason is its status."""
        return cls(key=key, status=status, reason=status._value_)

    @classmethod
    def incomplete(cls, key: bytes) -> Self:
        """A miss for want of some chunks."""
        return cls(key=key, status=Status.MISS, reason=INCOMPLETE)

    @classmethod
    def corrupt(cls, key: bytes, damage: Damage) -> Self:
        """A value that is not what was stored."""
        return cls(key=key, status=Status.CORRUPT, reason=damage.value)

    @classmethod
    def failed(cls, key: bytes, error: CacheError) -> Self:
        """An outcome for want of an answer, or because of an answer that says no."""
        status = Status.UNAVAILABLE
        if isinstance(error, DeadlineExceeded):
            status = Status.LATE
        elif isinstance(error, (WriteRefused, AccessDenied, CommandRejected)):
            status = Status.REFUSED
        return cls(key=key, status=status, reason=error.reason, error=error)
