"""What a key costs the server beside its value, in bytes of ``used_memory``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["EMPTY_SERVER_BYTES", "Allocator", "MemoryModel"]

Allocator = Literal["jemalloc", "libc"]

EMPTY_SERVER_BYTES = 1_070_000
"""``used_memory`` of a server without keys, with the default buffers (measured on 8.1.8 and 9.1.2)."""

_OBJECT = 16
"""The object header in front of a key."""
_EXPIRE = 8
"""An expiry time, kept with the key."""
_EMBEDDED = 64
"""An entry of at most this many bytes holds key and value in one allocation."""
_TABLE_SHARE = 13.0
"""A key's share of a hash table: buckets of 64 bytes for 7 keys, doubled when full, 9 to 18 bytes a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Valkey's memory for a string key: the entry (object, expiry, key), the value, the tables that name it.

    Which allocator the server was built with decides how each allocation is rounded up. ``jemalloc``
    (official images) has four size classes a doubling, so a value just above a power of two, as a 4 MiB block
    with its header is, takes 25 % more. ``libc`` (the wheels that ship a server) rounds to 16 bytes, and to
    whole pages from 128 KiB on. INFO's ``mem_allocator`` tells. Checked against MEMORY USAGE of Valkey 8.1.8
    and 9.1.2 with libc, and for the classes of jemalloc of Redis 6.2.5 with jemalloc 5.1.
    """

    allocator: Allocator = "jemalloc"

    def stored_bytes(
        self, value_bytes: NDArray[np.int64], key_bytes: NDArray[np.int64], has_ttl: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Bytes of each key with its value, all of its overhead included."""
        entry = _OBJECT + _EXPIRE * has_ttl + key_bytes + 4
        header = np.select([value_bytes < 256, value_bytes < 65_536, value_bytes < 2**32], [4, 6, 10], 18)
        value = value_bytes + header
        together = entry + value <= _EMBEDDED
        apart = self.allocated(entry) + self.allocated(value)
        tables = _TABLE_SHARE * (1 + has_ttl)
        sizes: NDArray[np.float64] = np.where(together, self.allocated(entry + value), apart) + tables
        return sizes

    def allocated(self, wanted_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the allocator takes for requests of these sizes."""
        if self.allocator == "libc":
            small = np.maximum(24, (wanted_bytes + 23) // 16 * 16 - 8)
            return np.where(wanted_bytes < 128 * 1024, small, (wanted_bytes + 16 + 4095) // 4096 * 4096 - 16)
        # Classes: multiples of 16 up to 128, then four to each doubling.
        power = np.ceil(np.log2(np.maximum(wanted_bytes, 128))).astype(np.int64)
        spacing = 1 << (power - 3)
        rounded: NDArray[np.int64] = (wanted_bytes + spacing - 1) // spacing * spacing
        return rounded
