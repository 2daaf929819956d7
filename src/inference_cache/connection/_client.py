# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""The sync client, its pipeline and its subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias

import valkey
import valkey.exceptions as vke
from valkey.client import Pipeline as _BasePipeline
from valkey.client import PubSub as _BasePubSub

from inference_cache.connection._connections import Connection, Pool
from inference_cache.connection._deadlines import deadline
from inference_cache.connection._errors import annotate, call, each_translated, name_of, translated
from inference_cache.connection._retry import may_resend
from inference_cache.connection._url import Endpoint
from inference_cache.errors import DeadlineExceeded

Key = bytes | str | memoryview
_SetOfBytes: TypeAlias = set[bytes]  # a class that has a method of that name cannot spell it
Value: TypeAlias = "bytes | bytearray | memoryview[Any] | str | int | float"


class _CleanReplies:
    """Shared by clients and pipelines: a connection that did not give a whole reply is closed at once.

    Without this, an interrupt between sending and reading, or an error while a reply is being converted in
    the middle of a pipeline, would leave replies for the next user of the connection to find.
    """

    def _send_command_parse_response(self, conn: Any, command_name: Any, *args: Any, **options: Any) -> Any:
        with closed_unless_whole(conn):
            return super()._send_command_parse_response(  # type: ignore[misc]
                conn, command_name, *args, **options
            )


@contextmanager
def closed_unless_whole(connection: Connection) -> Iterator[None]:
    try:
        yield
    except (vke.ResponseError, vke.WatchError):
        raise  # a reply like any other, read to its end
    except BaseException:
        connection.disconnect()
        raise


