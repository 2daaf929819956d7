"""Reports that give secrets away."""

from __future__ import annotations

from pathlib import Path

from inference_cache.gate import report_json
from inference_cache.gate.verdict import RunResult
from mutants.liveness import note_adapter

__all__ = ["write_unredacted"]


def write_unredacted(run: RunResult, directory: Path) -> None:
    """The run as it was seen, secrets and all."""
    note_adapter("write_unredacted")
    directory.mkdir(parents=True)
    text = "\n".join([report_json.dumps(run), run.target.address, *run.target.config.values()])
    (directory / "report.json").write_text(text, "utf-8")
