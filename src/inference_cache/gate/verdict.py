"""From spec results to a verdict: every clause has exactly one outcome and the counts add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inference_cache.contract import Clause, Contract, Level
from inference_cache.gate.difference import Difference
from inference_cache.gate.findings import Finding, Plot, Scalar, SpecResult
from inference_cache.gate.outcomes import ExitCode, Outcome, Verdict

__all__ = ["AcceptedRisk", "ClauseResult", "RunResult", "TargetInfo", "accepted_risks", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """The server under judgment, as observed; nothing here may hold a secret."""

    kind: str
    address: str
    server_name: str = ""
    server_version: str = ""
    run_id: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    """The effective configuration, secrets replaced by ``***``."""
    capabilities: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRisk:
    """A danger that the contract declares and somebody accepted: printed in every summary."""

    subject: str
    statement: str
    bound: str
    accepted_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseResult:
    """One clause with its outcome, joined over its specs."""

    clause: Clause
    selected: bool
    """False for a clause that the selection left out: it is not proven in this run."""
    outcome: Outcome
    reason: str
    duration_s: float
    findings: Sequence[Finding] = ()
    measurements: Mapping[str, Scalar] = field(default_factory=dict)
    plots: Sequence[Plot] = ()
    specs: Sequence[str] = ()
    proven_on: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A whole run; the reports are made from it and from nothing else."""

    verdict: Verdict
    exit_code: ExitCode
    reason: str
    """One sentence that says why the verdict is what it is."""
    target: TargetInfo
    contract_name: str
    contract_sha256: str
    seed: int
    strict: bool
    require_all: bool
    started_at: str
    """ISO 8601, UTC."""
    duration_s: float
    version: str
    """Version of this package."""
    clauses: Sequence[ClauseResult]
    accepted_risks: Sequence[AcceptedRisk] = ()
    audit: Mapping[str, Scalar] = field(default_factory=dict)
    """Of a live server: what the run did to it, and what changed there meanwhile."""
    difference: Difference | None = None
    """What changed since an earlier run, where one was given."""

    @property
    def counts(self) -> dict[str, int]:
        """Clauses by outcome label, every label present, plus ``total``; the labels add up to it."""
        counts = {outcome.label: 0 for outcome in Outcome}
        for result in self.clauses:
            counts[result.outcome.label] += 1
        return {**counts, "total": len(self.clauses)}

    @property
    def must_not_proven(self) -> tuple[ClauseResult, ...]:
        return tuple(
            r for r in self.clauses if r.clause.level is Level.MUST and r.outcome is Outcome.NOT_PROVEN
        )


def accepted_risks(contract: Contract) -> tuple[AcceptedRisk, ...]:
    """The risks that the contract itself declares (CFG-09): evictable only-copy workloads."""
    return tuple(
        AcceptedRisk(
            subject=workload.name,
            statement=f"{workload.prefix}* is the only copy of its data and may be evicted under "
            f"{contract.instance.maxmemory_policy}",
            bound=workload.loss_bound,
            accepted_by=workload.accepted_by,
        )
        for workload in contract.workloads.values()
        if workload.only_copy and workload.evictable and workload.loss_bound and workload.accepted_by
    )


