"""What must hold between the keys of a contract, once each key on its own is right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inference_cache.contract._layers import KeyPath, shown
from inference_cache.contract._model import DataClass, may_evict
from inference_cache.contract._sizes import format_size

__all__ = ["Complaint", "Values", "contradictions"]

Values = Mapping[str, Any]
"""The typed values of one table by TOML key; a key that is wrong on its own is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Values that do not go together. ``between`` are the keys of which one has to change."""

    between: tuple[KeyPath, ...]
    found: str
    allowed: str


def contradictions(instance: Values, workloads: Mapping[str, Values]) -> Iterator[Complaint]:
    """Every contradiction within the contract, each once."""
    yield from _memory(instance)
    yield from _reach(instance)
    yield from _prefixes(workloads)
    yield from _shares(workloads)
    for name, workload in workloads.items():
        yield from _workload(("workloads", name), workload)
        if "maxmemory_policy" in instance:
            yield from _eviction(("workloads", name), workload, instance["maxmemory_policy"])


def _memory(instance: Values) -> Iterator[Complaint]:
    limit = instance.get("memory_limit")
    if limit is None:
        return
    for key in ("maxmemory", "memory_request"):
        # Headroom below the limit is judged on the server (CFG-01); above the limit no server can be right.
        if key in instance and instance[key] > limit:
            yield Complaint(
                between=(("instance", "memory_limit"), ("instance", key)),
                found=f"{key} {format_size(instance[key])} with memory_limit {format_size(limit)}",
                allowed=f"{key} at most memory_limit",
            )


def _reach(instance: Values) -> Iterator[Complaint]:
    if instance.get("auth") is False and instance.get("reach") == "anywhere":
        yield Complaint(
            between=(("instance", "auth"), ("instance", "reach")),
            found='auth = false with reach = "anywhere"',
            allowed='auth = true, or reach = "cluster-internal"',
        )
    address = instance.get("address")
    if address is not None and address in instance.get("retired_addresses", ()):
        yield Complaint(
            between=(("instance", "address"), ("instance", "retired_addresses")),
            found=f"{shown(address)} as address and as retired",
            allowed="retired_addresses without the address in use",
        )


def _prefixes(workloads: Mapping[str, Values]) -> Iterator[Complaint]:
    having = {name: w["prefix"] for name, w in workloads.items() if "prefix" in w}
    for (one, first), (other, second) in itertools.combinations(having.items(), 2):
        if first.startswith(second) or second.startswith(first):
            yield Complaint(
                between=(("workloads", one, "prefix"), ("workloads", other, "prefix")),
                found=f"{shown(first)} of {one} and {shown(second)} of {other}",
                allowed="prefixes of which none begins with another",
            )


def _shares(workloads: Mapping[str, Values]) -> Iterator[Complaint]:
    shares = {name: w["share"] for name, w in workloads.items() if "share" in w}
    total = sum(shares.values())
    if total > 1 + 1e-9:
        yield Complaint(
            between=tuple(("workloads", name, "share") for name in shares),
            found=f"shares that add up to {total:g} ({', '.join(f'{n} {s:g}' for n, s in shares.items())})",
            allowed="shares that add up to at most 1",
        )


def _workload(path: KeyPath, workload: Values) -> Iterator[Complaint]:
    if {"value_min", "value_max"} <= workload.keys() and workload["value_min"] > workload["value_max"]:
        low, high = format_size(workload["value_min"]), format_size(workload["value_max"])
        yield Complaint(
            between=((*path, "value_max"), (*path, "value_min")),
            found=f"value_min {low} with value_max {high}",
            allowed="value_min at most value_max",
        )
    if {"prefix", "example"} <= workload.keys():
        prefix, example = workload["prefix"], workload["example"]
        if not example.startswith(prefix) or example == prefix:
            yield Complaint(
                between=((*path, "prefix"), (*path, "example")),
                found=f"example {shown(example)} with prefix {shown(prefix)}",
                allowed="an example key that starts with the prefix and goes on after it",
            )
    if workload.get("sliding_ttl") is True and "ttl_s" in workload and workload["ttl_s"] is None:
        yield Complaint(
            between=((*path, "ttl_s"), (*path, "sliding_ttl")),
            found='sliding_ttl = true with ttl_s = "none"',
            allowed="sliding_ttl = false where there is no TTL",
        )


def _eviction(path: KeyPath, workload: Values, policy: str) -> Iterator[Complaint]:
    """What no server can be right about; whether an only copy may be evicted is for CFG-09 to judge."""
    if workload.get("data_class") is not DataClass.RECONSTRUCTIBLE or "ttl_s" not in workload:
        return
    if policy.startswith("volatile-") and not may_evict(policy, has_ttl=workload["ttl_s"] is not None):
        yield Complaint(
            between=(("instance", "maxmemory_policy"), (*path, "ttl_s")),
            found=f'ttl_s = "none" under {policy}, which evicts only keys with a TTL',
            allowed="a TTL on every reconstructible workload under a volatile policy",
        )
