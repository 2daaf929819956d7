"""A gate on a live server full of other people's keys: what it changed there, and how long it took.

    python benchmarks/live.py                      # 1,000,000 foreign keys, owners writing meanwhile
    python benchmarks/live.py --keys 100000

A server is filled with keys of all workloads, whose owners go on writing and keep the truth of every key.
Then the gate runs on it: once with what it does by default (the twin too), once ended by SIGINT, SIGTERM
and SIGKILL each. Told are the keys that are not as their owners left them, the keys of the runs that are
left, the memory that they took at most, and what MONITOR saw of commands that harm. Exits 1 when any of it
is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.targets.configuration import server_settings  # noqa: E402 - the checkout is put on the path first
from fixtures.targets.embedded import EmbeddedServer, shipped_executables  # noqa: E402
from inference_cache.contract import load  # noqa: E402

NAMES = ("vllm:kv:model:", "emb:sha256:", "ray:session:node:", "session:user:", "emb:conformance:other:")
HARMFUL = (
    *("FLUSHALL", "FLUSHDB", "KEYS ", "CONFIG SET", "CONFIG RESETSTAT", "DEBUG", "SHUTDOWN", "SCRIPT FLUSH"),
    *("REPLICAOF", "SLAVEOF", "CLUSTER ", "MODULE LOAD", "SAVE", "BGSAVE", "SWAPDB", "MIGRATE"),
)


class Owners:
    """Write all the time, each key by one owner, and know what must be there."""

    def __init__(self, server: EmbeddedServer, keys: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.truth: dict[bytes, bytes] = {}
        self.writes = 0
        with server.connect(deadline_s=120) as client:
            for start in range(0, keys, 5000):
                pipe = client.pipeline(transaction=False)
                for number in range(start, min(start + 5000, keys)):
                    key, value = b"%b%d" % (NAMES[number % len(NAMES)].encode(), number), b"%064d" % number
                    self.truth[key] = value
                    pipe.set(key, value, ex=3600)
                pipe.execute()
        self._keys = list(self.truth)
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def _write(self, owner: int) -> None:
        mine = self._keys[owner :: len(self._threads)]
        with self._server.connect(deadline_s=60) as client:
            number = 0
            while not self._stop.is_set():
                batch = [mine[(number + offset) % len(mine)] for offset in range(20)]
                values = [b"%064d" % (10**9 + number + offset) for offset in range(20)]
                pipe = client.pipeline(transaction=False)
                for key, value in zip(batch, values, strict=True):
                    pipe.set(key, value, ex=3600)
                pipe.execute()
                with self._lock:
                    self.truth.update(zip(batch, values, strict=True))
                    self.writes += 20
                number += 20
                time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def harmed(self) -> int:
        """Keys whose value is not the one that their owner wrote last."""
        keys, wrong = list(self.truth), 0
        with self._server.connect(deadline_s=120) as client:
            for start in range(0, len(keys), 5000):
                part = keys[start : start + 5000]
                wrong += sum(v != self.truth[k] for k, v in zip(part, client.mget(part), strict=True))
        return wrong


@contextmanager
def monitored(server: EmbeddedServer) -> Iterator[list[str]]:
    """Commands that harm, as MONITOR shows them, collected while the block runs."""
    seen: list[str] = []
    with server.connect(deadline_s=600) as client, client.monitor() as monitor:

        def listen() -> None:
            with suppress(Exception):  # ends with its connection
                for entry in monitor.listen():
                    command = str(entry["command"]).upper()
                    if command.startswith(HARMFUL):
                        seen.append(command[:80])

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield seen


def gate(server: EmbeddedServer, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "inference_cache", "gate", "--url", server.url]
    return subprocess.Popen(
        [*command, "--report-dir", str(folder), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def strangers(server: EmbeddedServer, known: int) -> int:
    with server.connect(deadline_s=60) as client:
        return client.dbsize() - known


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000, help="foreign keys (default: 1,000,000)")
    options = parser.parse_args(arguments)
    contract = load()
    bad = 0
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedServer(next(iter(shipped_executables().values())), server_settings(contract)) as server,
    ):
        folder = Path(name)
        owners = Owners(server, options.keys)
        known = len(owners.truth)
        print(
            f"{known} foreign keys, two owners writing; "
            f"1 % of maxmemory is {contract.instance.maxmemory_bytes // 100} bytes"
        )
        print("| run | exit | wall s | own keys left | peak bytes | harmful commands |")
        print("|---|---:|---:|---:|---:|---:|")
        for title, extra in (("live part", ("--no-twin",)), ("live and twin", ())):
            with monitored(server) as seen:
                began = time.monotonic()
                code = gate(server, folder / title, *extra).wait(600)
                wall_s = time.monotonic() - began
            report: dict[str, Any] = json.loads((folder / title / "report.json").read_text("utf-8"))
            peak, left = report["audit"]["peak_bytes_held"], strangers(server, known)
            print(f"| {title} | {code} | {wall_s:.1f} | {left} | {peak} | {len(seen)} |")
            bad += code != 0 or left != 0 or bool(seen) or peak > contract.instance.maxmemory_bytes // 100
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with monitored(server) as seen:
                began = time.monotonic()
                process = gate(server, folder / number.name, "--no-twin")
                while not strangers(server, known) and process.poll() is None:
                    time.sleep(0.01)
                process.send_signal(number)
                code = process.wait(60)
                end = time.monotonic() + 60
                while (left := strangers(server, known)) and time.monotonic() < end:
                    time.sleep(0.05)
                wall_s = time.monotonic() - began
            print(f"| {number.name} | {code} | {wall_s:.1f} | {left} | - | {len(seen)} |")
            bad += left != 0 or bool(seen)
        owners.stop()
        harmed = owners.harmed()
        print(
            f"\nAfter all runs: {harmed} of {known} foreign keys harmed; "
            f"their owners made {owners.writes} writes."
        )
        bad += harmed != 0
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
