"""What is asked of a server in a pipeline: commands for one key, and what to make of their replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from inference_cache.blobs._frame import (
    DIGEST_BYTES,
    HEADER_BYTES,
    Damage,
    Header,
    Kind,
    damage_of_length,
    parse_header,
    whole_header,
)
from inference_cache.blobs._wire import (
    Arg,
    Buffer,
    Payload,
    Refusal,
    Reply,
    Wire,
    command_text,
    encode,
    words,
)
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

_MULTI: Final = command_text([b"MULTI"])
_EXEC: Final = command_text([b"EXEC"])


class Request:
    """Commands for one key, sent and answered together. May be sent again until it is ``done``."""

    payload_bytes = 0
    """Payload that it carries, or that is expected back."""
    reply_bytes = 0
    """Payload that is expected back."""
    done = False
    refusal: Refusal | None = None
    """The error reply, when that is the answer."""
    error: CacheError | None = None
    """Why there is no usable answer; filled in by the transport, from ``refusal`` too."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def parts(self) -> Iterable[Buffer]:
        """What to send."""
        raise NotImplementedError

    def receive(self, wire: Wire) -> None:
        """Reads all its replies, however they turn out, and is done."""
        raise NotImplementedError


class Commands(Request):
    """Commands with short replies, which end up in ``replies``."""

    def __init__(self, key: bytes, commands: Sequence[Command] = ()) -> None:
        self.key = key
        self._commands = commands
        self.replies: list[Reply] = []

    def parts(self) -> Iterable[Buffer]:
        return encode(self._commands)

    def receive(self, wire: Wire) -> None:
        self._receive(wire, len(self._commands))

    def _receive(self, wire: Wire, due: int) -> None:
        self.refusal = None
        self.replies = [wire.reply() for _ in range(due)]
        for reply in self.replies:
            if isinstance(reply, Refusal):
                self.refusal = reply
                break
        self.done = True


def get_header(key: bytes) -> Sequence[bytes]:
    """The command whose reply :func:`parse_header` reads."""
    return (b"GETRANGE", key, b"0", b"%d" % (HEADER_BYTES - 1))


def set_command(key: bytes, value: Arg, ttl_ms: int | None) -> Command:
    """SET, with or without a time to live."""
    return (b"SET", key, value) if ttl_ms is None else (b"SET", key, value, b"PX", b"%d" % ttl_ms)


class StoreWhole(Commands):
    """Stores a value under its key, and with ``swap`` learns in the same step what it replaces."""

    def __init__(self, key: bytes, payload: memoryview, *, ttl_ms: int | None, swap: bool) -> None:
        self.key = key
        self.payload_bytes = payload.nbytes
        self._payload = payload
        self._ttl_ms = ttl_ms
        self._swap = swap

    def parts(self) -> Iterable[Buffer]:
        # What encode() would make of the commands; a batch of small values would spend half its time there.
        key, ttl_ms = self.key, self._ttl_ms
        value = Payload(self._payload)
        before = b"*%d\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (
            3 if ttl_ms is None else 5,
            len(key),
            key,
            HEADER_BYTES + self.payload_bytes + DIGEST_BYTES,
            whole_header(key, self.payload_bytes),
        )
        after = b"\r\n" if ttl_ms is None else b"\r\n%b" % words([b"PX", b"%d" % ttl_ms])
        if self._swap:
            before = b"%b%b%b" % (_MULTI, command_text(get_header(key)), before)
            after += _EXEC
        yield before
        yield from value.pieces()
        yield value.digest + after

    def receive(self, wire: Wire) -> None:
        self._receive(wire, 4 if self._swap else 1)

    @property
    def replaced(self) -> Header | None:
        """The manifest that stood there before, if one did."""
        done = self.replies[-1] if self._swap and self.done else None
        before = done[0] if isinstance(done, list) and done else None
        header = parse_header(before, self.key) if isinstance(before, bytes) else None
        return header if isinstance(header, Header) and header.kind is Kind.MANIFEST else None


