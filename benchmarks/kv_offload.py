"""Throughput of the KV tier, against the ceilings below it and against vLLM's own file system tier.

    pip install -e '.[gate]'
    python benchmarks/kv_offload.py --write      # --quick is noisier; where vLLM is, its fs tier takes part

Starts a valkey-server of its own. Blocks that are there are not sent, so each round stores into an empty
server. All that is loaded is compared outside of the measured time. Each cell is the best of the rounds, as a
busy machine only ever slows down.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.blobs import socket_path  # noqa: E402
from fixtures.kv_blocks import an_identity, block  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.blobs import BlobStore  # noqa: E402
from inference_cache.keyspace import Keyspace  # noqa: E402
from inference_cache.kv_offload import BlockTier, JobResult, TierSettings  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
SIZES = (256 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB)
CONNECTIONS = (1, 2, 4)

Row = dict[int, tuple[float, float]]
"""GB/s of storing and of loading, by size of a block."""


def best(
    rounds: int, total_bytes: int, action: Callable[[], None], before: Callable[[], object] = lambda: None
) -> float:
    """GB/s of the fastest round; ``before`` each one does not count."""
    fastest_s = float("inf")
    for _ in range(rounds):
        before()
        began_s = time.perf_counter()
        action()
        fastest_s = min(fastest_s, time.perf_counter() - began_s)
    return total_bytes / fastest_s / 1e9


def finished(tier: BlockTier) -> JobResult:
    while not (results := tier.results()):
        time.sleep(0.0002)
    [result] = results
    assert result.ok, f"not all blocks were moved: {dict(tier.counters)}"
    return result


def rows_of(count: int, size: int) -> np.ndarray:
    """Random rows, and as many empty ones to load into, on a page of their own as vLLM's are."""
    memory = np.frombuffer(mmap.mmap(-1, 2 * count * size), dtype=np.int8).reshape(2 * count, size)
    memory[:count] = np.random.default_rng(0).integers(-128, 127, (count, size), dtype=np.int8)
    return memory


def measure_tier(
    server: EmbeddedServer, url: str, size: int, total: int, connections: int, rounds: int
) -> tuple[float, float]:
    count = total // size
    memory = rows_of(count, size)
    identity = an_identity(value_bytes=size)
    settings = TierSettings(
        connections=connections, load_deadline_s=60, store_deadline_s=60, lookup_deadline_s=10
    )
    items = [(block(number), number) for number in range(count)]
    with (
        server.connect(deadline_s=60) as client,
        BlockTier(url, memory=memoryview(memory), identity=identity, settings=settings) as tier,
    ):
        stored_s = loaded_s = float("inf")
        for _ in range(rounds):
            client.execute_command("FLUSHALL", "SYNC")
            began_s = time.perf_counter()
            tier.submit_store(1, items)
            finished(tier)
            stored_s = min(stored_s, time.perf_counter() - began_s)
            memory[count:] = 0
            began_s = time.perf_counter()
            tier.submit_load(2, [(which, count + number) for which, number in items])
            finished(tier)
            loaded_s = min(loaded_s, time.perf_counter() - began_s)
            assert (memory[:count] == memory[count:]).all(), "other bytes came back"
    return count * size / stored_s / 1e9, count * size / loaded_s / 1e9


def measure_blobs(
    server: EmbeddedServer, url: str, size: int, total: int, rounds: int
) -> tuple[float, float]:
    """What is below the tier, without its threads and lookups."""
    count = total // size
    memory = rows_of(count, size)
    keys = [("bench", number) for number in range(count)]
    with (
        server.connect(deadline_s=60) as client,
        BlobStore(
            url, keyspace=Keyspace("vllm:kv:"), deadline_s=60, chunk_bytes=size, max_bytes=size
        ) as blobs,
    ):

        def empty() -> None:
            client.execute_command("FLUSHALL", "SYNC")

        def store() -> None:
            assert all(outcome.ok for outcome in blobs.store_many(zip(keys, memory[:count], strict=True)))

        def load() -> None:
            assert all(outcome.ok for outcome in blobs.load_many_into(zip(keys, memory[count:], strict=True)))

        return best(rounds, count * size, store, empty), best(rounds, count * size, load)


def measure_memcpy(size: int, total: int, rounds: int) -> tuple[float, float]:
    source = np.ones(total // size * size, dtype=np.int8)
    target = np.zeros_like(source)

    def copy() -> None:
        target[:] = source

    speed = best(rounds, source.nbytes, copy)
    return speed, speed


def measure_fs(folder: str, size: int, total: int, rounds: int) -> tuple[float, float]:
    """The file operations of vLLM's fs tier, as it calls them."""
    from vllm.v1.kv_offload.tiering.fs.io import batch_load_block, batch_store_block, probe_o_direct

    count = total // size
    memory = rows_of(count, size)
    view = memoryview(memory)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        direct = probe_o_direct(place)
        paths = [f"{place}/{number}.bin" for number in range(count)]

        def empty() -> None:
            for path in paths:
                Path(path).unlink(missing_ok=True)

        def store() -> None:
            batch_store_block(paths, view, [n * size for n in range(count)], size, direct)

        def load() -> None:
            batch_load_block(paths, view, [(count + n) * size for n in range(count)], size, direct)

        stored = best(rounds, count * size, store, empty)
        loaded = best(rounds, count * size, load)
        assert (memory[:count] == memory[count:]).all(), "other bytes came back"
    return stored, loaded


def table(rows: dict[str, Row]) -> str:
    head = ["GB/s store / load"] + [
        f"{size // KIB} KiB" if size < MIB else f"{size // MIB} MiB" for size in SIZES
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[s][0]:.2f} / {row[s][1]:.2f}" for s in SIZES) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.kv_offload.md")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    total, rounds = (32 * MIB, 2) if options.quick else (128 * MIB, 5)
    load = os.getloadavg()[0]
    rows: dict[str, Row] = {}
    skipped = ""
    settings = {"save": "", "appendonly": "no", "unixsocket": "s"}
    with EmbeddedServer(resolve_executable(None), settings) as server:
        urls = {"TCP": server.url, "unix socket": f"unix://{socket_path(server)}"}
        for transport, url in urls.items():
            for connections in CONNECTIONS:
                rows[f"tier, {transport}, {connections} connections"] = {
                    size: measure_tier(server, url, size, total, connections, rounds) for size in SIZES
                }
            rows[f"blobs alone, {transport}, 2 connections"] = {
                size: measure_blobs(server, url, size, total, rounds) for size in SIZES
            }
    try:
        for name, folder in {"disk": tempfile.gettempdir(), "/dev/shm": "/dev/shm"}.items():
            rows[f"vLLM's fs tier, {name}"] = {
                size: measure_fs(folder, size, total, rounds) for size in SIZES
            }
    except ImportError as error:
        skipped = f"\n\nvLLM's fs tier did not take part: {error}."
    rows["for scale: memcpy"] = {size: measure_memcpy(size, total, rounds) for size in SIZES}
    text = (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, client and server on the same machine; "
        f"load {load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end. Best of {rounds} rounds of "
        f"{total // MIB} MiB, into memory of the server's that is fresh in each round; what was loaded was "
        f"verified. Command: `python benchmarks/kv_offload.py{' --quick' if options.quick else ''} --write`."
        f"\n\n{table(rows)}{skipped}\n"
    )
    print(text)
    if options.write:
        (ROOT / "benchmarks" / "RESULTS.kv_offload.md").write_text(f"# The KV tier\n\n{text}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
