"""How often a clause that decides by a sample is wrong, on good systems and on its mutants.

::

    python benchmarks/error_rates.py --clause MEM-02 --runs 20 --jobs 6
    python benchmarks/error_rates.py --clause SHR-02 --runs 50 --jobs 1            # timings: one at a time
    python benchmarks/error_rates.py --clause SHR-02 --runs 20 --jobs 1 --busy 2   # on a busy machine

Every run is a whole gate in a process and with a seed of its own. Prints a Markdown table; exits 1 when any
run was wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.catalog import GOOD_SYSTEMS, MUTANTS
from mutants.model import GoodSystem, System
from mutants.run import judge_system


@contextmanager
def _burning(processes: int) -> Iterator[None]:
    """Keep so many processors busy."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clause", default="MEM-02", help="the clause to try (default: MEM-02)")
    parser.add_argument("--runs", type=int, default=20, help="runs of each system (default: 20)")
    parser.add_argument("--jobs", type=int, default=4, help="gates at once (default: 4)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ID", help="only this system (repeatable)"
    )
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="processes that burn a processor each meanwhile"
    )
    options = parser.parse_args()
    systems: list[System] = [
        system
        for system in (*GOOD_SYSTEMS, *(m for m in MUTANTS if m.clause == options.clause))
        if not options.only or system.id in options.only
    ]
    if not systems:
        parser.error(f"--only {' '.join(options.only)}: no such good system, or mutant of {options.clause}")
    with _burning(options.busy):
        return _measure(options, systems)


def _measure(options: argparse.Namespace, systems: list[System]) -> int:
    began = time.monotonic()
    outcomes: dict[str, Counter[str]] = {system.id: Counter() for system in systems}
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [system for _ in range(options.runs) for system in systems]
        judgments = pool.map(lambda system: judge_system(system, clauses=[options.clause]), runs)
        for judgment in judgments:
            outcomes[judgment.system.id][str(judgment.standing)] += 1
            if not judgment.standing.good:
                print(f"{judgment.system.id}: {judgment.standing}: {judgment.detail}", file=sys.stderr)
    print(
        f"{options.clause}, {options.runs} runs of each system, {options.jobs} at once, "
        f"{options.busy} processes burning beside, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} "
        f"processors at the end, Python {platform.python_version()}\n"
    )
    print("| system | | right | wrong |\n|---|---|---:|---:|")
    wrong_in_all = 0
    for system in systems:
        right = outcomes[system.id]["accepted" if isinstance(system, GoodSystem) else "killed"]
        wrong = options.runs - right
        wrong_in_all += wrong
        print(f"| {system.id} | {system.title} | {right} | {wrong} |")
    print(f"\n{wrong_in_all} wrong in {len(runs)} runs; {time.monotonic() - began:.0f} s")
    return 1 if wrong_in_all else 0


if __name__ == "__main__":
    raise SystemExit(main())
