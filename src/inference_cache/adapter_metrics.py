"""What adapters see, as metrics of the process that uses them.

::

    from prometheus_client import REGISTRY
    from inference_cache.adapter_metrics import AdapterMetrics

    metrics = AdapterMetrics()
    REGISTRY.register(metrics)
    cache = metrics.watch(EmbeddingCache(url, ...), workload="embeddings")

Adapters count by themselves; these counts are read when Prometheus scrapes, and not before. :meth:`watch`
returns a stand-in for the adapter that also times its calls, for which it costs some microseconds each;
:meth:`count` reads what the adapter counts by itself, of spills the durations too, and costs nothing. The
families are those of ``inference_cache.metrics`` with source ADAPTERS: hits, misses and errors by reason,
bytes, durations.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from inference_cache.errors import (
    CacheError,
    MissingExtra,
    SessionCorrupt,
    SessionLost,
    SessionUnknown,
)
from inference_cache.metrics import DURATION_BUCKETS_S, Spread, metric

try:
    from prometheus_client import Histogram
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra(module="prometheus_client", extra="observability") from error

__all__ = ["AdapterMetrics"]

A = TypeVar("A")

_READS: Final = frozenset({"load", "lookup", "restore", "size"})
"""Operations in which not to find a value is a miss; in others it is an answer like any."""
_ENDED_WELL: Final = frozenset(
    {"stored", "deleted", "present", "in_flight", "held", "forgotten", "moved", "asked", "bytes", "hit"}
)
_NOT_WHOLE: Final = frozenset(
    {"miss", "incomplete", "short", "long", "checksum", "foreign", "version", "size", "suspect"}
)
"""Reasons for which a value was not delivered although the server answered."""
_PREFIXED: Final = frozenset({"lost", "paused", "retried", "deferred"})
"""What became of a spilled object, where it stands before the reason."""
_TIMED: Final = frozenset(
    {
        *("store", "store_many", "load", "load_into", "load_many_into", "size_of"),
        *("exists_many", "delete_many", "touch_many"),
        *("get_or_compute", "get_many", "put_many", "invalidate"),
        *("create", "open", "exists", "touch", "delete", "append", "append_many"),
        *("read", "window", "get_state", "compare_and_set"),
    }
)
_PLURAL: Final = frozenset({"items", "turns"})
_SESSION_READS: Final = frozenset({"open", "read", "window", "get_state"})


@dataclass(slots=True, kw_only=True)
class _Totals:
    hits: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bytes_moved: Counter[str] = field(default_factory=Counter)
    """By direction, ``read`` and ``write``."""

    def add(self, other: _Totals) -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.errors += other.errors
        self.bytes_moved += other.bytes_moved


class AdapterMetrics(Collector):
    """A collector for any number of adapters; two of one kind and workload are added up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, str], list[Callable[[], _Totals]]] = {}
        self._timed: dict[tuple[str, str], list[Callable[[], Mapping[str, Spread]]]] = {}
        declared = metric("inference_cache_adapter_operation_duration_seconds")
        self._durations = Histogram(
            declared.name, declared.help, declared.labels, buckets=DURATION_BUCKETS_S, registry=None
        )

    def count(self, adapter: Any, *, workload: str) -> None:
        """Expose the adapter's own counters: of a BlobStore, an EmbeddingCache, a vLLM tier or Ray's spills.

        Raises:
            TypeError: it has none; sessions are counted by :meth:`watch` only.
        """
        _totals_of(adapter)
        self._add(adapter, workload, lambda: _totals_of(adapter))
        if hasattr(adapter, "durations"):
            with self._lock:
                self._timed.setdefault((type(adapter).__name__, workload), []).append(adapter.durations.copy)

    def watch(self, adapter: A, *, workload: str) -> A:
        """A stand-in for the adapter that times its calls and counts what it does not count itself.

        It has all attributes of the adapter and can be used in its place, also under ``with``; it is no
        instance of its class.
        """
        watched = _Watched(adapter, workload, self._durations)
        if hasattr(adapter, "counters"):
            self.count(adapter, workload=workload)
        self._add(adapter, workload, watched.totals)
        return cast(A, watched)

    def collect(self) -> Iterable[Family]:
        with self._lock:
            sources = {labels: list(each) for labels, each in self._sources.items()}
            timed = {labels: list(each) for labels, each in self._timed.items()}
        totals = {labels: _summed(each) for labels, each in sources.items()}
        for name, values in (
            ("hits", {labels: t.hits for labels, t in totals.items()}),
            ("misses", {(*labels, r): n for labels, t in totals.items() for r, n in t.misses.items()}),
            ("errors", {(*labels, r): n for labels, t in totals.items() for r, n in t.errors.items()}),
            ("bytes", {(*labels, d): n for labels, t in totals.items() for d, n in t.bytes_moved.items()}),
        ):
            declared = metric(f"inference_cache_adapter_{name}_total")
            family = CounterMetricFamily(
                declared.name.removesuffix("_total"), declared.help, labels=declared.labels
            )
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family
        yield self._all_durations(timed)

    def _all_durations(
        self, timed: Mapping[tuple[str, str], list[Callable[[], Mapping[str, Spread]]]]
    ) -> Family:
        """Calls that were timed here, and those that adapters timed themselves, as one family."""
        declared = metric("inference_cache_adapter_operation_duration_seconds")
        family = HistogramMetricFamily(declared.name, declared.help, labels=declared.labels)
        for labels, copies in timed.items():
            spreads: dict[str, Spread] = {}
            for copy in copies:
                for operation, spread in copy().items():
                    spreads[operation] = spreads[operation] + spread if operation in spreads else spread
            for operation, spread in spreads.items():
                bounds = (*map(str, DURATION_BUCKETS_S), "+Inf")
                buckets = list(zip(bounds, map(float, spread.cumulative), strict=True))
                family.add_metric((*labels, operation), buckets=buckets, sum_value=spread.sum_s)
        for own in self._durations.collect():
            family.samples += own.samples
        return family

    def _add(self, adapter: Any, workload: str, source: Callable[[], _Totals]) -> None:
        with self._lock:
            self._sources.setdefault((type(adapter).__name__, workload), []).append(source)


