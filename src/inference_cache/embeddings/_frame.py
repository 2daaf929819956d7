"""How a vector stands in the cache: a header that binds it to its key, then its bytes as they are.

::

    0   3   b"ICE"
    3   1   format version, 1
    4   8   xxh3-64 of everything that follows
    12  1   dtype: 1 float32, 2 float16, 3 bfloat16, 4 int8
    13  3   zero
    16  4   dimensions
    20  16  the first half of the key's digest
    36      the vector

Numbers are little-endian, and so are the components of the vector.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from inference_cache.errors import MissingExtra

__all__ = ["HEADER_BYTES", "Framing", "Refusal"]

_MAGIC: Final = b"ICE"
_VERSION: Final = 1
_START: Final = struct.Struct("<3sBQ")
_BINDING: Final = struct.Struct("<B3xI16s")
_BOUND_BYTES: Final = 16
HEADER_BYTES: Final = _START.size + _BINDING.size


class Refusal(StrEnum):
    """Why an entry is not the vector that was asked for."""

    CORRUPT = "corrupt"
    FOREIGN = "foreign"
    WRONG_SHAPE = "wrong_shape"
    WRONG_VERSION = "wrong_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """Frames for vectors of one dtype and size.

    Raises MissingExtra when xxhash is not installed.
    """

    dtype_code: int
    dimensions: int
    row_bytes: int
    _xxh3_64: Callable[[bytes | memoryview], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            from xxhash import xxh3_64_intdigest
        except ImportError as error:
            raise MissingExtra(module="xxhash", extra="embeddings") from error
        object.__setattr__(self, "_xxh3_64", xxh3_64_intdigest)

    def wrap(self, digest: bytes, row: memoryview) -> bytes:
        """The value to store under the key with this digest; ``row`` holds ``row_bytes`` bytes."""
        body = b"".join((_BINDING.pack(self.dtype_code, self.dimensions, digest[:_BOUND_BYTES]), row))
        return _START.pack(_MAGIC, _VERSION, self._xxh3_64(body)) + body

    def unwrap(self, digest: bytes, value: bytes) -> memoryview | Refusal:
        """The vector's bytes, a view into ``value``, or why it is not the one of this digest."""
        if len(value) < HEADER_BYTES:
            return Refusal.CORRUPT if _MAGIC.startswith(value[:3]) else Refusal.FOREIGN
        magic, version, checksum = _START.unpack_from(value)
        if magic != _MAGIC:
            return Refusal.FOREIGN
        if version != _VERSION:
            return Refusal.WRONG_VERSION
        view = memoryview(value)
        if self._xxh3_64(view[_START.size :]) != checksum:
            return Refusal.CORRUPT
        dtype_code, dimensions, bound = _BINDING.unpack_from(value, _START.size)
        if bound != digest[:_BOUND_BYTES]:
            return Refusal.FOREIGN
        if (dtype_code, dimensions, len(value)) != (
            self.dtype_code,
            self.dimensions,
            HEADER_BYTES + self.row_bytes,
        ):
            return Refusal.WRONG_SHAPE
        return view[HEADER_BYTES:]
