# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""Sync connections: one of them, the sentinels that it asks for its peer, and the pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty
from typing import Any, Final

import valkey.exceptions as vke
from valkey.connection import AbstractConnection, BlockingConnectionPool

from inference_cache.connection._deadlines import deadline, remaining_s
from inference_cache.connection._errors import HandshakeTimeout
from inference_cache.connection._plan import Plan
from inference_cache.connection._retry import pause_before_retry_s
from inference_cache.connection._sockets import DeadlineSocket, open_tcp, open_unix
from inference_cache.connection._url import host_port
from inference_cache.connection._wire import Encoder, keeping_reply
from inference_cache.errors import DeadlineExceeded


class Connection(AbstractConnection):
    """One connection, over TCP, TLS or a socket file; asks sentinels for its peer where there are some."""

    def __init__(self, *, plan: Plan, host: str = "", port: int = 0, protocol: int | None = None) -> None:
        self._plan = plan
        self.host = host
        self.port = port
        self.reused = False
        """Whether the pool gave it out already connected."""
        self._closed_by = 0
        """The thread that closed it last: under another one a parser fails in any way."""
        super().__init__(**plan.connection_arguments(), socket_timeout=plan.deadline_s)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("endpoint", self._plan.endpoint), ("peer", self._host_error())]

    def set_parser(self, parser_class: type) -> None:
        super().set_parser(keeping_reply(parser_class))

    def _construct_command_packer(self, packer: Any) -> Any:
        self.encoder = Encoder("utf-8", "strict", False)
        return super()._construct_command_packer(packer)

    def _host_error(self) -> str:
        path = self._plan.endpoint.path
        return path if path is not None else host_port(self.host, self.port)

    def disconnect(self, *args: Any) -> None:
        if self._sock is not None:
            self._closed_by = threading.get_ident()
        super().disconnect(*args)

    def connect(self) -> None:
        if self._sock is not None:
            return
        with deadline(self._plan.connect_deadline_s):
            try:
                super().connect()
            except (AttributeError, TypeError) as error:
                self.disconnect()
                raise vke.InvalidResponse(f"the answer to the handshake makes no sense: {error}") from error
            except BaseException:
                self.disconnect()
                raise

    def _connect(self) -> DeadlineSocket:
        endpoint = self._plan.endpoint
        if endpoint.path is not None:
            return DeadlineSocket(open_unix(endpoint.path), self.socket_timeout)
        if endpoint.kind == "sentinel":
            self.host, self.port = _ask_sentinels(self._plan)
        sock = open_tcp(self.host, self.port)
        try:
            if self._plan.tls is not None:
                left_s = remaining_s()
                sock.settimeout(None if left_s is None else max(left_s, 0.001))
                try:
                    sock = self._plan.tls.wrap_socket(
                        sock, server_hostname=self._plan.tls_server_name or self.host
                    )
                except TimeoutError as error:
                    raise HandshakeTimeout(str(error)) from error
            return DeadlineSocket(sock, self.socket_timeout)
        except BaseException:
            sock.close()
            raise

    def on_connect(self) -> None:
        super().on_connect()
        if self._plan.endpoint.kind == "sentinel":
            self.send_command("ROLE")
            with suppress(vke.NoPermissionError):
                require_primary(self.read_response())

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)
        except vke.ReadOnlyError:
            if self._plan.endpoint.kind == "sentinel":
                # The primary became a replica: the next call asks the sentinels again.
                self.disconnect()
            raise
        except (AttributeError, ValueError, TypeError, OverflowError, RecursionError) as error:
            self.disconnect()
            if self._closed_by != threading.get_ident():
                raise vke.ConnectionError("closed by another thread while it was in use") from error
            raise vke.InvalidResponse(f"a reply that cannot be read: {error}") from error


def require_primary(role: Any) -> None:
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise vke.ConnectionError("the server that the sentinels name is no primary: is a failover going on?")


def primary_address(reply: Any, service: str | None) -> tuple[str, int]:
    if reply is None:
        raise vke.ConnectionError(f"knows no service {service!r}")
    try:
        host, port = reply
        return host.decode(), int(port)
    except (AttributeError, TypeError, ValueError) as error:
        raise vke.InvalidResponse(f"not the answer of a sentinel: {error}") from error


ASK_PRIMARY: Final = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")


def _ask_sentinels(plan: Plan) -> tuple[str, int]:
    """Host and port of the primary, from the first sentinel that knows it; each gets a share of the time."""
    failures: list[str] = []
    sentinels = plan.endpoint.hosts
    for tried, (host, port) in enumerate(sentinels):
        left_s = remaining_s()
        if left_s is not None and left_s <= 0:
            break
        share_s = (plan.connect_deadline_s if left_s is None else left_s) / (len(sentinels) - tried)
        connection = Connection(plan=plan.for_sentinel(host, port), host=host, port=port)
        try:
            with deadline(share_s):
                connection.connect()
                connection.send_command(*ASK_PRIMARY, plan.endpoint.service)
                return primary_address(connection.read_response(), plan.endpoint.service)
        except (vke.ValkeyError, OSError) as error:
            failures.append(f"{host_port(host, port)}: {error}")
        finally:
            connection.disconnect()
    raise no_primary(plan, failures)


def no_primary(plan: Plan, failures: Sequence[str]) -> vke.ConnectionError:
    reasons = "; ".join(failures)
    return vke.ConnectionError(f"no sentinel names the primary of {plan.endpoint.service!r}: {reasons}")


def pool_is_empty(plan: Plan, wait_s: float) -> str:
    return (
        f"all {plan.max_connections} connections to {plan.endpoint} were in use for {wait_s:.3g} s; "
        "raise max_connections, or find who holds them"
    )


class Pool(BlockingConnectionPool):
    """Gives out connections that are open and have nothing left to read; waits for one until the deadline."""

    def __init__(self, *, plan: Plan, host: str = "", port: int = 0, **_: Any) -> None:
        self.plan = plan
        super().__init__(
            max_connections=plan.max_connections,
            connection_class=Connection,
            plan=plan,
            host=host,
            port=port,
            protocol=plan.protocol,
        )

    def get_connection(  # type: ignore[override]
        self, command_name: Any, *keys: Any, **options: Any
    ) -> Connection:
        self._checkpid()
        left_s = remaining_s()
        wait_s = self.plan.deadline_s if left_s is None else max(left_s, 0)
        try:
            connection = self.pool.get(timeout=wait_s)
        except Empty:
            raise DeadlineExceeded(pool_is_empty(self.plan, wait_s)) from None
        if connection is None:
            connection = self.make_connection()
        self._lent.add(connection)
        try:
            self._make_ready(connection)
        except BaseException:
            self.release(connection)
            raise
        ready: Connection = connection
        return ready

    def reset(self) -> None:
        self._lent: set[Connection] = set()
        super().reset()

    def release(self, connection: Any) -> None:
        # Taking a connection back twice would give it to two callers at once.
        if connection in self._lent:
            self._lent.discard(connection)
            super().release(connection)

    def _make_ready(self, connection: Connection) -> None:
        connection.reused = connection._sock is not None
        if connection.reused:
            with suppress(vke.ConnectionError, OSError):
                if not connection.can_read():
                    return
            # Closed by the server while idle, or holding bytes that no caller asked for.
            connection.disconnect()
            connection.reused = False
        attempt = 1
        while True:
            try:
                connection.connect()
                return
            except vke.ConnectionError as error:
                pause_s = pause_before_retry_s(self.plan.retry, attempt, error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1