def _summed(sources: Iterable[Callable[[], _Totals]]) -> _Totals:
    total = _Totals()
    for source in sources:
        total.add(source())
    return total


def _totals_of(adapter: Any) -> _Totals:
    counters = getattr(adapter, "counters", None)
    # Told by what it has: inference_cache.embeddings needs numpy, which users of other adapters may lack.
    if hasattr(counters, "degraded_by"):
        return _of_embeddings(counters, adapter.row_bytes)
    if counters is not None and not isinstance(counters, Mapping) and hasattr(counters, "copy"):
        counters = counters.copy()
    if isinstance(counters, Mapping):
        return _of_operations(counters)
    raise TypeError(f"{type(adapter).__name__} has no counters; give it to watch(), which counts its calls")


def _of_embeddings(counters: Any, row_bytes: int) -> _Totals:
    reasons = ("absent", "corrupt", "foreign", "wrong_shape", "wrong_version")
    counts = {reason: getattr(counters, reason) for reason in reasons}
    return _Totals(
        hits=counters.hits,
        misses=Counter({reason: count for reason, count in counts.items() if count}),
        errors=Counter(counters.degraded_by),
        bytes_moved=Counter(read=counters.hits * row_bytes, write=counters.stored * row_bytes),
    )


def _of_operations(counters: Mapping[tuple[str, str], int]) -> _Totals:
    """Of counts by (operation, reason), as blobs, the tier and spills keep them."""
    totals = _Totals()
    for (operation, reason), count in counters.items():
        if operation in ("load_bytes", "store_bytes") or reason == "bytes":
            direction = "read" if operation in ("load_bytes", "restore") else "write"
            totals.bytes_moved[direction] += count
            continue
        # Spills say what became of the object before the reason: lost_checksum, paused_full.
        what, _, word = reason.rpartition("_") if reason.split("_")[0] in _PREFIXED else ("", "", reason)
        if word == "hit":
            totals.hits += count if operation in ("load", "restore") else 0
        elif word in _NOT_WHOLE or what == "lost":
            if operation in _READS:
                totals.misses["absent" if word == "miss" else word] += count
        elif reason not in _ENDED_WELL:
            totals.errors[word] += count
    return totals


