"""Traces as JSON lines: one request a line, plain or gzipped."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from inference_cache.errors import MissingExtra, UsageError
from inference_cache.plan._memory import MemoryModel
from inference_cache.plan._sampler import Accesses

try:
    import orjson
    import xxhash
except ImportError as error:
    raise MissingExtra(module=error.name or "orjson", extra="plan") from error

__all__ = ["TraceFormat", "read_trace"]

_READ_BYTES = 4 << 20
_MOST_MISTAKES = 5
_EXAMPLE = '{"time": 12.5, "key": "emb:sha256:abc123", "size": 4096, "workload": "embeddings"}'
_fields = itemgetter("time", "key", "size", "workload")


class TraceFormat:
    """What the lines of a trace are read as: the workloads by name and prefix, and what their keys cost."""

    def __init__(
        self, *, prefixes: Mapping[str, str], ttls_s: Mapping[str, float | None], memory: MemoryModel
    ) -> None:
        """``prefixes`` and ``ttls_s`` are by workload name; numbers follow the order of ``prefixes``."""
        self.names = list(prefixes)
        self.prefixes = [prefixes[name] for name in self.names]
        self.codes = {name: number for number, name in enumerate(self.names)}
        self.has_ttl = np.array([ttls_s[name] is not None for name in self.names])
        self.memory = memory

    def accesses(
        self, times: Sequence[float], keys: Sequence[bytes], sizes: Sequence[int], workloads: Sequence[int]
    ) -> Accesses:
        """Columns of equal length as accesses; sizes are bytes of values."""
        count = len(keys)
        codes = np.fromiter(workloads, np.int8, count)
        key_bytes = np.fromiter(map(len, keys), np.int64, count)
        return Accesses(
            ids=hashes(keys),
            stored_bytes=self.memory.stored_bytes(
                np.fromiter(sizes, np.int64, count), key_bytes, self.has_ttl[codes]
            ),
            workloads=codes,
            times_s=np.fromiter(times, np.float64, count),
        )


def hashes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """A uniform 64-bit hash of each key."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, keys), np.uint64, len(keys))


def read_trace(path: Path, form: TraceFormat) -> Iterator[Accesses]:
    """The requests of a trace in runs of some ten thousand.

    A line is an object with ``time`` (seconds), ``key`` (text), ``size`` (bytes of the value) and
    ``workload`` (its name in the contract; without it the key's prefix decides). Blank lines are skipped,
    other fields ignored. A file that begins like gzip is unpacked.

    Raises:
        UsageError: the file cannot be read, holds no request, or lines are wrong: says which of the first
            few, what is wrong with each, and what to write.
    """
    number, requests = 0, 0
    try:
        with _opened(path) as file:
            while lines := file.readlines(_READ_BYTES):
                run = _fast(lines, form) or _careful(lines, form, path=path, before=number)
                number += len(lines)
                requests += len(run)
                if len(run):
                    yield run
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read after line {number}: {error}") from error
    if not requests:
        raise UsageError(f"{path} holds no request; write one JSON object a line, such as {_EXAMPLE}")


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        return cast(BinaryIO, io.BufferedReader(cast(Any, gzip.open(path, "rb")), buffer_size=1 << 20))
    return path.open("rb", buffering=1 << 20)


def _fast(lines: list[bytes], form: TraceFormat) -> Accesses | None:
    """All lines at once when they are all right; None when one may not be."""
    try:
        times, keys, sizes, names = zip(*map(_fields, map(orjson.loads, lines)), strict=True)
        codes = list(map(form.codes.__getitem__, names))
    except (KeyError, TypeError, ValueError):
        return None
    if not (set(map(type, times)) <= {int, float} and set(map(type, sizes)) == {int}):
        return None
    if set(map(type, keys)) != {str} or min(sizes) < 0 or max(sizes) >= 2**48 or "" in keys:
        return None
    return form.accesses(times, list(map(str.encode, keys)), sizes, codes)


def _careful(lines: list[bytes], form: TraceFormat, *, path: Path, before: int) -> Accesses:
    """Line by line, for what the fast way does not take: blank lines, derived workloads, mistakes."""
    rows: list[tuple[float, bytes, int, int]] = []
    mistakes: list[str] = []
    for line, number in zip(lines, range(before + 1, before + 1 + len(lines)), strict=True):
        if not line.strip():
            continue
        try:
            rows.append(_row(line, form))
        except ValueError as error:
            mistakes.append(f"{path.name}:{number}: {error}")
            if len(mistakes) == _MOST_MISTAKES:
                break
    if mistakes:
        raise UsageError("\n  ".join(("the trace cannot be used:", *mistakes, f"a good line: {_EXAMPLE}")))
    if not rows:
        return Accesses.none()
    times, keys, sizes, codes = zip(*rows, strict=True)
    return form.accesses(times, keys, sizes, codes)


def _row(line: bytes, form: TraceFormat) -> tuple[float, bytes, int, int]:
    """One line. Raises ValueError that says what is wrong and what to write."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error}); write one object a line") from error
    if not isinstance(found, dict):
        raise ValueError(f"{_short(found)} is no object; write one object a line")
    if missing := [name for name in ("time", "key", "size") if name not in found]:
        raise ValueError(f"{' and '.join(map(repr, missing))} missing; write time, key and size")
    time_s, key, size = found["time"], found["key"], found["size"]
    if type(time_s) not in (int, float) or not math.isfinite(time_s):
        raise ValueError(f"'time' is {_short(time_s)}; write seconds as a number")
    if not isinstance(key, str) or not key:
        raise ValueError(f"'key' is {_short(key)}; write the key as text")
    if type(size) is not int or not 0 <= size < 2**48:
        raise ValueError(f"'size' is {_short(size)}; write the bytes of the value as a whole number")
    if "workload" in found:
        name = found["workload"]
        if not isinstance(name, str) or name not in form.codes:
            raise ValueError(f"'workload' is {_short(name)}; write one of {', '.join(form.names)}")
        return time_s, key.encode(), size, form.codes[name]
    for code, prefix in enumerate(form.prefixes):
        if key.startswith(prefix):
            return time_s, key.encode(), size, code
    raise ValueError(
        f"'workload' missing, and key {_short(key)} starts with none of {', '.join(form.prefixes)}; write it"
    )


def _short(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
