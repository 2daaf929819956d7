"""The type of a metric family."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["Kind", "Metric", "Source"]

Kind = Literal["counter", "gauge", "histogram", "summary", "info"]


class Source(Enum):
    """Who exposes a family."""

    REDIS_EXPORTER = "redis_exporter"
    """redis_exporter 1.45 and later, beside the server."""
    EXPORTER = "exporter"
    """``inference-cache exporter``."""
    ADAPTERS = "adapters"
    """A process that uses our adapters and registered :mod:`inference_cache.adapter_metrics`."""
    GATE = "gate"
    """``metrics.prom`` of a gate run, served by our exporter or node_exporter's textfile collector."""
    VLLM = "vllm"
    """vLLM's own ``/metrics``."""
    RAY = "ray"
    """Ray's own metrics agent."""
    PROMETHEUS = "prometheus"
    """Prometheus itself, for every target that it scrapes, and the usual client libraries."""
    KUBERNETES = "kubernetes"
    """kube-state-metrics, the kubelet and cAdvisor: a bonus where they are, never needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family of series."""

    name: str
    """As PromQL writes it: counters end in ``_total`` where their source says so; histograms and summaries
    are named without ``_bucket``, ``_sum`` and ``_count``.
    """
    kind: Kind
    help: str
    """One sentence; the unit is in the name or in here."""
    labels: tuple[str, ...]
    """Its own labels, without those that the scrape adds (``job``, ``instance``)."""
    source: Source
    when: str = ""
    """When it is there at all; empty for a family that every scrape of a running source has."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which its samples are stored."""
        if self.kind == "histogram":
            return tuple(self.name + suffix for suffix in ("_bucket", "_sum", "_count"))
        if self.kind == "summary":
            return (self.name, self.name + "_sum", self.name + "_count")
        return (self.name,)
