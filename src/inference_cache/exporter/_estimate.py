"""From the sizes of sampled keys to what lies below each prefix, with the error of saying so."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["Estimate", "Tally", "Window"]

_NEIGHBOURS: Final = 1.25
"""Variance of a sample of neighbours in the hash table, over that of as many keys drawn one by one: SCAN
names them in runs, some runs overlap, and full buckets are met in more of them. Measured on Valkey 9.1 (1.2).
"""
_Z: Final = 1.96 * math.sqrt(_NEIGHBOURS)
"""Standard errors of keys drawn one by one in half a 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What lies below one prefix; each ``_error`` is half the width of a 95 % interval."""

    keys: float
    keys_error: float
    bytes: float
    bytes_error: float
    average_bytes: float | None
    """None when no key of it was seen."""
    share: float
    """Part of the bytes of all keys, 0 to 1."""
    share_error: float


class Tally:
    """Counts, sizes and squares of sizes by prefix: all that the estimates need."""

    def __init__(self, prefixes: int) -> None:
        self.count = [0] * prefixes
        self._sum = [0] * prefixes
        self._squares = [0] * prefixes

    @property
    def keys(self) -> int:
        return sum(self.count)

    def add(self, prefix: int, size_bytes: int, times: int = 1) -> None:
        """``times`` is -1 to take one out."""
        self.count[prefix] += times
        self._sum[prefix] += times * size_bytes
        self._squares[prefix] += times * size_bytes * size_bytes

    def exact(self, population: int) -> list[Estimate]:
        """Every key was seen. ``population`` is the number of keys now: what came or went since then is the
        error.
        """
        drift = abs(population - self.keys)
        total = sum(self._sum)
        average = total / self.keys if self.keys else 0.0
        share_error = drift / max(population, self.keys, 1)
        return [
            Estimate(
                keys=count,
                keys_error=drift,
                bytes=size,
                bytes_error=drift * (size / count if count else average),
                average_bytes=size / count if count else None,
                share=size / total if total else 0.0,
                share_error=share_error,
            )
            for count, size in zip(self.count, self._sum, strict=True)
        ]

    def sampled(self, population: int) -> list[Estimate]:
        """Keys were drawn at random, with replacement, from ``population`` keys.

        Shares of bytes are a ratio of two random sums, whose variance is taken to first order. Counts follow
        Agresti and Coull, so that a prefix of which nothing was seen still has an error.
        """
        n = self.keys
        if n == 0:
            return [
                Estimate(
                    keys=0.0,
                    keys_error=float(population),
                    bytes=0.0,
                    bytes_error=0.0,
                    average_bytes=None,
                    share=0.0,
                    share_error=1.0,
                )
                for _ in self.count
            ]
        return [self._one(prefix, n, population) for prefix in range(len(self.count))]

    def _one(self, prefix: int, n: int, population: int) -> Estimate:
        count, size, squares = self.count[prefix], self._sum[prefix], self._squares[prefix]
        total, all_squares = sum(self._sum), sum(self._squares)
        cautious = (count + 2) / (n + 4)
        keys_error = _Z * population * math.sqrt(cautious * (1 - cautious) / (n + 4))
        bytes_error = _Z * population * math.sqrt(max(0.0, squares / n - (size / n) ** 2) / n)
        share = size / total
        spread = (1 - share) ** 2 * squares + share**2 * (all_squares - squares)
        share_error = _Z * math.sqrt(spread) / total
        # Few keys say little about how large the largest are: at least what the count leaves open counts.
        least = keys_error * (size / count if count else total / n)
        return Estimate(
            keys=population * count / n,
            keys_error=keys_error,
            bytes=population * size / n,
            bytes_error=max(bytes_error, least if count < 30 else 0.0),
            average_bytes=size / count if count else None,
            share=share,
            share_error=max(share_error, least * n / (total * population) if count < 30 else 0.0),
        )


class Window:
    """The sizes of the keys that were sampled lately."""

    def __init__(self, prefixes: int, *, length_s: float) -> None:
        self.tally = Tally(prefixes)
        self._length_s = length_s
        self._seen: deque[tuple[float, int, int]] = deque()

    def add(self, at_s: float, prefix: int, size_bytes: int) -> None:
        self._seen.append((at_s, prefix, size_bytes))
        self.tally.add(prefix, size_bytes)

    def age_s(self, now_s: float) -> float:
        """Age of the oldest size."""
        return now_s - self._seen[0][0] if self._seen else 0.0

    def forget(self, now_s: float) -> None:
        """Drop what is older than the window."""
        while self._seen and self._seen[0][0] < now_s - self._length_s:
            _, prefix, size_bytes = self._seen.popleft()
            self.tally.add(prefix, size_bytes, times=-1)
