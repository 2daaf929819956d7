"""``report.json``: the whole run for machines, in the shape that ``report.schema.json`` describes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from inference_cache.gate.difference import Difference
from inference_cache.gate.findings import Finding, Plot, Scalar
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import AcceptedRisk, ClauseResult, RunResult, TargetInfo

__all__ = ["SCHEMA_VERSION", "dumps", "schema", "to_json"]

SCHEMA_VERSION = 2
"""2 added ``difference``."""


def to_json(run: RunResult) -> dict[str, Any]:
    """The run as plain data that any JSON parser takes: no secret, no NaN."""
    run = publishable(run)
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": run.verdict.value,
        "exit_code": int(run.exit_code),
        "reason": run.reason,
        "target": _target(run.target),
        "contract": {"name": run.contract_name, "sha256": run.contract_sha256},
        "seed": run.seed,
        "strict": run.strict,
        "require_all": run.require_all,
        "started_at": run.started_at,
        "duration_s": run.duration_s,
        "version": run.version,
        "counts": run.counts,
        "accepted_risks": [_risk(risk) for risk in run.accepted_risks],
        "difference": None if run.difference is None else _difference(run.difference),
        "audit": _scalars(run.audit),
        "clauses": [_clause(result) for result in run.clauses],
    }


def dumps(run: RunResult) -> str:
    """The text of ``report.json``."""
    return json.dumps(to_json(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of :func:`to_json`."""
    text = files("inference_cache.gate").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _target(target: TargetInfo) -> dict[str, Any]:
    return {
        "kind": target.kind,
        "address": target.address,
        "server": {"name": target.server_name, "version": target.server_version},
        "server_name": target.server_name,
        "server_version": target.server_version,
        "run_id": target.run_id,
        "config": dict(target.config),
        "capabilities": list(target.capabilities),
        "notes": list(target.notes),
    }


def _risk(risk: AcceptedRisk) -> dict[str, str]:
    return {
        "subject": risk.subject,
        "statement": risk.statement,
        "bound": risk.bound,
        "accepted_by": risk.accepted_by,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "since": difference.since,
        "verdict_before": difference.verdict_before,
        "compared": difference.compared,
        "still_failed": list(difference.still_failed),
        "clauses": [
            {
                "id": change.clause,
                "kind": change.kind,
                "before": change.before,
                "after": change.after,
                "reason": change.reason,
            }
            for change in difference.clauses
        ],
        "facts": [
            {"name": fact.name, "before": fact.before, "after": fact.after} for fact in difference.facts
        ],
    }


def _clause(result: ClauseResult) -> dict[str, Any]:
    return {
        "id": result.clause.id,
        "level": result.clause.level.value,
        "group": result.clause.group,
        "statement": result.clause.statement,
        "outcome": result.outcome.label,
        "reason": result.reason,
        "duration_s": result.duration_s,
        "selected": result.selected,
        "proven_on": result.proven_on,
        "specs": list(result.specs),
        "findings": [_finding(finding) for finding in result.findings],
        "measurements": _scalars(result.measurements),
        "plots": [_plot(plot) for plot in result.plots],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "expected": finding.expected,
        "observed": finding.observed,
        "evidence": _scalars(finding.evidence),
        "remedy": finding.remedy,
        "reproduce": finding.reproduce,
    }


def _plot(plot: Plot) -> dict[str, Any]:
    return {
        "title": plot.title,
        "kind": plot.kind,
        "x_label": plot.x_label,
        "y_label": plot.y_label,
        "series": [
            {
                "name": series.name,
                "x": [_point(x) if isinstance(x, float) else x for x in series.x],
                "y": [_point(y) for y in series.y],
            }
            for series in plot.series
        ],
        "limit": None if plot.limit is None else _point(plot.limit),
        "limit_label": plot.limit_label,
        "note": plot.note,
    }


def _scalars(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """JSON has no infinity: as a word it stays readable, as null it would look like an absent value."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _point(value: float) -> float | None:
    return value if math.isfinite(value) else None
