"""Surroundings: what else is there beside the server, and servers that were there before."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fixtures import topologies
from fixtures.targets.configuration import server_settings
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.contract import load
from mutants.liveness import note

__all__ = ["ENVIRONMENTS"]

Environment = Callable[[Path], AbstractContextManager[dict[str, str]]]
"""Takes the liveness file, gives values for ``{name}`` in the system's contract.

A value named ``url`` is that of a live server to judge, in the place of one that the gate starts.
"""


@contextmanager
def retired_cache(liveness: Path) -> Iterator[dict[str, str]]:
    """Somebody still answers PING at a retired address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    if connection.recv(64):
                        connection.sendall(b"+PONG\r\n")
                        note(liveness, "retired_cache", 1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield {"port": str(listener.getsockname()[1])}
        finally:
            stop.set()
            thread.join()


def as_decided() -> dict[str, str]:
    """Settings of a server that keeps the shipped contract."""
    return server_settings(load(None))


@contextmanager
def live_replication(liveness: Path) -> Iterator[dict[str, str]]:
    with topologies.replication(as_decided()) as pair:
        yield {"url": pair.primary.url}


@contextmanager
def live_sentinels(liveness: Path) -> Iterator[dict[str, str]]:
    with topologies.sentinels(as_decided(), count=3) as watched:
        yield {"url": watched.url}


@contextmanager
def live_cluster(liveness: Path) -> Iterator[dict[str, str]]:
    with topologies.cluster(as_decided()) as whole:
        yield {"url": whole.url}


@contextmanager
def live_least_privilege(liveness: Path) -> Iterator[dict[str, str]]:
    with topologies.least_privilege(as_decided()) as limited:
        yield {"url": limited.url}


@contextmanager
def live_socket(liveness: Path) -> Iterator[dict[str, str]]:
    with topologies.socket_only(as_decided()) as server:
        yield {"url": server.url}


@contextmanager
def live_full(liveness: Path) -> Iterator[dict[str, str]]:
    """A server that is at maxmemory before the run begins, and evicts for each new key."""
    decided = {**as_decided(), "maxmemory": "64mb", "maxmemory-samples": "10"}
    with EmbeddedServer(default_executable(), decided) as server, server.connect(deadline_s=60) as client:
        prefixes = [workload.prefix for workload in load(None).workloads.values()]
        number = 0
        while int(client.info("stats")["evicted_keys"]) < 1000:
            pipe = client.pipeline(transaction=False)
            for _ in range(200):
                pipe.set(f"{prefixes[number % len(prefixes)]}full:{number}", b"x" * 4096, ex=3600)
                number += 1
            pipe.execute()
        yield {"url": server.url}


@contextmanager
def live_with_owners(liveness: Path) -> Iterator[dict[str, str]]:
    """A server whose other users write, read and delete keys of all prefixes all the time."""
    prefixes = [workload.prefix for workload in load(None).workloads.values()]
    stop = threading.Event()

    def use(server: EmbeddedServer) -> None:
        with server.connect(deadline_s=60) as client:
            number = 0
            while not stop.is_set():
                key = f"{prefixes[number % len(prefixes)]}conformance:owner:{number % 2000}"
                client.set(key, b"%d" % number, ex=3600)
                client.get(key)
                if number % 7 == 0:
                    client.unlink(key)
                number += 1
                time.sleep(0.001)

    with EmbeddedServer(default_executable(), as_decided()) as server:
        threads = [threading.Thread(target=use, args=(server,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield {"url": server.url}
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextmanager
def live_offloader_without_ttl(liveness: Path) -> Iterator[dict[str, str]]:
    """A server to which an offloader of somebody else's wrote blocks that never expire."""
    with foreign_offloader(liveness, "vllm:kv:@org/model@00000000@0@{number:064x}") as server:
        yield {"url": server.url}


@contextmanager
def live_offloader_outside(liveness: Path) -> Iterator[dict[str, str]]:
    """A server to which an offloader of somebody else's wrote blocks under names of its own."""
    with foreign_offloader(liveness, "org/model@00000000@0@{number:064x}", ttl_s=3600) as server:
        yield {"url": server.url}


@contextmanager
def foreign_offloader(liveness: Path, name: str, *, ttl_s: int | None = None) -> Iterator[EmbeddedServer]:
    """A server that an offloader, which is gone by now, used beside all others."""
    with (
        EmbeddedServer(default_executable(), as_decided()) as server,
        server.connect(deadline_s=60) as client,
    ):
        for number in range(200):
            client.set(f"vllm:kv:ours:0:{number:032x}", b"x" * 4096, ex=3600)
            client.set(name.format(number=number), b"x" * 4096, ex=ttl_s)
        note(liveness, "foreign_offloader", 200)
        yield server


def default_executable() -> Path:
    """The server that is judged where no other is named."""
    return next(iter(shipped_executables().values()))


@contextmanager
def live_tls(liveness: Path) -> Iterator[dict[str, str]]:
    with (
        topologies.Authority() as authority,
        topologies.socket_only(as_decided()) as server,
        topologies.tls_front(server, authority, client_certificates=True) as front,
    ):
        chain, key = authority.issue("client", "client.example")
        yield {"url": front.url(tls_cert_file=chain, tls_key_file=key)}


ENVIRONMENTS: dict[str, Environment] = {
    environment.__name__: environment
    for environment in (
        retired_cache,
        live_replication,
        live_sentinels,
        live_cluster,
        live_least_privilege,
        live_socket,
        live_tls,
        live_full,
        live_with_owners,
        live_offloader_without_ttl,
        live_offloader_outside,
    )
}
