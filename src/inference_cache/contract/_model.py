"""The types of a contract: frozen, slotted, keyword-only; sizes in bytes, times in seconds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

__all__ = [
    "CAPABILITIES",
    "Clause",
    "Contract",
    "DataClass",
    "Deadlines",
    "Instance",
    "Level",
    "Waiver",
    "Workload",
    "may_evict",
]

CAPABILITIES: frozenset[str] = frozenset(
    {
        "read",
        "write",
        "fill",
        "config",
        "restart",
        "crash",
        "host",
        "net",
        "ray",
        "vllm",
        "gpu",
        "prometheus",
    }
)
"""What a target may be able to do; a clause names the ones its proof needs."""


class Level(StrEnum):
    """MUST decides the verdict, SHOULD only under ``--strict``, MAY is reported."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"


class DataClass(StrEnum):
    """What a miss means: lost time (reconstructible) or lost data (only-copy)."""

    RECONSTRUCTIBLE = "reconstructible"
    ONLY_COPY = "only-copy"


def may_evict(policy: str, *, has_ttl: bool) -> bool:
    """Whether the server may evict a key under this ``maxmemory-policy``."""
    return policy.startswith("allkeys-") or (policy.startswith("volatile-") and has_ttl)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One sentence that a target is held against."""

    id: str
    level: Level
    group: str
    statement: str
    quote: str
    """The decision of ADR-0023 that the clause follows from, in its short form."""
    needs: frozenset[str]
    remedy: str
    """What to do when the clause is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One of the users of the instance, told apart by its key prefix."""

    name: str
    prefix: str
    example: str
    data_class: DataClass
    ttl_s: int | None
    """TTL of a new key, or None where keys have none."""
    sliding_ttl: bool
    """Whether a read extends the TTL."""
    value_min_bytes: int
    value_max_bytes: int
    share: float
    """Declared share of maxmemory, 0 to 1."""
    p99_s: float
    """Bound on the 99th percentile of a read, while others evict."""
    connections: int
    """Connections the workload may hold at once."""
    evictable: bool
    """Whether its keys may be evicted."""
    loss_bound: str | None = None
    """For an evictable only-copy workload: how much may be lost; CFG-09 fails without it."""
    accepted_by: str | None = None
    """For an evictable only-copy workload: who accepted that loss; CFG-09 fails without it."""

    @property
    def only_copy(self) -> bool:
        return self.data_class is DataClass.ONLY_COPY


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """The one server, as decided."""

    address: str
    memory_request_bytes: int
    memory_limit_bytes: int
    maxmemory_bytes: int
    headroom_ratio: float
    """maxmemory may be at most this part of the memory limit."""
    maxmemory_policy: str
    maxmemory_tolerance: float
    """How far used_memory may pass maxmemory under a flood, as a part of maxmemory."""
    servers: tuple[str, ...]
    """Server names accepted in INFO, lower case: ``valkey`` and declared compatible ones."""
    supported_versions: tuple[str, ...]
    """Accepted major versions (``"8"``) or major.minor ones (``"9.1"``)."""
    appendonly: bool
    appendfsync: Literal["always", "everysec", "no"]
    save: str
    """RDB schedule in the server's own notation, ``""`` for none."""
    loss_window_s: float
    """A crash may lose writes acknowledged within this time before it."""
    on_disk_full: Literal["stop-writes", "go-on"]
    volume_bytes: int
    volume_path: str
    auth: bool
    tls: bool
    reach: Literal["cluster-internal", "anywhere"]
    """Who can reach the address; an instance without auth must be cluster-internal."""
    retired_addresses: tuple[str, ...]
    fragmentation_ratio: float
    """Upper bound on resident over used memory after a churn."""
    chunk_bytes: int = 64 * 1024 * 1024
    """Larger values are stored in chunks of at most this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Times within which things must happen, in seconds."""

    connect_s: float
    call_s: float
    recovery_s: float
    """From the end of a fault to the first good answer."""
    warm_up_s: float
    """From the start of the server to the hit rate of before the restart, loading included."""
    spill_s: float
    """From a Ray spill or restore that the server cannot serve to Ray's answer about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """A clause that may fail until a date, with the reason and where it is tracked."""

    clause: str
    reason: str
    issue: str
    expires: dt.date
    """Last day on which the waiver holds."""

    def in_force(self, today: dt.date) -> bool:
        return today <= self.expires


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """ADR-0023 as data. Built by :func:`inference_cache.contract.load`."""

    name: str
    sha256: str
    """Digest of all values but the name: equal digests mean equal values, wherever they were written."""
    instance: Instance
    workloads: Mapping[str, Workload]
    deadlines: Deadlines
    clauses: Mapping[str, Clause]
    waivers: tuple[Waiver, ...]

    def groups(self) -> tuple[str, ...]:
        """Clause groups in catalogue order."""
        return tuple(dict.fromkeys(clause.group for clause in self.clauses.values()))

    def waiver_for(self, clause_id: str) -> Waiver | None:
        """The waiver that names the clause, in force or expired."""
        return next((w for w in self.waivers if w.clause == clause_id), None)
