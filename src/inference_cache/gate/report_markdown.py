"""``report.md``: for job summaries and pull requests, where the HTML report is a download away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from inference_cache.gate import _digest
from inference_cache.gate._quantity import duration, quantity
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import ClauseResult, RunResult

__all__ = ["to_markdown"]

_MARKS = {
    Outcome.PASSED: "✅",
    Outcome.FAILED: "❌",
    Outcome.ERROR: "💥",
    Outcome.WAIVED: "🟡",
    Outcome.NOT_PROVEN: "⚪",
}
# Underscores inside a word never emphasise, and setting names are easier to search without a backslash.
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")


def to_markdown(run: RunResult) -> str:
    """The text of ``report.md``."""
    run = publishable(run)
    sections = (
        _head(run),
        _risks(run),
        _counts(run),
        _audit(run),
        _difference(run),
        _findings(run),
        _errors(run),
        _waived(run),
        _open(run),
        _clauses(run),
    )
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def _escape(text: str) -> str:
    """One line of text in which nothing is markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", text)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _code_block(text: str) -> Iterator[str]:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}console"
    yield text
    yield fence


def _head(run: RunResult) -> Iterator[str]:
    mark = "✅" if run.verdict is Verdict.CONFORMANT else "❌"
    server = " ".join(filter(None, (run.target.server_name, run.target.server_version))) or "not observed"
    modes = [name for name, on in (("strict", run.strict), ("require all", run.require_all)) if on]
    yield f"# {mark} {run.verdict.value.capitalize()}"
    yield ""
    yield f"**{_escape(_digest.headline(run))}** {_escape(run.reason)}"
    yield ""
    yield from _table(
        ("", ""),
        (
            ("Server, as observed", _escape(server)),
            ("Target", f"{_escape(run.target.kind)}, {_escape(run.target.address)}"),
            ("Contract", f"{_escape(run.contract_name)} ({_escape(run.contract_sha256[:12])})"),
            ("Exit code", str(int(run.exit_code))),
            ("Seed", str(run.seed)),
            ("Mode", ", ".join(modes) or "default"),
            ("Started", f"{_escape(run.started_at)}, took {duration(run.duration_s)}"),
            ("inference-cache", _escape(run.version)),
        ),
    )


def _risks(run: RunResult) -> Iterator[str]:
    if not run.accepted_risks:
        return
    yield "## Accepted risks"
    yield ""
    for risk in run.accepted_risks:
        bound = f" Bound: {_escape(risk.bound)}." if risk.bound else ""
        by = f" Accepted by {_escape(risk.accepted_by)}." if risk.accepted_by else ""
        yield f"- **{_escape(risk.subject)}**: {_escape(risk.statement)}.{bound}{by}"


def _counts(run: RunResult) -> Iterator[str]:
    counts = run.counts
    marked = [f"{_MARKS[outcome]} {counts[outcome.label]} {outcome.label}" for outcome in reversed(Outcome)]
    yield f"{', '.join(marked)}: {counts['total']} clauses."


def _audit(run: RunResult) -> Iterator[str]:
    if not run.audit:
        return
    yield "## What the run did to the live server"
    yield ""
    yield from _table(
        ("", ""),
        ((_escape(name.replace("_", " ")), _escape(str(value))) for name, value in run.audit.items()),
    )


def _difference(run: RunResult) -> Iterator[str]:
    difference = run.difference
    if difference is None:
        return
    yield f"## Since {_escape(difference.since)}"
    yield ""
    yield f"{_escape(_digest.since(difference))}"
    if difference.clauses:
        yield ""
        yield from _table(
            ("Clause", "Now", "Before", "Reason"),
            (
                (
                    _escape(change.clause),
                    _escape(change.kind),
                    _escape(change.before),
                    _escape(change.reason),
                )
                for changes in difference.by_kind().values()
                for change in changes
            ),
        )
    if difference.facts:
        yield ""
        yield from _table(
            ("Changed", "Before", "Now"),
            ((_escape(fact.name), _escape(fact.before), _escape(fact.after)) for fact in difference.facts),
        )


def _findings(run: RunResult) -> Iterator[str]:
    findings = _digest.findings(run)
    if not findings:
        return
    yield "## Findings"
    for result, finding in findings:
        yield ""
        yield from _finding(run, result, finding)


def _finding(run: RunResult, result: ClauseResult, finding: Finding) -> Iterator[str]:
    clause = result.clause
    aside = "" if _digest.decides(run, result) else ", does not decide the verdict"
    yield f"### {_escape(clause.id)} ({clause.level}{aside}): {_escape(clause.statement)}"
    yield ""
    yield f"- **Expected**: {_escape(finding.expected)}"
    yield f"- **Observed**: {_escape(finding.observed)}"
    if finding.remedy:
        yield f"- **Remedy**: {_escape(finding.remedy)}"
    if result.proven_on:
        yield f"- **On**: {_escape(result.proven_on)}"
    if finding.evidence:
        yield ""
        yield from _table(
            ("Evidence", "Value"),
            ((_escape(name), _escape(quantity(name, value))) for name, value in finding.evidence.items()),
        )
    if finding.reproduce:
        yield ""
        yield from _code_block(finding.reproduce)


def _errors(run: RunResult) -> Iterator[str]:
    errors = _digest.with_outcome(run, Outcome.ERROR)
    if errors:
        yield "## The suite broke in"
        yield ""
        yield from (f"- **{_escape(r.clause.id)}**: {_escape(r.reason)}" for r in errors)


def _waived(run: RunResult) -> Iterator[str]:
    waived = _digest.with_outcome(run, Outcome.WAIVED)
    if waived:
        yield "## Waived"
        yield ""
        yield from (f"- **{_escape(r.clause.id)}**: {_escape(r.reason)}" for r in waived)


def _open(run: RunResult) -> Iterator[str]:
    reasons = _digest.open_musts(run)
    if reasons:
        yield f"## MUST clauses not proven: {len(run.must_not_proven)}"
        yield ""
        yield from (f"- {_escape(reason)}: {_escape(', '.join(ids))}" for reason, ids in reasons)


def _clauses(run: RunResult) -> Iterator[str]:
    yield "## Clauses"
    for group, results in _digest.by_group(run).items():
        yield ""
        yield f"### {_escape(_digest.group_title(group))}"
        yield ""
        yield from _table(
            ("", "Clause", "Level", "Statement", "Reason", "Proven on", "Time"),
            (
                (
                    f"{_MARKS[r.outcome]} {r.outcome.label}",
                    _escape(r.clause.id),
                    r.clause.level.value,
                    _escape(r.clause.statement),
                    _escape(r.reason),
                    _escape(r.proven_on),
                    duration(r.duration_s) if r.specs else "",
                )
                for r in results
            ),
        )
