"""Alert rules that are wrong in one way: the shipped generator's, changed before they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from alerts.generate import files
from inference_cache.contract import Contract
from mutants.liveness import note_adapter

__all__ = [
    "counts_since_the_start",
    "divides_by_maxmemory",
    "divides_by_system_memory",
    "forgets_the_target",
    "pages_on_a_full_cache",
    "waits_a_day",
    "watches_a_prefix_without_colon",
]

Rule = dict[str, Any]
_REDIS = '{job="inference-cache-redis-exporter"}'


def _changed(
    contract: Contract, time_factor: float, name: str, change: Callable[[Rule], Iterator[Rule]]
) -> dict[str, str]:
    """The generated files, with every rule replaced by those that ``change`` makes of it."""
    made = files(contract, time_factor=time_factor)
    for path, text in made.items():
        if not path.startswith("rules/"):
            continue
        document = yaml.safe_load(text)
        for group in document["groups"]:
            before = group["rules"]
            group["rules"] = [rule for one in before for rule in change(dict(one))]
            if group["rules"] != before:
                note_adapter(name)
        made[path] = yaml.safe_dump(document)
    return made


def divides_by_system_memory(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """The risk of an OOM kill is used memory over the memory of the host."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] == "InferenceCacheOOMKillRisk":
            rule["expr"] = f"redis_memory_used_bytes{_REDIS} / redis_total_system_memory_bytes{_REDIS} > 0.9"
        yield rule

    return _changed(contract, time_factor, "divides_by_system_memory", change)


def waits_a_day(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """Every condition must hold for a day."""

    def change(rule: Rule) -> Iterator[Rule]:
        yield rule | {"for": "24h"}

    return _changed(contract, time_factor, "waits_a_day", change)


def pages_on_a_full_cache(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """That the cache is full is critical."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] == "InferenceCacheFull":
            rule["labels"] = rule["labels"] | {"severity": "critical"}
        yield rule

    return _changed(contract, time_factor, "pages_on_a_full_cache", change)


def forgets_the_target(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """No rule tells that nothing is scraped."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] != "InferenceCacheTargetGone":
            yield rule

    return _changed(contract, time_factor, "forgets_the_target", change)


def divides_by_maxmemory(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """A server without maxmemory is looked for by a ratio over maxmemory."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] == "InferenceCacheMaxmemoryUnset":
            rule["expr"] = f"redis_memory_used_bytes{_REDIS} / (redis_memory_max_bytes{_REDIS} > 0) > 0.9"
        yield rule

    return _changed(contract, time_factor, "divides_by_maxmemory", change)


def counts_since_the_start(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """A counter is compared as it is, so that one refused connection is told until the next restart."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] == "InferenceCacheConnectionsExhausted":
            rule["expr"] = f"redis_rejected_connections_total{_REDIS} > 0"
        yield rule

    return _changed(contract, time_factor, "counts_since_the_start", change)


def watches_a_prefix_without_colon(contract: Contract, *, time_factor: float = 1.0) -> dict[str, str]:
    """Only copies are looked for below ``ray`` and ``session``, which no series is labelled with."""

    def change(rule: Rule) -> Iterator[Rule]:
        if rule["alert"] == "InferenceCacheOnlyCopyEvicted":
            rule["expr"] = rule["expr"].replace(':"', '"')
        yield rule

    return _changed(contract, time_factor, "watches_a_prefix_without_colon", change)
