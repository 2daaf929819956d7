"""The budget of slow and failed reads, and how fast it burns.

The contract's ``p99_s`` says that 99 of 100 reads answer within it. The hundredth is the budget; over 30 days
it may be used up, and not sooner. Two windows each, as in Google's SRE workbook: the long one says that it
matters, the short one that it still goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target, duration, number
from alerts.offload import ENGINE, WORKLOAD
from alerts.series import flat, ramp, then
from inference_cache.contract import Workload
from inference_cache.errors import WriteRefused
from inference_cache.metrics import DURATION_BUCKETS_S

__all__ = ["alerts"]

_BUDGET: Final = 0.01
_READS: Final = "load|load_into|load_many_into|get_many|open|read|window|get_state|restore"
"""Operations of adapters that read and do nothing else: not those that compute what was missing."""
_REFUSALS: Final[tuple[type[WriteRefused], ...]] = (WriteRefused, *WriteRefused.__subclasses__())
_WRITES_ONLY: Final = "|".join(kind.reason for kind in _REFUSALS)
"""Reasons of errors that no read has."""
_DURATION: Final = "inference_cache_adapter_operation_duration_seconds"
_LOADS: Final = "vllm:kv_offload_valkey_load_block_seconds"
"""Of our tier, which vLLM exposes: no adapter runs in a process of its own there."""
_BLOCKS: Final = "vllm:kv_offload_valkey_blocks_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """How fast is too fast."""

    name: str
    factor: float
    """Times the pace at which the budget lasts for 30 days."""
    long_s: float
    short_s: float
    for_s: float
    severity: Severity
    gone_in: str


_PACES: Final = (
    _Pace(
        name="InferenceCacheBudgetBurnFast",
        factor=14.4,
        long_s=3600,
        short_s=300,
        for_s=120,
        severity=Severity.CRITICAL,
        gone_in="2 days",
    ),
    _Pace(
        name="InferenceCacheBudgetBurnMedium",
        factor=6,
        long_s=6 * 3600,
        short_s=1800,
        for_s=900,
        severity=Severity.CRITICAL,
        gone_in="5 days",
    ),
    _Pace(
        name="InferenceCacheBudgetBurnSlow",
        factor=1,
        long_s=3 * 24 * 3600,
        short_s=6 * 3600,
        for_s=3600,
        severity=Severity.WARNING,
        gone_in="30 days",
    ),
)


def alerts(context: Context) -> tuple[Alert, ...]:
    """For each pace one rule for each workload."""
    return tuple(
        _burn(context, pace, workload) for pace in _PACES for workload in context.contract.workloads.values()
    )


def _bucket(p99_s: float) -> float:
    """The bound of the histogram at which reads are judged: p99_s, or the next above it."""
    return next((bound for bound in DURATION_BUCKETS_S if bound >= p99_s), DURATION_BUCKETS_S[-1])


def _le(p99_s: float) -> str:
    # Prometheus 2 keeps "1.0" as it was exposed, later ones write "1".
    bound = f"{_bucket(p99_s):g}".replace(".", "\\\\.")
    return f'le=~"{bound}(\\\\.0)?"'


def _bad(workload: Workload, window: str) -> str:
    """The part of reads that were slow or failed, as adapters count them; nothing while nobody reads."""
    mine = f'workload="{workload.name}", operation=~"{_READS}"'
    total = f"sum by (namespace) (rate({_DURATION}_count{{{mine}}}[{window}]))"
    good = f"sum by (namespace) (rate({_DURATION}_bucket{{{mine}, {_le(workload.p99_s)}}}[{window}]))"
    errors = (
        "sum by (namespace) (rate(inference_cache_adapter_errors_total"
        f'{{workload="{workload.name}", reason!~"{_WRITES_ONLY}"}}[{window}]))'
    )
    # One read that waits may meet several errors.
    return f"clamp_max((\n  {total} - {good}\n  + ({errors} or 0 * {total})\n) / ({total} > 0), 1)"


def _bad_loads(workload: Workload, window: str) -> str:
    """The part of vLLM's loads that were slow, and of its blocks that failed; nothing while it loads none."""
    total = f"sum by (namespace) (rate({_LOADS}_count[{window}]))"
    good = f"sum by (namespace) (rate({_LOADS}_bucket{{{_le(workload.p99_s)}}}[{window}]))"
    blocks = f'sum by (namespace) (rate({_BLOCKS}{{operation="load"}}[{window}]))'
    # A block that was evicted since it was looked up is computed: no failure.
    failed = f'sum by (namespace) (rate({_BLOCKS}{{operation="load", reason!~"hit|miss"}}[{window}]))'
    slow = f"({total} - {good}) / ({total} > 0)"
    return f"clamp_max(\n  {slow}\n  + ({failed} / ({blocks} > 0) or 0 * {total})\n, 1)"


def _burn(context: Context, pace: _Pace, workload: Workload) -> Alert:
    bound = pace.factor * _BUDGET
    description = (
        f"{{{{ $value | humanizePercentage }}}} of the reads of {workload.name} failed or took longer than "
        f"{number(_bucket(workload.p99_s))} s, over {_words(pace.long_s)} and still in the last "
        f"{_words(pace.short_s)}; 1 % is promised. A month's budget is gone in {pace.gone_in} or sooner."
    )
    windows = context.window(pace.long_s), context.window(pace.short_s)
    parts = (_bad, _bad_loads) if workload.name == WORKLOAD else (_bad,)
    burns = ("\nand\n".join(f"{bad(workload, w)} > {number(bound)}" for w in windows) for bad in parts)
    return Alert(
        name=pace.name,
        group="budget",
        severity=pace.severity,
        expr="\nor\n".join(burns),
        for_s=pace.for_s,
        summary=(
            f"Reads of {workload.name} are slow or fail, {number(pace.factor)} times as often as they may"
        ),
        description=description,
        threshold=f"{number(pace.factor)} * 1 % of reads above p99_s = {number(workload.p99_s)} s or failed "
        f"({workload.name})",
        dashboard="overview",
        workload=workload.name,
        cases=_cases(pace, workload, description),
        tested_every="1m" if pace.short_s < 1800 else duration(pace.short_s / 6),
        inhibits=_slower(pace),
    )


