"""Sizes as people write them: ``1536mb`` (Valkey) and ``2Gi`` (Kubernetes), to and from bytes."""

from __future__ import annotations

import re
from typing import Literal

from inference_cache.errors import UsageError

__all__ = ["format_size", "parse_size"]

_VALKEY = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1024,
    "m": 1000**2,
    "mb": 1024**2,
    "g": 1000**3,
    "gb": 1024**3,
}
_KUBERNETES = {
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
    "T": 1000**4,
}
_SIZE = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of a size: a whole number and a unit, bytes where there is none.

    Valkey's units in any case: ``b``, powers of 1000 (``k``, ``m``, ``g``), powers of 1024 (``kb``, ``mb``,
    ``gb``). Kubernetes' units as it writes them: powers of 1000 (``K``, ``M``, ``G``, ``T``), powers of 1024
    (``Ki``, ``Mi``, ``Gi``, ``Ti``).

    Raises:
        UsageError: not such a size; fractions are not, because the server takes none.
    """
    match = _SIZE.fullmatch(text)
    if match is not None:
        number, unit = match.groups()
        factor = _KUBERNETES.get(unit) or _VALKEY.get(unit.lower())
        if factor is not None:
            return int(number) * factor
    raise UsageError(f"{text!r} is not a size: write a whole number and a unit, such as 1536mb or 2Gi")


def format_size(size_bytes: int, *, units: Literal["valkey", "kubernetes"] = "valkey") -> str:
    """The size in the largest unit that keeps it exact: ``1536mb``, or ``1536Mi`` for Kubernetes.

    :func:`parse_size` gives the same bytes back.

    Raises:
        UsageError: the size is negative.
    """
    if size_bytes < 0:
        raise UsageError(f"a size cannot be negative: {size_bytes}")
    names = ("kb", "mb", "gb") if units == "valkey" else ("Ki", "Mi", "Gi", "Ti")
    size, unit = size_bytes, ""
    for name in names:
        if size == 0 or size % 1024:
            break
        size, unit = size // 1024, name
    return f"{size}{unit}"
