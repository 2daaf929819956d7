"""Every alert that can be provoked here, fired for real, with its times: ``python benchmarks/live_fire.py``.

Real servers, redis_exporter, our exporter and Prometheus; the rules of ``alerts``, windows multiplied by
one factor. Writes ``alerts/live_fire.json``, which ``python -m alerts`` shows in docs/alerts.md. About five
minutes; exit code 1 when an alert did not fire or did not resolve.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alerts.generate import files  # noqa: E402 - the checkout is put on the path first
from fixtures.incidents.contention import Flooded, Unaccepted  # noqa: E402
from fixtures.incidents.drift import Crashing, Leaking, Refusing, Unlogged  # noqa: E402
from fixtures.incidents.failures import (  # noqa: E402
    Crowded,
    Down,
    Lost,
    NearTheLimit,
    Unbounded,
    Unsaved,
    Unwatched,
)
from fixtures.incidents.healthy import HotCache  # noqa: E402
from fixtures.incidents.incident import Incident, Stage  # noqa: E402
from fixtures.incidents.watched import Watched, rule_files, scaled_contract  # noqa: E402
from fixtures.servers import ServerFactory, empty  # noqa: E402
from fixtures.spec import Evidence  # noqa: E402
from fixtures.targets import open_target  # noqa: E402
from inference_cache.contract import load  # noqa: E402

MAXMEMORY_BYTES = 96 * 1024 * 1024


class Filled(HotCache):
    """A healthy full cache, that is emptied in the end."""

    name = "filled"

    def end(self) -> None:
        super().end()
        with self.server.connect(deadline_s=30) as client:
            empty(client)


ROUNDS: tuple[tuple[type[Incident], ...], ...] = (
    (NearTheLimit, Unbounded, Unsaved, Down, Lost, Crowded, Unwatched),
    (Flooded, Unaccepted, Refusing, Unlogged),
    (Filled, Leaking, Crashing),
)
"""Incidents of one round happen at the same time; a small machine cannot bear all at once."""


def main() -> int:
    """Run every round and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-in", type=int, default=60, help="windows are divided by this (default: 60)")
    parser.add_argument("--deadline", type=float, default=90, help="seconds for all of a round to fire")
    options = parser.parse_args()
    factor = 1 / options.one_in
    contract = load()
    measured: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    for incidents in ROUNDS:
        with (
            tempfile.TemporaryDirectory(prefix="inference-cache-live-") as name,
            open_target(contract, target="embedded", url=None, valkey=None) as target,
            ServerFactory(target, Evidence()) as servers,
        ):
            scaled = scaled_contract(contract, MAXMEMORY_BYTES)
            stage = Stage(scaled, servers.scaled, contract_name=None, folder=Path(name))
            rules = rule_files(files, scaled, time_factor=factor, folder=stage.folder)
            with Watched([incident(stage) for incident in incidents], rules) as watched:
                watched.begin()
                for _ in watched.watch(deadline_s=options.deadline):
                    if not watched.unfired():
                        break
                watched.end()
                for _ in watched.watch(deadline_s=options.deadline):
                    if not watched.unresolved():
                        break
                failed += [f"{alert} ({where})" for where, alert in watched.unfired() + watched.unresolved()]
                for (where, alert), times in watched.times.items():
                    seen = {
                        key: getattr(times, key)
                        for key in ("pending_s", "firing_s", "resolved_s")
                        if getattr(times, key) is not None
                    }
                    print(f"{alert:42} {where:18} {seen}", flush=True)
                    if times.firing_s is not None:
                        measured.setdefault(alert, seen)
    result = {"time_factor": factor, "ran": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", "alerts": measured}
    (ROOT / "alerts" / "live_fire.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if failed:
        print(f"did not fire or resolve in time: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
