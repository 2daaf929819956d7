"""Every alert that can be provoked here, fired for real, with its times: ``python benchmarks/live_fire.py``.

Real servers, redis_exporter, our exporter and Prometheus; the rules of ``alerts``, windows multiplied by
one factor. Notes the times in ``alerts/live_fire.json``, which ``python -m alerts`` shows in docs/alerts.md.
About twenty-five minutes; exit code 1 when an alert did not fire or did not resolve. What needs a real vLLM
or a real Ray is fired by ``live_engines.py``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from alerts.generate import files  # noqa: E402 - the checkout is put on the path first
from alerts.live import TIMES, record  # noqa: E402
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
from fixtures.incidents.persistence import (  # noqa: E402
    Bloated,
    DiskFull,
    Reloading,
    SlowDisk,
    Stale,
    Unrewritten,
)
from fixtures.incidents.trends import (  # noqa: E402
    Churning,
    Fragmented,
    Growing,
    Recontracted,
    SlowReads,
    Thrashing,
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Incidents that happen at the same time; a small machine cannot bear all at once."""

    incidents: tuple[type[Incident], ...]
    deadline_s: float = 90.0
    """For all of them to fire, and for all to resolve."""
    one_in: int | None = None
    """By what times are divided, where the usual number leaves too little of them."""


ROUNDS: tuple[Round, ...] = (
    Round(incidents=(NearTheLimit, Unbounded, Unsaved, Down, Lost, Crowded, Unwatched)),
    Round(incidents=(Flooded, Unaccepted, Refusing, Unlogged)),
    Round(incidents=(Filled, Leaking, Crashing)),
    Round(incidents=(Fragmented, Recontracted, Unrewritten, DiskFull, Reloading)),
    Round(incidents=(Thrashing, Bloated)),
    # What was predicted from growth, and snapshots that are hours old, take minutes even so.
    Round(incidents=(Growing, Churning, Stale), deadline_s=240),
    # Ten delays of two seconds each must fit into the window.
    Round(incidents=(SlowDisk,), deadline_s=240, one_in=10),
    # The slow burn looks back for six hours, also when it is over.
    Round(incidents=(SlowReads,), deadline_s=480),
)


def main() -> int:
    """Run every round and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-in", type=int, default=60, help="windows are divided by this (default: 60)")
    parser.add_argument(
        "--round", type=int, action="append", choices=range(1, len(ROUNDS) + 1), help="this round only"
    )
    options = parser.parse_args()
    contract = load()
    measured: set[str] = set()
    failed: list[str] = []
    for number, chosen in enumerate(ROUNDS, start=1):
        if options.round and number not in options.round:
            continue
        factor = 1 / (chosen.one_in or options.one_in)
        with (
            tempfile.TemporaryDirectory(prefix="inference-cache-live-") as name,
            open_target(contract, target="embedded", url=None, valkey=None) as target,
            ServerFactory(target, Evidence()) as servers,
        ):
            scaled = scaled_contract(contract, MAXMEMORY_BYTES)
            stage = Stage(scaled, servers.scaled, contract_name=None, folder=Path(name))
            rules = rule_files(files, scaled, time_factor=factor, folder=stage.folder)
            with Watched([incident(stage) for incident in chosen.incidents], rules) as watched:
                watched.begin()
                for _ in watched.watch(deadline_s=chosen.deadline_s):
                    if not watched.unfired():
                        break
                watched.end()
                for _ in watched.watch(deadline_s=chosen.deadline_s):
                    if not watched.unresolved():
                        break
                failed += [f"{alert} ({where})" for where, alert in watched.unfired() + watched.unresolved()]
                for (where, alert), times in watched.times.items():
                    seen = {key: getattr(times, key) for key in TIMES if getattr(times, key) is not None}
                    print(f"{alert:42} {where:18} {seen}", flush=True)
                    # The first incident that an alert tells of is the one that it is recorded with.
                    if times.firing_s is not None and alert not in measured:
                        measured.add(alert)
                        record(alert, seen, time_factor=factor)
    if failed:
        print(f"did not fire or resolve in time: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
