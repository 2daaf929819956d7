"""RESP2 over a socket that someone else opened: buffers out in one call, payloads into the caller's memory.

Reading goes through a small head buffer, in small steps where a payload is expected, so that all of a payload
but its first bytes goes from the socket straight to where the caller wants it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import valkey.exceptions as vke

from inference_cache.blobs._frame import DIGEST_BYTES, hasher

__all__ = ["Arg", "Buffer", "Payload", "Refusal", "Reply", "Wire", "encode"]

Buffer = bytes | memoryview

_HEAD_BYTES: Final = 4096
_STEP_BYTES: Final = 128
"""Read at once where a payload follows: its length and the header of its frame, and not much more."""
_PIECE_BYTES: Final = 256 * 1024
"""Sent or received at once: what was just summed up, or will be, is in the processor's cache."""
_SHORT_BYTES: Final = 1024
"""The longest reply where none is expected to be large."""
_SKIP_BYTES: Final = 64 * 1024
_GATHER_BYTES: Final = 2 * _PIECE_BYTES
_GATHER_PARTS: Final = 1024
"""What the kernel takes in one call."""
_REARM_S: Final = 0.01
"""How long a timeout stands before it is set anew, by a system call; a wait may end that much too late."""
_TYPES: Final = b"+-:$*"


class Refusal(vke.ResponseError):
    """An error reply: an answer like any other, and raised only where nothing else will do."""

    def __init__(self, reply: str) -> None:
        self.reply = reply
        super().__init__(reply)


Reply = int | bytes | Refusal | list["Reply"] | None


class Payload:
    """A large argument of a command: bytes, a payload that is not copied, and its checksum if ``sums``."""

    __slots__ = ("before", "digest", "sums", "view")

    def __init__(self, view: memoryview, *, before: bytes = b"", sums: bool = False) -> None:
        self.before = before
        self.view = view
        self.sums = sums
        self.digest = b""
        """The payload's checksum, once it was sent."""

    @property
    def size_bytes(self) -> int:
        """The length of the whole argument."""
        return len(self.before) + len(self.view) + (DIGEST_BYTES if self.sums else 0)

    def pieces(self) -> Iterator[memoryview]:
        """The payload, each piece just summed up, so that it is in the processor's cache when it is sent."""
        running = hasher()
        for at in range(0, len(self.view), _PIECE_BYTES):
            piece = self.view[at : at + _PIECE_BYTES]
            running.update(piece)
            yield piece
        self.digest = running.digest()


Arg = bytes | Payload


def encode(commands: Iterable[Sequence[Arg]]) -> Iterator[Buffer]:
    """The commands as they go over the wire, joined but for payloads, which stay where they are."""
    text: list[bytes] = []
    for command in commands:
        text.append(b"*%d\r\n" % len(command))
        for arg in command:
            if isinstance(arg, bytes):
                text.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
                continue
            text.append(b"$%d\r\n%b" % (arg.size_bytes, arg.before))
            yield b"".join(text)
            yield from arg.pieces()
            text = [arg.digest if arg.sums else b"", b"\r\n"]
    yield b"".join(text)


