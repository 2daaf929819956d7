"""The end of a run on a terminal: the verdict and what to do about it, on one screen."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from inference_cache.gate import _digest
from inference_cache.gate._quantity import duration, quantity
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import ClauseResult, RunResult

__all__ = ["render_summary"]

_RED, _GREEN, _YELLOW, _MAGENTA, _BOLD, _DIM = "31", "32", "33", "35", "1", "2"
_VERDICT_COLORS = {Verdict.CONFORMANT: _GREEN, Verdict.NOT_CONFORMANT: _RED, Verdict.BROKEN: _MAGENTA}
_OUTCOME_COLORS = {
    Outcome.PASSED: _GREEN,
    Outcome.FAILED: _RED,
    Outcome.ERROR: _MAGENTA,
    Outcome.WAIVED: _YELLOW,
    Outcome.NOT_PROVEN: _DIM,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SCREEN = 24
_FACTS = 6
"""Changes of server, settings and contract that fit a screen."""


def render_summary(
    run: RunResult, *, width: int = 80, color: bool = False, reports: Path | None = None
) -> str:
    """The summary: it fits a screen beside its findings; neither they nor the accepted risks are cut.

    ``reports`` is the directory that holds the full story.
    """
    return "\n".join(_Screen(publishable(run), max(width, 40), color).lines(reports))


class _Screen:
    def __init__(self, run: RunResult, width: int, color: bool) -> None:
        self._run = run
        self._width = width
        self._color = color

    def lines(self, reports: Path | None) -> Iterator[str]:
        head, risks = [*self._head(), *self._audit(), *self._difference()], list(self._risks())
        tail = [f"reports  {reports}"] if reports is not None else []
        yield from head
        for result, finding in _digest.findings(self._run):
            yield ""
            yield from self._finding(result, finding)
        yield from risks
        yield from self._lists(_SCREEN - len(head) - len(risks) - len(tail) - 2)
        if tail:
            yield ""
            yield from tail

    def _head(self) -> Iterator[str]:
        run, target = self._run, self._run.target
        server = " ".join(filter(None, (target.server_name, target.server_version))) or "server not observed"
        modes = "".join(
            f", {name}" for name, on in (("strict", run.strict), ("require all", run.require_all)) if on
        )
        verdict = self._paint(run.verdict.value.upper(), _VERDICT_COLORS.get(run.verdict, _YELLOW), _BOLD)
        yield f"{verdict}  exit {int(run.exit_code)}, {duration(run.duration_s)}, seed {run.seed}{modes}"
        yield self._cut(_digest.headline(run))
        yield self._cut(run.reason)
        yield self._cut(f"target   {server} ({target.kind}, {target.address})")
        yield self._cut(f"contract {run.contract_name} ({run.contract_sha256[:12]})")
        counts = run.counts
        shown = [
            self._paint(f"{counts[o.label]} {o.label}", _OUTCOME_COLORS[o] if counts[o.label] else _DIM)
            for o in reversed(Outcome)
        ]
        yield f"clauses  {', '.join(shown)}; {counts['total']} in all"

    def _audit(self) -> Iterator[str]:
        audit = self._run.audit
        if audit:
            yield self._cut(
                f"own keys {audit['keys_written']} written, at most "
                f"{quantity('peak_bytes', audit['peak_bytes_held'])} at once, {audit['keys_left']} left"
            )
            yield self._cut(
                f"others'  {audit['foreign_keys_sampled']} keys looked at before and after, "
                f"{audit['foreign_keys_unchanged']} unchanged"
            )

    def _difference(self) -> Iterator[str]:
        difference = self._run.difference
        if difference is None:
            return
        yield ""
        yield self._paint(f"since {_plain(difference.since)} ({_plain(difference.verdict_before)})", _BOLD)
        for kind, changes in difference.by_kind().items():
            ids = _digest.abbreviate(change.clause for change in changes)
            worse = changes[0].after in (Outcome.FAILED.label, Outcome.ERROR.label)
            # Clauses that got worse are what the comparison is for: they are never cut.
            yield from self._wrap(f"  {kind:<17} ", ids) if worse else [self._cut(f"  {kind:<17} {ids}")]
        if not difference.clauses:
            yield self._cut(f"  no clause of {difference.compared} has another outcome")
        for fact in difference.facts[:_FACTS]:
            yield self._cut(f"  {fact.name}: {fact.before}, now {fact.after}")
        if len(difference.facts) > _FACTS:
            yield f"  and {len(difference.facts) - _FACTS} more changes, in the report"

    def _finding(self, result: ClauseResult, finding: Finding) -> Iterator[str]:
        decides = _digest.decides(self._run, result)
        level = f"{result.clause.level}" if decides else f"{result.clause.level}, does not decide"
        mark = self._paint(result.clause.id, _RED if decides else _YELLOW, _BOLD)
        yield f"{mark} ({level})"
        for label, text in (
            ("expected", finding.expected),
            ("observed", finding.observed),
            ("remedy", finding.remedy or result.clause.remedy),
        ):
            yield from self._wrap(f"  {label:<10} ", text)
        if finding.reproduce:
            # Never wrapped: a command is there to be copied.
            yield f"  {'reproduce':<10} {_plain(finding.reproduce)}"

    def _risks(self) -> Iterator[str]:
        if not self._run.accepted_risks:
            return
        yield ""
        yield self._paint("accepted risks", _YELLOW, _BOLD)
        for risk in self._run.accepted_risks:
            bound = f"; bound: {risk.bound}" if risk.bound else ""
            by = f"; accepted by {risk.accepted_by}" if risk.accepted_by else ""
            yield from self._wrap(f"  {risk.subject}  ", f"{risk.statement}{bound}{by}")

    def _lists(self, room: int) -> Iterator[str]:
        """What the run does not tell, in ``room`` lines: each list has its share, and points to the rest."""
        run = self._run
        open_musts = [(_digest.abbreviate(ids), reason) for reason, ids in _digest.open_musts(run)]
        lists = [
            ("the suite broke in", _reasons(run, Outcome.ERROR), _MAGENTA),
            ("waived", _reasons(run, Outcome.WAIVED), _YELLOW),
            (f"MUST clauses not proven: {len(run.must_not_proven)}", open_musts, _BOLD),
        ]
        lists = [entry for entry in lists if entry[1]]
        for number, (title, rows, code) in enumerate(lists):
            if number == 0:
                yield ""
            share = max(2, room // (len(lists) - number) - 1)
            shown = rows if len(rows) <= share else rows[: share - 1]
            yield self._paint(title, code)
            yield from (self._cut(f"  {ids}  {reason}") for ids, reason in shown)
            if len(shown) < len(rows):
                yield f"  and {len(rows) - len(shown)} more, in the report"
            room -= 1 + min(len(rows), share)

    def _wrap(self, indent: str, text: str) -> list[str]:
        return textwrap.wrap(
            _plain(text),
            self._width,
            initial_indent=indent,
            subsequent_indent=" " * len(indent),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _cut(self, line: str) -> str:
        line = _plain(line)
        return line if len(line) <= self._width else line[: self._width - 1].rstrip() + "…"

    def _paint(self, text: str, *codes: str) -> str:
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self._color else text


def _reasons(run: RunResult, outcome: Outcome) -> list[tuple[str, str]]:
    return [(result.clause.id, result.reason) for result in _digest.with_outcome(run, outcome)]


def _plain(text: str) -> str:
    """One line, without what a server could do to a terminal."""
    return _CONTROL.sub(" ", text).rstrip()
