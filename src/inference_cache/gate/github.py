"""What GitHub Actions shows of a run: annotations, and the job's summary page.

Both are made from a published run only. Text of the server under judgment is data: it can neither become a
workflow command nor end one early.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from inference_cache.contract import Level
from inference_cache.gate import _digest
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.report_markdown import to_markdown
from inference_cache.gate.verdict import RunResult

__all__ = ["append_step_summary", "command_switch", "running_in_github", "workflow_commands"]

_SUMMARY_LIMIT_BYTES = 1_000_000
"""A step's summary may have 1 MiB; the step must not lose it for a few bytes more."""
_COMMANDS = {Level.MUST: "error", Level.SHOULD: "warning", Level.MAY: "notice"}


def running_in_github(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a step of a GitHub workflow."""
    return environment.get("GITHUB_ACTIONS") == "true"


def workflow_commands(run: RunResult) -> Iterator[str]:
    """A workflow command for each violation, the decisive ones first, and one for what was not proven.

    GitHub shows ten errors, ten warnings and ten notices of a step.
    """
    run = publishable(run)
    for result, finding in _digest.findings(run):
        command = _COMMANDS[result.clause.level] if _digest.decides(run, result) else "notice"
        text = f"expected {finding.expected}; observed {finding.observed}"
        remedy = finding.remedy or result.clause.remedy
        yield _command(command, f"{result.clause.id} violated", f"{text}. {remedy}".strip())
    for result in _digest.with_outcome(run, Outcome.ERROR):
        yield _command("error", f"{result.clause.id}: the suite broke", result.reason)
    if run.verdict in (Verdict.BROKEN, Verdict.INCOMPLETE, Verdict.NOTHING_VERIFIED):
        yield _command("error", f"ADR-0023: {run.verdict.value}", run.reason)
    elif run.must_not_proven:
        ids = _digest.abbreviate(result.clause.id for result in run.must_not_proven)
        yield _command("notice", f"{len(run.must_not_proven)} MUST clauses not proven", ids)


def command_switch() -> tuple[str, str]:
    """Two lines: after the first the runner obeys no workflow command, after the second it does again.

    Text between them cannot know the token, and so cannot switch commands on.
    """
    token = secrets.token_hex(16)
    return f"::stop-commands::{token}", f"::{token}::"


def append_step_summary(run: RunResult, path: Path) -> None:
    """Append ``report.md`` to the file that GITHUB_STEP_SUMMARY names, as far as it fits.

    Raises:
        OSError: the file cannot be written.
    """
    text = to_markdown(run)
    if len(text.encode("utf-8")) > _SUMMARY_LIMIT_BYTES:
        kept = text.encode("utf-8")[:_SUMMARY_LIMIT_BYTES].decode("utf-8", "ignore")
        text = kept.rpartition("\n")[0] + "\n\nCut here: the rest is in report.md.\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _command(command: str, title: str, message: str) -> str:
    return f"::{command} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
