"""``inference-cache gate``: judge a server."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.gate.options import OPTIONS, select_clauses

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the parser of ``gate``."""
    gate = commands.add_parser(
        "gate",
        help="judge a server against the contract",
        description="Judge a server against the contract. Exit codes: 0 conformant, 1 not conformant, "
        "2 usage, 3 target unreachable, suite broken or interrupted, 4 MUST clauses not proven under "
        "--require-all, 5 nothing verified.",
        epilog="Options behind -- go to pytest.",
    )
    for option in OPTIONS:
        gate.add_argument(option.flag, **option.settings)
    gate.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="specs that run at once; 0 for one process (default: one more than the processors)",
    )
    gate.set_defaults(run=_run, passes_on=True)


def _run(options: argparse.Namespace) -> int:
    from inference_cache.gate.suite import pytest_command, suite_environment, usable_cpus

    contract = load(options.contract)
    selected = select_clauses(contract, clause_ids=options.clause, groups=options.group)
    words: list[str] = []
    for option in OPTIONS:
        value = getattr(options, option.dest)
        if isinstance(value, list):
            words += [f"{option.flag}={item}" for item in value]
        elif value is True:
            words.append(option.flag)
        elif value is not None and value is not False:  # 0 is a value
            words.append(f"{option.flag}={value}")
    workers = options.workers
    if options.consent_disruption is not None:
        workers = 0  # nobody else may be at work on the server while it restarts
    if workers is None:
        # Starting workers costs more than running one or two clauses beside each other saves.
        workers = 0 if len(selected) <= 2 else usable_cpus() + 1
    if workers < 0:
        raise UsageError(f"--workers {workers}: write 0 or more")
    command = pytest_command([*words, *options.passed_on], workers=workers, clause_ids=selected)
    sys.stdout.flush()
    # The suite takes the place of this process: signals and the exit code are its own.
    os.execve(command[0], command, suite_environment())
