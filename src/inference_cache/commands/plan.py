"""``inference-cache plan``: how much memory for which hit ratio."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from inference_cache.connection import connect
from inference_cache.contract import Contract, load, parse_size
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["add"]

ADR_SIZES = ("1536mb", "6gb")
"""maxmemory of the ADR's two memory limits, 2Gi and 8Gi."""


def add(commands: Any) -> None:
    """Add the parser of ``plan``."""
    plan = commands.add_parser(
        "plan",
        help="how much maxmemory for which hit ratio",
        description="Miss-ratio curves, per workload and together, from a trace (JSON lines with time, key, "
        "size and workload; gzip accepted) or from a look at a live server that touches nothing.",
    )
    source = plan.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="requests as JSON lines, .gz accepted")
    source.add_argument("--url", metavar="URL", help="a live server to sample, as valkey://HOST:PORT")
    plan.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    plan.add_argument(
        "--maxmemory",
        nargs="+",
        default=list(ADR_SIZES),
        metavar="SIZE",
        help=f"sizes to tell the hit ratio for (default: {' '.join(ADR_SIZES)}, the ADR's 2Gi and 8Gi)",
    )
    plan.add_argument(
        "--out", type=Path, metavar="DIR", help="write plan.html and plan.json there (trace only)"
    )
    plan.add_argument(
        "--allocator",
        choices=("jemalloc", "libc"),
        default="jemalloc",
        help="what the server is built with, INFO's mem_allocator (default: jemalloc, as official images)",
    )
    plan.add_argument(
        "--keys",
        type=int,
        default=32_768,
        metavar="N",
        help="keys to follow in each workload, or to sample from a live server (default: 32768)",
    )
    plan.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    contract = load(options.contract)
    sizes = [parse_size(size) for size in options.maxmemory]
    if options.keys < 256:
        raise UsageError(f"--keys {options.keys}: write 256 or more; a smaller sample tells nothing")
    if options.url:
        if options.out:
            raise UsageError("--out goes with --trace: a look at a live server has no curve per workload")
        return _live(options, contract, sizes)
    return _trace(options, contract, sizes)


def _trace(options: argparse.Namespace, contract: Contract, sizes: list[int]) -> int:
    from inference_cache.plan import make_plan, read_trace, trace_format
    from inference_cache.plan._report import plan_html, plan_text

    form = trace_format(contract, allocator=options.allocator)
    runs = read_trace(options.trace, form)
    plan = make_plan(runs, contract, allocator=options.allocator, max_keys=options.keys)
    print(plan_text(plan, sizes))
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "plan.html").write_text(plan_html(plan, sizes), "utf-8")
            (options.out / "plan.json").write_text(json.dumps(plan.to_json(sizes), indent=2) + "\n", "utf-8")
        except OSError as error:
            raise UsageError(f"--out {options.out}: {error.strerror}; name a folder to write to") from error
        print(f"\nWritten: {options.out / 'plan.html'}, {options.out / 'plan.json'}")
    return ExitCode.CONFORMANT


def _live(options: argparse.Namespace, contract: Contract, sizes: list[int]) -> int:
    from inference_cache.plan import sample_server
    from inference_cache.plan._report import live_text

    with connect(options.url, deadline_s=30) as client:
        sample = sample_server(client, contract, keys=options.keys)
    print(live_text(sample, {name: w.share for name, w in contract.workloads.items()}, sizes))
    return ExitCode.CONFORMANT
