"""``inference-cache exporter``: metrics by prefix for Prometheus."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path
from typing import Any

from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["add"]

_URL_VARIABLE = "INFERENCE_CACHE_URL"


def add(commands: Any) -> None:
    """Add the parser of ``exporter``."""
    exporter = commands.add_parser(
        "exporter",
        help="serve metrics by prefix to Prometheus",
        description="Serve keys, bytes and losses by prefix, the contract's numbers and the last verdict of "
        "the gate to Prometheus, on /metrics. Runs beside redis_exporter.",
    )
    exporter.add_argument(
        "--url",
        default=None,
        help=f"the server, as valkey://HOST:PORT (default: ${_URL_VARIABLE}, which no process list shows)",
    )
    exporter.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:9122",
        help="where to serve (default: 127.0.0.1:9122)",
    )
    exporter.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    exporter.add_argument(
        "--budget-ops",
        metavar="N",
        type=float,
        default=500.0,
        help="commands a second to ask the server at most (default: 500)",
    )
    exporter.add_argument(
        "--window",
        metavar="SECONDS",
        type=float,
        default=120.0,
        help="how long a sampled key counts (default: 120)",
    )
    exporter.add_argument(
        "--full-pass",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="read every key while the budget allows it within this time (default: 30)",
    )
    exporter.add_argument(
        "--idle-keys",
        metavar="N",
        type=float,
        default=0.0,
        help="idle times to read a minute for each prefix; the server counts each as a hit (default: 0)",
    )
    exporter.add_argument(
        "--gate-metrics",
        metavar="FILE",
        type=Path,
        default=None,
        help="metrics.prom of the gate, to serve along with the rest",
    )
    exporter.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from inference_cache.exporter import Exporter, Settings

    url = options.url or os.environ.get(_URL_VARIABLE)
    if not url:
        raise UsageError(f"write --url valkey://HOST:PORT, or set {_URL_VARIABLE}")
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--listen {options.listen}: write HOST:PORT, such as 0.0.0.0:9122")
    settings = Settings(
        budget_ops_s=options.budget_ops,
        window_s=options.window,
        full_pass_s=options.full_pass,
        idle_keys=options.idle_keys,
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Exporter(
        url,
        contract=load(options.contract),
        settings=settings,
        listen=(host.strip("[]"), int(port)),
        gate_metrics=options.gate_metrics,
    ) as exporter:
        print(f"inference-cache: metrics at http://{exporter.address}/metrics", flush=True)
        ended.wait()
    return ExitCode.CONFORMANT
