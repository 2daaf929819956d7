"""All reports of a run, written so that a reader never meets half a file."""

from __future__ import annotations

import os
import secrets as tokens
from collections.abc import Iterable, Mapping
from pathlib import Path

from inference_cache.errors import UsageError
from inference_cache.gate import (
    report_badge,
    report_html,
    report_json,
    report_junit,
    report_markdown,
    report_metrics,
    report_sarif,
)
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import RunResult

__all__ = ["write_reports"]

_RENDERERS = {
    "report.json": report_json.dumps,
    "junit.xml": report_junit.to_junit,
    "report.md": report_markdown.to_markdown,
    "report.html": report_html.to_html,
    "report.sarif": report_sarif.to_sarif,
    "metrics.prom": report_metrics.to_metrics,
    "badge.json": report_badge.to_badge_json,
    "badge.svg": report_badge.to_badge_svg,
}


def write_reports(run: RunResult, directory: Path, *, secrets: Iterable[str] = ()) -> Mapping[str, Path]:
    """Write every report into ``directory`` and return where each one is, by file name.

    ``secrets`` are values to hide in addition to those that the run itself gives away.

    Raises:
        UsageError: the directory cannot be made or written.
    """
    run = publishable(run, secrets)
    # Rendered before anything is written: the reports on disk always belong to one run.
    texts = {name: render(run) for name, render in _RENDERERS.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return {name: _write(directory / name, text) for name, text in texts.items()}
    except OSError as error:
        raise UsageError(
            f"cannot write the reports to {directory}: {error.strerror or error}; "
            "name a directory that this user may create and write"
        ) from error


def _write(path: Path, text: str) -> Path:
    draft = path.with_name(f".{path.name}.{tokens.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
