"""The registry of metric families: right about what is exposed, strict about what is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from sample_run import sample_run

from fixtures.engines.prometheus_exporters import RedisExporter
from fixtures.engines.prometheus_scrape import Scrape
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.errors import UsageError
from inference_cache.gate.report_metrics import to_metrics
from inference_cache.metrics import METRICS, Metric, Source, metric, names_in

needs_redis_exporter = pytest.mark.skipif(
    shutil.which("prometheus-redis-exporter") is None,
    reason="needs redis_exporter: apt-get install prometheus-redis-exporter",
)


def of(source: Source) -> list[Metric]:
    return [family for family in METRICS.values() if family.source is source]


@pytest.fixture(scope="module")
def scraped() -> Iterator[Scrape]:
    executable = next(iter(shipped_executables().values()))
    settings = {"appendonly": "yes", "save": "", "latency-monitor-threshold": "1"}
    flags = ["-include-system-metrics", "-check-key-groups=^(emb):.*"]
    with EmbeddedServer(executable, settings) as server, RedisExporter(server, flags=flags) as exporter:
        with server.connect() as client:
            client.set("emb:1", b"x", ex=1000)
            client.get("emb:1")
            # Some milliseconds in one command, for the latency monitor.
            client.eval("local n = 0 for i = 1, 1e7 do n = n + i end return n", 0)
            with pytest.raises(Exception, match="unknown command"):
                client.execute_command("NO.SUCH")
        yield exporter.scrape()


class TestNames:
    @pytest.mark.parametrize("family", METRICS.values(), ids=lambda family: family.name)
    def test_are_names_of_prometheus_with_a_help_that_ends(self, family: Metric) -> None:
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", family.name)
        assert family.help.endswith(".")
        assert all(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", label) for label in family.labels)

    @pytest.mark.parametrize("family", of(Source.EXPORTER) + of(Source.ADAPTERS), ids=lambda f: f.name)
    def test_of_ours_say_their_kind_and_unit(self, family: Metric) -> None:
        assert family.name.startswith("inference_cache_")
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.name.endswith("_info") == (family.kind == "info")
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")

    def test_no_two_families_share_a_series(self) -> None:
        series = [name for family in METRICS.values() for name in family.series]

        assert len(series) == len(set(series))


class TestMetric:
    def test_finds_a_family_and_a_series_of_it(self) -> None:
        histogram = metric("inference_cache_adapter_operation_duration_seconds")

        assert metric("inference_cache_adapter_operation_duration_seconds_bucket") is histogram
        assert metric("redis_latency_percentiles_usec_sum").kind == "summary"

    def test_names_the_nearest_for_one_that_nobody_exposes(self) -> None:
        with pytest.raises(UsageError, match=r"'redis_evicted_key_total'.*redis_evicted_keys_total"):
            metric("redis_evicted_key_total")

    def test_says_so_when_nothing_is_near(self) -> None:
        with pytest.raises(UsageError, match=r"no metric 'zzz' is known \(inference_cache"):
            metric("zzz")


class TestNamesIn:
    @pytest.mark.parametrize(
        ("expr", "names"),
        [
            ("redis_up == 0", {"redis_up"}),
            ("sum by (db) (rate(redis_db_keys{db=~'db.*'}[5m] offset 1h))", {"redis_db_keys"}),
            ('{__name__="redis_up", job="a"}', {"redis_up"}),
            ("rate(vllm:kv_offload_load_size_bucket[$__rate_interval])", {"vllm:kv_offload_load_size"}),
            ('rate(redis_up{job="$job"}[${__range}])', {"redis_up"}),
            ("max_over_time((a / on() group_left b)[1h:1m]) unless absent(c)", {"a", "b", "c"}),
            ("inference_cache:hit_ratio:5m < 0.5", {"inference_cache:hit_ratio:5m"}),
            ("vector(1)", set()),
        ],
    )
    def test_are_families_whatever_stands_around_them(self, expr: str, names: set[str]) -> None:
        assert names_in(expr) == names

    def test_of_what_is_no_promql_is_an_error_that_quotes_it(self) -> None:
        with pytest.raises(UsageError, match=r"not PromQL .*rate\(x"):
            names_in("rate(x")

    def test_by_a_pattern_cannot_be_checked(self) -> None:
        with pytest.raises(UsageError, match="without a metric name"):
            names_in('{__name__=~"redis_.*"}')


class TestAgainstWhatIsExposed:
    @needs_redis_exporter
    @pytest.mark.parametrize("family", of(Source.REDIS_EXPORTER), ids=lambda family: family.name)
    def test_redis_exporter_has_it_of_this_kind_and_with_these_labels(
        self, scraped: Scrape, family: Metric
    ) -> None:
        assert scraped.kinds.get(family.name) == family.kind
        found = {
            label
            for series in family.series
            for labels in scraped.samples.get(series, {})
            for label, _ in labels
        }
        assert found - {"quantile"} == set(family.labels)

    def test_the_gate_writes_its_families_and_no_other(self) -> None:
        text = to_metrics(sample_run())
        written = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}

        assert written == {family.name for family in of(Source.GATE)}
