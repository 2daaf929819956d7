"""KV offload: whether blocks that vLLM moves out come back, and come back whole."""

from __future__ import annotations

from functools import partial

from alerts.appearing import appeared
from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target
from alerts.series import COUNT, RATE, flat, missing, ramp, then

__all__ = ["ENGINE", "WORKLOAD", "alerts"]

_DASHBOARD = "offload"
WORKLOAD = "vllm_kv"
"""The workload of the contract that this group is about."""

_BLOCKS = "vllm:kv_offload_valkey_blocks_total"
"""Of our tier, by operation (lookup, load, store) and by how it ended; vLLM exposes it."""
ENGINE = 'job="vllm", instance="vllm:8000", model_name="m", engine="0"'


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group; empty where the contract has no KV blocks."""
    if WORKLOAD not in context.contract.workloads:
        return ()
    return (_corrupt(context), _jobs_fail(context), _backpressure(context), _useless(context))


def _corrupt(context: Context) -> Alert:
    damaged = 'operation="load", reason=~"short|long|checksum|foreign|version|size|corrupt"'
    description = (
        f"{COUNT} blocks in 15 minutes were there and not what was stored ({{{{ $labels.reason }}}}). They "
        "were "
        "counted as misses and recomputed; something writes below the prefix that should not, or damages "
        "values."
    )

    def series(reason: str) -> str:
        return f'{_BLOCKS}{{{ENGINE}, operation="load", reason="{reason}"}}'

    fires = partial(
        Eval,
        reads=description.replace(COUNT, "3").replace("{{ $labels.reason }}", "checksum"),
        labels={"reason": "checksum"},
        target=Target.NONE,
    )
    return Alert(
        name="InferenceCacheOffloadCorruptBlocks",
        group="offload",
        severity=Severity.WARNING,
        expr=appeared(
            f"{_BLOCKS}{{{damaged}}}",
            window=context.window(900),
            kept="namespace, reason",
        ),
        for_s=0,
        summary="KV blocks come back damaged",
        description=description,
        threshold="any",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the first three damaged blocks ever",
                inputs={series("checksum"): then(missing(20), flat(3, 60))},
                evals=(Eval(at="19m"), fires(at="20m"), fires(at="34m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="blocks that are not there, and damage of an hour ago",
                inputs={series("miss"): ramp(0, 600, 90), series("checksum"): flat(3, 90)},
                evals=(Eval(at="30m"), Eval(at="89m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour without one",
                inputs={series("checksum"): then(missing(20), flat(3, 60))},
                evals=(fires(at="34m"), Eval(at="36m")),
            ),
        ),
    )


def _jobs_fail(context: Context) -> Alert:
    window = context.window(600)
    kept = "namespace, job, instance, tier"
    reads_, writes = (
        f"sum by ({kept}) (rate(vllm:kv_offload_tiering_{kind}_job_failures_total[{window}]))"
        for kind in ("promotion", "cascade")
    )
    description = (
        f"{RATE} jobs a second between vLLM and tier {{{{ $labels.tier }}}} fail: blocks are recomputed "
        "that the "
        "cache may hold, and requests wait for nothing."
    )
    failures = f'vllm:kv_offload_tiering_promotion_job_failures_total{{{ENGINE}, tier="valkey"}}'
    stores = f'vllm:kv_offload_tiering_cascade_job_failures_total{{{ENGINE}, tier="valkey"}}'
    fires = partial(
        Eval,
        reads=description.replace(RATE, "0.5").replace("{{ $labels.tier }}", "valkey"),
        labels={"job": "vllm", "instance": "vllm:8000", "tier": "valkey"},
        target=Target.NONE,
    )
    return Alert(
        name="InferenceCacheOffloadJobsFail",
        group="offload",
        severity=Severity.WARNING,
        # Either series begins with its first failure.
        expr=f"({reads_} or 0 * {writes})\n+ ({writes} or 0 * {reads_})\n> 0",
        for_s=600,
        summary="vLLM fails to move KV blocks",
        description=description,
        threshold="failures that go on for 10 minutes",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="a load fails every other second",
                inputs={failures: ramp(0, 30, 60)},
                evals=(Eval(at="9m"), fires(at="30m")),
            ),
            Case(
                kind=Kind.FIRES,
                what="a store fails every other second, and no load ever did",
                inputs={stores: ramp(0, 30, 60)},
                evals=(Eval(at="9m"), fires(at="30m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="one bad minute, then none",
                inputs={failures: then(flat(0, 10), flat(3, 60)), stores: flat(0, 70)},
                evals=(Eval(at="15m"), Eval(at="30m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="loads succeed again",
                inputs={failures: then(ramp(0, 30, 41), flat(1200, 30)), stores: flat(0, 71)},
                evals=(fires(at="40m"), Eval(at="51m")),
            ),
        ),
    )


def _backpressure(context: Context) -> Alert:
    window = context.window(900)
    kept = "namespace, job, instance, tier"
    by_vllm = f"sum by ({kept}) (rate(vllm:kv_offload_tiering_backpressure_blocks_dropped_total[{window}]))"
    given_up = f'{_BLOCKS}{{operation="store", reason=~"queue_full|pushed_out|late|deadline"}}'
    by_us = f'sum by ({kept}) (label_replace(rate({given_up}[{window}]), "tier", "valkey", "", ""))'
    description = (
        f"{RATE} blocks a second are dropped before tier {{{{ $labels.tier }}}}: the cache takes them more "
        "slowly than they are made, and later requests will miss them."
    )
    dropped = f'vllm:kv_offload_tiering_backpressure_blocks_dropped_total{{{ENGINE}, tier="1:ValkeyTier"}}'

    def given_up_for(reason: str) -> str:
        return f'{_BLOCKS}{{{ENGINE}, operation="store", reason="{reason}"}}'

    def fires(tier: str, at: str) -> Eval:
        return Eval(
            at=at,
            reads=description.replace(RATE, "1.0").replace("{{ $labels.tier }}", tier),
            labels={"job": "vllm", "instance": "vllm:8000", "tier": tier},
            target=Target.NONE,
        )

    return Alert(
        name="InferenceCacheOffloadBackpressure",
        group="offload",
        severity=Severity.WARNING,
        # vLLM drops stores where the tier's configuration has a detector; ours gives up what waits, or takes,
        # too long.
        expr=f"{by_vllm} > 0\nor {by_us} > 0",
        for_s=1800,
        summary="The cache is too slow for what vLLM stores",
        description=description,
        threshold="dropped stores that go on for half an hour",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="vLLM drops a block every second for half an hour",
                inputs={dropped: ramp(0, 60, 90)},
                evals=(Eval(at="25m"), fires("1:ValkeyTier", "60m")),
            ),
            *(
                Case(
                    kind=Kind.FIRES,
                    what=f"our tier gives up a block every second for half an hour ({reason})",
                    inputs={given_up_for(reason): ramp(0, 60, 90)},
                    evals=(Eval(at="25m"), fires("valkey", "60m")),
                )
                for reason in ("queue_full", "pushed_out", "late", "deadline")
            ),
            Case(
                kind=Kind.QUIET,
                what="a burst of a few minutes",
                inputs={dropped: then(flat(0, 10), ramp(60, 60, 5), flat(300, 60))},
                evals=(Eval(at="20m"), Eval(at="45m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="no store is dropped any more",
                inputs={dropped: then(ramp(0, 60, 61), flat(3600, 30))},
                evals=(fires("1:ValkeyTier", "60m"), Eval(at="76m")),
            ),
        ),
    )


def _useless(context: Context) -> Alert:
    hour = context.window(3600)

    def rate(operation: str, reason: str) -> str:
        matchers = f'operation="{operation}", reason="{reason}"'
        return f"sum by (namespace) (rate({_BLOCKS}{{{matchers}}}[{hour}]))"

    hits, misses, written = rate("lookup", "hit"), rate("lookup", "miss"), rate("store", "stored")
    description = (
        "Of the blocks that vLLM looked up in an hour {{ $value | humanizePercentage }} were found, while "
        "it goes on storing. Storing them costs bandwidth and the memory of others, and saves nobody a "
        "prefill."
    )
    found, lost, stored = (
        f'{_BLOCKS}{{{ENGINE}, operation="{operation}", reason="{reason}"}}'
        for operation, reason in (("lookup", "hit"), ("lookup", "miss"), ("store", "stored"))
    )

    def scraped(hits: str, misses: str, count: int) -> dict[str, str]:
        return {found: hits, lost: misses, stored: ramp(0, 1e6, count)}

    fires = partial(
        Eval, reads=description.replace("{{ $value | humanizePercentage }}", "2%"), target=Target.NONE
    )
    return Alert(
        name="InferenceCacheOffloadUseless",
        group="offload",
        severity=Severity.WARNING,
        expr=f"{hits} / ({hits} + {misses}) < 0.05\nand {written} > 0",
        for_s=3600,
        summary="Offloaded KV blocks are hardly ever read",
        description=description,
        threshold="a hit ratio of 0.05 for an hour",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="one look-up in fifty finds its block",
                inputs=scraped(ramp(0, 2, 240), ramp(0, 98, 240), 240),
                evals=(Eval(at="55m"), fires(at="150m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="one look-up in twenty does",
                inputs=scraped(ramp(0, 5, 240), ramp(0, 95, 240), 240),
                evals=(Eval(at="150m"), Eval(at="230m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the same prompts come again",
                inputs=scraped(
                    then(ramp(0, 2, 151), ramp(380, 80, 120)),
                    then(ramp(0, 98, 151), ramp(14720, 20, 120)),
                    271,
                ),
                evals=(fires(at="150m"), Eval(at="220m")),
            ),
        ),
    )
