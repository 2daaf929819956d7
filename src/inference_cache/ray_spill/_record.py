"""What is stored of a Ray object: its owner's address, its metadata and its bytes, in one value.

All numbers are little-endian. The record is the payload of a frame of :mod:`inference_cache.blobs`, which
adds the checksum over all of it.

====== ==== ============================================================
offset size field
====== ==== ============================================================
0      4    format of the record, 1
4      4    length of the owner's address, o
8      4    length of the metadata, m
12     4    reserved, 0
16     8    length of the object's bytes, n
24     o    the owner's address, a serialized ``ray.rpc.Address``
24+o   m    the metadata, which tells Ray how the bytes are encoded
24+o+m n    the bytes
====== ==== ============================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from inference_cache.errors import BlobCorrupt

__all__ = ["HEAD_BYTES", "Gathered", "Head", "SpilledObject", "parse_head", "record_bytes", "record_of"]

_HEAD: Final = struct.Struct("<IIIIQ")
_FORMAT: Final = 1
HEAD_BYTES: Final = _HEAD.size
_JOINED_BYTES: Final = 1024 * 1024
"""Where two buffers meet, a part up to this size is copied into one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpilledObject:
    """One object of Ray's. ``buffer`` is not copied, and must not change while it is being stored."""

    id: str
    """Its id, in hex."""
    owner: bytes
    metadata: bytes
    buffer: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first fields of a record."""

    owner_bytes: int
    metadata_bytes: int
    buffer_bytes: int

    @property
    def before_bytes(self) -> int:
        """Where the object's bytes begin."""
        return HEAD_BYTES + self.owner_bytes + self.metadata_bytes

    @property
    def total_bytes(self) -> int:
        return self.before_bytes + self.buffer_bytes


class Gathered:
    """Several buffers seen as one, with as much of a memoryview as storing needs: length and slices."""

    __slots__ = ("_views", "nbytes")

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = [view for view in views if view.nbytes]
        self.nbytes = sum(view.nbytes for view in self._views)

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, part: slice) -> memoryview | Gathered:
        start, stop, _ = part.indices(self.nbytes)
        pieces: list[memoryview] = []
        for view in self._views:
            if start < view.nbytes and stop > 0:
                pieces.append(view[max(start, 0) : stop])
            start -= view.nbytes
            stop -= view.nbytes
        if len(pieces) == 1:
            return pieces[0]
        found = Gathered(pieces)
        return found if found.nbytes > _JOINED_BYTES else memoryview(b"".join(pieces))


def record_of(item: SpilledObject) -> Gathered:
    """The record of an object, its bytes where they lie."""
    head = _HEAD.pack(_FORMAT, len(item.owner), len(item.metadata), 0, item.buffer.nbytes)
    return Gathered([memoryview(head + item.owner + item.metadata), item.buffer])


def record_bytes(item: SpilledObject) -> int:
    """Length of an object's record."""
    return HEAD_BYTES + len(item.owner) + len(item.metadata) + item.buffer.nbytes


def parse_head(start: bytes | memoryview, *, total_bytes: int) -> Head:
    """The head of a record of ``total_bytes``, from its first :data:`HEAD_BYTES` at least.

    Raises:
        BlobCorrupt: these are not the first bytes of a record of that length.
    """
    if len(start) >= HEAD_BYTES:
        form, owner_bytes, metadata_bytes, reserved, buffer_bytes = _HEAD.unpack_from(start)
        head = Head(owner_bytes=owner_bytes, metadata_bytes=metadata_bytes, buffer_bytes=buffer_bytes)
        if form == _FORMAT and not reserved and head.total_bytes == total_bytes:
            return head
    raise BlobCorrupt(
        f"a value of {total_bytes} bytes is sound, but it is no record of a spilled object", damage="foreign"
    )
