"""Miss-ratio curves: how many requests are hits with how much memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUCKETS", "Curve", "bucket_edges", "buckets_of"]

_LOWEST = 10
"""Memory from 1 KiB up is told apart."""
_DOUBLINGS = 38
_PER_DOUBLING = 64

BUCKETS = _DOUBLINGS * _PER_DOUBLING + 1


def buckets_of(memory_bytes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each amount of memory: 1 % wide, from 1 KiB to 256 TiB; bucket 0 is all below."""
    position = (np.log2(np.maximum(memory_bytes, 1.0)) - _LOWEST) * _PER_DOUBLING
    buckets: NDArray[np.int64] = np.clip(np.ceil(position), 0, BUCKETS - 1).astype(np.int64)
    return buckets


def bucket_edges() -> NDArray[np.float64]:
    """The upper edge of each bucket, in bytes."""
    edges: NDArray[np.float64] = np.exp2(_LOWEST + np.arange(BUCKETS) / _PER_DOUBLING)
    return edges


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Hits by memory for one stream of requests.

    ``hits[b]`` is the number of requests (estimated from a sample, so no whole number) that are hits once the
    memory reaches the upper edge of bucket ``b`` and not before. ``empty_bytes`` is what the server takes
    without any key: memory is always meant as ``maxmemory``, which counts it.
    """

    name: str
    requests: int
    hits: NDArray[np.float64]
    first: float
    """Requests for a key that was never used before: misses with any memory."""
    expired: float
    """Requests for a key whose TTL had passed: misses with any memory."""
    distinct_bytes: float
    """Memory of all distinct keys, overhead included."""
    empty_bytes: int

    @property
    def reachable(self) -> float:
        """The hit ratio with memory for everything, 0 to 1; 0 without requests."""
        return self._ratio(float(self.hits.sum()))

    def hit_ratio(self, maxmemory_bytes: float) -> float:
        """The hit ratio under LRU with so much ``maxmemory``, 0 to 1."""
        room = maxmemory_bytes - self.empty_bytes
        edges = np.concatenate(([0.0], bucket_edges()))
        hits = np.concatenate(([0.0], np.cumsum(self.hits)))
        return self._ratio(float(np.interp(room, edges, hits)))

    def memory_for(self, part: float) -> int | None:
        """The smallest ``maxmemory`` in bytes that gives this part (0 to 1) of the reachable hit ratio.

        None when nothing is ever a hit. Rounded up to the next percent of memory.
        """
        hits = np.cumsum(self.hits)
        if not hits.size or hits[-1] <= 0:
            return None
        wanted = part * hits[-1] * (1 - 1e-9)
        bucket = int(np.argmax(hits >= wanted))
        return math.ceil(float(bucket_edges()[bucket])) + self.empty_bytes

    def points(self, sizes_bytes: list[int]) -> list[float]:
        """The hit ratio at each of these sizes."""
        return [self.hit_ratio(size) for size in sizes_bytes]

    def _ratio(self, hits: float) -> float:
        return min(1.0, max(0.0, hits / self.requests)) if self.requests else 0.0
