"""The ``inference-cache`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import inference_cache
from inference_cache.commands import clauses, exporter, gate, kv, plan, ray_spill, render, selftest
from inference_cache.errors import ContractError, InferenceCacheError, MissingExtra, UsageError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["main"]

_COMMANDS = (gate, clauses, selftest, plan, exporter, render, ray_spill, kv)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, as :class:`~inference_cache.gate.outcomes.ExitCode` has
    them.
    """
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What stands behind "--" is pytest's.
    split = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:split])
    options.passed_on = given[split + 1 :]
    if options.passed_on and not options.passes_on:
        parser.error("only 'gate' passes options on to pytest behind --")
    if options.run is None:
        parser.print_help()
        return ExitCode.USAGE
    try:
        return int(options.run(options))
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
    parser.set_defaults(run=None, passes_on=False)
    parser.add_argument(
        "--version", action="version", version=f"inference-cache {inference_cache.__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
