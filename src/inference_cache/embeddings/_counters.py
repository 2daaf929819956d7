"""What happened to texts and calls, in numbers that only grow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from inference_cache.errors import CacheError

__all__ = ["Counters", "Tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """A snapshot. Texts are counted once in a call, however often they stand in its batch."""

    hits: int = 0
    """Texts whose vector was read."""
    absent: int = 0
    """Texts that the server had nothing for."""
    corrupt: int = 0
    """Entries cut short, or whose checksum is wrong."""
    foreign: int = 0
    """Entries that something else wrote, or that were written for another key."""
    wrong_shape: int = 0
    """Whole entries of this key with another dtype or other dimensions."""
    wrong_version: int = 0
    """Entries in another version of the format."""
    unread: int = 0
    """Texts that could not be looked up, because the server did not answer."""
    computed: int = 0
    """Texts given to ``compute`` that it returned a vector for."""
    joined: int = 0
    """Texts that another caller in this process was busy with, and that were taken from there."""
    waited: int = 0
    """Texts that another process was computing, and that were read when it had stored them."""
    stored: int = 0
    """Texts whose vector was written."""
    unstored: int = 0
    """Texts whose vector was computed or given, and not written."""
    degraded: int = 0
    """Calls in which the server did not answer or refused a command."""
    degraded_by: Mapping[str, int] = field(default_factory=dict)
    """The same by :attr:`inference_cache.errors.CacheError.reason`."""

    @property
    def misses(self) -> int:
        """Texts looked up in vain, for any of the reasons above but an unanswered look-up."""
        return self.absent + self.corrupt + self.foreign + self.wrong_shape + self.wrong_version


class Tally:
    """Counts up, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._degraded_by: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Adds to fields of :class:`Counters`, by name."""
        with self._lock:
            self._counts.update(counts)

    def degrade(self, error: CacheError) -> None:
        """Counts a call that goes on without the cache."""
        with self._lock:
            self._counts["degraded"] += 1
            self._degraded_by[error.reason] += 1

    def snapshot(self) -> Counters:
        with self._lock:
            return Counters(**self._counts, degraded_by=dict(self._degraded_by))