def _slower(pace: _Pace) -> tuple[str, ...]:
    names = [one.name for one in _PACES]
    return tuple(names[names.index(pace.name) + 1 :])


def _cases(pace: _Pace, workload: Workload, description: str) -> tuple[Case, ...]:
    bound, le = pace.factor * _BUDGET, repr(float(_bucket(workload.p99_s)))
    app = f'job="app", instance="app:1", adapter="a", workload="{workload.name}"'
    count = f'{_DURATION}_count{{{app}, operation="read"}}'
    good = f'{_DURATION}_bucket{{{app}, operation="read", le="{le}"}}'
    errors = f'inference_cache_adapter_errors_total{{{app}, reason="deadline"}}'
    step_s = max(60, pace.short_s / 6)
    samples = round((1.2 * pace.long_s + pace.for_s) / step_s) + 2
    late_s, end_s = (samples - 2) * step_s, (samples + 2 * pace.short_s / step_s) * step_s
    after = round(3 * pace.short_s / step_s)
    at_late, at_end = f"{late_s / 60:.0f}m", f"{end_s / 60:.0f}m"
    fires = partial(
        Eval, reads=description.replace("{{ $value | humanizePercentage }}", "20%"), target=Target.NONE
    )

    def scraped(good_part: float, errors_part: float) -> dict[str, str]:
        last = 1000.0 * (samples - 1)
        return {
            count: ramp(0, 1000, samples + after),
            good: then(ramp(0, 1000 * good_part, samples), ramp(last * good_part + 1000, 1000, after)),
            errors: then(ramp(0, 1000 * errors_part, samples), ramp(last * errors_part, 0, after)),
        }

    interval = f"{step_s / 60:.0f}m"
    under = round(bound * 0.98, 6)

    def of_engine(good_part: float, failed_part: float, missed: float = 0) -> dict[str, str]:
        last, end = 1000.0 * (samples - 1), samples + after
        return {
            f"{_LOADS}_count{{{ENGINE}}}": ramp(0, 1000, end),
            f'{_LOADS}_bucket{{{ENGINE}, le="{le}"}}': then(
                ramp(0, 1000 * good_part, samples), ramp(last * good_part + 1000, 1000, after)
            ),
            f'{_BLOCKS}{{{ENGINE}, operation="load", reason="hit"}}': ramp(0, 4000 * (1 - failed_part), end),
            f'{_BLOCKS}{{{ENGINE}, operation="load", reason="miss"}}': ramp(0, missed, end),
            f'{_BLOCKS}{{{ENGINE}, operation="load", reason="late"}}': ramp(0, 4000 * failed_part, end),
        }

    engines = (
        Case(
            kind=Kind.FIRES,
            what="one load of vLLM in five is slow",
            interval=interval,
            inputs=of_engine(0.8, 0),
            evals=(fires(at=at_late), Eval(at=at_end)),
        ),
        Case(
            kind=Kind.FIRES,
            what="one block of vLLM's in five is not loaded in time",
            interval=interval,
            inputs=of_engine(1, 0.2),
            evals=(fires(at=at_late),),
        ),
        Case(
            kind=Kind.QUIET,
            what=f"{under * 100:g} % of vLLM's loads are slow, and evicted blocks are looked for",
            interval=interval,
            inputs=of_engine(round(1 - under, 6), 0, missed=1000),
            evals=(Eval(at=at_late), Eval(at=at_end)),
        ),
    )
    refused = {
        f'inference_cache_adapter_errors_total{{{app}, reason="full"}}': ramp(0, 1000, samples + after),
    }
    return (
        Case(
            kind=Kind.FIRES,
            what="one read in five is slow",
            interval=interval,
            inputs={name: values for name, values in scraped(0.8, 0).items() if name != errors},
            evals=(fires(at=at_late),),
        ),
        Case(
            kind=Kind.FIRES,
            what="one read in five fails, at once",
            interval=interval,
            inputs=scraped(1, 0.2),
            evals=(fires(at=at_late),),
        ),
        Case(
            kind=Kind.QUIET,
            what=f"{under * 100:g} % of reads are slow",
            interval=interval,
            inputs=scraped(round(1 - under, 6), 0),
            evals=(Eval(at=at_late), Eval(at=at_end)),
        ),
        Case(
            kind=Kind.RESOLVES,
            what="reads are fast again, though the long window remembers",
            interval=interval,
            inputs=scraped(0.8, 0),
            evals=(fires(at=at_late), Eval(at=at_end)),
        ),
        Case(
            kind=Kind.QUIET,
            what="every write is refused, and reads are well",
            interval=interval,
            inputs=scraped(1, 0) | refused,
            evals=(Eval(at=at_late), Eval(at=at_end)),
        ),
        Case(
            kind=Kind.QUIET,
            what="errors, and nobody reads",
            interval=interval,
            inputs={name: values for name, values in scraped(1, 0.2).items() if name == errors}
            | {count: flat(0, samples + after), good: flat(0, samples + after)},
            evals=(Eval(at=at_late), Eval(at=at_end)),
        ),
        *(engines if workload.name == WORKLOAD else ()),
    )


def _words(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours / 24:g} days"
    if hours >= 1:
        return f"{hours:g} h"
    return f"{seconds / 60:g} minutes"
