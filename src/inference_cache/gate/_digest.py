"""What several reports tell in the same way: which findings there are, and what stayed open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from inference_cache.contract import Level
from inference_cache.gate.difference import Difference
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.verdict import ClauseResult, RunResult

__all__ = [
    "abbreviate",
    "by_group",
    "decides",
    "findings",
    "group_title",
    "headline",
    "open_musts",
    "since",
    "with_outcome",
]

_LEVELS = tuple(Level)
_DIGITS = re.compile(r"(\d+)$")
_GROUPS = {
    "CFG": "Configuration",
    "ISO": "Isolation",
    "MEM": "Memory and eviction",
    "DUR": "Durability",
    "KV": "vLLM blocks",
    "EMB": "Embeddings",
    "SES": "Sessions",
    "RAY": "Ray objects",
    "SHR": "Sharing",
    "AVL": "Availability",
    "OBS": "Observability",
    "SEC": "Security",
}


def headline(run: RunResult) -> str:
    """What the verdict means for somebody who decides on a rollout."""
    open_count = len(run.must_not_proven)
    match run.verdict:
        case Verdict.CONFORMANT if open_count:
            return f"No clause that decides is violated, but {_clauses(open_count)} not proven."
        case Verdict.CONFORMANT:
            return "Every MUST clause was checked, and none is violated."
        case Verdict.NOT_CONFORMANT:
            violated = sum(r.outcome is Outcome.FAILED and decides(run, r) for r in run.clauses)
            noun = "clause that decides is" if violated == 1 else "clauses that decide are"
            return f"Do not roll out: {violated} {noun} violated."
        case Verdict.INCOMPLETE:
            return f"Nothing that decides is violated, but {_clauses(open_count)} required and not proven."
        case Verdict.BROKEN:
            return "No verdict on the server: the run itself broke."
        case Verdict.NOTHING_VERIFIED:
            return "No verdict on the server: nothing was verified."


def _clauses(count: int) -> str:
    return f"{count} MUST clause is" if count == 1 else f"{count} MUST clauses are"


def decides(run: RunResult, result: ClauseResult) -> bool:
    """Whether a violation of this clause makes the verdict."""
    level = result.clause.level
    return level is Level.MUST or (run.strict and level is Level.SHOULD)


def findings(run: RunResult) -> list[tuple[ClauseResult, Finding]]:
    """Every finding of a failed or broken clause with its clause, those of the highest level first."""
    told = sorted(
        (result for result in run.clauses if result.outcome >= Outcome.FAILED),
        key=lambda result: _LEVELS.index(result.clause.level),
    )
    return [(result, finding) for result in told for finding in _told(result)]


def _told(result: ClauseResult) -> Sequence[Finding]:
    if result.findings or result.outcome is Outcome.ERROR:
        return result.findings
    # A clause may fail without a finding of its own, by an expired waiver: its reason is the observation.
    return (
        Finding(
            expected=result.clause.statement,
            observed=result.reason or "the clause is violated",
            remedy=result.clause.remedy,
        ),
    )


def with_outcome(run: RunResult, outcome: Outcome) -> list[ClauseResult]:
    return [result for result in run.clauses if result.outcome is outcome]


def by_group(run: RunResult) -> dict[str, list[ClauseResult]]:
    """Clauses by group, both in catalogue order."""
    groups: dict[str, list[ClauseResult]] = {}
    for result in run.clauses:
        groups.setdefault(result.clause.group, []).append(result)
    return groups


def group_title(group: str) -> str:
    """The group in words; one that an organisation added stays as it is."""
    return _GROUPS.get(group, group)


def open_musts(run: RunResult) -> list[tuple[str, list[str]]]:
    """Reasons for which MUST clauses are not proven, each with its clauses, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for result in run.must_not_proven:
        reasons.setdefault(result.reason, []).append(result.clause.id)
    return sorted(reasons.items(), key=lambda item: -len(item[1]))


def since(difference: Difference) -> str:
    """One sentence: what became of the clauses since the earlier run."""
    kinds = [
        f"{len(changes)} {kind} ({abbreviate(change.clause for change in changes)})"
        for kind, changes in difference.by_kind().items()
    ]
    if difference.still_failed:
        kinds.append(f"{len(difference.still_failed)} still failed ({abbreviate(difference.still_failed)})")
    told = "; ".join(kinds) or "no clause has another outcome"
    return (
        f"The verdict then was {difference.verdict_before}. "
        f"Of {difference.compared} clauses that both runs were asked about: {told}."
    )


def abbreviate(ids: Iterable[str]) -> str:
    """``RAY-01 RAY-02 RAY-03 SEC-01`` is ``RAY-01..03, SEC-01``."""
    runs: list[list[str]] = []
    for clause_id in ids:
        if runs and clause_id == _next(runs[-1][-1]):
            runs[-1].append(clause_id)
        else:
            runs.append([clause_id])
    return ", ".join(
        f"{run[0]}..{_DIGITS.split(run[-1])[1]}" if len(run) > 2 else ", ".join(run) for run in runs
    )


def _next(clause_id: str) -> str | None:
    stem, *number = _DIGITS.split(clause_id)
    return f"{stem}{int(number[0]) + 1:0{len(number[0])}}" if number else None
