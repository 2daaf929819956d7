"""What is asked of a server in a pipeline: commands for one key, and what to make of their replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from inference_cache.blobs._frame import (
    DIGEST_BYTES,
    HEADER_BYTES,
    Damage,
    Header,
    Kind,
    damage_of_length,
    hasher,
    parse_header,
    whole_header,
)
from inference_cache.blobs._wire import Arg, Buffer, Payload, Refusal, Reply, Wire, encode
from inference_cache.errors import CacheError

__all__ = [
    "Commands",
    "Load",
    "LoadChunk",
    "Request",
    "StoreChunk",
    "StoreWhole",
    "get_header",
    "set_command",
]

Command = Sequence[Arg]


class Request:
    """Commands for one key, sent and answered together. May be sent again until it is ``done``."""

    sent_bytes = 0
    """Payload that it carries."""
    reply_bytes = 0
    """Payload that is expected back."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.done = False
        self.refusal: Refusal | None = None
        """The error reply, when that is the answer."""
        self.error: CacheError | None = None
        """Why there is no usable answer; filled in by the transport, from ``refusal`` too."""

    def parts(self) -> Iterator[Buffer]:
        """What to send."""
        raise NotImplementedError

    def receive(self, wire: Wire) -> None:
        """Reads all its replies, however they turn out, and is done."""
        raise NotImplementedError


class Commands(Request):
    """Commands with short replies, which end up in ``replies``."""

    def __init__(self, key: bytes, commands: Sequence[Command] = ()) -> None:
        super().__init__(key)
        self._commands = commands
        self._due = 0
        self.replies: list[Reply] = []

    def commands(self) -> Sequence[Command]:
        """What to send."""
        return self._commands

    def parts(self) -> Iterator[Buffer]:
        commands = self.commands()
        self._due = len(commands)
        return encode(commands)

    def receive(self, wire: Wire) -> None:
        self.replies = [wire.reply() for _ in range(self._due)]
        self.refusal = next((reply for reply in self.replies if isinstance(reply, Refusal)), None)
        self.done = True


def get_header(key: bytes) -> Command:
    """The command whose reply :func:`parse_header` reads."""
    return (b"GETRANGE", key, b"0", b"%d" % (HEADER_BYTES - 1))


def set_command(key: bytes, value: Arg, ttl_ms: int | None) -> Command:
    """SET, with or without a time to live."""
    return (b"SET", key, value) if ttl_ms is None else (b"SET", key, value, b"PX", b"%d" % ttl_ms)


class StoreWhole(Commands):
    """Stores a value under its key, and with ``swap`` learns in the same step what it replaces."""

    def __init__(self, key: bytes, payload: memoryview, *, ttl_ms: int | None, swap: bool) -> None:
        super().__init__(key)
        self._payload = payload
        self._ttl_ms = ttl_ms
        self._swap = swap
        self.sent_bytes = payload.nbytes

    def commands(self) -> Sequence[Command]:
        value = Payload(self._payload, before=whole_header(self.key, self._payload), sums=True)
        store = set_command(self.key, value, self._ttl_ms)
        return [(b"MULTI",), get_header(self.key), store, (b"EXEC",)] if self._swap else [store]

    @property
    def replaced(self) -> Header | None:
        """The manifest that stood there before, if one did."""
        done = self.replies[-1] if self._swap and self.replies else None
        before = done[0] if isinstance(done, list) and done else None
        header = parse_header(before, self.key) if isinstance(before, bytes) else None
        return header if isinstance(header, Header) and header.kind is Kind.MANIFEST else None


class StoreChunk(Commands):
    """Stores one chunk, which will be gone after ``ttl_ms`` unless the value is completed."""

    def __init__(self, key: bytes, payload: memoryview, *, ttl_ms: int) -> None:
        self._payload = Payload(payload)
        super().__init__(key, [set_command(key, self._payload, ttl_ms)])
        self.sent_bytes = payload.nbytes

    @property
    def digest(self) -> bytes:
        """The chunk's checksum, once it was sent."""
        return self._payload.digest


class _Get(Request):
    """GET of a value that may be large."""

    def __init__(self, key: bytes, reply_bytes: int) -> None:
        super().__init__(key)
        self.reply_bytes = reply_bytes
        self.missing = False
        self.damage: Damage | None = None

    def parts(self) -> Iterator[Buffer]:
        return encode([(b"GET", self.key)])

    def receive(self, wire: Wire) -> None:
        self.missing = False
        self.damage = self.refusal = None
        length = wire.bulk_length()
        if isinstance(length, Refusal):
            # A list or a hash is no harm to the server, but it is none of ours.
            if length.reply.startswith("WRONGTYPE"):
                self.damage = Damage.FOREIGN
            else:
                self.refusal = length
        elif length is None:
            self.missing = True
        else:
            self.damage = self._receive_value(wire, length)
            wire.end_bulk()
        self.done = True

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        raise NotImplementedError


class Load(_Get):
    """Loads what lies under a main key: a whole value into its place, or a manifest.

    ``place`` gives the memory for a value of so many bytes, or None when it does not want that many.
    """

    def __init__(self, key: bytes, place: Callable[[int], memoryview | None], *, expected_bytes: int) -> None:
        super().__init__(key, expected_bytes)
        self._place = place
        self.manifest: Header | None = None
        self.digests: list[bytes] = []

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        self.manifest = None
        header = parse_header(wire.take(min(length_bytes, HEADER_BYTES)), self.key)
        rest_bytes = max(length_bytes - HEADER_BYTES, 0)
        if isinstance(header, Damage):
            return _skipped(wire, rest_bytes, header)
        damage = damage_of_length(rest_bytes, header.payload_bytes + DIGEST_BYTES)
        if damage is not None:
            return _skipped(wire, rest_bytes, damage)
        view: memoryview | None
        if header.kind is Kind.MANIFEST:
            view = memoryview(bytearray(header.payload_bytes))
        else:
            view = self._place(header.payload_bytes)
        if view is None:
            return _skipped(wire, rest_bytes, Damage.SIZE)
        running = hasher()
        wire.read_into(view, running.update)
        if wire.take(DIGEST_BYTES) != running.digest():
            return Damage.CHECKSUM
        if header.kind is Kind.MANIFEST:
            starts = range(0, len(view), DIGEST_BYTES)
            self.digests = [bytes(view[at : at + DIGEST_BYTES]) for at in starts]
            self.manifest = header
        return None


class LoadChunk(_Get):
    """Loads one chunk into its part of the value."""

    def __init__(self, key: bytes, view: memoryview, *, due_digest: bytes) -> None:
        super().__init__(key, view.nbytes)
        self._view = view
        self._due_digest = due_digest

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        damage = damage_of_length(length_bytes, self._view.nbytes)
        if damage is not None:
            return _skipped(wire, length_bytes, damage)
        running = hasher()
        wire.read_into(self._view, running.update)
        return None if running.digest() == self._due_digest else Damage.CHECKSUM


def _skipped(wire: Wire, size_bytes: int, damage: Damage) -> Damage:
    wire.skip(size_bytes)
    return damage
