"""Connections for pipelines: opened, greeted, kept and given up by :mod:`inference_cache.connection`.

Of that module's connections only the socket is used here, between whole commands and whole replies, so that a
payload takes no way through Python. Everything else stays its business: names, TLS, passwords, sentinels,
waiting for a free connection, processes that fork, and the words for what went wrong.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import valkey.exceptions as vke

from inference_cache.blobs._requests import Request
from inference_cache.blobs._wire import Wire
from inference_cache.connection import Client, Endpoint, _from_reply, _translated, deadline
from inference_cache.errors import CacheError, DeadlineExceeded, Unreachable

__all__ = ["Transport", "full_url"]

T = TypeVar("T")

_TRIES: Final = 2
"""How often in a row a pipeline may lose its connection without having got on."""
_IN_FLIGHT_BYTES: Final = 32 * 1024 * 1024
"""Payload asked for and not yet read: the server holds it in memory that counts against ``maxmemory``."""
_SHARE_BYTES: Final = 1024 * 1024
"""Payload below which another connection is not worth waking a thread for."""
_WINDOW_BYTES: Final = 1024 * 1024
"""Payload up to which more than a window of requests may be on the way: a reply that is waited for costs more
than the few bytes that it brings."""
_COMMAND_BYTES: Final = 8 * 1024
"""What a request counts besides its payload."""


class Transport:
    """Runs requests over a client's connections; threads may share it, and so may forked processes."""

    def __init__(self, client: Client, *, connections: int, window: int) -> None:
        self._client = client
        self._plan = client._plan
        self._connections = connections
        self._window = window
        self._helpers: ThreadPoolExecutor | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        """Closes all connections, and lets the threads end."""
        self._client.close()
        helpers, self._helpers = self._helpers, None
        if helpers is not None and self._pid == os.getpid():
            helpers.shutdown(wait=False)

    def run(self, requests: Sequence[Request], *, ends_at_s: float, what: str) -> None:
        """Has all requests done, spread over connections, or gives each that is not its ``error``."""
        if not requests:
            return
        mine, *others = self._shares(requests)
        helped: list[tuple[Future[None], list[Request]]] = []
        alone: list[list[Request]] = []
        try:
            for share in others:
                try:
                    helped.append((self._executor().submit(self._pipelines, share, ends_at_s, what), share))
                except RuntimeError:  # No thread starts any more when the interpreter ends.
                    alone.append(share)
            self._pipelines(mine, ends_at_s, what)
            alone += [share for future, share in helped if future.cancel()]
            for share in alone:
                self._pipelines(share, ends_at_s, what)
        finally:
            # Nobody may go on writing into the caller's memory after this.
            for future, _ in helped:
                future.cancel()
            wait([future for future, _ in helped])
        for future, _ in helped:
            if not future.cancelled():
                future.result()
        for request in requests:
            if request.refusal is not None:
                request.error = _from_reply(request.refusal, where=str(self._plan.endpoint), what=what)

    def converse(self, talk: Callable[[Wire], T], *, ends_at_s: float, what: str) -> T:
        """Gives ``talk`` a connection, and another one when it was lost: it must bear being begun again.

        Raises CacheError.
        """
        for _ in range(_TRIES - 1):
            with suppress(Unreachable), self._wire(ends_at_s, what) as wire:
                return talk(wire)
        with self._wire(ends_at_s, what) as wire:
            return talk(wire)

    def _shares(self, requests: Sequence[Request]) -> list[list[Request]]:
        """The requests in as many parts as are worth a connection, of about the same payload."""
        payload = sum([request.payload_bytes for request in requests])
        count = max(1, min(self._connections, len(requests), payload // _SHARE_BYTES))
        if count == 1:
            return [list(requests)]
        shares: list[list[Request]] = [[] for _ in range(count)]
        loads = [0] * count
        for request in requests:
            lightest = loads.index(min(loads))
            shares[lightest].append(request)
            loads[lightest] += request.payload_bytes + 1
        return shares

    def _executor(self) -> ThreadPoolExecutor:
        # Threads do not survive a fork.
        if self._helpers is None or self._pid != os.getpid():
            self._helpers = ThreadPoolExecutor(self._connections, thread_name_prefix="blobs")
            self._pid = os.getpid()
        return self._helpers

    def _pipelines(self, requests: Sequence[Request], ends_at_s: float, what: str) -> None:
        """Pipelines until all requests are done: after a lost connection the rest goes over a new one."""
        todo = list(requests)
        tries = 0
        while todo:
            try:
                with self._wire(ends_at_s, what) as wire:
                    _pipeline(wire, todo, self._window)
                    sentinel = self._plan.endpoint.kind == "sentinel"
                    # The primary became a replica: the next connection asks the sentinels again.
                    wire.must_close = sentinel and any(map(_is_read_only, todo))
                return
            except CacheError as error:
                left = [request for request in todo if not request.done]
                tries = tries + 1 if len(left) == len(todo) else 1
                todo = left
                if tries >= _TRIES or not isinstance(error, Unreachable):
                    for request in todo:
                        request.error = error
                    return

    @contextmanager
    def _wire(self, ends_at_s: float, what: str) -> Iterator[Wire]:
        """A connection with nothing to read; closed afterwards unless everything went as it should."""
        left_s = ends_at_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"no time was left for {what} at {self._plan.endpoint}")
        pool: Any = self._client.connection_pool
        with _translated(self._plan, what), deadline(left_s):
            connection = pool.get_connection(what)
            try:
                sock: socket.socket = connection._sock._sock
                wire = Wire(sock, ends_at_s=ends_at_s)
                yield wire
                wire.require_silence()
                if wire.must_close:
                    connection.disconnect()
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)


