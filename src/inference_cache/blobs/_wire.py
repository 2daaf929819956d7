"""RESP2 over a socket that someone else opened: buffers out in one call, payloads into the caller's memory.

Reading goes through a small head buffer, in small steps where a payload is expected, so that all of a payload
but its first bytes goes from the socket straight to where the caller wants it; what follows the payload comes
with the same call.

The socket never blocks. What it can take or give is moved at once, and only when there is nothing more is it
waited for, until the deadline: a socket with a timeout would be asked whether it is ready before every call,
and a unix socket is not, as long as a quarter of its buffer is full.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import valkey.exceptions as vke

from inference_cache.blobs._frame import DIGEST_BYTES, digest_of, hasher

__all__ = ["Arg", "Buffer", "Payload", "Refusal", "Reply", "Wire", "command_text", "encode", "words"]

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
_LONGEST_WAIT_S: Final = 3600.0
"""Of one call to the system, whose clock counts milliseconds in 31 bits."""
_TYPES: Final = b"+-:$*"
_OK: Final = b"+OK\r\n"


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

    def pieces(self) -> Iterable[memoryview]:
        """The payload, each piece just summed up, so that it is in the processor's cache when it is sent."""
        if len(self.view) > _PIECE_BYTES:
            return self._many_pieces()
        piece = self.view[:]
        self.digest = digest_of(piece)
        return (piece,)

    def _many_pieces(self) -> Iterator[memoryview]:
        running = hasher()
        for at in range(0, len(self.view), _PIECE_BYTES):
            piece = self.view[at : at + _PIECE_BYTES]
            running.update(piece)
            yield piece
        self.digest = running.digest()


Arg = bytes | Payload