class Client(_CleanReplies, valkey.Valkey):
    """A ``valkey.Valkey`` with deadlines, clean connections and typed errors; made by :func:`connect`.

    Everything that valkey-py's client offers is there. Bytes come out; str keys and values go in as UTF-8.
    ``monitor()`` is valkey-py's own: its errors are not translated.

    Raises, from every call that talks to the server: the CacheError tree, and UsageError for an argument that
    cannot be sent.
    """

    def __init__(
        self,
        *,
        connection_pool: Pool,
        deadline_s: float | None = None,
        single_connection_client: bool = False,
        owns_pool: bool = False,
    ) -> None:
        self._plan = connection_pool.plan
        self.deadline_s = self._plan.deadline_s if deadline_s is None else deadline_s
        """Seconds that a call may take, unless a :func:`deadline` around it ends earlier."""
        super().__init__(connection_pool=connection_pool)
        self.auto_close_connection_pool = owns_pool
        if single_connection_client:
            with call(self._plan, "connecting", self.deadline_s):
                self.connection = connection_pool.get_connection("_")

    @property
    def endpoint(self) -> Endpoint:
        return self._plan.endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._plan.endpoint} deadline_s={self.deadline_s}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections. A call that another thread is in ends with Unreachable."""
        super().close()

    def with_deadline(self, deadline_s: float) -> Client:
        """The same connections with another deadline per call, which may be longer, as for ``SAVE``."""
        return Client(connection_pool=self.connection_pool, deadline_s=deadline_s)

    def client(self) -> Client:
        """A client that keeps one connection for itself until it is closed; not for several threads."""
        return Client(
            connection_pool=self.connection_pool, deadline_s=self.deadline_s, single_connection_client=True
        )

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Sends one command and returns its reply, converted as valkey-py does for that command."""
        options.pop("keys", None)  # for valkey-py's client-side cache, which is never on
        command = name_of(args[0])
        with call(self._plan, command, self.deadline_s):
            connection = self.connection or self.connection_pool.get_connection(command)
            try:
                return self._send_command_parse_response(connection, args[0], *args, **options)
            except vke.ConnectionError as error:
                if not may_resend(self._plan, connection, command, error):
                    raise
                return self._send_command_parse_response(connection, args[0], *args, **options)
            finally:
                if self.connection is None:
                    self.connection_pool.release(connection)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Commands sent together; with ``transaction`` between MULTI and EXEC. One deadline for the batch."""
        return Pipeline(self, transaction=transaction)

    def transaction(self, func: Callable[[Pipeline], Any], *watches: Key, **kwargs: Any) -> Any:
        """Optimistic locking as in valkey-py, but all tries together end within the deadline."""
        with deadline(self.deadline_s):
            return super().transaction(func, *watches, **kwargs)  # type: ignore[arg-type]

    def pubsub(self, **kwargs: Any) -> PubSub:
        """Subscriptions. Waiting for a message may take for ever; a message that has begun may not."""
        return PubSub(self.connection_pool, deadline_s=self.deadline_s, **kwargs)

    if TYPE_CHECKING:
        # What the commands that this project lives on give for a client of bytes; valkey-py types them all as
        # "an awaitable or anything".
        def ping(self, **kwargs: Any) -> bool: ...
        def set(self, name: Key, value: Value, *args: Any, **kwargs: Any) -> Any: ...
        def get(self, name: Key) -> bytes | None: ...
        def getrange(self, key: Key, start: int, end: int) -> bytes: ...
        def mget(self, keys: Key | Iterable[Key], *args: Key | float) -> list[bytes | None]: ...
        def exists(self, *names: Key) -> int: ...
        def delete(self, *names: Key) -> int: ...
        def unlink(self, *names: Key) -> int: ...
        def touch(self, *args: Key) -> int: ...
        def strlen(self, name: Key) -> int: ...
        def incr(self, name: Key, amount: int = 1) -> int: ...
        def ttl(self, name: Key) -> int: ...
        def pttl(self, name: Key) -> int: ...
        def persist(self, name: Key) -> bool: ...
        def type(self, name: Key) -> bytes: ...
        def dbsize(self, **kwargs: Any) -> int: ...
        def hget(self, name: Key, key: Key) -> bytes | None: ...  # type: ignore[override]
        def hgetall(self, name: Key) -> dict[bytes, bytes]: ...
        def hlen(self, name: Key) -> int: ...
        def llen(self, name: Key) -> int: ...
        def lrange(self, name: Key, start: int, end: int) -> list[bytes]: ...
        def smembers(self, name: Key) -> _SetOfBytes: ...
        def memory_usage(self, key: Key, samples: int | None = None, **kwargs: Any) -> int | None: ...
        def time(self, **kwargs: Any) -> tuple[int, int]: ...
        def scan(
            self,
            cursor: int = 0,
            match: Key | None = None,
            count: int | None = None,
            _type: str | None = None,
            **kwargs: Any,
        ) -> tuple[int, list[bytes]]: ...
        def scan_iter(
            self,
            match: Key | None = None,
            count: int | None = None,
            _type: str | None = None,
            **kwargs: Any,
        ) -> Iterator[bytes]: ...
        def info(self, section: str | None = None, *args: Any, **kwargs: Any) -> dict[str, Any]: ...
        def config_get(self, pattern: Key = "*", *args: Any, **kwargs: Any) -> dict[str, str]: ...


class Pipeline(_CleanReplies, _BasePipeline):
    """Commands sent together, under one deadline. A lost EXEC is an error, never a silent second try."""

    def __init__(self, client: Client, *, transaction: bool) -> None:
        self._plan = client._plan
        self._deadline_s = client.deadline_s
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        super().close()

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        return super().execute_command(*args, **kwargs)

    def watch(self, *names: Key) -> Any:
        return super().watch(*names)

    def multi(self) -> None:
        super().multi()

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Sends what was queued and gives the replies in order.

        The first error reply is raised, or with ``raise_on_error`` False stands in the list, as an error of
        :mod:`inference_cache.errors`. Raises ``valkey.exceptions.WatchError`` when a watched key changed.
        """
        commands = f"a pipeline of {len(self.command_stack)} commands"
        with call(self._plan, commands, self._deadline_s):
            return each_translated(super().execute(raise_on_error), self._plan, "a command of a pipeline")

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with call(self._plan, name_of(args[0]), self._deadline_s):
            return super().immediate_execute_command(*args, **options)

    def reset(self) -> None:
        try:
            with deadline(self._deadline_s):
                super().reset()
        except (vke.ValkeyError, OSError):
            # UNWATCH got no answer: a connection that is closed watches nothing.
            self.watching = False
            if self.connection is not None:
                self.connection.disconnect()
            super().reset()

    def annotate_exception(self, exception: Exception, number: int, command: Sequence[Any]) -> None:
        annotate(exception, number, command)

    def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        with closed_unless_whole(connection):
            return super()._execute_pipeline(connection, commands, raise_on_error)

    def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        with closed_unless_whole(connection):
            return super()._execute_transaction(connection, commands, raise_on_error)

    def _disconnect_reset_raise(self, conn: Any, error: Exception) -> NoReturn:
        self._give_up(conn, error)

    def _disconnect_raise_reset(self, conn: Any, error: Exception) -> NoReturn:
        self._give_up(conn, error)

    def _give_up(self, connection: Any, error: Exception) -> NoReturn:
        # valkey-py makes a WatchError of this while a key is watched, at which callers start over: a
        # transaction whose EXEC was carried out and whose reply was lost would be carried out twice.
        connection.disconnect()
        self.watching = False
        self.reset()
        raise error


class PubSub(_BasePubSub):
    """Subscriptions with typed errors; reconnects and subscribes again at the next call after a failure."""

    def __init__(self, connection_pool: Pool, *, deadline_s: float, **kwargs: Any) -> None:
        self._plan = connection_pool.plan
        self._deadline_s = deadline_s
        super().__init__(connection_pool, **kwargs)

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        super().close()

    def execute_command(self, *args: Any) -> Any:
        with call(self._plan, name_of(args[0]), self._deadline_s):
            return super().execute_command(*args)

    def parse_response(self, block: bool = True, timeout: float | None = 0) -> Any:
        connection = self.connection
        if connection is None:
            return super().parse_response(block, timeout)  # raises, and says to subscribe first
        with translated(self._plan, "waiting for a message"):
            wait_s = None if block else timeout
            if not self._execute(connection, connection.can_read, timeout=wait_s):
                if block:
                    raise DeadlineExceeded("no message came before the deadline")
                return None
        with call(self._plan, "reading a message", self._deadline_s):
            return super().parse_response(block=False, timeout=0)
