"""``inference-cache selftest``: judge the suite."""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the parser of ``selftest``."""
    selftest = commands.add_parser(
        "selftest",
        help="show that the suite rejects bad systems and accepts good ones",
        description="Run every mutant (a system wrong in one way) and every good system through the gate. "
        "Exits 1 on a survivor, a broken mutant, a false alarm, or a MUST clause with specs and no killer.",
    )
    selftest.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ID",
        help="run only this mutant or good system (repeatable)",
    )
    selftest.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="systems at once (default: two and a half times the processors, as they mostly wait)",
    )
    selftest.add_argument(
        "--report-dir", default="reports", metavar="DIR", help="where the matrix goes (default: reports)"
    )
    selftest.add_argument(
        "--quick",
        action="store_true",
        help="one mutant for each MUST clause, the cheapest that needs neither Ray nor vLLM nor Prometheus",
    )
    selftest.add_argument(
        "--resume",
        action="store_true",
        help="leave out what an earlier run of the same suite in the same --report-dir has judged well",
    )
    selftest.add_argument(
        "--track-record",
        action="store_true",
        help="print, as Markdown, the incidents that mutants were made of, and end",
    )
    selftest.add_argument("--list", action="store_true", help="print the systems and end")
    selftest.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from inference_cache.gate.suite import pytest_command, suite_folder, usable_cpus

    pytest_command([], workers=0)  # names a missing extra before anything is started
    folder = str(suite_folder())
    sys.path.insert(0, folder)
    if options.track_record:
        from mutants.matrix import track_record

        print(track_record(), end="")
        return 0
    from mutants.selftest import run_selftest

    return int(
        run_selftest(
            only=options.only,
            jobs=usable_cpus() * 5 // 2 if options.jobs is None else options.jobs,
            report_dir=options.report_dir,
            list_only=options.list,
            quick=options.quick,
            resume=options.resume,
        )
    )