class _Watched:
    """Stands for an adapter; see :meth:`AdapterMetrics.watch`."""

    def __init__(self, adapter: Any, workload: str, durations: Histogram) -> None:
        self._adapter = adapter
        self._timers = {
            name: durations.labels(type(adapter).__name__, workload, name)
            for name in _TIMED
            if hasattr(adapter, name)
        }
        self._signatures = {name: inspect.signature(getattr(adapter, name)) for name in self._timers}
        self._counts_itself = hasattr(adapter, "counters")
        self._lock = threading.Lock()
        self._totals = _Totals()

    def totals(self) -> _Totals:
        with self._lock:
            copy = _Totals()
            copy.add(self._totals)
            return copy

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._adapter, name)
        if name not in self._timers:
            return value
        if inspect.iscoroutinefunction(value):
            return self._timed_async(name, value)
        return self._timed(name, value)

    def __repr__(self) -> str:
        return f"<watched {self._adapter!r}>"

    def __enter__(self) -> Any:
        self._adapter.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._adapter.__exit__(*error)

    async def __aenter__(self) -> Any:
        await self._adapter.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        return await self._adapter.__aexit__(*error)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            given = self._bound(name, args, options)
            began_s = time.perf_counter()
            try:
                result = method(*given.args, **given.kwargs)
            except Exception as error:
                self._failed(error)
                raise
            finally:
                self._timers[name].observe(time.perf_counter() - began_s)
            self._done(name, given.arguments, result)
            return result

        return call

    def _timed_async(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            given = self._bound(name, args, options)
            began_s = time.perf_counter()
            try:
                result = await method(*given.args, **given.kwargs)
            except Exception as error:
                self._failed(error)
                raise
            finally:
                self._timers[name].observe(time.perf_counter() - began_s)
            self._done(name, given.arguments, result)
            return result

        return call

    def _bound(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> inspect.BoundArguments:
        """The arguments by name, iterators of buffers and turns made lists: they are looked at twice."""
        given = self._signatures[name].bind(*args, **options)
        for argument in _PLURAL.intersection(given.arguments):
            given.arguments[argument] = list(given.arguments[argument])
        return given

    def _failed(self, error: Exception) -> None:
        if self._counts_itself:
            return
        with self._lock:
            if isinstance(error, SessionLost):
                self._totals.misses[error.how] += 1
            elif isinstance(error, SessionUnknown):
                self._totals.misses["absent"] += 1
            elif isinstance(error, SessionCorrupt):
                self._totals.misses["corrupt"] += 1
            elif isinstance(error, CacheError):
                self._totals.errors[error.reason] += 1
            # A conflict or a second create is the cache doing its part.

    def _done(self, name: str, given: Mapping[str, Any], result: Any) -> None:
        read, written = _bytes_moved(name, given, result)
        with self._lock:
            if read:
                self._totals.bytes_moved["read"] += read
            if written:
                self._totals.bytes_moved["write"] += written
            if not self._counts_itself and name in _SESSION_READS:
                self._totals.hits += 1


def _bytes_moved(name: str, given: Mapping[str, Any], result: Any) -> tuple[int, int]:
    """Bytes read from and written to the server by a call of a BlobStore or a SessionStore.

    A cache of embeddings counts rows, whose size is known.
    """
    if name == "load":
        return len(result) if result is not None else 0, 0
    if name in ("load_into", "store"):
        size = memoryview(given["buffer"]).nbytes if result.ok else 0
        return (size, 0) if name == "load_into" else (0, size)
    if name in ("load_many_into", "store_many"):
        pairs = given["items"]
        size = sum(
            memoryview(buffer).nbytes
            for (_, buffer), outcome in zip(pairs, result, strict=True)
            if outcome.ok
        )
        return (size, 0) if name == "load_many_into" else (0, size)
    if name in ("read", "window"):
        return sum(len(turn.content) for turn in result), 0
    if name in ("append", "append_many"):
        turns = given["turns"] if name == "append_many" else [given["turn"]]
        return 0, sum(len(turn) if isinstance(turn, bytes) else len(turn.content) for turn in turns)
    return 0, 0