class StoreChunk(Commands):
    """Stores one chunk, which will be gone after ``ttl_ms`` unless the value is completed."""

    def __init__(self, key: bytes, payload: memoryview, *, ttl_ms: int) -> None:
        self._payload = Payload(payload)
        super().__init__(key, [set_command(key, self._payload, ttl_ms)])
        self.payload_bytes = payload.nbytes

    @property
    def digest(self) -> bytes:
        """The chunk's checksum, once it was sent."""
        return self._payload.digest


class _Get(Request):
    """GET of a value that may be large."""

    missing = False
    damage: Damage | None = None

    def parts(self) -> Iterable[Buffer]:
        return (b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(self.key), self.key),)

    def receive(self, wire: Wire) -> None:
        self.missing = False
        self.damage = self.refusal = None
        length = wire.bulk_length()
        if length is None:
            self.missing = True
        elif isinstance(length, int):
            self.damage = self._receive_value(wire, length)
        elif length.reply.startswith("WRONGTYPE"):
            # A list or a hash is no harm to the server, but it is none of ours.
            self.damage = Damage.FOREIGN
        else:
            self.refusal = length
        self.done = True

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        raise NotImplementedError


class Load(_Get):
    """Loads what lies under a main key: a whole value into its place, or a manifest.

    ``place`` gives the memory for a value of so many bytes, or None when it does not want that many.
    """

    manifest: Header | None = None
    digests: Sequence[bytes] = ()
    """Those of the manifest's chunks."""

    def __init__(self, key: bytes, place: Callable[[int], memoryview | None], *, expected_bytes: int) -> None:
        self.key = key
        self.payload_bytes = self.reply_bytes = expected_bytes
        self._place = place

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        self.manifest = None
        size_bytes = length_bytes - HEADER_BYTES - DIGEST_BYTES
        head = wire.take(min(length_bytes, HEADER_BYTES))
        if size_bytes < 0 or head != whole_header(self.key, size_bytes):
            return self._receive_other(wire, head, max(length_bytes - HEADER_BYTES, 0))
        view = self._place(size_bytes)
        if view is None:
            return _skipped(wire, size_bytes + DIGEST_BYTES, Damage.SIZE)
        return None if wire.read_summed(view) == wire.ending(DIGEST_BYTES) else Damage.CHECKSUM

    def _receive_other(self, wire: Wire, head: bytes, rest_bytes: int) -> Damage | None:
        """What is no whole value: a manifest, or nothing that could be used."""
        header = parse_header(head, self.key)
        if isinstance(header, Damage):
            return _skipped(wire, rest_bytes, header)
        damage = damage_of_length(rest_bytes, header.payload_bytes + DIGEST_BYTES)
        if damage is not None:
            return _skipped(wire, rest_bytes, damage)
        table = memoryview(bytearray(header.payload_bytes))
        if wire.read_summed(table) != wire.ending(DIGEST_BYTES):
            return Damage.CHECKSUM
        self.manifest = header
        self.digests = [bytes(table[at : at + DIGEST_BYTES]) for at in range(0, len(table), DIGEST_BYTES)]
        return None


class LoadChunk(_Get):
    """Loads one chunk into its part of the value."""

    def __init__(self, key: bytes, view: memoryview, *, due_digest: bytes) -> None:
        self.key = key
        self.payload_bytes = self.reply_bytes = view.nbytes
        self._view = view
        self._due_digest = due_digest

    def _receive_value(self, wire: Wire, length_bytes: int) -> Damage | None:
        damage = damage_of_length(length_bytes, self._view.nbytes)
        if damage is not None:
            return _skipped(wire, length_bytes, damage)
        found_digest = wire.read_summed(self._view)
        wire.ending(0)
        return None if found_digest == self._due_digest else Damage.CHECKSUM


def _skipped(wire: Wire, size_bytes: int, damage: Damage) -> Damage:
    wire.skip(size_bytes)
    wire.ending(0)
    return damage
