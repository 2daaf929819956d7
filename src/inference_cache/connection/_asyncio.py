# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""The asyncio twins of the sync connections, pool, client, pipeline and subscriptions."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import valkey.asyncio
import valkey.exceptions as vke
from valkey.asyncio.client import Pipeline as _BaseAsyncPipeline
from valkey.asyncio.client import PubSub as _BaseAsyncPubSub
from valkey.asyncio.connection import AbstractConnection as _BaseAsyncConnection
from valkey.asyncio.connection import ConnectionPool as _BaseAsyncPool

from inference_cache.connection._client import Key
from inference_cache.connection._connections import (
    ASK_PRIMARY,
    no_primary,
    pool_is_empty,
    primary_address,
    require_primary,
)
from inference_cache.connection._deadlines import deadline, remaining_s
from inference_cache.connection._errors import annotate, call, each_translated, name_of, translated
from inference_cache.connection._plan import Plan
from inference_cache.connection._retry import may_resend, pause_before_retry_s
from inference_cache.connection._url import Endpoint, host_port
from inference_cache.connection._wire import GREETING_BYTES, Encoder, keeping_reply, require_resp


class _GreetingReader(asyncio.StreamReader):
    """Refuses a peer by its first byte, as the socket of the sync connection does."""

    _greeted = False

    def feed_data(self, data: Any) -> None:
        if not self._greeted and data:
            self._greeted = True
            try:
                require_resp(bytes(data[:GREETING_BYTES]))
            except vke.InvalidResponse as error:
                self.set_exception(error)
        super().feed_data(data)


class _AsyncConnection(_BaseAsyncConnection):
    """The asyncio twin of :class:`Connection`."""

    def __init__(self, *, plan: Plan, host: str = "", port: int = 0, protocol: int | None = None) -> None:
        self._plan = plan
        self.host = host
        self.port = port
        self.reused = False
        super().__init__(**plan.connection_arguments(), socket_timeout=None, encoder_class=Encoder)

    def repr_pieces(self) -> list[tuple[str, Any]]:
        return [("endpoint", self._plan.endpoint), ("peer", self._host_error())]

    def set_parser(self, parser_class: Any) -> None:
        super().set_parser(keeping_reply(parser_class))

    def _host_error(self) -> str:
        path = self._plan.endpoint.path
        return path if path is not None else host_port(self.host, self.port)

    async def connect(self) -> None:
        if self.is_connected:
            return
        with deadline(self._plan.connect_deadline_s):
            try:
                async with asyncio.timeout(remaining_s()):
                    await super().connect()
            except (AttributeError, TypeError) as error:
                await self.disconnect(nowait=True)
                raise vke.InvalidResponse(f"the answer to the handshake makes no sense: {error}") from error
            except TimeoutError as error:
                await self.disconnect(nowait=True)
                raise vke.TimeoutError(f"connecting to {self._host_error()} took too long") from error
            except BaseException:
                await self.disconnect(nowait=True)
                raise

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        reader = _GreetingReader(limit=1 << 20, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        endpoint = self._plan.endpoint
        transport: asyncio.Transport
        if endpoint.path is not None:
            transport, _ = await loop.create_unix_connection(lambda: protocol, endpoint.path)
        else:
            if endpoint.kind == "sentinel":
                self.host, self.port = await _ask_sentinels_async(self._plan)
            tls = self._plan.tls
            name = (self._plan.tls_server_name or self.host) if tls is not None else None
            transport, _ = await loop.create_connection(
                lambda: protocol, self.host, self.port, ssl=tls, server_hostname=name
            )
            peer = transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    async def on_connect(self) -> None:
        await super().on_connect()
        if self._plan.endpoint.kind == "sentinel":
            await self.send_command("ROLE")
            with suppress(vke.NoPermissionError):
                require_primary(await self.read_response())

    async def disconnect(self, nowait: bool = False) -> None:
        if nowait and self._writer is not None:
            # Bytes that are still to be sent belong to a call that has been given up.
            self._writer.transport.abort()
        with suppress(vke.TimeoutError):
            await super().disconnect(nowait)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)
        except vke.ReadOnlyError:
            if self._plan.endpoint.kind == "sentinel":
                await self.disconnect(nowait=True)
            raise
        except AttributeError as error:
            await self.disconnect(nowait=True)
            raise vke.ConnectionError("closed by another task while it was in use") from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            await self.disconnect(nowait=True)
            raise vke.InvalidResponse(f"a reply that cannot be read: {error}") from error


