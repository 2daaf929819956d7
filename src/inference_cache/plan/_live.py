"""What a live server's memory says about its traffic, read without touching the recency of a key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.errors import AccessDenied, CommandRejected, UsageError

__all__ = ["LiveSample", "PrefixSample", "sample_server"]

_BATCH = 500
_AGE_BINS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSample:
    """The keys of one workload, estimated from the sample."""

    name: str
    sampled: int
    keys: float
    stored_bytes: float
    error_bytes: float
    """Half of the 95 % confidence interval of ``stored_bytes``."""
    median_idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveSample:
    """One look at a server: a uniform sample of its keys with age and size, and its counters over a while.

    A key that was used last ``a`` seconds ago is a request that nothing followed for ``a`` seconds. So the
    number of keys by age tells how many misses a second a memory would have that keeps keys for just that
    long (P. Denning, 1968: the miss rate is the slope of the working set), and their bytes what that memory
    is. It tells nothing about memories larger than what the server holds.
    """

    maxmemory_bytes: int
    policy: str
    used_bytes: int
    startup_bytes: int
    keys: int
    watched_s: float
    requests_per_s: float
    """Reads that named a key, found or not, while it was watched."""
    observed_hit_ratio: float | None
    """Over the same time; None without reads."""
    evicted_per_s: float
    evicted_before: int
    """Keys evicted since the server's start, or its counters' reset."""
    up_s: int
    names: tuple[str, ...]
    """Workloads by number; keys of nobody's prefix have the number after the last."""
    workloads: NDArray[np.int8]
    """Of each sampled key; likewise the next two."""
    idle_s: NDArray[np.float64]
    stored_bytes: NDArray[np.float64]

    @property
    def sampled(self) -> int:
        return int(self.idle_s.size)

    @property
    def scale(self) -> float:
        """How many keys of the server one sampled key stands for."""
        return self.keys / self.sampled if self.sampled else 0.0

    @property
    def full(self) -> bool:
        """Whether eviction has set a bound to what can be seen."""
        return self.maxmemory_bytes > 0 and (
            self.evicted_before > 0 or self.used_bytes >= 0.97 * self.maxmemory_bytes
        )

    def of(self, name: str) -> PrefixSample:
        """One workload; ``""`` for keys that carry no declared prefix."""
        number = self.names.index(name) if name else len(self.names)
        mine = self.workloads == number
        stored = np.where(mine, self.stored_bytes, 0.0)
        # SCAN returns keys of distinct hash buckets: as good as drawn without replacement.
        spread = float(stored.std()) if self.sampled else 0.0
        left_out = max(0.0, 1 - self.sampled / self.keys) if self.keys else 0.0
        return PrefixSample(
            name=name,
            sampled=int(mine.sum()),
            keys=float(mine.sum()) * self.scale,
            stored_bytes=float(stored.sum()) * self.scale,
            error_bytes=1.96 * spread * self.keys * (left_out / max(self.sampled, 1)) ** 0.5,
            median_idle_s=float(np.median(self.idle_s[mine])) if mine.any() else 0.0,
        )

    def working_set_bytes(self, name: str, window_s: float) -> float:
        """Bytes of the workload's keys that were used within the last ``window_s`` seconds."""
        mine = (self.workloads == self.names.index(name)) & (self.idle_s <= window_s)
        return float(self.stored_bytes[mine].sum()) * self.scale

    def curve(self) -> list[tuple[int, float]]:
        """Pairs of ``maxmemory`` in bytes and predicted hit ratio, up to what the server holds.

        Empty without requests or without keys. The last pair lies at the age that nine of ten bytes are
        younger than: the oldest keys are too few to tell a rate from. No pair promises more hits than a full
        server was observed to have.
        """
        if not self.sampled or self.requests_per_s <= 0:
            return []
        oldest = max(2.0, float(np.quantile(self.idle_s, 0.9)))
        edges = np.unique(np.round(np.geomspace(1.0, oldest + 1, _AGE_BINS)))
        edges = np.concatenate(([0.0], edges))
        bins = np.digitize(self.idle_s, edges) - 1
        inside = bins < edges.size - 1
        keys = np.bincount(bins[inside], minlength=edges.size - 1) * self.scale
        stored = np.bincount(bins[inside], self.stored_bytes[inside], edges.size - 1) * self.scale
        # What is a miss with more memory is one with less: the slope can only fall.
        misses_per_s = np.maximum.accumulate((keys / np.diff(edges))[::-1])[::-1]
        memory = self.startup_bytes + np.cumsum(stored)
        most = self.observed_hit_ratio if self.full and self.observed_hit_ratio is not None else 1.0
        return [
            (int(size), float(min(most, max(0.0, 1 - rate / self.requests_per_s))))
            for size, rate in zip(memory, misses_per_s, strict=True)
        ]

    def predicted(self, maxmemory_bytes: int) -> float | None:
        """The hit ratio with that memory; None beyond what the sample can see."""
        points = self.curve()
        if not points or maxmemory_bytes < points[0][0]:
            return None
        if maxmemory_bytes > points[-1][0] and (self.full or maxmemory_bytes < self.used_bytes):
            # Within what is held, the oldest tenth has no more misses than the last age that was counted.
            return points[-1][1] if maxmemory_bytes <= self.used_bytes * 1.03 else None
        return float(np.interp(maxmemory_bytes, [p[0] for p in points], [p[1] for p in points]))


