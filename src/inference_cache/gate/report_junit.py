"""``junit.xml``: what CI systems read. One test suite per clause group, one test case per clause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from inference_cache.gate import _digest
from inference_cache.gate._quantity import quantity
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import Outcome
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import ClauseResult, RunResult, TargetInfo

__all__ = ["to_junit"]

_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def to_junit(run: RunResult) -> str:
    """The text of ``junit.xml``; well-formed whatever the server answered.

    A test case is named by its clause id alone, so that its history outlives a reworded statement.
    """
    run = publishable(run)
    root = ET.Element("testsuites", {"name": "inference-cache gate", **_totals(run.clauses, run.duration_s)})
    for number, (group, results) in enumerate(_digest.by_group(run).items()):
        suite = ET.SubElement(
            root,
            "testsuite",
            {
                "id": str(number),
                "name": _xml(group),
                "package": "inference_cache",
                "timestamp": _xml(run.started_at[:19]),
                "hostname": _xml(_host(run.target)),
                "skipped": str(sum(r.outcome <= Outcome.WAIVED for r in results)),
                **_totals(results, sum(r.duration_s for r in results)),
            },
        )
        properties = ET.SubElement(suite, "properties")
        for name, value in _properties(run).items():
            ET.SubElement(properties, "property", name=name, value=_xml(value))
        for result in results:
            _testcase(suite, result)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _totals(results: Sequence[ClauseResult], duration_s: float) -> dict[str, str]:
    return {
        "tests": str(len(results)),
        "failures": str(sum(r.outcome is Outcome.FAILED for r in results)),
        "errors": str(sum(r.outcome is Outcome.ERROR for r in results)),
        "time": f"{duration_s:.3f}",
    }


def _properties(run: RunResult) -> Mapping[str, str]:
    return {
        "verdict": run.verdict.value,
        "exit_code": str(int(run.exit_code)),
        "reason": run.reason,
        "target.kind": run.target.kind,
        "target.address": run.target.address,
        "server.name": run.target.server_name,
        "server.version": run.target.server_version,
        "contract.name": run.contract_name,
        "contract.sha256": run.contract_sha256,
        "seed": str(run.seed),
        "strict": str(run.strict).lower(),
        "require_all": str(run.require_all).lower(),
        "version": run.version,
        **{f"accepted_risk.{risk.subject}": _risk(risk.statement, risk.bound) for risk in run.accepted_risks},
    }


def _risk(statement: str, bound: str) -> str:
    return f"{statement}; bound: {bound}" if bound else statement


def _testcase(suite: ET.Element, result: ClauseResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=_xml(result.clause.group),
        name=_xml(result.clause.id),
        time=f"{result.duration_s:.3f}",
    )
    match result.outcome:
        case Outcome.FAILED:
            text = "\n\n".join(_finding(finding) for finding in result.findings) or result.reason
            _outcome(case, "failure", result, message=_message(result), text=text)
        case Outcome.ERROR:
            text = "\n\n".join((result.reason, *(_finding(finding) for finding in result.findings)))
            _outcome(case, "error", result, message=result.reason, text=text)
        case Outcome.NOT_PROVEN | Outcome.WAIVED:
            _outcome(case, "skipped", result, message=f"{result.outcome.label}: {result.reason}", text="")
        case Outcome.PASSED:
            pass
    lines = [f"{result.clause.level}: {result.clause.statement}"]
    if result.proven_on:
        lines.append(f"proven on: {result.proven_on}")
    lines.extend(f"{name}: {quantity(name, value)}" for name, value in result.measurements.items())
    ET.SubElement(case, "system-out").text = _xml("\n".join(lines))


def _outcome(case: ET.Element, tag: str, result: ClauseResult, *, message: str, text: str) -> None:
    element = ET.SubElement(case, tag, message=_xml(message), type=result.clause.level.value)
    element.text = _xml(text) or None


def _message(result: ClauseResult) -> str:
    if not result.findings:
        return result.reason
    first = result.findings[0]
    return f"expected {first.expected}; observed {first.observed}"


def _finding(finding: Finding) -> str:
    lines = [f"expected:  {finding.expected}", f"observed:  {finding.observed}"]
    lines.extend(f"  {name}: {quantity(name, value)}" for name, value in finding.evidence.items())
    if finding.remedy:
        lines.append(f"remedy:    {finding.remedy}")
    if finding.reproduce:
        lines.append(f"reproduce: {finding.reproduce}")
    return "\n".join(lines)


def _host(target: TargetInfo) -> str:
    try:
        return urlsplit(target.address).hostname or "localhost"
    except ValueError:
        return "localhost"


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold in any escape."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
