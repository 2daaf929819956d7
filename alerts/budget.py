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
from alerts.series import ramp, then
from inference_cache.adapter_metrics import BUCKETS_S
from inference_cache.contract import Workload

__all__ = ["alerts"]

_BUDGET: Final = 0.01
_READS: Final = "load|load_into|load_many_into|get_many|open|read|window|get_state"
"""Operations of adapters that read and do nothing else: not those that compute what was missing."""
_DURATION: Final = "inference_cache_adapter_operation_duration_seconds"


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
    return next((bound for bound in BUCKETS_S if bound >= p99_s), BUCKETS_S[-1])


def _bad(workload: Workload, window: str) -> str:
    """The part of reads that were slow or failed."""
    # Prometheus 2 keeps "1.0" as it was exposed, later ones write "1".
    bound = f"{_bucket(workload.p99_s):g}".replace(".", "\\\\.")
    mine = f'workload="{workload.name}", operation=~"{_READS}"'
    total = f"sum by (namespace) (rate({_DURATION}_count{{{mine}}}[{window}]))"
    good = f'sum by (namespace) (rate({_DURATION}_bucket{{{mine}, le=~"{bound}(\\\\.0)?"}}[{window}]))'
    errors = (
        "sum by (namespace) "
        f'(rate(inference_cache_adapter_errors_total{{workload="{workload.name}"}}[{window}]))'
    )
    return f"({total} - {good}\n  + ({errors} or 0 * {total})\n) / {total}"


def _burn(context: Context, pace: _Pace, workload: Workload) -> Alert:
    bound = pace.factor * _BUDGET
    description = (
        f"{{{{ $value | humanizePercentage }}}} of the reads of {workload.name} failed or took longer than "
        f"{number(_bucket(workload.p99_s))} s, over {_words(pace.long_s)} and still in the last "
        f"{_words(pace.short_s)}; 1 % is promised. A month's budget is gone in {pace.gone_in} or sooner."
    )
    long, short = context.window(pace.long_s), context.window(pace.short_s)
    return Alert(
        name=pace.name,
        group="budget",
        severity=pace.severity,
        expr=f"{_bad(workload, long)} > {number(bound)}\nand\n{_bad(workload, short)} > {number(bound)}",
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
    )


def _words(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours / 24:g} days"
    if hours >= 1:
        return f"{hours:g} h"
    return f"{seconds / 60:g} minutes"
