"""Numbers as people read them: SI and binary prefixes, times, thousands separated; nice ticks for an axis."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

from inference_cache.gate.findings import Scalar

__all__ = ["Unit", "duration", "nice_ticks", "quantity", "scale", "short", "split_unit"]

Unit = Literal["", "bytes", "s", "ms", "%"]

_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
_WORDS: dict[str, Unit] = {
    "bytes": "bytes",
    "byte": "bytes",
    "b": "bytes",
    "seconds": "s",
    "s": "s",
    "milliseconds": "ms",
    "ms": "ms",
    "percent": "%",
    "%": "%",
}


def short(value: float, unit: Unit = "") -> str:
    """At most four significant digits and a prefix: ``51 MiB``, ``2.4 ms``, ``1.2 M``."""
    if not math.isfinite(value):
        return str(value)
    number, word = scale(value, unit)
    return f"{number(value)} {word}".strip()


def scale(largest: float, unit: Unit = "") -> tuple[Callable[[float], str], str]:
    """How to write the numbers of one axis, all with the prefix that suits the largest, and that unit."""
    factor, word = _prefix(abs(largest), unit)
    return (lambda value: _digits(value / factor)), word


def _prefix(value: float, unit: Unit) -> tuple[float, str]:
    if unit == "bytes":
        size, prefix = next(((f, p) for f, p in _BINARY if value >= f), (1, ""))
        return size, f"{prefix}B"
    if unit in ("ms", "%") or value == 0 or (not unit and 1e-3 <= value < 1e4):
        return 1.0, unit
    # Nobody counts in kiloseconds, and a rounding error must not turn 1 s into 1000 ms.
    prefixes = _SMALL if unit == "s" else _LARGE + _SMALL
    factor, prefix = next((p for p in prefixes if value >= p[0] * (1 - 1e-9)), prefixes[-1])
    return factor, f"{prefix}{unit}"


def _digits(value: float) -> str:
    text = f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text and abs(value) >= 1 else text


def duration(seconds: float) -> str:
    """``94.2`` is ``1 min 34 s``; below a minute one decimal, below a second milliseconds."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def quantity(name: str, value: Scalar) -> str:
    """A named value: the unit is the name's suffix, and the exact number is never lost to a prefix."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    exact = f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    if name.endswith("_bytes"):
        return f"{exact} ({short(value, 'bytes')})" if abs(value) >= 1024 else f"{exact} B"
    if name.endswith("_ms"):
        return f"{exact} ms"
    if name.endswith(("_s", "_seconds")):
        return short(value, "s")
    return exact


def split_unit(label: str) -> tuple[str, Unit]:
    """``used memory (bytes)`` is ``used memory`` in ``bytes``: the ticks then carry the unit."""
    if match := re.fullmatch(r"(.*?)[\s,]*[(\[]([^()\[\]]+)[)\]]", label):
        words, unit = match.groups()
    else:
        words, _, unit = label.rpartition(" ")
    known = _WORDS.get(unit.strip().lower())
    return (words.strip(), known) if known else (label, "")


def nice_ticks(low: float, high: float, *, unit: Unit = "", count: int = 5) -> list[float]:
    """Round numbers that cover ``low`` to ``high`` in about ``count`` steps; powers of two for bytes."""
    span = high - low
    if span <= abs(high) * 1e-9:
        span = max(abs(high), 1e-12)
    raw = span / count
    if unit == "bytes" and raw >= 1:
        step = 2.0 ** math.ceil(math.log2(raw))
    else:
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step = magnitude * next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [n * step for n in range(first, last + 1)]
