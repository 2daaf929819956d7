"""Throughput of the KV tier against other clients, vLLM's own file system tier, and the ceilings below it.

    pip install -e '.[gate]' libvalkey valkey-glide-sync
    python benchmarks/kv_offload.py --write      # --quick is noisier; where vLLM is, its fs tier takes part

Starts a valkey-server of its own. Blocks that are there are not sent, so each round stores into an empty
server, for everybody. Contenders take turns in each round, and the best round of each counts, as a busy
machine only ever slows down. All that is loaded is compared outside of the measured time. LMCache's worker
pool takes part where ``lmcache`` can be imported.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
from valkey._parsers import _RESP2Parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.blobs import Glide, Peer, Skipped, ValkeyPy, socket_path  # noqa: E402
from benchmarks.kv_results import write_section  # noqa: E402
from fixtures.kv_blocks import an_identity, block  # noqa: E402
from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.blobs import BlobStore  # noqa: E402
from inference_cache.keyspace import Keyspace  # noqa: E402
from inference_cache.kv_offload import BlockTier, JobResult, TierSettings  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
SIZES = (256 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB)
CONNECTIONS = (1, 2, 4)
SPACE = Keyspace("vllm:kv:")
GOAL = 0.8
"""Of what a bare socket gets through the same server."""


class Contender(Protocol):
    """Stores the first half of its rows, and loads them into the second half."""

    def empty(self) -> None:
        """Takes away what the last round stored; outside of the measured time."""

    def store(self) -> None: ...

    def load(self) -> None: ...

    def close(self) -> None: ...


def rows_of(count: int, size: int) -> np.ndarray:
    """Random rows, and as many empty ones to load into, on a page of their own as vLLM's are."""
    memory = np.frombuffer(mmap.mmap(-1, 2 * count * size), dtype=np.int8).reshape(2 * count, size)
    memory[:count] = np.random.default_rng(0).integers(-128, 127, (count, size), dtype=np.int8)
    return memory


class OnServer:
    """What all that talk to the server share."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._direct = server.connect(deadline_s=60)

    def empty(self) -> None:
        self._direct.execute_command("FLUSHALL", "SYNC")

    def close(self) -> None:
        self._direct.close()


class Tier(OnServer):
    def __init__(self, server: EmbeddedServer, url: str, rows: np.ndarray, *, connections: int) -> None:
        super().__init__(server)
        count, size = len(rows) // 2, rows.shape[1]
        self._tier = BlockTier(
            url,
            memory=memoryview(rows),
            identity=an_identity(value_bytes=size),
            settings=TierSettings(
                connections=connections, load_deadline_s=60, store_deadline_s=60, lookup_deadline_s=10
            ),
        )
        self._items = [(block(number), number) for number in range(count)]
        self._back = [(which, count + number) for which, number in self._items]

    def store(self) -> None:
        self._tier.submit_store(1, self._items)
        self._finished()

    def load(self) -> None:
        self._tier.submit_load(2, self._back)
        self._finished()

    def _finished(self) -> JobResult:
        while not (results := self._tier.results()):
            time.sleep(0.0002)
        [result] = results
        assert result.ok, f"not all blocks were moved: {dict(self._tier.counters)}"
        return result

    def close(self) -> None:
        self._tier.close()
        super().close()


class Client(OnServer):
    """Any client of values by name."""

    def __init__(self, server: EmbeddedServer, peer: Peer, rows: np.ndarray) -> None:
        super().__init__(server)
        count = len(rows) // 2
        self._peer = peer
        self._keys = [SPACE.key("bench", number) for number in range(count)]
        self._values = [memoryview(row).cast("B") for row in rows[:count]]
        self._buffers = [memoryview(row).cast("B") for row in rows[count:]]

    def store(self) -> None:
        self._peer.store(self._keys, self._values)

    def load(self) -> None:
        self._peer.load(self._keys, self._buffers)

    def close(self) -> None:
        self._peer.close()
        super().close()


class BlobsPeer:
    """What is below the tier, without its threads and lookups."""

    def __init__(self, url: str, size: int) -> None:
        self._blobs = BlobStore(url, keyspace=SPACE, deadline_s=60, chunk_bytes=size, max_bytes=size)

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        assert all(outcome.ok for outcome in self._blobs.store_many(zip(keys, values, strict=True)))

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        assert all(outcome.ok for outcome in self._blobs.load_many_into(zip(keys, buffers, strict=True)))

    def close(self) -> None:
        self._blobs.close()


class RawPeer:
    """The ceiling: commands made by hand on bare sockets, no checksum, replies straight into the buffers."""

    def __init__(self, where: str, *, connections: int, ahead: int = 8) -> None:
        self._ahead = ahead
        family = socket.AF_UNIX if where.startswith("/") else socket.AF_INET
        self._sockets = [socket.socket(family) for _ in range(connections)]
        for sock in self._sockets:
            sock.connect(where if family == socket.AF_UNIX else ("127.0.0.1", int(where)))

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        self._each(lambda sock, part: self._set(sock, keys[part], values[part]))

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        self._each(lambda sock, part: self._get(sock, keys[part], buffers[part]))

    def _each(self, act: Callable[[socket.socket, slice], None]) -> None:
        parts = [slice(number, None, len(self._sockets)) for number in range(len(self._sockets))]
        threads = [threading.Thread(target=act, args=pair) for pair in zip(self._sockets, parts, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _set(self, sock: socket.socket, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, value.nbytes)
            sock.sendall(head)
            sock.sendall(value)
            sock.sendall(b"\r\n")
            if number >= self._ahead:
                _exactly(sock, 5)
        _exactly(sock, 5 * min(self._ahead, len(keys)))

    def _get(self, sock: socket.socket, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        asked = 0
        for number, buffer in enumerate(buffers):
            ahead = keys[asked : number + self._ahead]
            if ahead:
                sock.sendall(b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key) for key in ahead))
                asked += len(ahead)
            assert _exactly(sock, len(head := b"$%d\r\n" % buffer.nbytes)) == head, "not the value"
            at = 0
            while at < buffer.nbytes:
                at += sock.recv_into(buffer[at:])
            _exactly(sock, 2)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def _exactly(sock: socket.socket, count: int) -> bytes:
    return sock.recv(count, socket.MSG_WAITALL) if count else b""


class LmcachePeer:
    """LMCache's pool of threads, each with a valkey-glide-sync client of its own."""

    def __init__(self, port: int, *, workers: int) -> None:
        try:
            from lmcache.v1.storage_backend.valkey.worker_pool import ValkeyWorkerPool
        except ImportError as error:
            raise Skipped(f"LMCache cannot be imported here ({error})") from None
        self._pool = ValkeyWorkerPool(
            addresses=[("127.0.0.1", port)], num_workers=workers, request_timeout=60
        )

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        stores = [self._pool.submit_set(k.decode(), v) for k, v in zip(keys, values, strict=True)]
        for future in stores:
            future.result()

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        loads = [self._pool.submit_get_into(k.decode(), b) for k, b in zip(keys, buffers, strict=True)]
        assert all(future.result() > 0 for future in loads), "LMCache found not all of its values"

    def close(self) -> None:
        self._pool.close()


