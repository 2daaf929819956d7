"""``inference-cache clauses``: print the catalogue."""

from __future__ import annotations

import argparse
from typing import Any

from inference_cache.contract import load
from inference_cache.gate.outcomes import ExitCode

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the parser of ``clauses``."""
    clauses = commands.add_parser("clauses", help="print the catalogue of clauses")
    clauses.add_argument(
        "--format",
        choices=("md", "json", "table"),
        default="md",
        help="Markdown (default), JSON, or a short Markdown table",
    )
    clauses.add_argument("--explain", metavar="ID", help="all about one clause")
    clauses.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    clauses.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
