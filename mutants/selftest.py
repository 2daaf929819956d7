"""``inference-cache selftest``: the kill matrix, and whether anybody was wrongly accused."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from inference_cache.contract import Level, load
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode
from inference_cache.gate.spec_index import spec_index
from inference_cache.gate.suite import suite_folder
from mutants.catalog import GOOD_SYSTEMS, MUTANTS
from mutants.model import Mutant, System
from mutants.run import Judgment, Standing, judge_system

__all__ = ["run_selftest", "unkilled_clauses"]


def run_selftest(*, only: Sequence[str], jobs: int, report_dir: str, list_only: bool) -> ExitCode:
    """Judge every system, print the matrix, write ``selftest.json``.

    Raises:
        UsageError: an unknown id, or a number of jobs below one.
    """
    systems: list[System] = [*MUTANTS, *GOOD_SYSTEMS]
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: write 1 or more")
    if unknown := set(only) - {system.id for system in systems}:
        raise UsageError(f"no system is called {', '.join(sorted(unknown))}; selftest --list prints them all")
    chosen = [system for system in systems if not only or system.id in only]
    if list_only:
        for system in chosen:
            print(f"{system.id:<12} {_clause(system):<8} {system.title}")
        return ExitCode.CONFORMANT
    began = time.monotonic()
    judgments: list[Judgment] = []
    stop = threading.Event()
    # A supervisor's TERM must end in the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(jobs) as pool:
        # Good systems take longest, so they begin first.
        futures = [pool.submit(judge_system, system, stop=stop) for system in sorted(chosen, key=_clause)]
        try:
            for future in as_completed(futures):
                judgment = future.result()
                judgments.append(judgment)
                print(_line(judgment), flush=True)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            print(f"interrupted after {len(judgments)} of {len(chosen)} systems: nothing is decided")
            return ExitCode.BROKEN
    judgments.sort(key=lambda j: [s.id for s in systems].index(j.system.id))
    unkilled = [] if only else unkilled_clauses(judgments)
    counts = {standing: sum(j.standing is standing for j in judgments) for standing in Standing}
    _write(Path(report_dir), judgments, unkilled, counts)
    mutants = sum(isinstance(j.system, Mutant) for j in judgments)
    print(
        f"\n{counts[Standing.KILLED]} of {mutants} mutants killed, {counts[Standing.SURVIVED]} survived, "
        f"{counts[Standing.WRONG_REASON]} rejected for the wrong reason, {counts[Standing.BROKEN]} broken; "
        f"{counts[Standing.ACCEPTED]} of {len(judgments) - mutants} good systems accepted, "
        f"{counts[Standing.FALSE_ALARM]} false alarms; {time.monotonic() - began:.0f} s"
    )
    if unkilled:
        print(f"MUST clauses with specs and without a killer: {', '.join(unkilled)}")
    bad = unkilled or not all(judgment.standing.good for judgment in judgments)
    return ExitCode.NOT_CONFORMANT if bad else ExitCode.CONFORMANT


def unkilled_clauses(judgments: Sequence[Judgment]) -> list[str]:
    """MUST clauses that have specs but reject no mutant."""
    killed = {_clause(j.system) for j in judgments if j.standing is Standing.KILLED}
    contract = load()
    return [
        clause_id
        for clause_id in spec_index(suite_folder() / "conformance")
        if contract.clauses[clause_id].level is Level.MUST and clause_id not in killed
    ]


def _line(judgment: Judgment) -> str:
    system = judgment.system
    mark = "  " if judgment.standing.good else "! "
    line = (
        f"{mark}{system.id:<12} {_clause(system):<8} {judgment.standing:<12} "
        f"{judgment.duration_s:5.1f} s  {system.title}"
    )
    return line if judgment.standing.good else f"{line}\n     {judgment.detail}"


def _clause(system: System) -> str:
    return system.clause if isinstance(system, Mutant) else "(all)"


def _write(
    folder: Path, judgments: Sequence[Judgment], unkilled: Sequence[str], counts: dict[Standing, int]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "counts": {str(standing): count for standing, count in counts.items()},
        "must_clauses_without_killer": list(unkilled),
        "systems": [
            {
                "id": j.system.id,
                "title": j.system.title,
                "clause": _clause(j.system),
                "standing": str(j.standing),
                "detail": j.detail,
                "acted": j.acted,
                "outcomes": j.outcomes,
                "duration_s": j.duration_s,
            }
            for j in judgments
        ],
    }
    (folder / "selftest.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
