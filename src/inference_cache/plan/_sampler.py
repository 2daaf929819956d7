"""From accesses to miss-ratio curves in bounded memory: spatial sampling of a fixed number of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference_cache.errors import UsageError
from inference_cache.plan._curve import BUCKETS, Curve, buckets_of
from inference_cache.plan._distances import previous_accesses, reuse_distances

__all__ = ["Accesses", "ReuseSampler"]

_HASHES = 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Accesses:
    """A run of requests in the order in which they came, one array element each."""

    ids: NDArray[np.uint64]
    """A uniform hash of the key; equal exactly for equal keys, but for one chance in 2**64."""
    stored_bytes: NDArray[np.float64]
    """What the key takes in the server, overhead included."""
    workloads: NDArray[np.int8]
    """Which workload it belongs to, by number."""
    times_s: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.ids.size)

    def where(self, wanted: NDArray[np.bool_] | NDArray[np.int64]) -> Accesses:
        return Accesses(
            ids=self.ids[wanted],
            stored_bytes=self.stored_bytes[wanted],
            workloads=self.workloads[wanted],
            times_s=self.times_s[wanted],
        )

    @classmethod
    def joined(cls, runs: Sequence[Accesses]) -> Accesses:
        return cls(
            ids=np.concatenate([run.ids for run in runs]),
            stored_bytes=np.concatenate([run.stored_bytes for run in runs]),
            workloads=np.concatenate([run.workloads for run in runs]),
            times_s=np.concatenate([run.times_s for run in runs]),
        )

    @classmethod
    def none(cls) -> Accesses:
        return cls(
            ids=np.empty(0, np.uint64),
            stored_bytes=np.empty(0),
            workloads=np.empty(0, np.int8),
            times_s=np.empty(0),
        )


class _Histogram:
    """Where the hits of one group of workloads that share a memory lie, by workload."""

    def __init__(self, members: Sequence[int], workloads: int) -> None:
        self.members = np.zeros(workloads, dtype=bool)
        self.members[list(members)] = True
        self.hits = np.zeros((workloads, BUCKETS))

    def add(
        self, workloads: NDArray[np.int8], memory: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> None:
        places = workloads.astype(np.int64) * BUCKETS + buckets_of(memory)
        added = np.bincount(places, weights=counts, minlength=self.hits.size)
        self.hits += added.reshape(self.hits.shape)


class ReuseSampler:
    """Follows a sample of the keys and adds up at which memory their accesses are hits.

    SHARDS (C. Waldspurger et al., FAST 2015) with a fixed number of keys, a bound for each workload: a key is
    followed while its hash lies below the workload's threshold, and the threshold falls when there are too
    many. A workload with few large keys is so taken whole beside one with millions of small ones. Each
    followed access stands for 1/rate of them, and the bytes between two are scaled likewise. How many
    requests a workload made is counted exactly; what the sample missed or counted twice is taken for the most
    popular keys (SHARDS-adj).

    ``groups`` are sets of workload numbers that share one LRU memory, by name; each gives curves of its own.
    """

    def __init__(
        self,
        *,
        workloads: int,
        groups: Mapping[str, Sequence[int]],
        ttls_s: Sequence[float | None],
        max_keys: int = 32_768,
    ) -> None:
        """``max_keys`` bounds the keys followed in each workload; ``ttls_s`` has one entry a workload.

        Raises UsageError when ``max_keys`` is below 256: such a sample tells nothing.
        """
        if max_keys < 256:
            raise UsageError(f"max_keys is {max_keys}; follow at least 256 keys of each workload")
        self._max_keys = max_keys
        # Worked off at once, at least: enough to be quick, few enough that memory follows the keys.
        self._run = 4 * max_keys
        self._ttl_s = np.array([np.inf if ttl is None else ttl for ttl in ttls_s])
        self._threshold = np.full(workloads, 2**64 - 1, dtype=np.uint64)
        self._histograms = {name: _Histogram(members, workloads) for name, members in groups.items()}
        self._stack = Accesses.none()
        self._pending: list[Accesses] = []
        self._pending_count = 0
        self._requests = np.zeros(workloads, dtype=np.int64)
        self._followed = np.zeros(workloads)
        self._first = np.zeros(workloads)
        self._expired = np.zeros(workloads)
        self._distinct_bytes = np.zeros(workloads)

    @property
    def rates(self) -> list[float]:
        """The part of each workload's keys that is followed by now, 0 to 1."""
        return [float(rate) for rate in self._rates()]

    @property
    def requests(self) -> list[int]:
        return [int(count) for count in self._requests]

    def feed(self, accesses: Accesses) -> None:
        """Take in what comes next; times must not go back by more than a TTL matters."""
        self._requests += np.bincount(accesses.workloads, minlength=self._requests.size)
        followed = accesses.ids <= self._threshold[accesses.workloads]
        self._pending.append(accesses.where(followed))
        self._pending_count += len(self._pending[-1])
        if self._pending_count >= max(self._run, 2 * self._run - len(self._stack)):
            self._work_off()

    def curves(self, names: Sequence[str], *, empty_bytes: int) -> dict[str, dict[str, Curve]]:
        """For each group a curve of each of its workloads, and of all together under the name ``""``."""
        self._work_off()
        return {
            group: self._curves_of(histogram, names, empty_bytes)
            for group, histogram in self._histograms.items()
        }

    def _curves_of(self, histogram: _Histogram, names: Sequence[str], empty_bytes: int) -> dict[str, Curve]:
        hits = histogram.hits.copy()
        hits[:, 0] += (self._requests - self._followed) * histogram.members
        curves = {}
        members = [int(member) for member in np.flatnonzero(histogram.members)]
        for name, chosen in [("", members), *((names[member], [member]) for member in members)]:
            curves[name] = Curve(
                name=name,
                requests=int(self._requests[chosen].sum()),
                hits=hits[chosen].sum(axis=0),
                first=float(self._first[chosen].sum()),
                expired=float(self._expired[chosen].sum()),
                distinct_bytes=float(self._distinct_bytes[chosen].sum()),
                empty_bytes=empty_bytes,
            )
        return curves

    def _rates(self) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = (self._threshold.astype(np.float64) + 1) / _HASHES
        return rates

    def _work_off(self) -> None:
        if not self._pending_count:
            return
        old = len(self._stack)
        run = Accesses.joined([self._stack, *self._pending])
        self._pending, self._pending_count = [], 0
        counts = 1 / self._rates()[run.workloads]
        previous = previous_accesses(run.ids)
        new = np.arange(len(run)) >= old
        again = new & (previous >= 0)
        gap_s = run.times_s - run.times_s[previous]
        expired = again & (gap_s > self._ttl_s[run.workloads])
        first = new & (previous < 0)
        for sums, which, values in (
            (self._followed, new, counts),
            (self._first, first, counts),
            (self._expired, expired, counts),
            (self._distinct_bytes, first, counts * run.stored_bytes),
        ):
            sums += np.bincount(run.workloads[which], weights=values[which], minlength=sums.size)
        alive = again & ~expired
        # It lies there with the size that it had when it was used last.
        own_bytes = run.stored_bytes[previous]
        weights = run.stored_bytes * counts
        for histogram in self._histograms.values():
            chosen = np.flatnonzero(histogram.members[run.workloads])
            if not chosen.size:
                continue
            whole = chosen.size == len(run)
            among = previous if whole else previous_accesses(run.ids[chosen])
            memory = reuse_distances(among, weights[chosen]) + own_bytes[chosen]
            hit = alive[chosen]
            histogram.add(run.workloads[chosen][hit], memory[hit], counts[chosen][hit])
        newest = np.ones(len(run), dtype=bool)
        newest[previous[previous >= 0]] = False
        self._stack = self._shrunk(run.where(newest))

    def _shrunk(self, stack: Accesses) -> Accesses:
        """Without the keys of the highest hashes, where a workload has too many; lowers its threshold."""
        keep = np.ones(len(stack), dtype=bool)
        for workload in range(self._threshold.size):
            mine = np.flatnonzero(stack.workloads == workload)
            if mine.size > self._max_keys:
                hashes = np.sort(stack.ids[mine])
                self._threshold[workload] = hashes[self._max_keys - 1]
                keep[mine] = stack.ids[mine] <= self._threshold[workload]
        return stack.where(keep)
