"""``inference-cache selftest``: the kill matrix, and whether anybody was wrongly accused."""

from __future__ import annotations

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
from mutants.costs import quick_choice
from mutants.matrix import clause_of, write_matrix
from mutants.model import Mutant, System
from mutants.record import Record
from mutants.run import Judgment, Standing, judge_system

__all__ = ["run_selftest", "unkilled_clauses"]


def run_selftest(
    *,
    only: Sequence[str],
    jobs: int,
    report_dir: str,
    list_only: bool,
    quick: bool = False,
    resume: bool = False,
) -> ExitCode:
    """Judge every system, print the matrix, write ``selftest.json`` and ``matrix.html``.

    ``quick`` takes one mutant for each MUST clause, the cheapest that needs no engine. ``resume`` leaves out
    what an earlier run of the same suite, in the same ``report_dir``, has already judged well.

    Raises:
        UsageError: an unknown id, or a number of jobs below one.
    """
    systems: list[System] = [*MUTANTS, *GOOD_SYSTEMS]
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: write 1 or more")
    if quick and only:
        raise UsageError("--quick chooses by itself: leave out --only")
    if unknown := set(only) - {system.id for system in systems}:
        raise UsageError(f"no system is called {', '.join(sorted(unknown))}; selftest --list prints them all")
    left_out: list[str] = []
    if quick:
        ids, left_out = quick_choice(unkilled_clauses([]))
        chosen = [system for system in systems if system.id in ids]
    else:
        chosen = [system for system in systems if not only or system.id in only]
    if list_only:
        for system in chosen:
            print(f"{system.id:<12} {clause_of(system):<11} {system.title}")
        return ExitCode.CONFORMANT
    began = time.monotonic()
    record = Record(Path(report_dir), suite_folder())
    judgments = record.earlier(chosen) if resume else []
    if resume:
        print(f"{len(judgments)} of {len(chosen)} systems were judged by an earlier run of the same suite")
    done = {judgment.system.id for judgment in judgments}
    finished = _judge_all([system for system in chosen if system.id not in done], jobs, judgments, record)
    if not finished:
        print(f"interrupted after {len(judgments)} of {len(chosen)} systems: nothing is decided")
        return ExitCode.BROKEN
    judgments.sort(key=lambda j: [s.id for s in systems].index(j.system.id))
    unjudged = {j.system.id: clause_of(j.system) for j in judgments if j.standing is Standing.NOT_JUDGED}
    excused = {*left_out, *unjudged.values()}
    unkilled = [] if only else [c for c in unkilled_clauses(judgments) if c not in excused]
    counts = {standing: sum(j.standing is standing for j in judgments) for standing in Standing}
    record.write(judgments, unkilled, counts)
    write_matrix(Path(report_dir) / "matrix.html", judgments, unkilled, left_out)
    mutants = sum(isinstance(j.system, Mutant) for j in judgments) - counts[Standing.NOT_JUDGED]
    good = sum(not isinstance(j.system, Mutant) for j in judgments)
    print(
        f"\n{counts[Standing.KILLED]} of {mutants} mutants killed, {counts[Standing.SURVIVED]} survived, "
        f"{counts[Standing.WRONG_REASON]} rejected for the wrong reason, {counts[Standing.BROKEN]} broken; "
        f"{counts[Standing.ACCEPTED]} of {good} good systems accepted, "
        f"{counts[Standing.FALSE_ALARM]} false alarms; {time.monotonic() - began:.0f} s"
    )
    if unkilled:
        print(f"MUST clauses with specs and without a killer: {', '.join(unkilled)}")
    if unjudged:
        print(f"not judged, for want of an engine: {', '.join(f'{i} ({c})' for i, c in unjudged.items())}")
    if left_out:
        print(f"left out by --quick, since only an engine shows them: {', '.join(left_out)}")
    print(f"Matrix: {Path(report_dir) / 'matrix.html'} (also selftest.json)")
    bad = unkilled or any(judgment.standing.bad for judgment in judgments)
    return ExitCode.NOT_CONFORMANT if bad else ExitCode.CONFORMANT


def _judge_all(chosen: Sequence[System], jobs: int, judgments: list[Judgment], record: Record) -> bool:
    """Judge the systems side by side, into ``judgments``; False when it was interrupted."""
    stop = threading.Event()
    # A supervisor's TERM must end in the same clean-up as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(jobs) as pool:
        # Good systems take longest, so they begin first.
        futures = [pool.submit(judge_system, system, stop=stop) for system in sorted(chosen, key=clause_of)]
        try:
            for future in as_completed(futures):
                judgment = future.result()
                judgments.append(judgment)
                record.write(judgments, [], {})
                print(_line(judgment), flush=True)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            return False
    return True


def unkilled_clauses(judgments: Sequence[Judgment]) -> list[str]:
    """MUST clauses that have specs but reject no mutant."""
    killed = {clause_of(j.system) for j in judgments if j.standing is Standing.KILLED}
    contract = load()
    return [
        clause_id
        for clause_id in spec_index(suite_folder() / "conformance")
        if contract.clauses[clause_id].level is Level.MUST and clause_id not in killed
    ]


def _line(judgment: Judgment) -> str:
    system = judgment.system
    mark = "! " if judgment.standing.bad else "  "
    line = (
        f"{mark}{system.id:<12} {clause_of(system):<11} {judgment.standing:<12} "
        f"{judgment.duration_s:5.1f} s  {system.title}"
    )
    return line if judgment.standing.good else f"{line}\n     {judgment.detail}"
