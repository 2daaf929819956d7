"""The bytes of one object on their way to Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from inference_cache.errors import BlobCorrupt

__all__ = ["PiecewiseSource", "Source"]


class Source(Protocol):
    """The bytes of an object, to be read to the end."""

    def readinto(self, target: memoryview) -> int: ...


class PiecewiseSource:
    """The bytes of an object out of the pieces of its record."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._left_bytes = 0
        self.begun = False
        """Whether Ray has begun to read it, and not come to its end."""

    def first(self) -> memoryview:
        self._piece = next(self._pieces)
        return self._piece

    def skip(self, size_bytes: int, left_bytes: int) -> None:
        self._piece = self._piece[size_bytes:]
        self._left_bytes = left_bytes

    def readinto(self, target: memoryview) -> int:
        """Fills as much as there is at once. Raises BlobError and CacheError from the second piece on."""
        self.begun = self._left_bytes > 0
        if not self._piece and self._left_bytes:
            self._piece = next(self._pieces, memoryview(b""))
            if not self._piece:
                raise BlobCorrupt(f"the last {self._left_bytes} bytes are missing", damage="short")
        count = min(len(self._piece), len(target))
        target[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        self._left_bytes -= count
        self.begun = self._left_bytes > 0
        return count

    def close(self) -> None:
        """Ends the fetching."""
        self._piece = memoryview(b"")
        close: Callable[[], None] | None = getattr(self._pieces, "close", None)
        if close is not None:
            close()