class Wire:
    """A connected socket, for one exchange that ends at ``ends_at_s`` (of the monotonic clock).

    Every method raises TimeoutError at that time, OSError when the connection breaks, and valkey-py's
    InvalidResponse for what is no RESP2. After any of them the connection is of no use any more.
    """

    __slots__ = ("_armed_until_s", "_end", "_ends_at_s", "_gathers", "_head", "_sock", "_start", "must_close")

    def __init__(self, sock: socket.socket, *, ends_at_s: float) -> None:
        self._sock = sock
        self._ends_at_s = ends_at_s
        self._gathers = not isinstance(sock, ssl.SSLSocket)
        self._head = memoryview(bytearray(_HEAD_BYTES))
        self._start = self._end = 0
        self._armed_until_s = 0.0
        self.must_close = False
        """Set by who knows that the connection should not be used again."""

    def require_silence(self) -> None:
        """Raises InvalidResponse when there are bytes that no command asked for."""
        if self._start != self._end:
            raise vke.InvalidResponse("there are more replies than commands")

    def send(self, parts: Iterable[Buffer]) -> None:
        """Sends the parts one after the other, each not long after it was made."""
        views: list[memoryview] = []
        gathered_bytes = 0
        for part in parts:
            if gathered_bytes + len(part) > _GATHER_BYTES or len(views) == _GATHER_PARTS:
                self._flush(views)
                views, gathered_bytes = [], 0
            if len(part):
                views.append(memoryview(part))
                gathered_bytes += len(part)
        self._flush(views)

    def _flush(self, views: list[memoryview]) -> None:
        if not self._gathers:
            for view in views:
                self._send_encrypted(view)
            return
        while views:
            self._arm()
            sent = self._sock.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _send_encrypted(self, view: memoryview) -> None:
        while view:
            self._arm()
            view = view[self._sock.send(view) :]

    def call(self, commands: Sequence[Sequence[Arg]]) -> list[Reply]:
        """Sends commands and gives their replies. Raises the first Refusal among them."""
        self.send(encode(commands))
        replies = [self.reply() for _ in commands]
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply
        return replies

    def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Reply] | None:
        """The replies to the commands between MULTI and EXEC; None when a watched key changed."""
        done = self.call([(b"MULTI",), *commands, (b"EXEC",)])[-1]
        if done is not None and (not isinstance(done, list) or len(done) != len(commands)):
            raise vke.InvalidResponse(f"{done!r:.80} answers a transaction of {len(commands)} commands")
        return done

    def reply(self) -> Reply:
        """Any reply that is small: error replies come back as a Refusal, simple strings as bytes."""
        kind, text = self._line(_HEAD_BYTES)
        if kind == b"+":
            return text
        if kind == b"-":
            return Refusal(text.decode("utf-8", "replace"))
        number = _number(text)
        if kind == b":":
            return number
        if number == -1:
            return None
        if kind == b"$":
            if not 0 <= number <= _SHORT_BYTES:
                raise vke.InvalidResponse(f"{number} bytes where a short reply was due")
            content = self.take(number)
            self.end_bulk()
            return content
        return [self.reply() for _ in range(number)]

    def bulk_length(self) -> int | Refusal | None:
        """The length of a value that follows; None when there is none, an error reply otherwise."""
        kind, text = self._line(_STEP_BYTES)
        if kind == b"-":
            return Refusal(text.decode("utf-8", "replace"))
        number = _number(text) if kind == b"$" else -2
        if number < -1:
            raise vke.InvalidResponse(f"{kind + text!r:.80} where a value was due")
        return None if number == -1 else number

    def take(self, size_bytes: int) -> bytes:
        """The next few bytes of a value, at most those of the head buffer."""
        if self._end - self._start < size_bytes:
            self._fill(_STEP_BYTES, at_least=size_bytes)
        content = bytes(self._head[self._start : self._start + size_bytes])
        self._start += size_bytes
        return content

    def read_into(self, view: memoryview, update: Callable[[memoryview], object] | None = None) -> None:
        """Fills ``view`` (bytes, one dimension), and shows ``update`` each piece of it once it is there."""
        at = min(len(view), self._end - self._start)
        if at:
            view[:at] = self._head[self._start : self._start + at]
            self._start += at
            if update is not None:
                update(view[:at])
        while at < len(view):
            self._arm()
            count = self._sock.recv_into(view[at : at + _PIECE_BYTES])
            if not count:
                raise ConnectionResetError("closed by server in the middle of a reply")
            if update is not None:
                update(view[at : at + count])
            at += count

    def skip(self, size_bytes: int) -> None:
        """Reads and forgets the next bytes of a value."""
        scratch = memoryview(bytearray(min(size_bytes, _SKIP_BYTES)))
        while size_bytes:
            self.read_into(scratch[:size_bytes])
            size_bytes -= min(size_bytes, _SKIP_BYTES)

    def end_bulk(self) -> None:
        """Reads the end of a value."""
        if self.take(2) != b"\r\n":
            raise vke.InvalidResponse("a value does not end where its length says")

    def _line(self, step_bytes: int) -> tuple[bytes, bytes]:
        """Type and text of the next line."""
        searched = 0
        while True:
            pending = bytes(self._head[self._start : self._end])
            if pending and pending[0] not in _TYPES:
                raise vke.InvalidResponse(f"the first bytes of the answer are {pending[:24]!r}")
            end = pending.find(b"\r\n", searched)
            if end >= 0:
                self._start += end + 2
                return pending[:1], pending[1:end]
            if len(pending) >= _HEAD_BYTES:
                raise vke.InvalidResponse(f"a line without an end: {pending[:24]!r}")
            searched = max(len(pending) - 1, 0)
            self._fill(step_bytes, at_least=len(pending) + 1)

    def _fill(self, step_bytes: int, *, at_least: int) -> None:
        """Reads on until the head holds that many bytes."""
        if self._start:
            held = bytes(self._head[self._start : self._end])
            self._head[: len(held)] = held
            self._start, self._end = 0, len(held)
        while self._end < at_least:
            self._arm()
            count = self._sock.recv_into(self._head[self._end : self._end + step_bytes])
            if not count:
                raise ConnectionResetError("closed by server before its reply was complete")
            self._end += count

    def _arm(self) -> None:
        now_s = time.monotonic()
        if now_s < self._armed_until_s:
            return
        left_s = self._ends_at_s - now_s
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self._sock.settimeout(left_s)
        self._armed_until_s = min(now_s + _REARM_S, self._ends_at_s)


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise vke.InvalidResponse(f"{text!r:.80} where a number was due") from None
