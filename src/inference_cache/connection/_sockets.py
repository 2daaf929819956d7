"""Sockets that end in time: looking a name up, connecting, sending and receiving."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from inference_cache.connection._deadlines import remaining_s
from inference_cache.connection._wire import GREETING_BYTES, require_resp


class DeadlineSocket:
    """A socket that may wait only as long as the active deadline allows.

    A socket's own timeout starts anew at every call, so a server that drips bytes never hits it. This one
    sets it to the time left before each call. ``settimeout`` keeps its meaning as a further bound.
    """

    __slots__ = ("_greeted", "_sock", "_timeout_s")

    def __init__(self, sock: socket.socket, timeout_s: float | None) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._greeted = False

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def gettimeout(self) -> float | None:
        return self._timeout_s

    def fileno(self) -> int:
        return self._sock.fileno()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()

    def recv(self, size_bytes: int) -> bytes:
        self._arm()
        data = self._sock.recv(size_bytes)
        self._greet(data[:GREETING_BYTES])
        return data

    def recv_into(self, buffer: bytearray | memoryview, size_bytes: int = 0) -> int:
        self._arm()
        count = self._sock.recv_into(buffer, size_bytes)
        self._greet(bytes(memoryview(buffer)[: min(count, GREETING_BYTES)]))
        return count

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            self._arm()
            view = view[self._sock.send(view) :]

    def _arm(self) -> None:
        left_s = remaining_s()
        timeout_s = self._timeout_s
        if left_s is not None and timeout_s != 0:
            if left_s <= 0:
                raise TimeoutError("the deadline has passed")
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        self._sock.settimeout(timeout_s)

    def _greet(self, data: bytes) -> None:
        if not self._greeted and data:
            self._greeted = True
            require_resp(data)


def _address_infos(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, Any]]:
    """Resolves a name within the deadline.

    The resolver of the C library knows no deadline, so a name is looked up by a thread that is left behind
    when the time is over. Raises OSError (gaierror), TimeoutError.
    """

    def look_up() -> list[tuple[socket.AddressFamily, Any]]:
        return [(info[0], info[4]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    try:
        ip_address(host)
    except ValueError:
        pass
    else:
        return look_up()
    answers: list[list[tuple[socket.AddressFamily, Any]] | OSError] = []

    def answer() -> None:
        try:
            answers.append(look_up())
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=answer, name=f"resolve {host}", daemon=True)
    thread.start()
    left_s = remaining_s()
    thread.join(None if left_s is None else max(left_s, 0))
    if not answers:
        raise TimeoutError(f"the name {host!r} was not resolved in time")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]


def open_tcp(host: str, port: int) -> socket.socket:
    """Connects to the first address that answers; the others share the time that is left fairly."""
    infos = _address_infos(host, port)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{host!r} has no address")
    for tried, (family, address) in enumerate(infos):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            left_s = remaining_s()
            if left_s is not None:
                if left_s <= 0:
                    raise TimeoutError("the deadline has passed")
                sock.settimeout(left_s / (len(infos) - tried))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        left_s = remaining_s()
        sock.settimeout(None if left_s is None else max(left_s, 0.001))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
