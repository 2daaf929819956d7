"""The answer: how much memory for which hit ratio, by workload and together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inference_cache.contract import Contract
from inference_cache.plan._curve import Curve
from inference_cache.plan._memory import EMPTY_SERVER_BYTES, Allocator, MemoryModel
from inference_cache.plan._sampler import Accesses, ReuseSampler
from inference_cache.plan._trace import TraceFormat

__all__ = ["OnlyCopyCost", "Plan", "make_plan", "trace_format"]

PARTS = (1.0, 0.99, 0.9, 0.5)
"""Parts of the reachable hit ratio that a plan gives the memory for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlyCopyCost:
    """What one ``maxmemory`` means for data of which a miss is a loss."""

    maxmemory_bytes: int
    lost_reads: dict[str, float]
    """By workload, the part of its repeated reads (0 to 1) that find the only copy evicted."""
    pinned_bytes: float
    """Memory of all only copies of the trace, were they never evicted."""
    caches_evicting_all: float
    """Hit ratio of the reconstructible workloads while everything may be evicted."""
    caches_beside_pinned: float
    """Their hit ratio when only they may be evicted: in ``maxmemory`` less ``pinned_bytes``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Curves of a trace. A curve's name is its workload, ``""`` for all together."""

    contract: Contract
    allocator: Allocator
    shared: dict[str, Curve]
    """Everybody in one memory, as the contract decides."""
    alone: dict[str, Curve]
    """Each workload in a memory of its own."""
    caches: Curve | None
    """The reconstructible workloads in a memory without the only copies; None where there are none of these
    or only these."""
    rates: dict[str, float]
    """Part of the keys that the sample followed, by workload."""
    seconds: float
    """From the first to the last request."""

    @property
    def workloads(self) -> list[str]:
        """Those that made requests, in the contract's order."""
        return [name for name, curve in self.shared.items() if name and curve.requests]

    def only_copy_cost(self, maxmemory_bytes: int) -> OnlyCopyCost | None:
        """The price of evicting only copies, and of not evicting them; None without any in the trace."""
        only = [name for name in self.workloads if self.contract.workloads[name].only_copy]
        if not only:
            return None
        lost = {}
        for name in only:
            curve = self.shared[name]
            repeated = curve.reachable
            lost[name] = 1 - curve.hit_ratio(maxmemory_bytes) / repeated if repeated else 0.0
        caches = [name for name in self.workloads if name not in only]
        requests = sum(self.shared[name].requests for name in caches)
        hits = sum(
            self.shared[name].hit_ratio(maxmemory_bytes) * self.shared[name].requests for name in caches
        )
        pinned = sum(self.alone[name].distinct_bytes for name in only)
        return OnlyCopyCost(
            maxmemory_bytes=maxmemory_bytes,
            lost_reads=lost,
            pinned_bytes=pinned,
            caches_evicting_all=hits / requests if requests else 0.0,
            caches_beside_pinned=self.caches.hit_ratio(maxmemory_bytes - pinned) if self.caches else 0.0,
        )

    def to_json(self, sizes_bytes: Sequence[int]) -> dict[str, Any]:
        """The numbers of the report; ratios 0 to 1, memory in bytes of ``maxmemory``."""
        costs = [self.only_copy_cost(size) for size in sizes_bytes]
        return {
            "contract": self.contract.name,
            "allocator": self.allocator,
            "seconds": self.seconds,
            "workloads": {
                name or "all": {
                    "requests": curve.requests,
                    "sampled_part_of_keys": self.rates.get(name),
                    "distinct_bytes": round(curve.distinct_bytes),
                    "reachable_hit_ratio": round(curve.reachable, 5),
                    "maxmemory_bytes_for_part_of_reachable": {
                        f"{part:g}": curve.memory_for(part) for part in PARTS
                    },
                    "hit_ratio_at_maxmemory_bytes": {
                        str(size): round(curve.hit_ratio(size), 5) for size in sizes_bytes
                    },
                    "hit_ratio_alone_at_maxmemory_bytes": {
                        str(size): round(self.alone[name].hit_ratio(size), 5) for size in sizes_bytes
                    }
                    if name
                    else None,
                }
                for name, curve in self.shared.items()
                if curve.requests
            },
            "only_copies": [
                {
                    "maxmemory_bytes": cost.maxmemory_bytes,
                    "lost_part_of_repeated_reads": {k: round(v, 5) for k, v in cost.lost_reads.items()},
                    "pinned_bytes": round(cost.pinned_bytes),
                    "caches_hit_ratio_evicting_all": round(cost.caches_evicting_all, 5),
                    "caches_hit_ratio_beside_pinned": round(cost.caches_beside_pinned, 5),
                }
                for cost in costs
                if cost is not None
            ],
        }


def trace_format(contract: Contract, *, allocator: Allocator) -> TraceFormat:
    """How traces of the contract's workloads are read."""
    return TraceFormat(
        prefixes={name: workload.prefix for name, workload in contract.workloads.items()},
        ttls_s={name: workload.ttl_s for name, workload in contract.workloads.items()},
        memory=MemoryModel(allocator=allocator),
    )


def make_plan(
    runs: Iterable[Accesses],
    contract: Contract,
    *,
    allocator: Allocator = "jemalloc",
    max_keys: int = 32_768,
    empty_bytes: int = EMPTY_SERVER_BYTES,
) -> Plan:
    """Work through a trace once, in bounded memory.

    Each access is a read that stores what it did not find, as a cache is used. An access later than the
    workload's TTL after the one before is a miss with any memory; where a TTL is not sliding this spares
    those that outlive it by being read, so the plan is an upper bound there.
    """
    workloads = list(contract.workloads.values())
    names = [workload.name for workload in workloads]
    caches = [number for number, workload in enumerate(workloads) if not workload.only_copy]
    groups: dict[str, list[int]] = {"shared": list(range(len(workloads)))}
    groups |= {name: [number] for number, name in enumerate(names)}
    if 0 < len(caches) < len(workloads):
        groups["only caches"] = caches
    sampler = ReuseSampler(
        workloads=len(workloads),
        groups=groups,
        ttls_s=[workload.ttl_s for workload in workloads],
        max_keys=max_keys,
    )
    earliest, latest = float("inf"), float("-inf")
    for run in runs:
        sampler.feed(run)
        earliest = min(earliest, float(run.times_s.min()))
        latest = max(latest, float(run.times_s.max()))
    curves = sampler.curves(names, empty_bytes=empty_bytes)
    return Plan(
        contract=contract,
        allocator=allocator,
        shared=curves["shared"],
        alone={name: curves[name][name] for name in names},
        caches=curves["only caches"][""] if "only caches" in curves else None,
        rates=dict(zip(names, sampler.rates, strict=True)),
        seconds=max(0.0, latest - earliest),
    )
