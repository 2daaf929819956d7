"""The panels about Kubernetes, before a stand-in for the kubelet and kube-state-metrics.

No cluster was at hand. The stand-in exposes the families under the names and labels that their documents
give, so that this shows that the queries parse, join and tell pods apart, and not that a cluster answers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from dashboards.generate import files
from fixtures.engines.prometheus_server import PrometheusServer
from fixtures.targets.ports import release_port, reserve_port
from inference_cache.contract import load
from inference_cache.metrics import Source, metric, names_in
from inference_cache.panels import ShownPanel, read_panels, substitute

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus")

POD = ("namespace", "pod", "uid", "container")
VARIABLES = {
    "namespace": "ai-ml",
    **dict.fromkeys(("job", "instance", "prefix", "engine"), ".*"),
    "__rate_interval": "3s",
}


def kubernetes_panels() -> dict[str, ShownPanel]:
    """Those whose queries ask Kubernetes, by title."""
    return {
        panel.title: panel
        for panel in read_panels(files(load()))
        for query in panel.queries
        if any(
            metric(name).source is Source.KUBERNETES for name in names_in(substitute(query.expr, VARIABLES))
        )
    }


class Cluster:
    """The cache's pod and container beside those of others, in its namespace and in another."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        volume = ("namespace", "persistentvolumeclaim")
        used = Gauge("kubelet_volume_stats_used_bytes", ".", volume, registry=self.registry)
        capacity = Gauge("kubelet_volume_stats_capacity_bytes", ".", volume, registry=self.registry)
        self.restarts = Counter("kube_pod_container_status_restarts", ".", POD, registry=self.registry)
        self.ended = Gauge(
            "kube_pod_container_status_last_terminated_reason",
            ".",
            (*POD, "reason"),
            registry=self.registry,
        )
        for namespace, part in (("ai-ml", 0.75), ("elsewhere", 0.25)):
            used.labels(namespace, "data-valkey-0").set(part * 10 * 2**30)
            capacity.labels(namespace, "data-valkey-0").set(10 * 2**30)
            for pod, container in (("valkey-0", "valkey"), ("app-0", "app")):
                self.restarts.labels(namespace, pod, "1", container)
        self.ended.labels("ai-ml", "valkey-0", "1", "valkey", "OOMKilled").set(1)
        self.ended.labels("ai-ml", "app-0", "1", "app", "OOMKilled").set(1)
        self.ended.labels("elsewhere", "valkey-0", "1", "valkey", "OOMKilled").set(1)

    def restart_all(self, times: int) -> None:
        for namespace in ("ai-ml", "elsewhere"):
            for pod, container in (("valkey-0", "valkey"), ("app-0", "app")):
                self.restarts.labels(namespace, pod, "1", container).inc(times)


@pytest.fixture(scope="module")
def prometheus() -> Iterator[PrometheusServer]:
    """It has seen the cache's container restart twice, and killed for memory."""
    cluster = Cluster()
    port = reserve_port()
    server, thread = start_http_server(port, addr="127.0.0.1", registry=cluster.registry)
    try:
        with PrometheusServer(scrape={"kubernetes": [f"127.0.0.1:{port}"]}) as running:
            running.wait_scraped("kubernetes", deadline_s=30)
            cluster.restart_all(2)
            running.wait_for(
                "count_over_time(kube_pod_container_status_restarts_total[1h]) >= 6",
                what="six scrapes, of which the last five saw the restarts",
                deadline_s=30,
            )
            yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
        release_port(port)


def shown(prometheus: PrometheusServer, panel: ShownPanel) -> dict[str, float]:
    """What a viewer of the cache's namespace sees: the last value of each series, by its only label."""
    [query] = panel.queries
    series = prometheus.query_range(
        substitute(query.expr, VARIABLES), start_s=time.time() - 5, end_s=time.time(), step_s=1
    )
    return {next(iter(one.labels.values())): one.points[-1][1] for one in series}


def test_three_panels_ask_kubernetes() -> None:
    assert sorted(kubernetes_panels()) == ["Killed for memory", "Restarts of the container", "Volume"]


def test_the_volume_is_a_part_of_its_capacity(prometheus: PrometheusServer) -> None:
    assert shown(prometheus, kubernetes_panels()["Volume"]) == {"data-valkey-0": 0.75}


def test_restarts_are_those_of_the_caches_container(prometheus: PrometheusServer) -> None:
    restarts = shown(prometheus, kubernetes_panels()["Restarts of the container"])
    assert list(restarts) == ["valkey-0"]
    # increase() extrapolates by little more than an interval at either end of what was scraped.
    assert restarts["valkey-0"] == pytest.approx(2, rel=0.5)


def test_a_kill_for_memory_is_that_of_the_caches_container(prometheus: PrometheusServer) -> None:
    assert shown(prometheus, kubernetes_panels()["Killed for memory"]) == {"valkey-0": 1}
