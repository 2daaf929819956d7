"""The ``inference-cache`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import inference_cache
from inference_cache.contract import load
from inference_cache.errors import ContractError, InferenceCacheError, MissingExtra, UsageError
from inference_cache.gate.options import OPTIONS, select_clauses
from inference_cache.gate.outcomes import ExitCode

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, as :class:`~inference_cache.gate.outcomes.ExitCode` has
    them.
    """
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What stands behind "--" is pytest's.
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    passed_on = given[split + 1 :]
    if passed_on and options.command != "gate":
        parser.error("only 'gate' passes options on to pytest behind --")
    try:
        match options.command:
            case "gate":
                return _gate(options, passed_on)
            case "clauses":
                return _clauses(options)
            case "selftest":
                return _selftest(options)
            case _:
                parser.print_help()
                return ExitCode.USAGE
    except (ContractError, UsageError, MissingExtra) as error:
        print(f"inference-cache: {error}", file=sys.stderr)
        return ExitCode.USAGE
    except BrokenPipeError:
        # Whoever read our output has gone (``| head``): there is nobody left to tell, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN
    except InferenceCacheError as error:
        print(f"inference-cache: {error}", file=sys.stderr)
        return ExitCode.BROKEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inference-cache",
        description="Prove that one Valkey carries ML inference caches as ADR-0023 decided.",
    )
    parser.add_argument(
        "--version", action="version", version=f"inference-cache {inference_cache.__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
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
    clauses = commands.add_parser("clauses", help="print the catalogue of clauses")
    clauses.add_argument(
        "--format",
        choices=("md", "json", "table"),
        default="md",
        help="Markdown (default), JSON, or a short Markdown table",
    )
    clauses.add_argument("--explain", metavar="ID", help="all about one clause")
    clauses.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
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
    selftest.add_argument("--jobs", type=int, default=3, metavar="N", help="systems at once (default: 3)")
    selftest.add_argument(
        "--report-dir", default="reports", metavar="DIR", help="where the matrix goes (default: reports)"
    )
    selftest.add_argument("--list", action="store_true", help="print the systems and end")
    return parser


def _gate(options: argparse.Namespace, passed_on: Sequence[str]) -> int:
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
        elif value not in (None, False):
            words.append(f"{option.flag}={value}")
    workers = options.workers
    if workers is None:
        # Starting workers costs more than running one or two clauses beside each other saves.
        workers = 0 if len(selected) <= 2 else usable_cpus() + 1
    if workers < 0:
        raise UsageError(f"--workers {workers}: write 0 or more")
    command = pytest_command([*words, *passed_on], workers=workers)
    sys.stdout.flush()
    # The suite takes the place of this process: signals and the exit code are its own.
    os.execve(command[0], command, suite_environment())


def _clauses(options: argparse.Namespace) -> int:
    from inference_cache.gate.clause_docs import explain, render_json, render_markdown, render_table
    from inference_cache.gate.spec_index import spec_docs, spec_index
    from inference_cache.gate.suite import suite_folder

    contract = load(options.contract)
    folder = suite_folder() / "conformance"
    index, docs = spec_index(folder), spec_docs(folder)
    if options.explain:
        print(explain(contract, index, options.explain, docs=docs))
    elif options.format == "table":
        print(render_table(contract, index))
    elif options.format == "json":
        print(render_json(contract, index, docs=docs))
    else:
        print(render_markdown(contract, index, docs=docs))
    return ExitCode.CONFORMANT


def _selftest(options: argparse.Namespace) -> int:
    from inference_cache.gate.suite import pytest_command, suite_folder

    pytest_command([], workers=0)  # names a missing extra before anything is started
    folder = str(suite_folder())
    sys.path.insert(0, folder)
    from mutants.selftest import run_selftest

    return int(
        run_selftest(
            only=options.only, jobs=options.jobs, report_dir=options.report_dir, list_only=options.list
        )
    )