def _is_read_only(request: Request) -> bool:
    return request.refusal is not None and request.refusal.reply.startswith("READONLY")


def _pipeline(wire: Wire, requests: Sequence[Request], window: int) -> None:
    """Sends requests and reads their replies: ``window`` of them on the way, or more when they are small."""
    count = len(requests)
    sent = received = on_way_bytes = reply_bytes = 0
    while received < count:
        # Several at a time, or every reply would cost a call and wake the server.
        if sent < count and (sent - received <= window // 2 or on_way_bytes <= _WINDOW_BYTES // 2):
            first = sent
            while sent < count and (sent - received < window or on_way_bytes < _WINDOW_BYTES):
                request = requests[sent]
                if sent > received and reply_bytes + request.reply_bytes > _IN_FLIGHT_BYTES:
                    break
                on_way_bytes += request.payload_bytes + _COMMAND_BYTES
                reply_bytes += request.reply_bytes
                sent += 1
            if sent > first:
                _send(wire, requests[first:sent], requests[received:sent])
        request = requests[received]
        request.receive(wire)
        on_way_bytes -= request.payload_bytes + _COMMAND_BYTES
        reply_bytes -= request.reply_bytes
        received += 1


def _send(wire: Wire, requests: Sequence[Request], unanswered: Sequence[Request]) -> None:
    try:
        wire.send(chain.from_iterable(request.parts() for request in requests))
    except ConnectionError:
        # A server that hangs up in the middle of a command has said why: it is too long, say.
        with suppress(OSError, vke.ValkeyError):
            for request in unanswered:
                request.receive(wire)
        raise


def full_url(endpoint: Endpoint) -> str:
    """The URL that ``parse_url`` reads as this endpoint; unlike ``str()`` with user, password and all."""
    user = ""
    if endpoint.username is not None or endpoint.password is not None:
        user = quote(endpoint.username or "", safe="")
        user += "" if endpoint.password is None else ":" + quote(endpoint.password, safe="")
        user += "@"
    scheme, _, place = str(endpoint).partition("://")
    parameters = dict(endpoint.parameters)
    if endpoint.path is not None:
        place = quote(endpoint.path)
        parameters |= {"db": str(endpoint.db)}
    elif endpoint.service is not None:
        hosts, _, _ = place.partition("/")
        place = f"{hosts}/{quote(endpoint.service, safe='')}/{endpoint.db}"
    return f"{scheme}://{user}{place}" + (f"?{urlencode(parameters, quote_via=quote)}" if parameters else "")