def words(args: Sequence[bytes]) -> bytes:
    """Short arguments as they go over the wire."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


def command_text(args: Sequence[bytes]) -> bytes:
    """A command of short arguments as it goes over the wire."""
    return b"*%d\r\n%b" % (len(args), words(args))


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

    __slots__ = (
        "_encrypted",
        "_end",
        "_ends_at_s",
        "_head",
        "_poll",
        "_sock",
        "_start",
        "_step",
        "_text",
        "must_close",
    )

    def __init__(self, sock: socket.socket, *, ends_at_s: float) -> None:
        self._sock = sock
        self._ends_at_s = ends_at_s
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._text = bytearray(_HEAD_BYTES)
        self._head = memoryview(self._text)
        self._step = self._head[:_STEP_BYTES]
        self._start = self._end = 0
        self._poll: select.poll | None = None
        self.must_close = False
        """Set by who knows that the connection should not be used again."""
        sock.setblocking(False)

    def require_silence(self) -> None:
        """Raises InvalidResponse when there are bytes that no command asked for."""
        if self._start != self._end:
            raise vke.InvalidResponse("there are more replies than commands")

    # --- sending

    def send(self, parts: Iterable[Buffer]) -> None:
        """Sends the parts one after the other, each not long after it was made."""
        views: list[Buffer] = []
        gathered_bytes = 0
        for part in parts:
            size = len(part)
            if gathered_bytes + size > _GATHER_BYTES or len(views) == _GATHER_PARTS:
                self._flush(views, gathered_bytes)
                views, gathered_bytes = [], 0
            if size:
                views.append(part)
                gathered_bytes += size
        self._flush(views, gathered_bytes)

    def _flush(self, parts: list[Buffer], left_bytes: int) -> None:
        if self._encrypted:
            for part in parts:
                self._send_encrypted(memoryview(part))
            return
        while left_bytes:
            self._require_time()
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                sent = 0
            left_bytes -= sent
            if not left_bytes:
                return
            gone = 0
            while sent >= len(parts[gone]):
                sent -= len(parts[gone])
                gone += 1
            del parts[:gone]
            if sent:
                parts[0] = memoryview(parts[0])[sent:]
            self._await(select.POLLOUT)

    def _send_encrypted(self, view: memoryview) -> None:
        while view:
            self._require_time()
            try:
                view = view[self._sock.send(view) :]
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._await(select.POLLIN)

    # --- short replies

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
        if self._text.startswith(_OK, self._start, self._end):
            self._start += len(_OK)
            return b"OK"
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
            return self.ending(number)
        return [self.reply() for _ in range(number)]

    # --- values

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

    def read_summed(self, view: memoryview) -> bytes:
        """Fills ``view`` (bytes, one dimension); the checksum of what it then holds."""
        if len(view) <= _PIECE_BYTES:
            self._read_into(view)
            return digest_of(view)
        running = hasher()
        self._read_into(view, running.update)
        return running.digest()

    def skip(self, size_bytes: int) -> None:
        """Reads and forgets the next bytes of a value."""
        scratch = memoryview(bytearray(min(size_bytes, _SKIP_BYTES)))
        while size_bytes:
            self._read_into(scratch[:size_bytes])
            size_bytes -= min(size_bytes, _SKIP_BYTES)

    def ending(self, size_bytes: int) -> bytes:
        """The last few bytes of a value, and its end, which is not among them."""
        content = self.take(size_bytes + 2)
        if not content.endswith(b"\r\n"):
            raise vke.InvalidResponse("a value does not end where its length says")
        return content[:-2]

    def _read_into(self, view: memoryview, update: Callable[[memoryview], object] | None = None) -> None:
        """Fills ``view``, and shows ``update`` each piece of it once it is there."""
        left_bytes = len(view)
        held_bytes = min(left_bytes, self._end - self._start)
        if held_bytes:
            view[:held_bytes] = self._head[self._start : self._start + held_bytes]
            self._start += held_bytes
            if update is not None:
                update(view[:held_bytes])
            view = view[held_bytes:]
            left_bytes -= held_bytes
        while left_bytes:
            # The head is empty now, and what follows the last piece goes there.
            last = left_bytes <= _PIECE_BYTES and not self._encrypted
            piece = view if last else view[:_PIECE_BYTES]
            asked_bytes = len(piece)
            count = self._receive([piece, self._step] if last else [piece])
            if count >= asked_bytes:
                self._start, self._end = 0, count - asked_bytes
                count = asked_bytes
            if update is not None:
                update(piece[:count])
            left_bytes -= count
            if left_bytes:
                view = view[count:]
                if count < asked_bytes and not self._encrypted:
                    self._await(select.POLLIN)

    def _line(self, step_bytes: int) -> tuple[bytes, bytes]:
        """Type and text of the next line."""
        searched = 0
        while True:
            start, end = self._start, self._end
            kind = bytes(self._head[start : min(start + 1, end)])
            if kind and kind not in _TYPES:
                raise vke.InvalidResponse(
                    f"the first bytes of the answer are {bytes(self._head[start:end][:24])!r}"
                )
            found = self._text.find(b"\r\n", start + searched, end)
            if found >= 0:
                self._start = found + 2
                return kind, bytes(self._head[start + 1 : found])
            pending_bytes = end - start
            if pending_bytes >= _HEAD_BYTES:
                raise vke.InvalidResponse(f"a line without an end: {bytes(self._head[:24])!r}")
            searched = max(pending_bytes - 1, 0)
            self._fill(step_bytes, at_least=pending_bytes + 1)

    def _fill(self, step_bytes: int, *, at_least: int) -> None:
        """Reads on until the head holds that many bytes."""
        if self._start:
            held = bytes(self._head[self._start : self._end])
            self._head[: len(held)] = held
            self._start, self._end = 0, len(held)
        while self._end < at_least:
            self._end += self._receive([self._head[self._end : self._end + step_bytes]])

    # --- waiting

    def _receive(self, targets: list[memoryview]) -> int:
        """What there is for the targets, in order: a byte at least, and as much as they hold at most."""
        while True:
            self._require_time()
            try:
                if len(targets) == 1:
                    count = self._sock.recv_into(targets[0])
                else:
                    count = self._sock.recvmsg_into(targets)[0]
            except (BlockingIOError, ssl.SSLWantReadError):
                self._await(select.POLLIN)
                continue
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT)
                continue
            if not count:
                raise ConnectionResetError("closed by server before its reply was complete")
            return count

    def _require_time(self) -> None:
        if time.monotonic() >= self._ends_at_s:
            raise TimeoutError("the deadline has passed")

    def _await(self, event: int) -> None:
        """Waits until the socket can go on, or is broken, or the time is over: the next call tells."""
        descriptor = self._sock.fileno()
        if descriptor < 0:
            raise ConnectionAbortedError("the connection was closed here in the middle of an exchange")
        if self._poll is None:
            self._poll = select.poll()
        self._poll.register(descriptor, event)
        left_s = min(self._ends_at_s - time.monotonic(), _LONGEST_WAIT_S)
        self._poll.poll(max(0, math.ceil(1000 * left_s)))


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise vke.InvalidResponse(f"{text!r:.80} where a number was due") from None
