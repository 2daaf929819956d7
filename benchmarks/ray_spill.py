"""A real Ray that spills to Valkey: how fast, how much, and what becomes of it when everything dies.

::

    python benchmarks/ray_spill.py compare     # against Ray's own storages, one table
    python benchmarks/ray_spill.py tune        # Ray's and the server's settings, one table
    python benchmarks/ray_spill.py large       # objects above the server's proto-max-bulk-len as it comes
    python benchmarks/ray_spill.py volume      # 10 GB through a store of 500 MB
    python benchmarks/ray_spill.py kills       # 30 rounds, in each something is killed amid the work
    python benchmarks/ray_spill.py failover    # behind sentinels, whose primary is killed

Run from the checkout, in an environment with the extras ``gate`` and ``ray``, and smart_open for its rows.
``--write`` keeps the result in ``benchmarks/RESULTS.ray_spill.md``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.engines.ray_cluster import RayCluster, RayFailed, RaySilent
from fixtures.engines.ray_pool import object_keys
from fixtures.observe import wait_for
from fixtures.targets.embedded import EmbeddedServer
from fixtures.topologies import sentinels, single, socket_only
from inference_cache.errors import CacheError
from inference_cache.ray_spill import SpillParams, SpillStorage

MB = 1_000_000
GIB = 1024**3
RESULTS = Path(__file__).with_name("RESULTS.ray_spill.md")


def settings_of(maxmemory: str, **settings: str) -> dict[str, str]:
    base = {"maxmemory": maxmemory, "maxmemory-policy": "volatile-lru", "save": "", "appendonly": "no"}
    return {**base, **{name.replace("_", "-"): value for name, value in settings.items()}}


def valkey(maxmemory: str, **settings: str) -> AbstractContextManager[EmbeddedServer]:
    return single(settings_of(maxmemory, **settings))


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of processes, in seconds; those that are gone count nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One storage and one size of objects."""

    storage: str
    object_mb: int
    put_mb_s: float
    get_mb_s: float
    cpu_s_per_gib: float
    """Of IO workers, raylet and server, for a put and a get of a GiB, once the IO workers are up."""
    right: bool


