"""Reuse distances weighted by bytes, for a whole run of accesses at once.

The reuse distance of an access is the bytes of the distinct other keys that were used since its key was used
last: under LRU exactly the accesses whose distance and own size fit into the memory are hits (R. L. Mattson
et al., 1970). One access after the other needs a search tree; a run of them is the question "for access i
with previous access p, add up the weights of the accesses j < i whose own previous access lies at or before
p", minus everything up to p. That is one merge sort, of which every level is a few array operations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLD", "previous_accesses", "reuse_distances"]

COLD = -1.0
"""The distance of the first access to a key."""


def previous_accesses(ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each access the index of the one before to the same key, -1 for the first."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    again = ordered[1:] == ordered[:-1]
    previous = np.full(ids.size, -1, dtype=np.int64)
    previous[order[1:][again]] = order[:-1][again]
    return previous


def reuse_distances(previous: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes of distinct keys between each access and the one before to its key; :data:`COLD` for first ones.

    ``previous`` is what :func:`previous_accesses` returns; ``weights`` are the bytes of the key at each
    access. A key whose size changed within the distance counts with its first size there. Takes
    O(n log n) time and some 100 bytes an access.
    """
    count = previous.size
    if count < 2:
        return np.full(count, COLD)
    levels = int(count - 1).bit_length()
    size = 1 << levels
    # Sorted by previous access; padding has no weight and sorts last. Ties are first accesses only.
    key = np.full(size, size, dtype=np.int64)
    key[:count] = previous
    order = np.argsort(key, kind="stable").astype(np.int32)
    weight = np.zeros(size)
    weight[:count] = weights
    weight = weight[order]
    # An access asks for weights whose previous access is at most its own: those before it in this order.
    found = np.zeros(size)
    for level in reversed(range(levels)):
        blocks = (-1, 2 << level)
        right = ((order >> level) & 1).astype(bool).reshape(blocks)
        index, value = order.reshape(blocks), weight.reshape(blocks)
        seen = np.cumsum(np.where(right, 0.0, value), axis=1)
        found[index[right]] += seen[right]
        half = (-1, 1 << level)
        left = ~right
        order = np.stack((index[left].reshape(half), index[right].reshape(half)), axis=1).reshape(-1)
        weight = np.stack((value[left].reshape(half), value[right].reshape(half)), axis=1).reshape(-1)
    before = np.cumsum(weights)
    distances = found[:count] - before[previous]
    # Everything up to and with the previous access was taken away; rounding may leave less than nothing.
    np.maximum(distances, 0.0, out=distances)
    distances[previous < 0] = COLD
    return distances
