"""From what the watcher knows to metric families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

import inference_cache
from inference_cache.contract import Contract
from inference_cache.exporter._settings import Settings
from inference_cache.exporter._watcher import Sample, Snapshot, Watcher
from inference_cache.metrics import metric

__all__ = ["CacheCollector"]


class CacheCollector(Collector):
    """Every scrape renders the watcher's present knowledge, the contract, and the last run of the gate."""

    def __init__(
        self, watcher: Watcher, *, contract: Contract, settings: Settings, gate_metrics: Path | None
    ) -> None:
        self._watcher = watcher
        self._contract = contract
        self._settings = settings
        self._gate_metrics = gate_metrics

    def collect(self) -> Iterable[Family]:
        known = self._watcher.snapshot()
        errors = dict(known.errors)
        gate = self._of_gate(errors)
        yield from _of_exporter(known, errors, self._settings)
        if known.server is not None:
            server = known.server
            yield _info(
                "server_info",
                server_name=server.name,
                server_version=server.version,
                run_id=server.run_id,
                tcp_port=server.tcp_port,
            )
        if known.sample is not None:
            yield from _of_sample(known.sample)
        yield from _of_contract(self._contract)
        yield from gate

    def _of_gate(self, errors: dict[str, int]) -> list[Family]:
        """The families of the file, none when it cannot be used, which is counted."""
        if self._gate_metrics is None:
            return []
        try:
            text = self._gate_metrics.read_text("utf-8")
            families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]
        except (OSError, ValueError):
            errors["gate_metrics"] = 1
            return []
        return [family for family in families if family.name.startswith("inference_cache_gate_")]


def _of_exporter(known: Snapshot, errors: Mapping[str, int], settings: Settings) -> Iterator[Family]:
    yield _gauge("up", {(): float(known.up)})
    yield _info("exporter_info", version=inference_cache.__version__)
    yield _counter("exporter_errors_total", {(reason,): count for reason, count in errors.items()})
    yield _counter("prefix_evicted_keys_total", _by_prefix(known.evicted))
    yield _counter("prefix_expired_keys_total", _by_prefix(known.expired))
    yield _counter("prefix_vanished_keys_total", _by_prefix(known.vanished))
    yield _gauge("sample_budget_operations", {(): settings.budget_ops_s})
    yield _counter("sample_operations_total", {(): known.operations})
    yield _counter("sample_hits_total", {(): known.counted_hits})


def _of_sample(sample: Sample) -> Iterator[Family]:
    each = sample.by_prefix
    yield _gauge("prefix_keys", {(p,): e.keys for p, e in each.items()})
    yield _gauge("prefix_keys_error", {(p,): e.keys_error for p, e in each.items()})
    yield _gauge("prefix_bytes", {(p,): e.bytes for p, e in each.items()})
    yield _gauge("prefix_bytes_error", {(p,): e.bytes_error for p, e in each.items()})
    yield _gauge(
        "prefix_average_bytes",
        {(p,): e.average_bytes for p, e in each.items() if e.average_bytes is not None},
    )
    yield _gauge("prefix_share_ratio", {(p,): e.share for p, e in each.items()})
    yield _gauge("prefix_oldest_idle_seconds", {(p,): i.oldest_s for p, i in sample.idle.items()})
    yield _gauge("prefix_median_idle_seconds", {(p,): i.median_s for p, i in sample.idle.items()})
    yield _gauge("sample_keys", {(): sample.keys})
    yield _gauge("sample_complete", {(): float(sample.complete)})
    yield _gauge("sample_error_ratio", {(): max(e.share_error for e in each.values())})
    yield _gauge("sample_age_seconds", {(): sample.age_s})
    if sample.explained is not None:
        yield _gauge("sample_explained_ratio", {(): sample.explained})


def _of_contract(contract: Contract) -> Iterator[Family]:
    instance, workloads = contract.instance, contract.workloads.values()
    yield _info("contract_info", contract=contract.name, sha256=contract.sha256)
    for name, value in (
        ("memory_limit_bytes", instance.memory_limit_bytes),
        ("maxmemory_bytes", instance.maxmemory_bytes),
        ("headroom_ratio", instance.headroom_ratio),
        ("fragmentation_ratio", instance.fragmentation_ratio),
        ("volume_bytes", instance.volume_bytes),
        ("recovery_seconds", contract.deadlines.recovery_s),
    ):
        yield _gauge(f"contract_{name}", {(): value})
    yield _gauge("contract_prefix_share_ratio", {(w.prefix,): w.share for w in workloads})
    yield _gauge(
        "contract_prefix_ttl_seconds", {(w.prefix,): w.ttl_s for w in workloads if w.ttl_s is not None}
    )
    yield _gauge("contract_p99_seconds", {(w.name, w.prefix): w.p99_s for w in workloads})
    yield _gauge("contract_connections", {(w.name, w.prefix): w.connections for w in workloads})
    family = _family(InfoMetricFamily, "contract_prefix_info", "_info")
    for w in workloads:
        family.add_metric([], {"prefix": w.prefix, "workload": w.name, "data_class": w.data_class.value})
    yield family


def _by_prefix(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(prefix,): value for prefix, value in values.items()}


def _gauge(name: str, values: Mapping[tuple[str, ...], float]) -> Any:
    return _filled(_family(GaugeMetricFamily, name), values)


def _counter(name: str, values: Mapping[tuple[str, ...], float]) -> Any:
    return _filled(_family(CounterMetricFamily, name, "_total"), values)


def _info(name: str, **labels: str) -> Any:
    family = _family(InfoMetricFamily, name, "_info")
    family.add_metric([], labels)
    return family


def _family(kind: Any, name: str, suffix: str = "") -> Any:
    """An empty family as the registry declares it; prometheus_client adds the suffix itself.

    Raises:
        UsageError: the registry has no such family.
    """
    declared = metric(f"inference_cache_{name}")
    labels = () if suffix == "_info" else declared.labels
    return kind(declared.name.removesuffix(suffix), declared.help, labels=labels)


def _filled(family: Any, values: Mapping[tuple[str, ...], float]) -> Any:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
