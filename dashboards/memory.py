"""Memory pressure: how full, what it costs, and what may break."""

from __future__ import annotations

from dashboards._model import Board, Kind, Panel, Query, Row, Step, Unit
from dashboards._shared import BAD, GOOD, HIT_RATIO, RATE, RISE, WARN, commands_refused, oom_kill_risk, size
from inference_cache.contract import Contract

__all__ = ["memory"]


def memory(contract: Contract) -> Board:
    """The dashboard for a cache that is full, or is about to be."""
    return Board(
        uid="inference-cache-memory",
        title="Inference cache: Memory pressure",
        description="How full the memory is, what eviction costs, and what may break. Being full is "
        "normal; a falling hit ratio, refused writes and a pending OOM kill are not.",
        rows=(
            Row(title="How full", panels=_level(contract)),
            Row(title="What it costs", panels=_cost()),
            Row(title="What may break", panels=_risks(contract)),
            Row(title="Where the rest goes", panels=_overheads(contract)),
        ),
    )


def _level(contract: Contract) -> tuple[Panel, ...]:
    limit = contract.instance.memory_limit_bytes
    return (
        Panel(
            title="Memory",
            description="Used and resident memory under maxmemory (where eviction begins) and the "
            f"contract's memory limit of {size(limit)} (where the kernel kills).",
            unit=Unit.BYTES,
            queries=(
                Query(expr="sum(redis_memory_used_bytes{@})", legend="used"),
                Query(expr="sum(redis_memory_used_rss_bytes{@})", legend="resident"),
                Query(expr="sum(redis_memory_max_bytes{@})", legend="maxmemory"),
                Query(expr=f"{limit} * count(redis_up{{@}})", legend="memory limit"),
            ),
            dashed=("maxmemory", "memory limit"),
            colors={"maxmemory": WARN},
            width=12,
            height=9,
        ),
        Panel(
            title="Used of maxmemory",
            description="used_memory over maxmemory. Near 100 % is the normal state of an LRU cache; above "
            f"{1 + contract.instance.maxmemory_tolerance:.0%} eviction does not keep up.",
            unit=Unit.RATIO,
            kind=Kind.STAT,
            queries=(
                Query(expr="sum(redis_memory_used_bytes{@}) / sum(redis_memory_max_bytes{@})", legend="used"),
            ),
            maximum=1.2,
            decimals=1,
            steps=(
                Step(value=None, color="blue"),
                Step(value=1 + contract.instance.maxmemory_tolerance, color=BAD),
            ),
            width=4,
            height=9,
        ),
        Panel(
            title="Full in",
            description="Time until used memory reaches maxmemory at the growth of the last 15 minutes. "
            "Meant for slow growth: a flood is faster than any prediction.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(
                Query(
                    expr="sum(clamp_min(redis_memory_max_bytes{@} - redis_memory_used_bytes{@}, 0)) / "
                    "(sum(deriv(redis_memory_used_bytes{@}[15m])) > 0) "
                    "and sum(redis_memory_used_bytes{@}) / sum(redis_memory_max_bytes{@}) < 0.98",
                    legend="full in",
                ),
            ),
            decimals=0,
            empty_is_health="memory does not grow, or is full already, which is normal.",
            no_value="not growing",
            width=4,
            height=9,
        ),
        Panel(
            title="Keys",
            description="Keys in all databases, and those with a time to live. Under volatile-* policies "
            "only the latter can be evicted.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(redis_db_keys{@})", legend="keys"),
                Query(expr="sum(redis_db_keys_expiring{@})", legend="with TTL"),
            ),
            width=4,
            height=9,
        ),
    )


