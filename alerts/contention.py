"""Contention: four workloads in one memory, and which of them pays for it."""

from __future__ import annotations

from functools import partial

from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target, number
from alerts.series import COUNT, flat, humanize1024, ramp, then
from inference_cache.contract import Workload, may_evict

__all__ = ["alerts"]

_DASHBOARD = "contention"
_BY_TARGET = "namespace, job, instance"


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group: first what hurts everybody, then one rule for each workload."""
    workloads = context.contract.workloads.values()
    return (
        _eviction_hurts(context),
        _keyspace_churn(context),
        *(_prefix_hog(context, workload) for workload in workloads),
        *(_prefix_squeezed(context, workload) for workload in workloads),
        *(_only_copy_evicted(context, workload) for workload in workloads if workload.only_copy),
    )


def _eviction_hurts(context: Context) -> Alert:
    hits, misses = context.redis("redis_keyspace_hits_total"), context.redis("redis_keyspace_misses_total")
    now, day = context.window(900), context.window(24 * 3600)

    def ratio(over: str) -> str:
        return f"rate({hits}{over}) / (rate({hits}{over}) + rate({misses}{over}))"

    description = (
        "The hit ratio fell to {{ $value | humanizePercentage }} in the last 15 minutes, less than four "
        "fifths of that of the day before, while keys are evicted: what is read no longer fits, and misses "
        "are computed again."
    )
    reads = description.replace("{{ $value | humanizePercentage }}", "50%")
    # A day at 95 %, then the rates of the case.
    before_h, before_m = ramp(0, 95 * 60, 300), ramp(0, 5 * 60, 300)
    last_h, last_m = 95 * 60 * 299, 5 * 60 * 299

    def scraped(hits_step: float, misses_step: float, evicted_step: float) -> dict[str, str]:
        return {
            "redis_keyspace_hits_total": then(before_h, ramp(last_h + hits_step, hits_step, 30)),
            "redis_keyspace_misses_total": then(before_m, ramp(last_m + misses_step, misses_step, 30)),
            "redis_evicted_keys_total": then(flat(0, 300), ramp(evicted_step, evicted_step, 30)),
        }

    recovered = {
        name: then(values, more)
        for (name, values), more in zip(
            scraped(50 * 60, 50 * 60, 600).items(),
            (
                ramp(last_h + 30 * 3000 + 5700, 5700, 60),
                ramp(last_m + 30 * 3000 + 300, 300, 60),
                flat(18000, 60),
            ),
            strict=True,
        )
    }
    return Alert(
        name="InferenceCacheEvictionHurts",
        group="contention",
        severity=Severity.CRITICAL,
        expr=f"{ratio(f'[{now}]')}\n"
        f"  < 0.8 * ({ratio(f'[{day}] offset {now}')})\n"
        f"and rate({context.redis('redis_evicted_keys_total')}[{now}]) > 0",
        for_s=600,
        summary="Eviction costs hits",
        description=description,
        threshold="0.8 * the server's own hit ratio of the day before",
        dashboard=_DASHBOARD,
        tested_every="5m",
        cases=(
            Case(
                kind=Kind.FIRES,
                what="half of the look-ups miss, after a day at 95 %",
                interval="5m",
                inputs=scraped(50 * 60, 50 * 60, 600),
                evals=(Eval(at="1495m"), Eval(at="1550m", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what=(
                    "77 % after a day at 95 %, evicting; a full cache with its usual hit ratio is quieter "
                    "still"
                ),
                interval="5m",
                inputs=scraped(77 * 60, 23 * 60, 600),
                evals=(Eval(at="1520m"), Eval(at="1550m"), Eval(at="1600m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="a hit ratio that falls without evictions, as after a deployment with new keys",
                interval="5m",
                inputs=scraped(50 * 60, 50 * 60, 0),
                evals=(Eval(at="1550m"),),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the hit ratio is back",
                interval="5m",
                inputs=recovered,
                evals=(Eval(at="1600m", reads=reads), Eval(at="1700m")),
            ),
        ),
        inhibits=("InferenceCacheKeyspaceChurn",),
    )


def _keyspace_churn(context: Context) -> Alert:
    lives = {w.prefix: w.ttl_s for w in context.contract.workloads.values() if w.ttl_s is not None}
    # Without any TTL in the contract an hour is the least that a cache should keep.
    prefix, shortest = min(lives.items(), key=lambda item: item[1], default=("any key", 3600))
    bound = shortest / 10
    keys = f"sum by ({_BY_TARGET}) ({context.redis('redis_db_keys')})"
    evicted = (
        f"sum by ({_BY_TARGET}) (rate({context.redis('redis_evicted_keys_total')}[{context.window(900)}]))"
    )
    description = (
        "At the pace of the last 15 minutes every key is evicted within {{ $value | humanizeDuration }}; "
        "the shortest TTL of "
        f"the contract is {shortest} s ({prefix}). The cache is written for nobody."
    )
    count, db = 60_000, 'redis_db_keys{db="db0"}'
    fast, slow = 60 * count / bound * 2, 60 * count / bound * 0.9
    reads = description.replace(
        "{{ $value | humanizeDuration }}", f"{int(bound / 2) // 60}m {int(bound / 2) % 60}s"
    )
    return Alert(
        name="InferenceCacheKeyspaceChurn",
        group="contention",
        severity=Severity.WARNING,
        expr=f"{keys} / ({evicted} > 0) < {context.age(bound)}",
        for_s=900,
        summary="Keys are evicted soon after they are written",
        description=description,
        threshold=f"a tenth of the shortest ttl_s = {number(bound)} s",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="all keys replaced in half the time",
                inputs={db: flat(count, 60), "redis_evicted_keys_total": ramp(0, fast, 60)},
                evals=(Eval(at="14m"), Eval(at="30m", reads=reads)),
            ),
            Case(
                kind=Kind.QUIET,
                what="all keys replaced in a little more than that time",
                inputs={db: flat(count, 60), "redis_evicted_keys_total": ramp(0, slow, 60)},
                evals=(Eval(at="30m"), Eval(at="59m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the flood is over",
                inputs={
                    db: flat(count, 90),
                    "redis_evicted_keys_total": then(ramp(0, fast, 41), flat(40 * fast, 40)),
                },
                evals=(Eval(at="40m", reads=reads), Eval(at="60m")),
            ),
        ),
    )


def _others(context: Context, prefix: str) -> str:
    lost = context.own("inference_cache_prefix_evicted_keys_total", f'prefix!="{prefix}"')
    return f"sum by ({_BY_TARGET}) (rate({lost}[{context.window(900)}]))"


def _prefix_hog(context: Context, workload: Workload) -> Alert:
    maxmemory = context.contract.instance.maxmemory_bytes
    prefix, share = workload.prefix, workload.share
    # Nobody can take more than the others may lose, so half of that is much where it is less.
    policy = context.contract.instance.maxmemory_policy
    losable = sum(
        other.share
        for other in context.contract.workloads.values()
        if other is not workload and may_evict(policy, has_ttl=other.ttl_s is not None)
    )
    part = min(1.5 * share, share + losable / 2)
    how = (
        f"1.5 * share of {workload.name}"
        if part == 1.5 * share
        else f"share of {workload.name} and half of what the others may lose"
    )
    bound = round(part * maxmemory)
    description = (
        f"{prefix} holds {{{{ $value | humanize1024 }}}}B, declared are {share * 100:g} % of maxmemory "
        f"({humanize1024(share * maxmemory)}B), and keys of others are evicted for it."
    )
    mine = context.own("inference_cache_prefix_bytes", f'prefix="{prefix}"')
    held = f'inference_cache_prefix_bytes{{prefix="{prefix}"}}'
    other = next((w.prefix for w in context.contract.workloads.values() if w is not workload), "other")
    lost = f'inference_cache_prefix_evicted_keys_total{{prefix="{other}"}}'
    much = bound * 1.1
    fires = partial(
        Eval,
        reads=description.replace("{{ $value | humanize1024 }}", humanize1024(much)),
        labels={"prefix": prefix},
        target=Target.EXPORTER,
    )
    return Alert(
        name="InferenceCachePrefixHog",
        group="contention",
        severity=Severity.WARNING,
        expr=f"{mine} > {bound}\nand on ({_BY_TARGET}) {_others(context, prefix)} > 0",
        for_s=900,
        summary=f"{prefix} takes memory from the others",
        description=description,
        threshold=f"{how} = {part * 100:.3g} % of maxmemory, while others are evicted",
        dashboard=_DASHBOARD,
        workload=workload.name,
        cases=(
            Case(
                kind=Kind.FIRES,
                what=f"{prefix} far above its share, others are evicted",
                inputs={held: flat(much, 60), lost: ramp(0, 60, 60)},
                evals=(Eval(at="14m"), fires(at="30m")),
            ),
            Case(
                kind=Kind.QUIET,
                what=f"{prefix} just under that; others are evicted",
                inputs={held: flat(bound, 60), lost: ramp(0, 60, 60)},
                evals=(Eval(at="30m"), Eval(at="59m")),
            ),
            Case(
                kind=Kind.QUIET,
                what=f"{prefix} uses memory that nobody else wants",
                inputs={held: flat(much, 60), lost: flat(0, 60)},
                evals=(Eval(at="30m"),),
            ),
            Case(
                kind=Kind.RESOLVES,
                what=f"{prefix} shrank",
                inputs={held: then(flat(much, 40), flat(bound, 30)), lost: ramp(0, 60, 70)},
                evals=(fires(at="39m"), Eval(at="40m")),
            ),
        ),
    )


def _prefix_squeezed(context: Context, workload: Workload) -> Alert:
    maxmemory = context.contract.instance.maxmemory_bytes
    prefix = workload.prefix
    least = round(workload.share * maxmemory / 2)
    held = context.own("inference_cache_prefix_bytes", f'prefix="{prefix}"')
    evicted = context.own("inference_cache_prefix_evicted_keys_total", f'prefix="{prefix}"')
    hour = context.window(3600)
    costs = "what is gone was the only copy" if workload.only_copy else "what is gone is computed again"
    description = (
        f"{prefix} is down to {{{{ $value | humanize1024 }}}}B, less than half of what it held within the "
        f"last hour and of its share ({humanize1024(workload.share * maxmemory)}B), by eviction: {costs}."
    )
    had, left = least * 1.8, least * 0.5
    mine = f'inference_cache_prefix_bytes{{prefix="{prefix}"}}'
    lost = f'inference_cache_prefix_evicted_keys_total{{prefix="{prefix}"}}'
    fires = partial(
        Eval,
        reads=description.replace("{{ $value | humanize1024 }}", humanize1024(left)),
        labels={"prefix": prefix},
        target=Target.EXPORTER,
    )
    return Alert(
        name="InferenceCachePrefixSqueezed",
        group="contention",
        severity=Severity.CRITICAL if workload.only_copy else Severity.WARNING,
        expr=f"{held} < {least}\n"
        f"and {held} < 0.5 * max_over_time({held}[{hour}])\n"
        f"and rate({evicted}[{hour}]) > 0",
        for_s=300,
        summary=f"{prefix} is squeezed out of the cache",
        description=description,
        threshold=f"half the share of {workload.name} = {workload.share * 50:g} % of maxmemory",
        dashboard=_DASHBOARD,
        workload=workload.name,
        cases=(
            Case(
                kind=Kind.FIRES,
                what=f"{prefix} lost most of its bytes to eviction",
                inputs={
                    mine: then(flat(had, 30), flat(left, 60)),
                    lost: then(flat(0, 30), flat(1000, 60)),
                },
                evals=(Eval(at="34m"), fires(at="35m")),
            ),
            Case(
                kind=Kind.QUIET,
                what=f"{prefix} shrank as its keys expired or were deleted",
                inputs={mine: then(flat(had, 30), flat(left, 60)), lost: flat(0, 90)},
                evals=(Eval(at="35m"), Eval(at="60m")),
            ),
            Case(
                kind=Kind.QUIET,
                what=f"{prefix} lost keys to eviction and still holds just over half of what it had",
                inputs={
                    mine: then(flat(had, 30), flat(had * 0.51, 60)),
                    lost: then(flat(0, 30), flat(1000, 60)),
                },
                evals=(Eval(at="35m"), Eval(at="60m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what=f"{prefix} got its share back",
                inputs={
                    mine: then(flat(had, 30), flat(left, 20), flat(had, 40)),
                    lost: then(flat(0, 30), flat(1000, 60)),
                },
                evals=(fires(at="49m"), Eval(at="50m")),
            ),
        ),
    )


def _only_copy_evicted(context: Context, workload: Workload) -> Alert:
    prefix = workload.prefix
    evicted = context.own("inference_cache_prefix_evicted_keys_total", f'prefix="{prefix}"')
    accepted = (
        f" The contract accepts this: {workload.loss_bound}."
        if workload.evictable
        else " The contract forbids this."
    )
    description = (
        f"About {COUNT} keys of {prefix} were evicted in 15 minutes. They were the only copy.{accepted}"
    )
    lost = f'inference_cache_prefix_evicted_keys_total{{prefix="{prefix}"}}'
    fires = partial(
        Eval,
        reads=description.replace(COUNT, f"{150:.0f}"),
        labels={"prefix": prefix},
        target=Target.EXPORTER,
    )
    return Alert(
        name="InferenceCacheOnlyCopyEvicted",
        group="contention",
        severity=Severity.WARNING if workload.evictable else Severity.CRITICAL,
        # Evictions are shared out by sampled keys, so less than one key is no evidence.
        expr=f"increase({evicted}[{context.window(900)}]) >= 1",
        for_s=60,
        summary=f"Only copies of {prefix} are evicted",
        description=description,
        threshold="one key; its severity follows evictable = "
        f"{'true, with the loss bound that was accepted' if workload.evictable else 'false'} "
        f"({workload.name})",
        dashboard=_DASHBOARD,
        workload=workload.name,
        cases=(
            Case(
                kind=Kind.FIRES,
                what=f"ten keys of {prefix} a minute",
                inputs={lost: then(flat(0, 10), ramp(10, 10, 40))},
                evals=(Eval(at="9m"), fires(at="40m")),
            ),
            Case(
                kind=Kind.QUIET,
                what=f"no key of {prefix} for an hour, while others are evicted",
                inputs={
                    lost: flat(500, 60),
                    'inference_cache_prefix_evicted_keys_total{prefix="other"}': ramp(0, 600, 60),
                },
                evals=(Eval(at="30m"), Eval(at="59m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour without one",
                inputs={lost: then(ramp(0, 10, 41), flat(400, 30))},
                evals=(fires(at="40m"), Eval(at="56m")),
            ),
        ),
    )