def judge(
    *,
    contract: Contract,
    results: Iterable[SpecResult],
    selected: frozenset[str],
    target: TargetInfo,
    seed: int,
    strict: bool,
    require_all: bool,
    started_at: str,
    duration_s: float,
    version: str,
    broken: str | None = None,
    audit: Mapping[str, Scalar] | None = None,
    unready: Mapping[str, str] | None = None,
) -> RunResult:
    """Join spec results into one outcome per clause and decide the verdict.

    ``broken`` says why the run as a whole could not be finished (unreachable target, interrupted).
    ``unready`` gives the reason for a selected clause that has no spec to run.

    Raises:
        ValueError: a result names a clause that the contract does not have.
    """
    by_clause: dict[str, list[SpecResult]] = {clause_id: [] for clause_id in contract.clauses}
    for result in results:
        if result.clause not in by_clause:
            raise ValueError(f"spec {result.spec} names {result.clause}, which the contract does not have")
        by_clause[result.clause].append(result)
    clauses = tuple(
        _join(clause, by_clause[clause.id], clause.id in selected, (unready or {}).get(clause.id))
        for clause in contract.clauses.values()
    )
    verdict, code, reason = _decide(clauses, strict=strict, require_all=require_all, broken=broken)
    return RunResult(
        verdict=verdict,
        exit_code=code,
        reason=reason,
        target=target,
        contract_name=contract.name,
        contract_sha256=contract.sha256,
        seed=seed,
        strict=strict,
        require_all=require_all,
        started_at=started_at,
        duration_s=duration_s,
        version=version,
        clauses=clauses,
        accepted_risks=accepted_risks(contract),
        audit=audit or {},
    )


def _join(clause: Clause, results: Sequence[SpecResult], selected: bool, unready: str | None) -> ClauseResult:
    outcome = Outcome.NOT_PROVEN
    for result in results:
        outcome = outcome.join(Outcome.from_label(result.outcome))
    if not results:
        reason = unready or ("no spec of this clause ran" if selected else "not selected in this run")
    else:
        # The reasons of the deciding outcome come first; a spec that could not run stays visible behind them.
        deciding = [r.reason for r in results if r.reason and Outcome.from_label(r.outcome) is outcome]
        others = [
            f"{r.spec.rpartition('::')[2]}: {r.outcome}: {r.reason}"
            for r in results
            if r.reason and Outcome.from_label(r.outcome) is not outcome
        ]
        reason = "; ".join(dict.fromkeys(deciding + others))
    findings: dict[tuple[str, str], Finding] = {}
    for result in results:
        for finding in result.findings:
            findings.setdefault(finding.dedup_key, finding)
    return ClauseResult(
        clause=clause,
        selected=selected,
        outcome=outcome,
        reason=reason,
        duration_s=sum(r.duration_s for r in results),
        findings=tuple(findings.values()),
        measurements={name: value for r in results for name, value in r.measurements.items()},
        plots=tuple(plot for r in results for plot in r.plots),
        specs=tuple(r.spec for r in results),
        proven_on="; ".join(dict.fromkeys(r.proven_on for r in results if r.proven_on)),
    )


def _decide(
    clauses: Sequence[ClauseResult], *, strict: bool, require_all: bool, broken: str | None
) -> tuple[Verdict, ExitCode, str]:
    def ids(results: Iterable[ClauseResult]) -> str:
        return ", ".join(r.clause.id for r in results)

    deciding_levels = {Level.MUST, Level.SHOULD} if strict else {Level.MUST}
    failed = [r for r in clauses if r.outcome is Outcome.FAILED and r.clause.level in deciding_levels]
    errors = [r for r in clauses if r.outcome is Outcome.ERROR]
    proven = [r for r in clauses if r.outcome in (Outcome.PASSED, Outcome.FAILED)]
    must_open = [r for r in clauses if r.clause.level is Level.MUST and r.outcome is Outcome.NOT_PROVEN]
    if failed:
        # A proven violation stands even when something else broke afterwards.
        reason = f"violated: {ids(failed)}" + (f"; {broken}" if broken else "")
        return Verdict.NOT_CONFORMANT, ExitCode.NOT_CONFORMANT, reason
    if broken:
        return Verdict.BROKEN, ExitCode.BROKEN, broken
    if errors:
        return Verdict.BROKEN, ExitCode.BROKEN, f"the suite broke in: {ids(errors)}"
    if not proven:
        return Verdict.NOTHING_VERIFIED, ExitCode.NOTHING_VERIFIED, "no clause was verified by this run"
    if require_all and must_open:
        return Verdict.INCOMPLETE, ExitCode.NOT_PROVEN, f"required but not proven: {ids(must_open)}"
    reason = f"{len(proven)} clauses verified, none that decides was violated"
    return Verdict.CONFORMANT, ExitCode.CONFORMANT, reason