class FsTier:
    """The file operations of vLLM's fs tier, as it calls them."""

    def __init__(self, folder: str, rows: np.ndarray) -> None:
        try:
            from vllm.v1.kv_offload.tiering.fs import io
        except ImportError as error:
            raise Skipped(f"vLLM's fs tier is not here ({error})") from None
        self._io = io
        self._rows = rows
        self._folder = tempfile.TemporaryDirectory(dir=folder)
        self._direct = io.probe_o_direct(self._folder.name)
        self._paths = [f"{self._folder.name}/{number}.bin" for number in range(len(rows) // 2)]

    def empty(self) -> None:
        for path in self._paths:
            Path(path).unlink(missing_ok=True)

    def store(self) -> None:
        self._move(self._io.batch_store_block, 0)

    def load(self) -> None:
        self._move(self._io.batch_load_block, len(self._paths))

    def _move(self, move: Callable[..., object], first: int) -> None:
        size = self._rows.shape[1]
        places = [(first + number) * size for number in range(len(self._paths))]
        move(self._paths, memoryview(self._rows), places, size, self._direct)

    def close(self) -> None:
        self._folder.cleanup()


class Memcpy:
    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def empty(self) -> None:
        pass

    def store(self) -> None:
        self.load()

    def load(self) -> None:
        half = len(self._rows) // 2
        self._rows[half:] = self._rows[:half]

    def close(self) -> None:
        pass


Opener = Callable[[EmbeddedServer, np.ndarray], Contender]


def over(transport: str) -> dict[str, Opener]:
    """The contenders of a transport, by name."""

    def url(server: EmbeddedServer) -> str:
        return server.url if transport == "TCP" else f"unix://{socket_path(server)}"

    def bare(server: EmbeddedServer) -> str:
        return str(server.port) if transport == "TCP" else socket_path(server)

    found: dict[str, Opener] = {
        f"tier, {count} connection{'s' * (count > 1)}": (
            lambda server, rows, count=count: Tier(server, url(server), rows, connections=count)
        )
        for count in CONNECTIONS
    }
    peers: dict[str, Callable[[EmbeddedServer, int], Peer]] = {
        "blobs alone, 2 connections": lambda server, size: BlobsPeer(url(server), size),
        "valkey-py, pipelines": lambda server, _: ValkeyPy(
            server, "unix" if transport != "TCP" else "TCP", parser=_RESP2Parser
        ),
    }
    if transport == "TCP":
        for threads in (1, 4):
            peers[f"valkey-glide-sync, {threads} thread{'s' * (threads > 1)}"] = (
                lambda server, _, threads=threads: Glide(server, "TCP", threads=threads)
            )
        peers["LMCache's worker pool, 4 workers"] = lambda server, _: LmcachePeer(server.port, workers=4)
    for count in (1, 2):
        peers[f"ceiling: bare socket{'s' * (count > 1)}, {count}"] = lambda server, _, count=count: RawPeer(
            bare(server), connections=count
        )
    for name, peer in peers.items():
        found[name] = lambda server, rows, peer=peer: Client(server, peer(server, rows.shape[1]), rows)
    return found


FILES: dict[str, Opener] = {
    "vLLM's fs tier, disk": lambda _, rows: FsTier(tempfile.gettempdir(), rows),
    "vLLM's fs tier, /dev/shm": lambda _, rows: FsTier("/dev/shm", rows),
    "ceiling: memcpy": lambda _, rows: Memcpy(rows),
}

Row = dict[int, tuple[float, float]]
"""GB/s of storing and of loading, by size of a block."""


def measure(
    server: EmbeddedServer, openers: dict[str, Opener], total: int, rounds: int, skipped: set[str]
) -> dict[str, Row]:
    results: dict[str, Row] = {}
    for size in SIZES:
        count = total // size
        rows = rows_of(count, size)
        with ExitStack() as stack:
            contenders: dict[str, Contender] = {}
            for name, opener in openers.items():
                try:
                    contenders[name] = opener(server, rows)
                except Skipped as reason:
                    skipped.add(f"{name}: {reason}")
                    continue
                stack.callback(contenders[name].close)
            for _ in range(rounds):
                for name, contender in contenders.items():
                    contender.empty()
                    began_s = time.perf_counter()
                    contender.store()
                    stored_s = time.perf_counter() - began_s
                    rows[count:] = 0
                    began_s = time.perf_counter()
                    contender.load()
                    loaded_s = time.perf_counter() - began_s
                    assert (rows[:count] == rows[count:]).all(), f"{name}: other bytes came back"
                    best = results.setdefault(name, {}).get(size, (0.0, 0.0))
                    gb = count * size / 1e9
                    results[name][size] = (max(best[0], gb / stored_s), max(best[1], gb / loaded_s))
    return results


def table(rows: dict[str, Row]) -> str:
    head = ["GB/s store / load"] + [
        f"{size // KIB} KiB" if size < MIB else f"{size // MIB} MiB" for size in SIZES
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[s][0]:.2f} / {row[s][1]:.2f}" for s in SIZES) + " |")
    return "\n".join(lines)


def verdict(transport: str, rows: dict[str, Row]) -> str:
    """How the tier stands, as ratios of one run: against the bare sockets, and against each client."""
    lines = []
    for index, what in enumerate(("storing", "loading")):

        def best(prefix: str, size: int, index: int = index) -> float:
            return max(row[size][index] for name, row in rows.items() if name.startswith(prefix))

        of_ceiling = [best("tier", size) / best("ceiling", size) for size in SIZES]
        clients = [n for n in rows if not n.startswith(("tier", "ceiling", "blobs"))]
        ahead = [
            (best("tier", size) / rows[name][size][index], name, size) for name in clients for size in SIZES
        ]
        least, name, size = min(ahead)
        met = "met" if min(of_ceiling) >= GOAL else "not met"
        lines.append(
            f"- {transport}, {what}: {min(of_ceiling):.2f} to {max(of_ceiling):.2f} of the bare sockets "
            f"(goal {GOAL} at every size: {met}); against other clients {least:.2f} times at the least "
            f"({name}, {size // KIB} KiB), {max(ahead)[0]:.2f} at the most."
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.kv_offload.md")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    total, rounds = (32 * MIB, 2) if options.quick else (64 * MIB, 5)
    load = os.getloadavg()[0]
    skipped: set[str] = set()
    parts: list[str] = []
    verdicts: list[str] = []
    settings = {"save": "", "appendonly": "no", "unixsocket": "s"}
    with EmbeddedServer(resolve_executable(None), settings) as server:
        for transport in ("TCP", "unix socket"):
            rows = measure(server, over(transport), total, rounds, skipped)
            verdicts.append(verdict(transport, rows))
            parts.append(f"Over {transport}:\n\n{table(rows)}")
        parts.append(f"Without a server:\n\n{table(measure(server, FILES, total, rounds, skipped))}")
    text = (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, client and server on the same machine; "
        f"load {load:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end. Best of {rounds} rounds of "
        f"{total // MIB} MiB, taken in turns, into memory of the server's that is fresh in each round; what "
        f"was loaded was verified. Command: `python benchmarks/kv_offload.py"
        f"{' --quick' if options.quick else ''} --write`.\n\n"
        + "\n".join(verdicts)
        + "\n\n"
        + "\n\n".join(parts)
        + (f"\n\nDid not take part: {'; '.join(sorted(skipped))}." if skipped else "")
    )
    print(text)
    if options.write:
        write_section("Throughput", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
