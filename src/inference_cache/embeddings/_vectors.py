"""Vectors as arrays outside and as bytes inside, with every bit kept on the way."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from inference_cache.errors import InvalidVectors, MissingExtra, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

__all__ = ["DTYPES", "MAX_DIMENSIONS", "Dtype", "Layout"]

Dtype = Literal["float32", "float16", "bfloat16", "int8"]

DTYPES: Final[Mapping[str, tuple[int, int]]] = {
    "float32": (1, 4),
    "float16": (2, 2),
    "bfloat16": (3, 2),
    "int8": (4, 1),
}
"""The code that stands in a frame and the bytes of one component, by name."""

MAX_DIMENSIONS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Vectors of ``dimensions`` components of ``dtype``.

    Raises UsageError for an unknown dtype or dimensions that are no whole number from 1 to 2**20, and
    MissingExtra without numpy, or for bfloat16 without ml_dtypes.
    """

    dtype: str
    dimensions: int
    _numpy_dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype is one of {', '.join(DTYPES)}, not {self.dtype!r}")
        whole = isinstance(self.dimensions, int) and not isinstance(self.dimensions, bool)
        if not whole or not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise UsageError(
                f"dimensions is a whole number from 1 to {MAX_DIMENSIONS}, not {self.dimensions!r}"
            )
        object.__setattr__(self, "_numpy_dtype", _numpy_dtype(self.dtype))

    @property
    def code(self) -> int:
        return DTYPES[self.dtype][0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.dimensions * DTYPES[self.dtype][1]

    def rows(self, vectors: Any, *, count: int) -> list[memoryview]:
        """The bytes of each vector, copied, from an array-like of shape (count, dimensions).

        Accepted are C-contiguous arrays of the declared dtype; for bfloat16 also uint16 arrays, which hold
        its bits; and lists of lists of numbers, which have no dtype and are rounded to the declared one.

        Raises InvalidVectors for anything else, and for numbers that the dtype cannot hold.
        """
        import numpy as np

        array = self._as_array(vectors)
        bits = self.dtype == "bfloat16" and array.dtype == np.dtype("uint16")
        if array.dtype != self._numpy_dtype and not bits:
            raise InvalidVectors(
                f"the vectors are {array.dtype.name}{_order(array)}, the cache was declared as {self.dtype}: "
                "convert them where they are computed, or declare their dtype"
            )
        if array.shape != (count, self.dimensions):
            raise InvalidVectors(
                f"the vectors have shape {array.shape}, expected {(count, self.dimensions)}: one row for "
                "each text, of the declared dimensions"
            )
        if not array.flags.c_contiguous:
            raise InvalidVectors("the vectors are not contiguous in memory: use numpy.ascontiguousarray()")
        raw = memoryview(_little_endian(array).tobytes())
        size = self.row_bytes
        return [raw[start : start + size] for start in range(0, count * size, size)]

    def matrix(self, rows: Sequence[memoryview]) -> Array:
        """A new, writable array of shape (len(rows), dimensions) with these bytes as its rows."""
        import numpy as np

        raw = np.frombuffer(bytearray().join(rows), dtype=np.uint8).view(self._numpy_dtype)
        return _little_endian(raw.reshape(len(rows), self.dimensions))

    def _as_array(self, vectors: Any) -> Array:
        import numpy as np

        try:
            array = np.asarray(vectors)
        except Exception as error:
            # Whatever a foreign array's own conversion raises: torch has a TypeError and a RuntimeError.
            raise InvalidVectors(f"numpy makes no array of the {type(vectors).__name__}: {error}") from error
        return self._from_numbers(array) if _without_dtype(vectors) and array.ndim == 2 else array

    def _from_numbers(self, array: Array) -> Array:
        import numpy as np

        if array.dtype.kind not in ("iu" if self.dtype == "int8" else "iuf"):
            return array
        with np.errstate(all="ignore"):
            cast = array.astype(self._numpy_dtype)
        if self.dtype == "int8":
            fits = bool((cast == array).all())
        else:
            fits = bool((np.isfinite(cast.astype(np.float64)) | ~np.isfinite(array)).all())
        if not fits:
            raise InvalidVectors(f"a number in the vectors is too large for {self.dtype}")
        return cast


def _without_dtype(vectors: Any) -> bool:
    plain = (list, tuple)
    return isinstance(vectors, plain) and all(isinstance(row, plain) for row in vectors)


def _order(array: Array) -> str:
    return "" if array.dtype.isnative else " of the other byte order"


def _little_endian(array: Array) -> Array:
    return array if sys.byteorder == "little" else array.byteswap()


def _numpy_dtype(name: str) -> np.dtype[Any]:
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtra(module="numpy", extra="embeddings") from error
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtra(module="ml_dtypes", extra="embeddings") from error
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
