"""Throughput of large values against other clients, and against the socket and the memory below all of them.

    pip install inference-cache[gate] numpy libvalkey valkey-glide-sync
    pip install --no-deps lmcache           # where torch is; its pool of Valkey clients needs no GPU
    python benchmarks/blobs.py --write      # some three minutes; --quick takes half a minute and is noisier

Starts a valkey-server of its own. Every client stores and loads the same values, which exist already: on
fresh memory the server's page faults would hide the differences. A loaded value has to end in the caller's
buffer; clients that return memory of their own get it copied there, in the measured time. The clients take
turns in each round, and the best round counts, as a busy machine only ever slows down. All that is loaded is
compared with what was stored, outside of the measured time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import valkey
import valkey.connection
from valkey._parsers import _RESP2Parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.blobs import BlobStore  # noqa: E402
from inference_cache.blobs import _wire as wire_module  # noqa: E402
from inference_cache.keyspace import Keyspace  # noqa: E402

KIB, MIB = 1024, 1024 * 1024
SIZES = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB)
WINDOW = 8
SPACE = Keyspace("vllm:kv:")


class Skipped(Exception):
    """Why a client does not take part."""


class Peer(Protocol):
    """A client under measurement, for values of one size."""

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None: ...

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None: ...

    def close(self) -> None: ...


Opener = Callable[[EmbeddedServer, str], Peer]
"""Makes a client for a server and a transport, ``TCP`` or ``unix``. Raises Skipped."""


def socket_path(server: EmbeddedServer) -> str:
    return str(server.data_dir / "s")


class Blobs:
    def __init__(
        self, server: EmbeddedServer, transport: str, *, connections: int, swap: bool = False
    ) -> None:
        url = server.url if transport == "TCP" else f"unix://{socket_path(server)}"
        self._store = BlobStore(
            url,
            keyspace=SPACE,
            deadline_s=60,
            connections=connections,
            window=WINDOW,
            max_bytes=(128 if swap else 64) * MIB,
        )

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        for outcome in self._store.store_many(list(zip(keys, values, strict=True))):
            outcome.require()

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        for outcome in self._store.load_many_into(list(zip(keys, buffers, strict=True))):
            outcome.require()

    def close(self) -> None:
        self._store.close()


class _NoChecksum:
    """Stands in for the running checksum."""

    def update(self, _: object) -> None:
        pass

    def digest(self) -> bytes:
        return bytes(16)


class BlobsUnchecked(Blobs):
    """What the checksum costs: the same without it, which is not offered to users."""

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        with _no_checksums():
            super().store(keys, values)

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        with _no_checksums():
            super().load(keys, buffers)


@contextmanager
def _no_checksums() -> Iterator[None]:
    originals = wire_module.hasher, wire_module.digest_of
    wire_module.hasher, wire_module.digest_of = _NoChecksum, lambda _: bytes(16)
    try:
        yield
    finally:
        wire_module.hasher, wire_module.digest_of = originals


class ValkeyPy:
    """valkey-py, one connection; pipelines of the same window, which suit it better than single commands."""

    def __init__(self, server: EmbeddedServer, transport: str, *, parser: type) -> None:
        kind: Any = valkey.connection.Connection
        where: dict[str, Any] = {"host": "127.0.0.1", "port": server.port}
        if transport == "unix":
            kind, where = valkey.connection.UnixDomainSocketConnection, {"path": socket_path(server)}
        pool = valkey.ConnectionPool(connection_class=kind, parser_class=parser, **where)
        self._client = valkey.Valkey(connection_pool=pool)

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        for at in range(0, len(keys), WINDOW):
            pipeline = self._client.pipeline(transaction=False)
            for key, value in zip(keys[at : at + WINDOW], values[at : at + WINDOW], strict=True):
                pipeline.set(key, value)
            pipeline.execute()

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        for at in range(0, len(keys), WINDOW):
            pipeline = self._client.pipeline(transaction=False)
            for key in keys[at : at + WINDOW]:
                pipeline.get(key)
            for buffer, value in zip(buffers[at : at + WINDOW], pipeline.execute(), strict=True):
                buffer[:] = value

    def close(self) -> None:
        self._client.close()


class ValkeyPyOneByOne(ValkeyPy):
    """The same without pipelines."""

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        for key, value in zip(keys, values, strict=True):
            self._client.set(key, value)

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        for key, buffer in zip(keys, buffers, strict=True):
            buffer[:] = self._client.get(key)


def _libvalkey(server: EmbeddedServer, transport: str) -> Peer:
    try:
        from valkey._parsers import _LibvalkeyParser

        importlib.metadata.version("libvalkey")
    except (ImportError, importlib.metadata.PackageNotFoundError):
        raise Skipped("libvalkey is not installed") from None
    return ValkeyPyOneByOne(server, transport, parser=_LibvalkeyParser)


class Glide:
    """valkey-glide-sync with buffers, from threads: each call waits for its reply."""

    def __init__(self, server: EmbeddedServer, transport: str, *, threads: int) -> None:
        try:
            from glide_sync import GlideClient, GlideClientConfiguration, NodeAddress
        except ImportError:
            raise Skipped("valkey-glide-sync is not installed") from None
        if transport == "unix":
            raise Skipped("valkey-glide-sync has no unix sockets")
        configuration = GlideClientConfiguration(
            [NodeAddress("127.0.0.1", server.port)], request_timeout=60_000
        )
        self._client = GlideClient.create(configuration)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        self._spread(len(keys), lambda index: self._client.set(keys[index], values[index]))

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        self._spread(len(keys), lambda index: self._client.get(keys[index], buffer=buffers[index]))

    def _spread(self, count: int, call: Callable[[int], object]) -> None:
        def share(first: int) -> None:
            for index in range(first, count, self._threads):
                call(index)

        list(self._pool.map(share, range(self._threads)))

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()


class LMCache:
    """LMCache's pool of threads for Valkey, which its connectors use: a valkey-glide-sync client in each."""

    def __init__(self, server: EmbeddedServer, transport: str) -> None:
        try:
            from lmcache.v1.storage_backend.valkey.worker_pool import ValkeyWorkerPool
        except ImportError as error:
            raise Skipped(f"LMCache cannot be imported here ({error})") from None
        if transport == "unix":
            raise Skipped("its client has no unix sockets")
        self._pool = ValkeyWorkerPool([("127.0.0.1", server.port)], 4, request_timeout=60)

    def store(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        calls = [self._pool.submit_set(key.decode(), value) for key, value in zip(keys, values, strict=True)]
        for call in calls:
            call.result()

    def load(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        calls = [
            self._pool.submit_get_into(key.decode(), buffer)
            for key, buffer in zip(keys, buffers, strict=True)
        ]
        for call in calls:
            call.result()

    def close(self) -> None:
        self._pool.close()


PEERS: dict[str, Opener] = {
    "blobs, 1 connection": lambda server, transport: Blobs(server, transport, connections=1),
    "blobs, 2 connections": lambda server, transport: Blobs(server, transport, connections=2),
    "blobs, 1 connection, chunks allowed": lambda server, transport: Blobs(
        server, transport, connections=1, swap=True
    ),
    "blobs, 1 connection, no checksum": lambda server, transport: BlobsUnchecked(
        server, transport, connections=1
    ),
    "valkey-py, one by one": lambda server, transport: ValkeyPyOneByOne(
        server, transport, parser=_RESP2Parser
    ),
    "valkey-py, pipelines": lambda server, transport: ValkeyPy(server, transport, parser=_RESP2Parser),
    "valkey-py with libvalkey, one by one": _libvalkey,
    "valkey-glide-sync, 1 thread": lambda server, transport: Glide(server, transport, threads=1),
    "valkey-glide-sync, 4 threads": lambda server, transport: Glide(server, transport, threads=4),
    "LMCache's Valkey pool, 4 threads": LMCache,
}
BASELINE = "blobs, 1 connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """GB/s and this process's processor time, of a round or the best of several."""

    store: float
    load: float
    store_cpu_us: float
    """For a value."""
    load_cpu_us: float

    def better(self, other: Rate) -> Rate:
        return Rate(
            store=max(self.store, other.store),
            load=max(self.load, other.load),
            store_cpu_us=min(self.store_cpu_us, other.store_cpu_us),
            load_cpu_us=min(self.load_cpu_us, other.load_cpu_us),
        )


def measure(
    server: EmbeddedServer, transport: str, size_bytes: int, *, round_bytes: int, rounds: int
) -> dict[str, Rate]:
    """The best rate of every client for values of this size."""
    count = max(4, round_bytes // size_bytes)
    keys = [SPACE.key("bench", index) for index in range(count)]
    noise = np.random.default_rng(size_bytes).integers(0, 256, size_bytes + count, dtype=np.uint8)
    values = [memoryview(noise[index : index + size_bytes]) for index in range(count)]
    buffers = [memoryview(np.ones(size_bytes, dtype=np.uint8)) for _ in range(count)]
    best: dict[str, Rate] = {}
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for name, opener in PEERS.items():
            try:
                peers[name] = opener(server, transport)
            except Skipped:
                continue
            stack.callback(peers[name].close)
        for number in range(rounds + 1):
            for name, peer in peers.items():
                for buffer in buffers:
                    buffer[:8] = bytes(8)
                rate = _round(peer, keys, values, buffers)
                if number:
                    best[name] = rate.better(best.get(name, rate))
    with server.connect(deadline_s=60) as client:
        client.flushall()
    return best


def _round(
    peer: Peer, keys: Sequence[bytes], values: Sequence[memoryview], buffers: Sequence[memoryview]
) -> Rate:
    total_bytes, us = sum(value.nbytes for value in values), 1e6 / len(values)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    peer.store(keys, values)
    stored_s, stored_cpu_s = time.perf_counter(), time.process_time()
    peer.load(keys, buffers)
    ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
    if any(buffer != value for buffer, value in zip(buffers, values, strict=True)):
        raise SystemExit("a value came back changed")
    return Rate(
        store=total_bytes / (stored_s - began_s) / 1e9,
        load=total_bytes / (ended_s - stored_s) / 1e9,
        store_cpu_us=(stored_cpu_s - began_cpu_s) * us,
        load_cpu_us=(ended_cpu_s - stored_cpu_s) * us,
    )


# --- what lies below


def _sink(address: Any, family: int, total_bytes: int, rounds: int) -> None:
    buffer = memoryview(bytearray(b"\1") * total_bytes)
    with socket.socket(family) as sock:
        sock.connect(address)
        for _ in range(rounds):
            at = 0
            while at < total_bytes:
                at += sock.recv_into(buffer[at : at + MIB])
            sock.sendall(b"!")


def one_way_socket(transport: str, folder: Path, *, total_bytes: int, rounds: int) -> float:
    """GB/s from memory of this process to memory of another, over a bare socket."""
    family = socket.AF_INET if transport == "TCP" else socket.AF_UNIX
    address: Any = ("127.0.0.1", 0) if transport == "TCP" else str(folder / "ceiling")
    source = memoryview(bytearray(b"\1") * total_bytes)
    best = 0.0
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        arguments = (listener.getsockname(), family, total_bytes, rounds)
        receiver = get_context("fork").Process(target=_sink, args=arguments)
        receiver.start()
        sender, _ = listener.accept()
        with sender:
            for _ in range(rounds):
                began_s = time.perf_counter()
                sender.sendall(source)
                sender.recv(1)
                best = max(best, total_bytes / (time.perf_counter() - began_s) / 1e9)
        receiver.join()
    if transport == "unix":
        (folder / "ceiling").unlink()
    return best


def memory_copy(*, rounds: int) -> float:
    """GB/s of copying 64 MiB from one place to another."""
    source, target = np.ones(64 * MIB, dtype=np.uint8), np.zeros(64 * MIB, dtype=np.uint8)
    best = 0.0
    for _ in range(rounds * 3):
        began_s = time.perf_counter()
        np.copyto(target, source)
        best = max(best, source.nbytes / (time.perf_counter() - began_s) / 1e9)
    return best


# --- the report


def table(transport: str, results: dict[int, dict[str, Rate]], ceiling: float, copy: float) -> str:
    """A row per client: GB/s store / load, and behind it how many times faster ``blobs`` is."""
    names = [name for name in PEERS if any(name in rates for rates in results.values())]
    lines = [
        f"| {transport} | " + " | ".join(_size(size) for size in results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    for name in names:
        cells = []
        for rates in results.values():
            rate, ours = rates[name], rates[BASELINE]
            cell = f"{rate.store:.2f} / {rate.load:.2f}"
            if name != BASELINE:
                cell += f" (x{ours.store / rate.store:.1f} / x{ours.load / rate.load:.1f})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, bound in (
        (f"for scale: bare {transport} socket, one way", ceiling),
        ("for scale: memcpy", copy),
    ):
        cells = []
        for rates in results.values():
            ours = rates[BASELINE]
            cells.append(f"{bound:.2f} (x{ours.store / bound:.2f} / x{ours.load / bound:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_table(transport: str, results: dict[int, dict[str, Rate]]) -> str:
    """A row per client: microseconds of processor time for a value, store / load."""
    lines = [
        f"| {transport}, client's processor time | " + " | ".join(_size(size) for size in results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    for name in PEERS:
        rates = [of_size[name] for of_size in results.values() if name in of_size]
        cells = [f"{rate.store_cpu_us:.0f} / {rate.load_cpu_us:.0f}" for rate in rates]
        lines += [f"| {name} | " + " | ".join(cells) + " |"] if cells else []
    return "\n".join(lines)


def _size(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes >= MIB else f"{size_bytes // KIB} KiB"


def _versions() -> str:
    parts = [f"Python {platform.python_version()}"]
    for package in ("valkey", "libvalkey", "valkey-glide-sync", "lmcache", "xxhash"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints Markdown."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.blobs.md")
    parser.add_argument("--valkey", help="a valkey-server executable, or the package that ships one")
    options = parser.parse_args(argv)
    rounds, round_bytes = (2, 16 * MIB) if options.quick else (5, 64 * MIB)
    with EmbeddedServer(resolve_executable(options.valkey), {"save": "", "unixsocket": "s"}) as server:
        text = report(server, rounds=rounds, round_bytes=round_bytes)
    print(text)
    if options.write:
        note = "" if not options.quick else "\nThis was a quick run.\n"
        (ROOT / "benchmarks" / "RESULTS.blobs.md").write_text(f"# Large values\n\n{text}{note}")
    return 0


def report(server: EmbeddedServer, *, rounds: int, round_bytes: int) -> str:
    """Everything measured, as Markdown."""
    with server.connect() as client:
        version = client.info("server").get("valkey_version", "unknown")
    load = os.getloadavg()[0]
    parts = [
        f"Valkey {version}, {_versions()}; {os.cpu_count()} cores, client and server on the same machine, "
        f"load {load:.1f} at the beginning. Best of {rounds} rounds of {round_bytes // MIB} MiB, over values "
        "that exist already; what is loaded ends in the caller's buffer and was verified. "
        "Command: `python benchmarks/blobs.py --write`.",
        "GB/s store / load, and in brackets how many times as fast `blobs, 1 connection` is in the same run. "
        "A busy machine changes single cells by up to 2x: compare within a column, and over several runs. "
        "The second table of each transport is in microseconds of the client's processor time for a value, "
        "store / load, the least of the rounds, which other work on the machine changes less.",
    ]
    copy = memory_copy(rounds=rounds)
    for transport in ("TCP", "unix"):
        ceiling = one_way_socket(transport, server.data_dir, total_bytes=64 * MIB, rounds=3 * rounds)
        results = {
            size: measure(server, transport, size, round_bytes=round_bytes, rounds=rounds) for size in SIZES
        }
        parts.append(table(transport, results, ceiling, copy))
        parts.append(cpu_table(transport, results))
        parts += [f"Not over {transport}: {name}: {why}." for name, why in _skipped(server, transport)]
    return "\n\n".join(parts) + "\n"


def _skipped(server: EmbeddedServer, transport: str) -> Iterator[tuple[str, str]]:
    for name, opener in PEERS.items():
        try:
            opener(server, transport).close()
        except Skipped as reason:
            yield name, str(reason)


if __name__ == "__main__":
    raise SystemExit(main())