def measure(
    name: str,
    object_mb: int,
    total_mb: int,
    spilling: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    io_threads: int = 1,
    *,
    local: bool = False,
) -> Row:
    """``local`` has Ray come by a unix socket."""
    count = max(4, total_mb // object_mb)
    store_mb = max(150, 3 * object_mb)
    chosen = settings_of("6gb", io_threads=str(io_threads))
    with socket_only(chosen) if local else single(chosen) as server:
        options: dict[str, Any] = {"store_bytes": store_mb * MB, "ray_settings": settings}
        with RayCluster(url=server.url, object_spilling=spilling, **options) as cluster:

            def spent_s() -> float:
                return cpu_s([w.pid for w in cluster.io_workers()] + cluster.raylets + [server.pid])

            # IO workers take a second of processor time to start, and are kept; so they are not in the price.
            warm_mb = min(object_mb, 50)
            warm = cluster.put(2 * store_mb // warm_mb, warm_mb * MB, seed=0, deadline_s=300)
            cluster.get(warm.numbers, timeout_s=120)
            cluster.drop()
            before_s = spent_s()
            made = cluster.put(count, object_mb * MB, seed=1, deadline_s=300)
            answers = cluster.get(made.numbers, timeout_s=120)
            cost_s = spent_s() - before_s
    moved_mb = count * object_mb
    return Row(
        storage=name,
        object_mb=object_mb,
        put_mb_s=moved_mb / made.took_s,
        get_mb_s=moved_mb / sum(answer.took_s for answer in answers),
        cpu_s_per_gib=cost_s / (moved_mb * MB / GIB),
        right=all(answer.answer == "right" for answer in answers),
    )


UNIX_SOCKET = "Valkey, unix socket"


def compare(options: argparse.Namespace) -> list[str]:
    with (
        tempfile.TemporaryDirectory(dir=options.disk) as disk,
        tempfile.TemporaryDirectory(dir="/dev/shm") as shm,
    ):

        def filesystem(path: str) -> dict[str, Any]:
            return {"type": "filesystem", "params": {"directory_path": path}}

        storages: dict[str, Mapping[str, Any] | None] = {
            "Valkey": None,
            UNIX_SOCKET: None,
            "filesystem, disk": filesystem(disk),
            "filesystem, /dev/shm": filesystem(shm),
            "smart_open, disk": {"type": "smart_open", "params": {"uri": disk}},
        }
        cells = [
            (name, partial(measure, name, size, options.total_mb, spilling, {}, local=name == UNIX_SOCKET))
            for size in options.sizes
            for name, spilling in storages.items()
        ]
        return _table(options, cells)


def tune(options: argparse.Namespace) -> list[str]:
    """What can be set in Ray and in the server, one at a time."""
    variations: dict[str, tuple[Mapping[str, Any], int]] = {
        "as it comes": ({}, 1),
        "max_io_workers 1": ({"max_io_workers": 1}, 1),
        "max_io_workers 8": ({"max_io_workers": 8}, 1),
        "min_spilling_size 0": ({"min_spilling_size": 0}, 1),
        "min_spilling_size 10 MB": ({"min_spilling_size": 10 * MB}, 1),
        "io-threads 2": ({}, 2),
        "io-threads 4": ({}, 4),
    }
    return _table(
        options,
        [
            (name, partial(measure, name, size, options.total_mb, None, settings, io_threads))
            for size in options.sizes
            for name, (settings, io_threads) in variations.items()
        ],
    )


def _table(options: argparse.Namespace, cells: Sequence[tuple[str, Callable[[], Row]]]) -> list[str]:
    """The best of so many rounds of each cell; in each round every cell has its turn."""
    best: dict[int, Row] = {}
    for _ in range(options.rounds):
        for number, (name, cell) in enumerate(cells):
            try:
                row = cell()
            except (RayFailed, RaySilent) as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            print(row, f"load {os.getloadavg()[0]:.1f}", flush=True)
            known = best.get(number, row)
            best[number] = Row(
                storage=row.storage,
                object_mb=row.object_mb,
                put_mb_s=max(row.put_mb_s, known.put_mb_s),
                get_mb_s=max(row.get_mb_s, known.get_mb_s),
                cpu_s_per_gib=min(row.cpu_s_per_gib, known.cpu_s_per_gib),
                right=row.right and known.right,
            )
    lines = [
        f"Load {os.getloadavg()[0]:.1f} at the end; {options.total_mb} MB a cell (at least 4 objects), best "
        f"of {options.rounds} rounds; MB/s as the driver sees it, processor seconds of IO workers, raylet "
        "and server for a GiB put and got, IO workers being up.",
        "",
        "| | object | put MB/s | get MB/s | CPU s/GiB | all right |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.storage} | {row.object_mb} MB | {row.put_mb_s:.0f} | {row.get_mb_s:.0f} "
        f"| {row.cpu_s_per_gib:.2f} | {'yes' if row.right else 'NO'} |"
        for _, row in sorted(best.items())
    ]
    return lines


# --- large


def large(options: argparse.Namespace) -> list[str]:
    """Objects that no single value could hold: nothing is scaled down, neither the server nor the chunks."""
    del options
    size_bytes = 600 * MB
    with valkey("4gb") as server, server.connect() as client:
        limit_bytes = int(client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
        with RayCluster(url=server.url, store_bytes=1400 * MB) as cluster:
            made = cluster.put(4, size_bytes, seed=1, deadline_s=300)
            keys = len(object_keys(client))
            got = cluster.get(made.numbers, timeout_s=120)
            cluster.drop()
            wait_for(lambda: not object_keys(client), what="the keys to be removed", deadline_s=60)
    right = sum(answer.answer == "right" for answer in got)
    return [
        f"{len(got)} objects of {size_bytes // MB} MB through a store of 1400 MB, with chunks and "
        f"proto-max-bulk-len ({limit_bytes} bytes) as they come: {right} of {len(got)} right, {keys} keys, "
        f"0 after dropping them; put {4 * size_bytes / MB / made.took_s:.0f} MB/s, "
        f"get {4 * size_bytes / MB / sum(answer.took_s for answer in got):.0f} MB/s, "
        f"load {os.getloadavg()[0]:.1f} at the end.",
    ]


# --- volume


def volume(options: argparse.Namespace) -> list[str]:
    """The whole volume in waves, each larger than the store; digests, keys, memory and descriptors."""
    per_wave = options.total_mb // options.waves
    answers: Counter[str] = Counter()
    seen: list[tuple[int, int]] = []
    put_s = get_s = 0.0
    with (
        valkey(f"{per_wave * 5 // 4 + 500}mb") as server,
        server.connect() as client,
        RayCluster(url=server.url, store_bytes=500 * MB) as cluster,
    ):
        for wave in range(options.waves):
            made = cluster.put(per_wave // 20, 20 * MB, seed=1000 * wave, deadline_s=580)
            got = cluster.get(made.numbers, timeout_s=60)
            answers.update(answer.answer for answer in got)
            put_s, get_s = put_s + made.took_s, get_s + sum(answer.took_s for answer in got)
            workers = cluster.io_workers()
            seen.append((max(w.rss_bytes() for w in workers) // MB, max(w.descriptors() for w in workers)))
            most_keys = client.dbsize()
            cluster.drop()
            wait_for(lambda: client.dbsize() == 0, what="the key count to be 0", deadline_s=60)
            print(f"wave {wave}: {most_keys} keys, then 0; largest IO worker {seen[-1]}", flush=True)
    total_mb = per_wave * options.waves
    return [
        f"{total_mb} MB in objects of 20 MB through a store of 500 MB, in {options.waves} waves: "
        + ", ".join(f"{count} {answer}" for answer, count in answers.items())
        + f"; put {total_mb / put_s:.0f} MB/s, get {total_mb / get_s:.0f} MB/s; "
        "key count 0 after each wave.",
        "",
        "Largest IO worker after each wave (MB of its own memory, descriptors): "
        + ", ".join(f"{memory} / {files}" for memory, files in seen)
        + ".",
    ]


# --- kills


class Rounds:
    """Kill something in the middle of putting and reading, again and again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rng = random.Random(options.seed)
        self.options = options
        self.answers: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.problems: list[str] = []
        self.sessions: set[str] = set()

    def run(self) -> list[str]:
        with valkey("3gb", appendonly="yes", appendfsync="everysec") as server:
            done = 0
            while done < self.options.rounds:
                with self._cluster(server) as cluster:
                    self.sessions.add(cluster.session)
                    while done < self.options.rounds:
                        what = self.rng.choice(("server", "server", "IO worker", "IO worker", "raylet"))
                        done += 1
                        try:
                            self._round(cluster, server, what)
                            if what == "raylet":
                                break  # whatever it had done until then, this cluster is over
                        except RayFailed as error:
                            if what != "raylet":
                                self.problems.append(f"round {done}: {str(error).splitlines()[0]}")
                            break
                        except RaySilent as error:
                            self.problems.append(f"round {done}, {what}: {str(error).splitlines()[0]}")
                            break
                        finally:
                            print(done, what, dict(self.answers), self.problems[-1:], flush=True)
            if not server.running:
                server.start()
            left, report = self._sweep(server)
        wrong = self.answers["wrong"] + self.answers["late"]
        return [
            f"{self.options.rounds} rounds, killed: "
            + ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()))
            + ". Reads: "
            + ", ".join(f"{count} {answer}" for answer, count in self.answers.most_common())
            + f". Wrong or endless: {wrong}; slowest answer {self.slowest_s:.0f} s. "
            f"After the janitor ({report}): {left} keys. Problems: {'; '.join(self.problems) or 'none'}.",
        ]

    def _cluster(self, server: EmbeddedServer) -> RayCluster:
        return RayCluster(url=server.url, params={"lease_s": 5.0, "restore_s": 20.0})

    def _round(self, cluster: RayCluster, server: EmbeddedServer, what: str) -> None:
        timer = threading.Timer(self.rng.uniform(0.0, 1.5), self._kill, [cluster, server, what])
        timer.start()
        try:
            seed = self.rng.randrange(2**30)
            made = cluster.put(24, 6 * MB, seed=seed, deadline_s=120)
            answers = cluster.get(made.numbers, timeout_s=60, together=True)
        finally:
            timer.join()
            if not server.running:
                server.start()
        self.answers.update(answer.answer for answer in answers)
        self.slowest_s = max(self.slowest_s, *(answer.took_s for answer in answers))
        cluster.drop()

    def _kill(self, cluster: RayCluster, server: EmbeddedServer, what: str) -> None:
        if what == "server":
            server.crash()
            time.sleep(self.rng.uniform(0.0, 2.0))
            server.start()
        elif what == "raylet":
            cluster.kill_raylet()
        else:
            wait_for(lambda: bool(cluster.io_workers()), what="an IO worker to kill", deadline_s=30)
            os.kill(self.rng.choice(cluster.io_workers()).pid, signal.SIGKILL)
        self.kills[what] += 1

    def _sweep(self, server: EmbeddedServer) -> tuple[int, str]:
        """Keys left after the janitor, and its report."""
        time.sleep(6)
        with server.connect() as client:
            params = SpillParams(url=server.url, lease_s=5.0)
            with SpillStorage(params, session="session_of_nobody", node="janitor") as janitor:
                report = str(janitor.sweep())
            left = len(object_keys(client))
            for key in object_keys(client)[:5]:
                print("left", key, client.pttl(key))
            return left, report


# --- failover


def failover(options: argparse.Namespace) -> list[str]:
    """Spilled objects whose primary is killed, so that sentinels make its replica the primary."""
    settings = {"maxmemory": "1gb", "maxmemory-policy": "volatile-lru"}
    answers: Counter[str] = Counter()
    slowest_s = 0.0
    for round_number in range(options.rounds):
        with (
            sentinels(settings) as watched,
            RayCluster(url=watched.url) as cluster,
            watched.replication.replica.connect() as replica,
        ):
            before = cluster.put(40, 6 * MB, seed=2 * round_number, deadline_s=120)
            replicated = len(object_keys(replica))
            watched.replication.primary.crash()
            answered = cluster.get(before.numbers, timeout_s=60)
            after = cluster.put(40, 6 * MB, seed=2 * round_number + 1, deadline_s=120)
            answered += cluster.get(after.numbers, timeout_s=60)
            cluster.drop()
            wait_for(lambda: not object_keys(replica), what="the keys to be removed", deadline_s=60)
        answers.update(answer.answer for answer in answered)
        slowest_s = max(slowest_s, *(answer.took_s for answer in answered))
        print(f"{replicated} keys on the replica; {dict(answers)}, slowest {slowest_s:.1f} s", flush=True)
    return [
        f"{options.rounds} rounds: 40 objects of 6 MB are put, the primary is killed, all are read, 40 more "
        "are put and read. Sentinels call a primary dead after 2 s. Reads: "
        + ", ".join(f"{count} {answer}" for answer, count in answers.most_common())
        + f"; slowest {slowest_s:.1f} s. 0 keys on the new primary after dropping all.",
    ]


COMMANDS: Mapping[str, Callable[[argparse.Namespace], list[str]]] = {
    "compare": compare,
    "tune": tune,
    "large": large,
    "volume": volume,
    "kills": lambda options: Rounds(options).run(),
    "failover": failover,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument(
        "--total-mb", type=int, default=0, help="per cell, or in all (default: 400, or 10000)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 50, 500], help="of objects, in MB")
    parser.add_argument("--rounds", type=int, default=0, help="default: 2, or 30 for kills")
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--disk", default=None, help="folder for Ray's file storages")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.total_mb = options.total_mb or (10_000 if options.command == "volume" else 400)
    options.rounds = options.rounds or (30 if options.command == "kills" else 2)
    try:
        lines = COMMANDS[options.command](options)
    except CacheError as error:
        sys.exit(f"the server failed: {error}")
    print("\n".join(lines))
    if options.write:
        before = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Ray spills to Valkey\n"
        RESULTS.write_text(
            f"{before.rstrip()}\n\n## {options.command}\n\n" + "\n".join(lines) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
