"""How long calls took, where prometheus_client need not be installed."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["DURATION_BUCKETS_S", "Durations", "Spread"]

DURATION_BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0),
)
"""Upper bounds of every histogram of durations that this package exposes, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A histogram: for each bound of ``DURATION_BUCKETS_S`` and for none, how many took no longer."""

    cumulative: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        """How many there were."""
        return self.cumulative[-1]

    def __add__(self, other: Spread) -> Spread:
        both = zip(self.cumulative, other.cumulative, strict=True)
        return Spread(cumulative=tuple(map(sum, both)), sum_s=self.sum_s + other.sum_s)


class Durations:
    """A histogram for each operation. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def observe(self, operation: str, took_s: float) -> None:
        """Counts one call that took so many seconds."""
        with self._lock:
            counts = self._counts.setdefault(operation, [0] * (len(DURATION_BUCKETS_S) + 1))
            counts[bisect.bisect_left(DURATION_BUCKETS_S, took_s)] += 1
            self._sums_s[operation] = self._sums_s.get(operation, 0.0) + took_s

    def copy(self) -> Mapping[str, Spread]:
        """What was counted, by operation."""
        with self._lock:
            return {
                operation: Spread(
                    cumulative=tuple(itertools.accumulate(counts)), sum_s=self._sums_s[operation]
                )
                for operation, counts in self._counts.items()
            }
