"""What the Prometheus operator and Grafana's sidecar pick up: ServiceMonitors, rules, dashboards."""

from __future__ import annotations

import json
from collections.abc import Iterator

from deploy._exporters import PREFIX_EXPORTER, REDIS_EXPORTER
from deploy._names import Names
from deploy._yaml import Manifest

__all__ = ["dashboard_configs", "service_monitors"]


def service_monitors(names: Names) -> tuple[Manifest, Manifest]:
    """How Prometheus scrapes the exporters; ``job`` is the Service's name, as rules and dashboards expect."""
    return (_monitor(names, REDIS_EXPORTER, "15s"), _monitor(names, PREFIX_EXPORTER, "30s"))


def _monitor(names: Names, name: str, interval: str) -> Manifest:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": names.metadata(name, "metrics"),
        "spec": {
            "selector": {"matchLabels": names.selector(name)},
            "namespaceSelector": {"matchNames": [names.namespace]},
            "endpoints": [{"port": "metrics", "path": "/metrics", "interval": interval}],
        },
    }


def dashboard_configs(dashboards: dict[str, str], names: Names) -> Iterator[tuple[str, Manifest]]:
    """A ConfigMap for each dashboard, with its file name. Each ``.json`` among the files is a dashboard."""
    for path, text in dashboards.items():
        if not path.endswith(".json"):
            continue
        # Packed: a ConfigMap holds a mebibyte, and nobody reads a dashboard here.
        packed = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
        stem = path.rpartition("/")[2].removesuffix(".json")
        name = stem if stem.startswith("inference-cache-") else f"inference-cache-{stem}"
        metadata = names.metadata(f"dashboard-{name}", "dashboards", of="inference-cache")
        labels = {**names.labels("inference-cache", "dashboards"), "grafana_dashboard": "1"}
        yield (
            f"dashboard-{stem}.yaml",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {**metadata, "labels": labels},
                "data": {f"{name}.json": packed},
            },
        )