def sample_server(
    client: Client, contract: Contract, *, keys: int = 20_000, watch_s: float = 5.0, deadline_s: float = 120.0
) -> LiveSample:
    """Look at a server with SCAN, OBJECT IDLETIME, MEMORY USAGE and INFO, none of which touches recency.

    ``keys`` bounds the sample, ``watch_s`` is how long its counters are watched afterwards, ``deadline_s``
    bounds the scan: what was seen until then is the sample. The server counts each sampled key as one hit
    (OBJECT IDLETIME), which its hit ratio shows for a moment.

    Raises:
        UsageError: the server does not permit or know what is needed; says what to grant.
        CacheError: it gives no answer.
    """
    policy = _info(client).get("maxmemory_policy", "")
    if policy.endswith("-lfu"):
        raise UsageError(f"the policy is {policy}: it keeps no age of keys; plan from a trace (--trace FILE)")
    prefixes = {name: workload.prefix.encode() for name, workload in contract.workloads.items()}
    try:
        found = _scan(client, list(prefixes.values()), limit=keys, ends_at=time.monotonic() + deadline_s)
    except (AccessDenied, CommandRejected) as error:
        raise UsageError(
            f"the keys cannot be sampled: {error}; grant +scan +object|idletime +memory|usage +info ~*, "
            "or plan from a trace (--trace FILE)"
        ) from error
    # After the scan: its own questions count as hits.
    before, began = _info(client), time.monotonic()
    time.sleep(watch_s)
    after, watched_s = _info(client), time.monotonic() - began
    hits = int(after["keyspace_hits"]) - int(before["keyspace_hits"])
    misses = int(after["keyspace_misses"]) - int(before["keyspace_misses"])
    return LiveSample(
        maxmemory_bytes=int(after.get("maxmemory", "0")),
        policy=policy,
        used_bytes=int(after["used_memory"]),
        startup_bytes=int(after.get("used_memory_startup", "0")),
        keys=int(client.dbsize()),
        watched_s=watched_s,
        requests_per_s=(hits + misses) / watched_s,
        observed_hit_ratio=hits / (hits + misses) if hits + misses else None,
        evicted_per_s=(int(after["evicted_keys"]) - int(before["evicted_keys"])) / watched_s,
        evicted_before=int(after["evicted_keys"]),
        up_s=int(after["uptime_in_seconds"]),
        names=tuple(prefixes),
        workloads=np.array([row[0] for row in found], dtype=np.int8),
        idle_s=np.array([row[1] for row in found], dtype=np.float64),
        stored_bytes=np.array([row[2] for row in found], dtype=np.float64),
    )


def _scan(client: Client, prefixes: list[bytes], *, limit: int, ends_at: float) -> list[tuple[int, int, int]]:
    """Workload number, idle seconds and bytes of keys, in the order of the server's hash table."""
    found: list[tuple[int, int, int]] = []
    cursor, seen = 0, set[bytes]()
    while len(found) < limit and time.monotonic() < ends_at:
        answer: Any = client.execute_command("SCAN", cursor, "COUNT", _BATCH)
        cursor = int(answer[0])
        names = [name for name in answer[1] if name not in seen]
        seen.update(names)
        pipe: Any = client.pipeline(transaction=False)
        for name in names:
            pipe.execute_command("OBJECT IDLETIME", name)
            pipe.execute_command("MEMORY USAGE", name)
        answers = pipe.execute(raise_on_error=False)
        for name, idle, size in zip(names, answers[0::2], answers[1::2], strict=True):
            for reply in (idle, size):
                # A key that has gone meanwhile is no error.
                if isinstance(reply, Exception) and "no such key" not in str(reply).lower():
                    raise reply
            if isinstance(idle, int) and isinstance(size, int):
                owner = next(
                    (n for n, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes)
                )
                found.append((owner, idle, size))
        if cursor == 0:
            break
    return found


def _info(client: Client) -> Mapping[str, str]:
    raw = bytes(client.execute_command("INFO everything")).decode("utf-8", "replace")
    pairs = (line.partition(":") for line in raw.removeprefix("txt:").splitlines())
    return {name: value for name, _, value in pairs if value and not name.startswith("#")}
