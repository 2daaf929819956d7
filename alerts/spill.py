"""Ray spill: objects whose only copy is in the cache."""

from __future__ import annotations

from functools import partial

from alerts.appearing import appeared
from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target
from alerts.series import COUNT, flat, humanize1024, missing, ramp, then

__all__ = ["WORKLOAD", "alerts"]

_DASHBOARD = "spill"
WORKLOAD = "ray"
"""The workload of the contract that this group is about."""

_APP = 'job="ray", instance="ray:8080", adapter="ray_spill", workload="ray"'


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group; empty where the contract has no spilled objects."""
    if WORKLOAD not in context.contract.workloads:
        return ()
    return (_lost(context), _refused(context), _leak(context))


def _lost(context: Context) -> Alert:
    ray = context.contract.workloads[WORKLOAD]
    accepted = (
        f" The contract accepts: {ray.loss_bound}." if ray.evictable else " The contract accepts no loss."
    )
    description = (
        f"{COUNT} spilled objects were asked for in 15 minutes and not delivered whole "
        f"({{{{ $labels.reason }}}}). Their readers get ObjectLostError.{accepted}"
    )
    series = f'inference_cache_adapter_misses_total{{{_APP}, reason="absent"}}'
    fires = partial(
        Eval,
        reads=description.replace(COUNT, "2").replace("{{ $labels.reason }}", "absent"),
        labels={"reason": "absent"},
        target=Target.NONE,
    )
    return Alert(
        name="InferenceCacheSpillLost",
        group="spill",
        severity=Severity.CRITICAL,
        expr=appeared(
            f'inference_cache_adapter_misses_total{{workload="{WORKLOAD}"}}',
            window=context.window(900),
            kept="namespace, reason",
        ),
        for_s=0,
        summary="Spilled Ray objects are lost",
        description=description,
        threshold="one object",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="the first two lost objects ever",
                inputs={series: then(missing(20), flat(2, 60))},
                evals=(Eval(at="19m"), fires(at="20m"), fires(at="34m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="objects lost long ago, and thousands restored since",
                inputs={
                    series: flat(2, 90),
                    f"inference_cache_adapter_hits_total{{{_APP}}}": ramp(0, 600, 90),
                },
                evals=(Eval(at="30m"), Eval(at="89m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a quarter of an hour without a loss",
                inputs={series: then(missing(20), flat(2, 60))},
                evals=(fires(at="34m"), Eval(at="36m")),
            ),
        ),
    )


def _refused(context: Context) -> Alert:
    deadline = context.contract.deadlines.spill_s
    description = (
        f"{COUNT} spills or restores failed in 5 minutes ({{{{ $labels.reason }}}}). What is not spilled "
        "stays in Ray's memory, and tasks that need memory wait; decided is an answer within "
        f"{deadline:g} s."
    )
    series = f'inference_cache_adapter_errors_total{{{_APP}, reason="full"}}'
    fires = partial(
        Eval,
        reads=description.replace(COUNT, "60").replace("{{ $labels.reason }}", "full"),
        labels={"reason": "full"},
        target=Target.NONE,
    )
    return Alert(
        name="InferenceCacheSpillRefused",
        group="spill",
        severity=Severity.CRITICAL,
        expr=appeared(
            f'inference_cache_adapter_errors_total{{workload="{WORKLOAD}"}}',
            window=context.window(300),
            kept="namespace, reason",
        ),
        for_s=120,
        summary="Ray cannot spill or restore",
        description=description,
        threshold=f"failures that go on for two minutes; spill_s = {deadline:g} s",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="a failure every five seconds for two minutes",
                inputs={series: then(missing(10), ramp(12, 12, 60))},
                evals=(Eval(at="11m"), fires(at="30m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="failures of an hour ago",
                inputs={series: flat(100, 90)},
                evals=(Eval(at="30m"), Eval(at="89m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="five minutes without a failure",
                inputs={series: then(missing(10), ramp(12, 12, 31), flat(372, 30))},
                evals=(fires(at="40m"), Eval(at="46m")),
            ),
        ),
    )


def _leak(context: Context) -> Alert:
    ray = context.contract.workloads[WORKLOAD]
    share = ray.share * context.contract.instance.maxmemory_bytes
    bound = round(share / 4)
    held = context.own("inference_cache_prefix_bytes", f'prefix="{ray.prefix}"')
    # What is spilled now; ray_spill_manager_objects_bytes{State="Spilled"} is a total since Ray's start.
    known = 'ray_object_store_memory{Location="SPILLED"}'
    description = (
        f"{{{{ $value | humanize1024 }}}}B below {ray.prefix} belong to no object that a living raylet "
        "knows. Only the raylet "
        "that spilled an object deletes it, and these keys have no TTL: a killed one leaves them for ever."
    )
    mine = f'inference_cache_prefix_bytes{{prefix="{ray.prefix}"}}'
    spilled = 'ray_object_store_memory{job="ray", instance="ray:8080", Location="SPILLED"}'
    fires = partial(
        Eval,
        reads=description.replace("{{ $value | humanize1024 }}", humanize1024(bound * 2)),
        labels={"prefix": ray.prefix},
        target=Target.EXPORTER,
    )
    return Alert(
        name="InferenceCacheSpillLeak",
        group="spill",
        severity=Severity.WARNING,
        # Ray lives elsewhere, so no label is shared; without its series scalar() is NaN, and the rule silent.
        expr=f"{held} - scalar(sum({known})) > {bound}",
        for_s=3600,
        summary="Spilled objects of dead raylets stay in the cache",
        description=description,
        threshold=f"a quarter of the share of {WORKLOAD} = {ray.share * 25:g} % of maxmemory",
        dashboard=_DASHBOARD,
        workload=WORKLOAD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="a node with half the share of the workload was killed an hour ago",
                inputs={
                    mine: flat(bound * 3, 200),
                    spilled: then(flat(bound * 3, 30), flat(bound, 170)),
                },
                evals=(Eval(at="85m"), fires(at="90m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="a quarter of the share is left, and a Ray whose metrics nobody scrapes",
                inputs={mine: flat(bound * 3, 200), spilled: then(flat(bound * 2, 100), "stale")},
                evals=(Eval(at="95m"), Eval(at="190m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the janitor deleted them",
                inputs={
                    mine: then(flat(bound * 3, 100), flat(bound, 60)),
                    spilled: then(flat(bound * 3, 30), flat(bound, 170)),
                },
                evals=(fires(at="99m"), Eval(at="100m")),
            ),
        ),
    )
