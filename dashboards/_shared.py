"""Expressions that several dashboards show: one definition, one meaning."""

from __future__ import annotations

from dashboards._model import Panel, Query, Step, Unit, ValueText
from inference_cache.contract import Contract

__all__ = [
    "ALERTS",
    "BAD",
    "GOOD",
    "HIT_RATIO",
    "RATE",
    "RISE",
    "VERDICTS",
    "WARN",
    "commands_refused",
    "evictions_by_prefix",
    "memory_by_prefix",
    "oom_kill_risk",
    "prefix_colors",
    "size",
]

GOOD, WARN, BAD = "green", "orange", "red"
_PALETTE = ("blue", "green", "purple", "yellow", "#37b7c3", "#f2a1c8")
RATE = "[$__rate_interval]"
RISE = (Step(value=None, color=GOOD), Step(value=0.9, color=WARN), Step(value=1.0, color=BAD))
"""Colours of a part of a limit that must not be reached."""

VERDICTS = (
    ValueText(value=0, text="conformant", color=GOOD),
    ValueText(value=1, text="NOT CONFORMANT", color=BAD),
    ValueText(value=2, text="wrong usage", color=WARN),
    ValueText(value=3, text="suite broke", color=WARN),
    ValueText(value=4, text="not all proven", color=WARN),
    ValueText(value=5, text="nothing verified", color=WARN),
)
"""Exit codes of the gate, in words."""

ALERTS = 'ALERTS{alertname=~"InferenceCache.+", alertstate="firing", namespace=~"$namespace|"}'
"""Our alerts that fire; the ones without a namespace too, such as those about what is absent."""

HIT_RATIO = (
    f"sum(rate(redis_keyspace_hits_total{{@}}{RATE})) / "
    f"(sum(rate(redis_keyspace_hits_total{{@}}{RATE})) + sum(rate(redis_keyspace_misses_total{{@}}{RATE})))"
)


def size(number_bytes: int) -> str:
    """Bytes as they stand in a description: ``1.5 GiB``."""
    value, unit = float(number_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def oom_kill_risk(contract: Contract) -> str:
    """Resident memory, and what a fork would copy on top of it, over the memory limit, 0 to 1 and above."""
    limit = contract.instance.memory_limit_bytes
    copied = "max(redis_rdb_last_cow_size_bytes{@}) + max(redis_aof_last_cow_size_bytes{@})"
    return f"(max(redis_memory_used_rss_bytes{{@}}) + {copied}) / {limit}"


def prefix_colors(contract: Contract) -> dict[str, str]:
    """One colour for each prefix, the same on every panel; red is left to limits and damage."""
    prefixes = [workload.prefix for workload in contract.workloads.values()]
    return {**dict(zip(prefixes, _PALETTE, strict=False)), "other": "#8e8e8e"}


def memory_by_prefix(contract: Contract, *, width: int = 12, height: int = 9) -> Panel:
    """Who holds the memory, stacked, under the limit that they share."""
    return Panel(
        title="Memory by prefix",
        description="Bytes of the keys below each prefix (MEMORY USAGE, sampled; the error is on the "
        "Contention dashboard), stacked, under maxmemory. 'other' is keys of no declared prefix. A full "
        "stack is normal for an LRU cache; watch which colour pushes out which.",
        unit=Unit.BYTES,
        queries=(
            Query(expr="sum by (prefix) (inference_cache_prefix_bytes{@})", legend="{{prefix}}"),
            Query(expr="sum(redis_memory_max_bytes{@})", legend="maxmemory"),
        ),
        stacked=True,
        colors=prefix_colors(contract),
        dashed=("maxmemory",),
        width=width,
        height=height,
    )


def evictions_by_prefix(contract: Contract, *, width: int = 12, height: int = 9) -> Panel:
    """Whose keys go."""
    return Panel(
        title="Evictions by prefix",
        description="Keys evicted a second, the server's own count shared out to prefixes by the sampled "
        "keys that went. Who loses here is not who causes it: compare with the growth in 'Memory by "
        "prefix'.",
        unit=Unit.EVENTS_PER_S,
        queries=(
            Query(
                expr=f"sum by (prefix) (rate(inference_cache_prefix_evicted_keys_total{{@}}{RATE}))",
                legend="{{prefix}}",
            ),
        ),
        colors=prefix_colors(contract),
        width=width,
        height=height,
    )


def commands_refused(*, width: int = 12, height: int = 8) -> Panel:
    """Writes that were not done."""
    return Panel(
        title="Commands refused",
        description="Commands refused before they ran, by command: OOM when nothing may be evicted, "
        "MISCONF when persistence fails, NOAUTH, too few arguments. Any line above zero is lost work of a "
        "client.",
        unit=Unit.COMMANDS_PER_S,
        queries=(
            Query(
                expr=f"sum by (cmd) (rate(redis_commands_rejected_calls_total{{@}}{RATE})) > 0",
                legend="{{cmd}}",
            ),
        ),
        empty_is_health="no command was refused.",
        bars=True,
        width=width,
        height=height,
    )