async def _ask_sentinels_async(plan: Plan) -> tuple[str, int]:
    failures: list[str] = []
    sentinels = plan.endpoint.hosts
    for tried, (host, port) in enumerate(sentinels):
        left_s = remaining_s()
        if left_s is not None and left_s <= 0:
            break
        share_s = (plan.connect_deadline_s if left_s is None else left_s) / (len(sentinels) - tried)
        connection = _AsyncConnection(plan=plan.for_sentinel(host, port), host=host, port=port)
        try:
            async with asyncio.timeout(share_s):
                await connection.connect()
                await connection.send_command(*ASK_PRIMARY, plan.endpoint.service)
                return primary_address(await connection.read_response(), plan.endpoint.service)
        except (vke.ValkeyError, OSError) as error:
            failures.append(f"{host_port(host, port)}: {error}")
        finally:
            await connection.disconnect(nowait=True)
    raise no_primary(plan, failures)


class AsyncPool(_BaseAsyncPool):
    """The asyncio twin of :class:`Pool`; the deadline around the call ends the wait for a connection."""

    def __init__(self, *, plan: Plan, host: str = "", port: int = 0) -> None:
        self.plan = plan
        self._free = asyncio.Semaphore(plan.max_connections)
        super().__init__(
            connection_class=_AsyncConnection,
            max_connections=plan.max_connections,
            plan=plan,
            host=host,
            port=port,
            protocol=plan.protocol,
        )

    async def get_connection(self, command_name: Any, *keys: Any, **options: Any) -> Any:
        began_s = time.monotonic()
        try:
            await self._free.acquire()
        except asyncio.CancelledError:
            # The timeout around the call makes of this the cause of its error.
            raise asyncio.CancelledError(pool_is_empty(self.plan, time.monotonic() - began_s)) from None
        try:
            connection = self.get_available_connection()
        except BaseException:
            self._free.release()
            raise
        try:
            await self._make_ready(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        if connection in self._in_use_connections:
            await super().release(connection)
            self._free.release()

    async def _make_ready(self, connection: Any) -> None:
        connection.reused = connection.is_connected
        if connection.reused:
            with suppress(vke.ValkeyError, OSError):
                if not (connection._reader.at_eof() or connection._reader._buffer):
                    return
            await connection.disconnect(nowait=True)
            connection.reused = False
        attempt = 1
        while True:
            try:
                await connection.connect()
                return
            except vke.ConnectionError as error:
                pause_s = pause_before_retry_s(self.plan.retry, attempt, error)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
            attempt += 1


@asynccontextmanager
async def _call_async(plan: Plan, what: str, limit_s: float) -> AsyncIterator[None]:
    with call(plan, what, limit_s):
        async with asyncio.timeout(remaining_s()):
            yield


@asynccontextmanager
async def _closed_unless_whole_async(connection: Any) -> AsyncIterator[None]:
    try:
        yield
    except (vke.ResponseError, vke.WatchError):
        raise
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


class _CleanRepliesAsync:
    """The asyncio twin of :class:`_CleanReplies`; here a cancelled task is the usual reason."""

    async def _send_command_parse_response(
        self, conn: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        async with _closed_unless_whole_async(conn):
            return await super()._send_command_parse_response(  # type: ignore[misc]
                conn, command_name, *args, **options
            )


class AsyncClient(_CleanRepliesAsync, valkey.asyncio.Valkey):  # type: ignore[misc]
    """The asyncio twin of :class:`Client`, made by :func:`connect_async`; for one event loop.

    A call that is cancelled closes its connection. ``monitor()`` is valkey-py's own.
    """

    def __init__(
        self,
        *,
        connection_pool: AsyncPool,
        deadline_s: float | None = None,
        single_connection_client: bool = False,
        owns_pool: bool = False,
    ) -> None:
        self._plan = connection_pool.plan
        self.deadline_s = self._plan.deadline_s if deadline_s is None else deadline_s
        super().__init__(connection_pool=connection_pool, single_connection_client=single_connection_client)
        self.auto_close_connection_pool = owns_pool

    @property
    def endpoint(self) -> Endpoint:
        return self._plan.endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._plan.endpoint} deadline_s={self.deadline_s}>"

    def with_deadline(self, deadline_s: float) -> AsyncClient:
        """The same connections with another deadline per call."""
        return AsyncClient(connection_pool=self._async_pool, deadline_s=deadline_s)

    def client(self) -> AsyncClient:
        """A client that keeps one connection for itself until it is closed."""
        return AsyncClient(
            connection_pool=self._async_pool, deadline_s=self.deadline_s, single_connection_client=True
        )

    @property
    def _async_pool(self) -> AsyncPool:
        pool: Any = self.connection_pool
        assert isinstance(pool, AsyncPool)
        return pool

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends one command and returns its reply, converted as valkey-py does for that command."""
        options.pop("keys", None)
        command = name_of(args[0])
        async with _call_async(self._plan, command, self.deadline_s):
            await self.initialize()
            if self.connection is not None:
                async with self._single_conn_lock:
                    return await self._send_command_parse_response(self.connection, args[0], *args, **options)
            connection = await self.connection_pool.get_connection(command)
            try:
                return await self._send_command_parse_response(connection, args[0], *args, **options)
            except vke.ConnectionError as error:
                if not may_resend(self._plan, connection, command, error):
                    raise
                return await self._send_command_parse_response(connection, args[0], *args, **options)
            finally:
                await self.connection_pool.release(connection)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> AsyncPipeline:
        """Commands sent together; with ``transaction`` between MULTI and EXEC. One deadline for the batch."""
        return AsyncPipeline(self, transaction=transaction)

    async def transaction(self, func: Callable[[AsyncPipeline], Any], *watches: Key, **kwargs: Any) -> Any:
        """Optimistic locking as in valkey-py, but all tries together end within the deadline."""
        with deadline(self.deadline_s):
            return await super().transaction(func, *watches, **kwargs)  # type: ignore[arg-type]

    def pubsub(self, **kwargs: Any) -> AsyncPubSub:
        """Subscriptions. Waiting for a message may take for ever; bound it with :func:`deadline`."""
        return AsyncPubSub(self._async_pool, deadline_s=self.deadline_s, **kwargs)


class AsyncPipeline(_CleanRepliesAsync, _BaseAsyncPipeline):  # type: ignore[misc]
    """The asyncio twin of :class:`Pipeline`."""

    def __init__(self, client: AsyncClient, *, transaction: bool) -> None:
        self._plan = client._plan
        self._deadline_s = client.deadline_s
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends what was queued and gives the replies in order, as :meth:`Pipeline.execute` does."""
        commands = f"a pipeline of {len(self.command_stack)} commands"
        async with _call_async(self._plan, commands, self._deadline_s):
            results = await super().execute(raise_on_error)
        return each_translated(results, self._plan, "a command of a pipeline")

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        async with _call_async(self._plan, name_of(args[0]), self._deadline_s):
            return await super().immediate_execute_command(*args, **options)

    async def reset(self) -> None:
        try:
            with deadline(self._deadline_s):
                async with asyncio.timeout(remaining_s()):
                    await super().reset()
        except (vke.ValkeyError, OSError):
            self.watching = False
            if self.connection is not None:
                await self.connection.disconnect(nowait=True)
            await super().reset()

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        annotate(exception, number, list(command))

    async def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        async with _closed_unless_whole_async(connection):
            return await super()._execute_pipeline(connection, commands, raise_on_error)

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        async with _closed_unless_whole_async(connection):
            return await super()._execute_transaction(connection, commands, raise_on_error)

    async def _disconnect_reset_raise(self, conn: Any, error: Exception) -> NoReturn:
        await self._give_up(conn, error)

    async def _disconnect_raise_reset(self, conn: Any, error: Exception) -> NoReturn:
        await self._give_up(conn, error)

    async def _give_up(self, connection: Any, error: Exception) -> NoReturn:
        await connection.disconnect(nowait=True)
        self.watching = False
        await self.reset()
        raise error


class AsyncPubSub(_BaseAsyncPubSub):
    """The asyncio twin of :class:`PubSub`."""

    def __init__(self, connection_pool: AsyncPool, *, deadline_s: float, **kwargs: Any) -> None:
        self._plan = connection_pool.plan
        self._deadline_s = deadline_s
        super().__init__(connection_pool, **kwargs)

    async def execute_command(self, *args: Any) -> Any:
        async with _call_async(self._plan, name_of(args[0]), self._deadline_s):
            return await super().execute_command(*args)

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:
        with translated(self._plan, "waiting for a message"):
            async with asyncio.timeout(remaining_s()):
                return await super().parse_response(block, timeout)
