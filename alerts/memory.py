"""Memory: what the kernel would kill for, and what the configuration lets happen.

A full cache is what an LRU cache is for, so the level of memory pages nobody here.
"""

from __future__ import annotations

from alerts.model import Alert, Case, Context, Eval, Kind, Severity, number
from alerts.series import RATE, flat, humanize1024, level_cases, ramp, then
from inference_cache.contract import format_size

__all__ = ["alerts"]

_DASHBOARD = "memory"


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group, in the order of urgency."""
    return (
        _oom_kill_risk(context),
        _maxmemory_unset(context),
        _maxmemory_too_near_limit(context),
        _overshoot(context),
        _policy_changed(context),
        _fragmented(context),
        _predicted_full(context),
        _full(context),
    )


def _limit(context: Context) -> str:
    return format_size(context.contract.instance.memory_limit_bytes, units="kubernetes")


def _oom_kill_risk(context: Context) -> Alert:
    instance = context.contract.instance
    limit = instance.memory_limit_bytes
    # headroom_ratio keeps room free for copy-on-write; three quarters of that room may be used.
    danger = round(limit * (1 - (1 - instance.headroom_ratio) / 4))
    window = context.window(6 * 3600)
    rdb = f"max_over_time({context.redis('redis_rdb_last_cow_size_bytes')}[{window}])"
    aof = f"max_over_time({context.redis('redis_aof_last_cow_size_bytes')}[{window}])"
    description = (
        "Resident memory and the copy-on-write of the largest save of the last 6 hours come to "
        f"{{{{ $value | humanize1024 }}}}B, of a memory limit of {_limit(context)}. The kernel kills the "
        "server at "
        "the limit, most likely in the next save."
    )
    reads = description.replace("{{ $value | humanize1024 }}", humanize1024(limit))
    full = limit * instance.headroom_ratio
    fits = danger - full - 1024

    def scraped(cow: str) -> dict[str, str]:
        return {
            "redis_memory_used_rss_bytes": flat(full, 480),
            "redis_rdb_last_cow_size_bytes": cow,
            "redis_aof_last_cow_size_bytes": flat(0, 480),
        }

    return Alert(
        name="InferenceCacheOOMKillRisk",
        group="memory",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_memory_used_rss_bytes')}\n"
        f"  + ({rdb} > {aof}\n"
        f"     or {aof})\n"
        f"> {danger}",
        for_s=300,
        summary="The next save can take the server over its memory limit",
        description=description,
        threshold=f"memory_limit * (1 - (1 - headroom_ratio) / 4) = {format_size(danger)}",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="resident memory alone fits, with the copy-on-write of a save it does not",
                inputs=scraped(then(flat(fits, 10), flat(limit - full, 470))),
                evals=(Eval(at="14m"), Eval(at="15m", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what="a full cache, and a save that fits into three quarters of the headroom",
                inputs=scraped(flat(fits, 480)),
                evals=(Eval(at="60m"), Eval(at="7h")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="six hours after the last large save",
                inputs=scraped(then(flat(limit - full, 10), flat(0, 470))),
                evals=(Eval(at="6h", reads=reads), Eval(at="6h11m")),
            ),
        ),
        inhibits=("InferenceCacheFragmented",),
    )


def _maxmemory_unset(context: Context) -> Alert:
    wanted = context.contract.instance.maxmemory_bytes
    description = (
        "maxmemory is 0: nothing is ever evicted, and the kernel kills the server at its limit of "
        f"{_limit(context)}. It should be {format_size(wanted)}."
    )
    return Alert(
        name="InferenceCacheMaxmemoryUnset",
        group="memory",
        severity=Severity.CRITICAL,
        expr=f"{context.redis('redis_memory_max_bytes')} == 0",
        for_s=300,
        summary="The server has no maxmemory",
        description=description,
        threshold=f"any maxmemory; the contract says {format_size(wanted)}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=300,
            bad={"redis_memory_max_bytes": 0},
            good={"redis_memory_max_bytes": 1},
            reads=description,
            bad_is="maxmemory 0 for five minutes",
            good_is="the smallest maxmemory that there is",
            resolved_by="maxmemory set at run time",
        ),
    )


def _maxmemory_too_near_limit(context: Context) -> Alert:
    instance = context.contract.instance
    most = round(instance.memory_limit_bytes * instance.headroom_ratio)
    description = (
        f"maxmemory is {{{{ $value | humanize1024 }}}}B of a memory limit of {_limit(context)}. Above "
        f"{format_size(most)} the copy-on-write of a save does not fit below the limit."
    )
    reads = description.replace("{{ $value | humanize1024 }}", humanize1024(instance.memory_limit_bytes))
    return Alert(
        name="InferenceCacheMaxmemoryTooNearLimit",
        group="memory",
        severity=Severity.WARNING,
        expr=f"{context.redis('redis_memory_max_bytes')} > {most}",
        for_s=900,
        summary="maxmemory leaves no room for a save below the memory limit",
        description=description,
        threshold=f"headroom_ratio * memory_limit = {format_size(most)}",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=900,
            bad={"redis_memory_max_bytes": instance.memory_limit_bytes},
            good={"redis_memory_max_bytes": most},
            reads=reads,
            bad_is="maxmemory as large as the limit",
            good_is="all that the headroom allows",
            resolved_by="maxmemory lowered at run time",
        ),
    )


def _overshoot(context: Context) -> Alert:
    instance = context.contract.instance
    used, most = context.redis("redis_memory_used_bytes"), context.redis("redis_memory_max_bytes")
    bound = 1 + instance.maxmemory_tolerance
    description = (
        "Used memory is {{ $value | humanizePercentage }} of maxmemory and eviction does not bring it down: "
        "what is left may not be evicted, or comes faster than it goes."
    )
    size = instance.maxmemory_bytes
    return Alert(
        name="InferenceCacheOvershoot",
        group="memory",
        severity=Severity.CRITICAL,
        expr=f"{used} / ({most} > 0) > {number(bound)}",
        for_s=300,
        summary="Used memory stays above maxmemory",
        description=description,
        threshold=f"(1 + maxmemory_tolerance) * maxmemory = {number(bound)} * maxmemory",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=300,
            bad={"redis_memory_used_bytes": size * (bound + 0.1), "redis_memory_max_bytes": size},
            good={"redis_memory_used_bytes": size * (bound - 0.01), "redis_memory_max_bytes": size},
            reads=description.replace("{{ $value | humanizePercentage }}", f"{(bound + 0.1) * 100:.4g}%"),
            bad_is="above maxmemory by more than the tolerance for five minutes",
            good_is="above maxmemory within the tolerance, as in any flood",
            resolved_by="eviction caught up",
        ),
    )


def _policy_changed(context: Context) -> Alert:
    wanted = context.contract.instance.maxmemory_policy
    other = "noeviction"
    description = (
        f"maxmemory-policy is {{{{ $labels.maxmemory_policy }}}}, decided is {wanted}. Other keys are "
        "evicted than "
        "expected, or none and writes are refused."
    )
    labels = {"maxmemory_policy": other}
    info = context.redis("redis_instance_info", f'maxmemory_policy!="{wanted}"')
    reads = description.replace("{{ $labels.maxmemory_policy }}", other)
    decided = f'redis_instance_info{{maxmemory_policy="{wanted}", role="master"}}'
    changed = f'redis_instance_info{{maxmemory_policy="{other}", role="master"}}'
    return Alert(
        name="InferenceCachePolicyChanged",
        group="memory",
        severity=Severity.WARNING,
        # The series carries the process id too, which is another after each restart.
        expr=f"max by (namespace, job, instance, maxmemory_policy) ({info}) == 1",
        for_s=300,
        summary="The server evicts by another policy than decided",
        description=description,
        threshold=f"maxmemory_policy = {wanted}",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="noeviction for five minutes",
                inputs={changed: flat(1, 60)},
                evals=(Eval(at="4m"), Eval(at="5m", reads=reads, labels=labels)),
            ),
            Case(
                kind=Kind.QUIET,
                what="the policy of the contract",
                inputs={decided: flat(1, 60)},
                evals=(Eval(at="5m"), Eval(at="50m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="set back at run time",
                inputs={changed: then(flat(1, 20), "stale"), decided: then("_x20", flat(1, 40))},
                evals=(Eval(at="19m", reads=reads, labels=labels), Eval(at="20m")),
            ),
        ),
    )


def _fragmented(context: Context) -> Alert:
    instance = context.contract.instance
    bound = instance.fragmentation_ratio
    rss, used = context.redis("redis_memory_used_rss_bytes"), context.redis("redis_memory_used_bytes")
    # A small data set shows the allocator's own pages, not fragments.
    enough = round(instance.maxmemory_bytes / 4)
    description = (
        f"Resident memory is {RATE} times used memory. The kernel counts what the process holds "
        f"against the limit of {_limit(context)}, whether the cache uses it or not."
    )
    half = instance.maxmemory_bytes / 2
    good = {"redis_memory_used_rss_bytes": half * bound, "redis_memory_used_bytes": half}
    cases = level_cases(
        for_s=1800,
        bad={"redis_memory_used_rss_bytes": half * (bound + 0.5), "redis_memory_used_bytes": half},
        good=good,
        reads=description.replace(RATE, f"{bound + 0.5:.1f}"),
        bad_is="fragmented for half an hour",
        good_is="resident over used memory exactly at the bound",
        resolved_by="memory given back",
    )
    nearly_empty = Case(
        kind=Kind.QUIET,
        what="a nearly empty server, where the process itself is most of resident memory",
        inputs={
            "redis_memory_used_rss_bytes": flat(enough * bound * 2, 60),
            "redis_memory_used_bytes": flat(enough, 60),
        },
        evals=(Eval(at="50m"),),
    )
    return Alert(
        name="InferenceCacheFragmented",
        group="memory",
        severity=Severity.WARNING,
        expr=f"{rss} / ({used} > {enough}) > {number(bound)}",
        for_s=1800,
        summary="Much resident memory is not used by the cache",
        description=description,
        threshold=f"fragmentation_ratio = {number(bound)}, from a quarter of maxmemory on",
        dashboard=_DASHBOARD,
        cases=(*cases, nearly_empty),
    )


def _predicted_full(context: Context) -> Alert:
    instance = context.contract.instance
    used, most = context.redis("redis_memory_used_bytes"), context.redis("redis_memory_max_bytes")
    below = 1 - instance.maxmemory_tolerance
    losing = [w.prefix for w in context.contract.workloads.values() if w.only_copy and w.evictable]
    then_ = f"keys are evicted, also those of {' and '.join(losing)}" if losing else "keys are evicted"
    description = (
        "At the pace of the last 6 hours used memory would be {{ $value | humanize1024 }}B in 4 hours; "
        "maxmemory is "
        f"{format_size(instance.maxmemory_bytes)}. From there on {then_}."
    )
    size = instance.maxmemory_bytes
    # One per cent of maxmemory each five minutes: after an hour at 62 %, in four more hours at 110 %.
    reads = description.replace("{{ $value | humanize1024 }}", humanize1024(size * 1.10))
    full = flat(size, 60)
    return Alert(
        name="InferenceCachePredictedFull",
        group="memory",
        severity=Severity.WARNING if losing else Severity.INFO,
        expr=f"predict_linear({used}[{context.window(6 * 3600)}], {context.age(4 * 3600)})\n"
        f"  > ({most} > 0)\n"
        f"and {used} < {number(below)} * {most}",
        for_s=1800,
        summary="The cache will be full in a few hours",
        description=description,
        threshold=(
            f"maxmemory, seen from below (1 - maxmemory_tolerance) * maxmemory = {number(below)} * maxmemory"
        ),
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="a slow growth that ends within four hours",
                interval="5m",
                inputs={
                    "redis_memory_used_bytes": ramp(size * 0.5, size * 0.01, 30),
                    "redis_memory_max_bytes": full,
                },
                evals=(Eval(at="20m"), Eval(at="1h", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what="a growth that takes longer, and a cache that has long been full",
                interval="5m",
                inputs={
                    "redis_memory_used_bytes": then(ramp(size * 0.2, size * 0.001, 100), flat(size, 100)),
                    "redis_memory_max_bytes": flat(size, 200),
                },
                evals=(Eval(at="2h"), Eval(at="8h"), Eval(at="9h"), Eval(at="16h")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a purge ended the growth",
                interval="5m",
                inputs={
                    "redis_memory_used_bytes": then(ramp(size * 0.5, size * 0.01, 13), flat(size * 0.3, 40)),
                    "redis_memory_max_bytes": full,
                },
                evals=(Eval(at="1h", reads=reads), Eval(at="2h")),
            ),
        ),
    )


def _full(context: Context) -> Alert:
    instance = context.contract.instance
    used, most = context.redis("redis_memory_used_bytes"), context.redis("redis_memory_max_bytes")
    level = 1 - instance.maxmemory_tolerance
    description = (
        "Used memory is {{ $value | humanizePercentage }} of maxmemory. That is what an LRU cache is for; "
        "other alerts tell when it does damage."
    )
    size = instance.maxmemory_bytes
    return Alert(
        name="InferenceCacheFull",
        group="memory",
        severity=Severity.INFO,
        expr=f"{used} / ({most} > 0) > {number(level)}",
        for_s=600,
        summary="The cache is full and evicts",
        description=description,
        threshold=f"(1 - maxmemory_tolerance) * maxmemory = {number(level)} * maxmemory",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=600,
            bad={"redis_memory_used_bytes": size, "redis_memory_max_bytes": size},
            good={"redis_memory_used_bytes": size * (level - 0.01), "redis_memory_max_bytes": size},
            reads=description.replace("{{ $value | humanizePercentage }}", "100%"),
            bad_is="full for ten minutes",
            good_is="just below the tolerance",
            resolved_by="a purge made room",
        ),
        inhibits=("InferenceCachePredictedFull",),
    )
