"""``python -m dashboards.pictures --out docs/img/dashboards``: remake the pictures."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from alerts import generate as alerts
from dashboards import generate as dashboards
from dashboards.pictures import Watched, draw, require_tools, say
from dashboards.pictures._story import live_through
from fixtures.pressure import PressureRun, judged
from fixtures.targets.configuration import server_settings
from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from inference_cache.contract import load

# The shipped contract, scaled down to what fills up in a minute.
CONTRACT = """
extends = "adr_0023"
[instance]
memory_request = "64mb"
memory_limit = "128mb"
maxmemory = "64mb"
"""
# Rules look back for minutes and hours; the run lasts minutes.
TIME_FACTOR = 0.1
SCRAPE_INTERVAL_S = 5
OF_ENGINES = ("offload.json", "spill.json")
"""Whose pictures ``benchmarks/live_engines.py`` draws, with the engines at work."""


def main() -> int:
    options = _options()
    require_tools()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dashboard-story-")))
        contract_file = folder / "contract.toml"
        contract_file.write_text(CONTRACT, "utf-8")
        contract = load(str(contract_file))
        rules = _write_rules(alerts.files(contract, time_factor=TIME_FACTOR), folder / "alerts")
        say("the gate judges an embedded server")
        verdict = judged(folder / "gate", "--group", "CFG", "--group", "ISO")
        server = stack.enter_context(EmbeddedServer(resolve_executable(None), server_settings(contract)))
        run = stack.enter_context(
            PressureRun(
                server,
                contract,
                rng=random.Random(options.seed),
                gate_metrics=verdict,
                contract_file=contract_file,
                scrape_interval_s=SCRAPE_INTERVAL_S,
                rule_files=rules,
            )
        )
        live_through(run, server, speed=options.speed, say=say)
        problems = draw(
            {name: text for name, text in dashboards.files(contract).items() if name not in OF_ENGINES},
            Watched(prometheus_url=run.prometheus.url, began_s=run.began_s, step_s=SCRAPE_INTERVAL_S),
            out=options.out,
            modules=options.modules,
        )
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNGs")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="N", help="divides the time that it takes"
    )
    parser.add_argument("--seed", type=int, default=23, metavar="N", help="of the load (default: 23)")
    parser.add_argument(
        "--modules", type=Path, metavar="DIR", help="keeps Grafana's npm packages for the next time"
    )
    return parser.parse_args()


def _write_rules(files: dict[str, str], folder: Path) -> tuple[Path, ...]:
    written = []
    for name, text in files.items():
        if name.startswith("rules/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            written.append(path)
    return tuple(written)


if __name__ == "__main__":
    sys.exit(main())
