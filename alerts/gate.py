"""Gate: whether the instance is still what it was accepted as."""

from __future__ import annotations

from functools import partial

from alerts.model import Alert, Case, Context, Eval, Kind, Severity, Target
from alerts.series import flat, level_cases, then

__all__ = ["alerts"]

_DASHBOARD = "conformance"
_VERDICT = "inference_cache_gate_verdict"
_RUN = "inference_cache_gate_timestamp_seconds"
_JOB = 'job="gate", instance="gate:9100"'


def alerts(context: Context) -> tuple[Alert, ...]:
    """The group. The verdict may be served by any job (exporter, textfile collector), so none is selected."""
    return (_not_conformant(context), _stale(context), _another_contract(context))


def _not_conformant(context: Context) -> Alert:
    description = (
        "The last run of the acceptance gate ended as '{{ $labels.verdict }}': clauses of the contract "
        f"{context.contract.name} are violated, or nothing was proven. The report says which, and what to do."
    )

    def series(verdict: str) -> str:
        return f'{_VERDICT}{{{_JOB}, verdict="{verdict}"}}'

    return Alert(
        name="InferenceCacheNotConformant",
        group="gate",
        severity=Severity.WARNING,
        expr=f'max by (namespace, verdict) ({_VERDICT}{{verdict!="conformant"}}) == 1',
        for_s=0,
        summary="The instance is not as decided any more",
        description=description,
        threshold="any verdict but conformant",
        dashboard=_DASHBOARD,
        cases=level_cases(
            for_s=0,
            bad={series("not conformant"): 1, series("conformant"): 0},
            good={series("not conformant"): 0, series("conformant"): 1},
            reads=description.replace("{{ $labels.verdict }}", "not conformant"),
            bad_is="a clause failed",
            good_is="conformant",
            resolved_by="the next run was conformant",
            labels={"verdict": "not conformant"},
            target=Target.NONE,
        ),
    )


def _stale(context: Context) -> Alert:
    interval = context.settings.gate_interval_s
    hours = round(interval / 3600)
    description = (
        f"The acceptance gate should run every {hours} h; no run is known, or the last one is older than "
        "twice that. Nobody knows whether the instance is still as decided."
    )
    run = f"{_RUN}{{{_JOB}}}"
    old = 2 * hours
    fires = partial(Eval, reads=description, target=Target.NONE)
    return Alert(
        name="InferenceCacheGateStale",
        group="gate",
        severity=Severity.WARNING,
        expr=f"time() - max by (namespace) ({_RUN}) > {context.age(2 * interval)}\nor absent({_RUN})",
        for_s=900,
        summary="The acceptance gate has not run for a long time",
        description=description,
        threshold=f"2 * the interval of the gate's job = {old} h",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="an hour and twice the interval after the last run",
                interval="1h",
                inputs={run: flat(0, old + 10)},
                evals=(Eval(at=f"{old}h"), fires(at=f"{old + 2}h")),
            ),
            Case(
                kind=Kind.FIRES,
                what="it never ran",
                inputs={"redis_up": flat(1, 120)},
                evals=(Eval(at="14m"), fires(at="16m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="one run was left out",
                inputs={run: then(flat(0, 2 * hours * 60 - 10), flat(hours * 3600 * 2 - 600, 120))},
                evals=(Eval(at=f"{old}h"), Eval(at=f"{old * 60 + 100}m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="a run",
                inputs={
                    run: then(flat(0, (old + 3) * 60), flat((old + 3) * 3600, 60)),
                },
                evals=(fires(at=f"{old + 2}h"), Eval(at=f"{(old + 3) * 60}m")),
            ),
        ),
    )


def _another_contract(context: Context) -> Alert:
    ours = context.contract.sha256
    info = context.own("inference_cache_contract_info", f'sha256!="{ours}"')
    description = (
        "The exporter runs with contract {{ $labels.contract }}, and these rules were made from another one "
        f"({context.contract.name}, {ours[:12]}): thresholds and dashboards do not agree."
    )
    theirs = 'inference_cache_contract_info{contract="changed", sha256="0"}'
    same = f'inference_cache_contract_info{{contract="{context.contract.name}", sha256="{ours}"}}'
    fires = partial(
        Eval,
        reads=description.replace("{{ $labels.contract }}", "changed"),
        labels={"contract": "changed", "sha256": "0"},
        target=Target.EXPORTER,
    )
    return Alert(
        name="InferenceCacheAnotherContract",
        group="gate",
        severity=Severity.WARNING,
        expr=f"{info} == 1",
        for_s=900,
        summary="Rules and exporter are made from different contracts",
        description=description,
        threshold="the digest of the contract",
        dashboard=_DASHBOARD,
        cases=(
            Case(
                kind=Kind.FIRES,
                what="another digest for a quarter of an hour",
                inputs={theirs: flat(1, 60)},
                evals=(Eval(at="14m"), fires(at="15m")),
            ),
            Case(
                kind=Kind.QUIET,
                what="the same digest",
                inputs={same: flat(1, 60)},
                evals=(Eval(at="15m"), Eval(at="59m")),
            ),
            Case(
                kind=Kind.RESOLVES,
                what="the exporter was restarted with the contract of the rules",
                inputs={theirs: then(flat(1, 30), "stale"), same: then("_x30", flat(1, 30))},
                evals=(fires(at="29m"), Eval(at="30m")),
            ),
        ),
    )
