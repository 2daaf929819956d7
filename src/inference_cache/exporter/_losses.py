"""Which prefix lost the keys that the server evicted and expired.

The server counts evictions and expirations, but not whose. We know of which prefix the sampled keys were
that were gone when looked at again. So each of the server's counts is shared out in proportion to these,
among the prefixes that can have lost keys this way. Counts wait until a sampled key is found gone. A deletion
looks like an eviction to us; while the server evicts nothing, nothing is shared out.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Losses"]


class Losses:
    """Totals by prefix that only grow."""

    def __init__(self, prefixes: int) -> None:
        self.evicted = [0.0] * prefixes
        self.expired = [0.0] * prefixes
        self.vanished = [0] * prefixes
        self._evicted_waiting = 0
        self._expired_waiting = 0
        self._fresh = [0] * prefixes

    def saw_gone(self, prefix: int) -> None:
        """A sampled key of this prefix is not there any more."""
        self.vanished[prefix] += 1
        self._fresh[prefix] += 1

    def share_out(
        self, evicted: int, expired: int, *, evictable: Sequence[bool], expirable: Sequence[bool]
    ) -> None:
        """What the server counted since the last call, and by prefix whether it can evict and expire keys."""
        self._evicted_waiting += evicted
        self._expired_waiting += expired
        gone = self._fresh
        if not any(gone):
            return
        self._fresh = [0] * len(gone)
        expired_by = _shared(self._expired_waiting, [n * can for n, can in zip(gone, expirable, strict=True)])
        # What is explained by expirations is no eviction.
        scale = (self._evicted_waiting + self._expired_waiting) / sum(gone)
        left = [
            max(0.0, n * scale - by) * can for n, by, can in zip(gone, expired_by, evictable, strict=True)
        ]
        evicted_by = _shared(self._evicted_waiting, left)
        if any(expired_by):
            self._expired_waiting = 0
        if any(evicted_by):
            self._evicted_waiting = 0
        self.expired = [total + by for total, by in zip(self.expired, expired_by, strict=True)]
        self.evicted = [total + by for total, by in zip(self.evicted, evicted_by, strict=True)]


def _shared(amount: float, weights: Sequence[float]) -> list[float]:
    """The amount in proportion to the weights; nothing to anybody when all weights are 0."""
    total = sum(weights)
    return [amount * weight / total if total else 0.0 for weight in weights]