def _cost() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Hit ratio against its own baseline",
            description="Look-ups that found their key, now and as the average of the last six hours. "
            "Eviction hurts when the first falls well below the second.",
            unit=Unit.RATIO,
            queries=(
                Query(expr=HIT_RATIO, legend="now"),
                Query(expr=_baseline(), legend="last 6 h"),
            ),
            maximum=1,
            dashed=("last 6 h",),
        ),
        Panel(
            title="Keys that went",
            description="Keys evicted because memory was full, and keys whose time to live had passed, a "
            "second.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(expr=f"sum(rate(redis_evicted_keys_total{{@}}{RATE}))", legend="evicted"),
                Query(expr=f"sum(rate(redis_expired_keys_total{{@}}{RATE}))", legend="expired"),
            ),
        ),
        Panel(
            title="Turnover",
            description="Time in which eviction replaces as many keys as there are: how long a key that "
            "nobody reads may expect to stay.",
            unit=Unit.SECONDS,
            queries=(
                Query(
                    expr=f"sum(redis_db_keys{{@}}) / (sum(rate(redis_evicted_keys_total{{@}}{RATE})) > 0)",
                    legend="stay of an unread key",
                ),
            ),
            empty_is_health="nothing is evicted.",
        ),
        commands_refused(),
        Panel(
            title="Error replies by kind",
            description="Error replies a second by their first word: OOM and MISCONF are "
            "refused writes. The series of a kind begins with its first error, so a very first burst is "
            "not counted here: see 'Commands refused', which counts from the start.",
            unit=Unit.COMMANDS_PER_S,
            queries=(
                Query(expr=f"sum by (err) (rate(redis_errors_total{{@}}{RATE})) > 0", legend="{{err}}"),
            ),
            empty_is_health="no command got an error reply.",
            bars=True,
            width=12,
        ),
    )


def _baseline() -> str:
    """The hit ratio of six hours, weighted by look-ups."""
    hits, misses = (f"sum(rate(redis_keyspace_{one}_total{{@}}[6h]))" for one in ("hits", "misses"))
    return f"{hits} / ({hits} + {misses})"


def _risks(contract: Contract) -> tuple[Panel, ...]:
    instance = contract.instance
    return (
        Panel(
            title="OOM-kill risk",
            description="Resident memory, and what the last snapshot and AOF rewrite copied on top of it, "
            f"over the contract's memory limit of {size(instance.memory_limit_bytes)}. From 100 % on the "
            "next fork may get the server killed.",
            unit=Unit.RATIO,
            queries=(Query(expr=oom_kill_risk(contract), legend="of the limit"),),
            steps=RISE,
        ),
        Panel(
            title="Copied while saving",
            description="Memory that was copied on write during the last snapshot and the last AOF "
            "rewrite: it comes on top of resident memory while they run, and grows with the write rate.",
            unit=Unit.BYTES,
            queries=(
                Query(expr="max(redis_rdb_last_cow_size_bytes{@})", legend="snapshot"),
                Query(expr="max(redis_aof_last_cow_size_bytes{@})", legend="AOF rewrite"),
            ),
        ),
        Panel(
            title="Fragmentation",
            description=f"Resident over used memory. Above the contract's {instance.fragmentation_ratio:g} "
            "memory is held that serves nobody; below 1 the server is swapped out. Means nothing while the "
            "server is nearly empty.",
            unit=Unit.NUMBER,
            queries=(Query(expr="max(redis_mem_fragmentation_ratio{@})", legend="resident / used"),),
            decimals=2,
            steps=(
                Step(value=None, color=GOOD),
                Step(value=instance.fragmentation_ratio, color=WARN),
            ),
        ),
    )


def _overheads(contract: Contract) -> tuple[Panel, ...]:
    return (
        Panel(
            title="What used memory is made of",
            description="Data, and what is not data: tables, buffers, replication, scripts. Overhead that "
            "grows while data does not evicts keys for buffers.",
            unit=Unit.BYTES,
            queries=(
                Query(expr="sum(redis_memory_used_dataset_bytes{@})", legend="data"),
                Query(expr="sum(redis_memory_used_overhead_bytes{@})", legend="overhead"),
            ),
            stacked=True,
        ),
        Panel(
            title="Buffers of clients",
            description="Memory of clients' buffers: slow readers of large values grow it. Above it, the "
            "part of used memory that maxmemory does not bound.",
            unit=Unit.BYTES,
            queries=(
                Query(expr="sum(redis_mem_clients_normal{@})", legend="clients"),
                Query(
                    expr="sum(redis_mem_not_counted_for_eviction_bytes{@})", legend="not counted for eviction"
                ),
            ),
        ),
        Panel(
            title="Waiting to be freed",
            description="Objects that eviction and deletion left to the background threads. A level that "
            "stays up means that memory is freed more slowly than it is taken.",
            unit=Unit.COUNT,
            queries=(Query(expr="sum(redis_lazyfree_pending_objects{@})", legend="objects"),),
        ),
    )
