"""The bytes around a value: how they are made, and how a wrong one is told from a right one.

A value is one key that holds a header, the payload, and the payload's checksum, which comes last so that it
can be computed while the payload is on its way. A value that is larger than the chunk limit is split: its
pieces lie bare under chunk keys, and the main key holds a manifest, which is a frame too, whose payload is
the table of the pieces' checksums.

All numbers are little-endian. Offsets and sizes in bytes, of n bytes of payload:

====== ==== ===========================================================================================
offset size field
====== ==== ===========================================================================================
0      8    magic, ``AB 49 43 42 4C 4F 42 0A``
8      1    format version, 1
9      1    kind: 1 whole value, 2 manifest
10     2    reserved, 0
12     4    number of chunks; 0 in a whole value
16     8    length of the value, that of all chunks together in a manifest
24     8    length of each chunk but the last; 0 in a whole value
32     16   generation, random, part of the chunks' keys; zeros in a whole value
48     8    XXH3-64 of the key, so that a value read under another key is not taken for that key's
56     8    XXH3-64 of the bytes 0 to 55
64     n    payload: the value, or for each chunk the XXH3-128 of its bytes
64 + n 16   XXH3-128 of the payload
====== ==== ===========================================================================================

The checksums find accidents of every kind. They are no signature: who may write to the cache may write
anything.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from inference_cache.errors import MissingExtra

try:
    from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128, xxh3_128_digest
except ImportError as error:
    raise MissingExtra(module="xxhash", extra="blobs") from error

__all__ = [
    "DIGEST_BYTES",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_CHUNKS",
    "Damage",
    "Header",
    "Kind",
    "chunk_key",
    "damage_of_length",
    "digest_of",
    "hasher",
    "is_chunk_key",
    "manifest_frame",
    "new_generation",
    "parse_header",
    "whole_header",
]

MAGIC: Final = b"\xabICBLOB\n"
VERSION: Final = 1
DIGEST_BYTES: Final = 16
MAX_CHUNKS: Final = 16_384
_HEADER: Final = struct.Struct("<8sBBHIQQ16sQ")
_WHOLE: Final = struct.Struct("<16sQ24xQ")
"""The same for a whole value, of which but length and key are always alike."""
_SEAL: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEADER.size + _SEAL.size
_CHUNK_MARK: Final = b":~"
_HEX: Final = frozenset(b"0123456789abcdef")

hasher = xxh3_128
"""A new running checksum, with ``update(buffer)`` and ``digest() -> bytes``."""
digest_of = xxh3_128_digest
"""The checksum of one buffer."""


class Kind(Enum):
    """What stands behind a header."""

    WHOLE = 1
    MANIFEST = 2


class Damage(Enum):
    """Why what was found is not the value that was stored."""

    SHORT = "short"
    """Bytes are missing at the end."""
    LONG = "long"
    """There are more bytes than the header says."""
    CHECKSUM = "checksum"
    """Some byte is not what it was."""
    FOREIGN = "foreign"
    """Not written here, or written for another key."""
    VERSION = "version"
    """Written by a newer version of this package."""
    SIZE = "size"
    """Whole and sound, but not as long as the caller's buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header whose seal and key are right."""

    kind: Kind
    chunks: int
    total_bytes: int
    chunk_bytes: int
    generation: bytes

    @property
    def payload_bytes(self) -> int:
        """Length of what lies between the header and its checksum."""
        return self.total_bytes if self.kind is Kind.WHOLE else self.chunks * DIGEST_BYTES

    def spans(self) -> Iterable[tuple[int, int]]:
        """Where each chunk begins and ends in the value."""
        for start in range(0, self.total_bytes, self.chunk_bytes):
            yield start, min(start + self.chunk_bytes, self.total_bytes)

    def chunk_keys(self, key: bytes) -> list[bytes]:
        """The keys of the chunks, in order; none for a whole value."""
        return [chunk_key(key, self.generation, index) for index in range(self.chunks)]


def new_generation() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(16)


def chunk_key(key: bytes, generation: bytes, index: int) -> bytes:
    """``<key>:~<generation in hex>:<index>``: under the key's prefix, and the key of no value."""
    return b"%b%b%b:%d" % (key, _CHUNK_MARK, generation.hex().encode(), index)


def is_chunk_key(key: bytes) -> bool:
    """Whether a key has the shape of a chunk's, which no value may have."""
    if _CHUNK_MARK not in key:
        return False
    front, colon, index = key.rpartition(b":")
    mark = front[-34:]
    return bool(
        colon and index.isdigit() and mark[:2] == _CHUNK_MARK and len(mark) == 34
    ) and _HEX.issuperset(mark[2:])


_WHOLE_START: Final = struct.pack("<8sBBHI", MAGIC, VERSION, Kind.WHOLE.value, 0, 0)


def whole_header(key: bytes, size_bytes: int) -> bytes:
    """The header that stands before a whole value of that length, and no other may."""
    fields = _WHOLE.pack(_WHOLE_START, size_bytes, xxh3_64_intdigest(key))
    return fields + xxh3_64_digest(fields)[::-1]


def manifest_frame(
    key: bytes, *, total_bytes: int, chunk_bytes: int, generation: bytes, digests: list[bytes]
) -> bytes:
    """The value of the main key of a chunked value: header, table and checksum."""
    table = b"".join(digests)
    fields = _HEADER.pack(
        MAGIC,
        VERSION,
        Kind.MANIFEST.value,
        0,
        len(digests),
        total_bytes,
        chunk_bytes,
        generation,
        xxh3_64_intdigest(key),
    )
    return fields + _SEAL.pack(xxh3_64_intdigest(fields)) + table + xxh3_128_digest(table)


def parse_header(head: bytes, key: bytes) -> Header | Damage:
    """Reads the first bytes of what lies under ``key``: a header's length, or all that there are."""
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        return Damage.FOREIGN
    if len(head) < HEADER_BYTES:
        return Damage.SHORT
    fields, seal = head[: _HEADER.size], head[_HEADER.size :]
    _, version, kind, reserved, chunks, total, chunk, generation, of_key = _HEADER.unpack(fields)
    if version != VERSION:
        return Damage.VERSION
    if _SEAL.unpack(seal)[0] != xxh3_64_intdigest(fields):
        return Damage.CHECKSUM
    if of_key != xxh3_64_intdigest(key):
        return Damage.FOREIGN
    if reserved or kind not in (Kind.WHOLE.value, Kind.MANIFEST.value):
        return Damage.VERSION
    if kind == Kind.WHOLE.value and head != whole_header(key, total):
        return Damage.VERSION
    if kind == Kind.MANIFEST.value and (not chunk or chunks > MAX_CHUNKS or chunks != -(-total // chunk)):
        return Damage.FOREIGN
    return Header(
        kind=Kind(kind),
        chunks=chunks,
        total_bytes=total,
        chunk_bytes=chunk,
        generation=generation,
    )


def damage_of_length(found_bytes: int, due_bytes: int) -> Damage | None:
    """SHORT or LONG, or None when the length is right."""
    if found_bytes < due_bytes:
        return Damage.SHORT
    return Damage.LONG if found_bytes > due_bytes else None
