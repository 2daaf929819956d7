"""Exporters that are wrong in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import Metric

from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from inference_cache.contract import Contract
from inference_cache.exporter import Exporter
from inference_cache.exporter._estimate import Estimate
from inference_cache.exporter._watcher import Snapshot, Watcher
from mutants.liveness import note_adapter

__all__ = ["AnotherInstance", "FirstColon", "NeverDown", "Renamed", "SureOfItself", "TouchesKeys"]


class AnotherInstance(Exporter):
    """Watches the server of somebody else."""

    def __init__(self, url: str, *, contract: Contract, **options: Any) -> None:
        self._other = EmbeddedServer(resolve_executable(None), {"save": "", "appendonly": "no"})
        self._other.start()
        note_adapter("AnotherInstance")
        super().__init__(self._other.url, contract=contract, **options)

    def close(self) -> None:
        super().close()
        self._other.close()


class _OtherNames:
    """A registry that calls a family by another name."""

    def __init__(self, inner: Any, *, old: str, new: str) -> None:
        self._inner = inner
        self._old, self._new = old, new

    def collect(self) -> Iterable[Metric]:
        for family in self._inner.collect():
            if family.name == self._old:
                note_adapter("Renamed")
                family.name = self._new
                family.samples = [sample._replace(name=self._new) for sample in family.samples]
            yield family


class Renamed(Exporter):
    """A later version calls a family by a better name."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.registry = _OtherNames(  # type: ignore[assignment]
            self.registry, old="inference_cache_prefix_bytes", new="inference_cache_prefix_memory_bytes"
        )


class _FirstColonWatcher(Watcher):
    def _classify(self, key: bytes) -> int:
        first = key.split(b":")[0]
        for number, space in enumerate(self._spaces.values()):
            if space.prefix.encode().split(b":")[0] == first:
                if not space.contains(key):
                    note_adapter("FirstColon")
                return number
        return len(self._spaces)


class FirstColon(Exporter):
    """A key belongs to whoever has its first word."""

    _watcher_type = _FirstColonWatcher


class _TouchingWatcher(Watcher):
    def _classify(self, key: bytes) -> int:
        self._client.touch(key)
        note_adapter("TouchesKeys")
        return super()._classify(key)


class TouchesKeys(Exporter):
    """Looks at keys as a reader does."""

    _watcher_type = _TouchingWatcher


class _NeverDownWatcher(Watcher):
    _last: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        known = super().snapshot()
        if known.up:
            self._last = known
        elif self._last is not None:
            note_adapter("NeverDown")
            return self._last
        return known


class NeverDown(Exporter):
    """Serves what it knew last while the server is gone."""

    _watcher_type = _NeverDownWatcher


class _SureWatcher(Watcher):
    def snapshot(self) -> Snapshot:
        known = super().snapshot()
        if known.sample is None or known.sample.complete:
            return known
        note_adapter("SureOfItself")
        sure = {prefix: _surer(estimate) for prefix, estimate in known.sample.by_prefix.items()}
        return dataclasses.replace(known, sample=dataclasses.replace(known.sample, by_prefix=sure))


def _surer(estimate: Estimate) -> Estimate:
    return dataclasses.replace(
        estimate,
        keys_error=estimate.keys_error / 20,
        bytes_error=estimate.bytes_error / 20,
        share_error=estimate.share_error / 20,
    )


class SureOfItself(Exporter):
    """States a twentieth of its error."""

    _watcher_type = _SureWatcher
