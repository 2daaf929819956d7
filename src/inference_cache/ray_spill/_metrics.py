"""What a storage counted, as a file for node_exporter's textfile collector: IO workers are not scraped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference_cache.errors import MissingExtra

__all__ = ["write_textfile"]


def write_textfile(storage: Any, folder: Path, labels: Mapping[str, str]) -> Path:
    """Write ``ray_spill_<pid>.prom`` with the storage's counters and durations, as the families of
    :class:`inference_cache.adapter_metrics.AdapterMetrics` under the workload ``ray``.

    ``labels`` and the process id tell the workers of a node apart: the collector refuses a series twice.

    Raises:
        MissingExtra: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, write_to_textfile
        from prometheus_client.core import Metric

        from inference_cache.adapter_metrics import AdapterMetrics
    except ImportError as error:
        raise MissingExtra(module="prometheus_client", extra="observability") from error
    metrics = AdapterMetrics()
    metrics.count(storage, workload="ray")
    more = {**labels, "pid": str(os.getpid())}

    class Labelled:
        def collect(self) -> Iterable[Metric]:
            for family in metrics.collect():
                copy = Metric(family.name, family.documentation, family.type, family.unit)
                copy.samples = [s._replace(labels={**s.labels, **more}) for s in family.samples]
                yield copy

    registry = CollectorRegistry()
    registry.register(Labelled())
    path = folder / f"ray_spill_{os.getpid()}.prom"
    write_to_textfile(str(path), registry)
    return path
