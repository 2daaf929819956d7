"""``report.sarif``: violations as SARIF 2.1.0, for code scanning and for every viewer of that format.

A clause is a rule. A violation is a result; a waived one is a result that is suppressed, with the reason.
What was not proven and what broke the suite are notifications of the invocation: they are no results, and a
viewer that shows results alone must not take them for violations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from inference_cache.contract import Level
from inference_cache.gate import _digest
from inference_cache.gate._quantity import quantity
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import ClauseResult, RunResult

__all__ = ["to_sarif"]

_LEVELS = {Level.MUST: "error", Level.SHOULD: "warning", Level.MAY: "note"}
_JUDGED = {Verdict.CONFORMANT, Verdict.NOT_CONFORMANT, Verdict.INCOMPLETE}


def to_sarif(run: RunResult) -> str:
    """The text of ``report.sarif``."""
    run = publishable(run)
    index = {result.clause.id: number for number, result in enumerate(run.clauses)}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "inference-cache",
                        "version": run.version,
                        "rules": [_rule(result) for result in run.clauses],
                    }
                },
                # Code scanning keeps the results of different contracts and kinds of target apart.
                "automationDetails": {"id": f"inference-cache/{run.contract_name}/{run.target.kind}/"},
                "invocations": [_invocation(run)],
                "results": [
                    _result(run, result, finding, index[result.clause.id])
                    for result, finding in _violations(run)
                ],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rule(result: ClauseResult) -> dict[str, Any]:
    clause = result.clause
    return {
        "id": clause.id,
        "shortDescription": {"text": clause.statement},
        "fullDescription": {"text": f"{clause.statement} ADR-0023: {clause.quote}"},
        "help": {"text": clause.remedy or clause.statement},
        "defaultConfiguration": {"level": _LEVELS[clause.level]},
        "properties": {"tags": [clause.level.value, _digest.group_title(clause.group)]},
    }


def _invocation(run: RunResult) -> dict[str, Any]:
    notes = [
        _notification("error", result, f"the suite broke: {result.reason}")
        for result in _digest.with_outcome(run, Outcome.ERROR)
    ]
    notes += [_notification("note", result, f"not proven: {result.reason}") for result in run.must_not_proven]
    return {
        "executionSuccessful": run.verdict in _JUDGED,
        "exitCode": int(run.exit_code),
        "exitCodeDescription": f"{run.verdict.value}: {run.reason}",
        "startTimeUtc": run.started_at.removesuffix("+00:00") + "Z",
        "toolExecutionNotifications": notes,
        "properties": {
            "target": run.target.address or run.target.kind,
            "server": f"{run.target.server_name} {run.target.server_version}".strip(),
            "contractSha256": run.contract_sha256,
            "seed": run.seed,
        },
    }


def _notification(level: str, result: ClauseResult, text: str) -> dict[str, Any]:
    return {
        "level": level,
        "message": {"text": f"{result.clause.id}: {text}"},
        "associatedRule": {"id": result.clause.id},
    }


def _violations(run: RunResult) -> Iterator[tuple[ClauseResult, Finding]]:
    for result, finding in _digest.findings(run):
        if result.outcome is Outcome.FAILED:
            yield result, finding
    for result in _digest.with_outcome(run, Outcome.WAIVED):
        told = result.findings or [Finding(expected=result.clause.statement, observed=result.reason)]
        yield from ((result, finding) for finding in told)


def _result(run: RunResult, result: ClauseResult, finding: Finding, rule_index: int) -> dict[str, Any]:
    clause = result.clause
    lines = [f"Expected {finding.expected}.", f"Observed {finding.observed}."]
    if finding.remedy:
        lines.append(f"Remedy: {finding.remedy}")
    if finding.reproduce:
        lines.append(f"Again: {finding.reproduce}")
    told: dict[str, Any] = {
        "ruleId": clause.id,
        "ruleIndex": rule_index,
        "level": _LEVELS[clause.level] if _digest.decides(run, result) else "note",
        "message": {"text": "\n".join(lines)},
        "locations": [
            {
                # Code scanning shows no result without a file: the decision that is violated is in this one.
                "physicalLocation": {
                    "artifactLocation": {"uri": f"{run.contract_name}.toml"},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [
                    {"fullyQualifiedName": run.target.address or run.target.kind, "kind": "resource"}
                ],
            }
        ],
        # The same violation of the same server is one alert, whatever its numbers are this time.
        "partialFingerprints": {
            "inferenceCacheFinding/v1": sha256(
                "\0".join((clause.id, run.target.kind, finding.expected)).encode()
            ).hexdigest()
        },
        "properties": {"evidence": {name: quantity(name, value) for name, value in finding.evidence.items()}},
    }
    if result.outcome is Outcome.WAIVED:
        told["suppressions"] = [{"kind": "external", "status": "accepted", "justification": result.reason}]
    return told
