"""The shipped dashboards keep the house rules, and each rule finds what breaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dashboard_changes import BOARDS, FILES, SERVER, asking, changed

from dashboards.generate import files
from dashboards.lint import lint
from inference_cache.contract import load


class TestLint:
    def test_the_shipped_dashboards_keep_the_house_rules(self) -> None:
        assert lint(FILES) == []

    def test_those_of_the_safe_contract_too(self) -> None:
        assert lint(files(load("adr_0023_safe"))) == []

    @pytest.mark.parametrize(
        ("files", "problem"),
        [
            (asking("redis_upp"), "no metric 'redis_upp' is known; did you mean redis_up"),
            (asking("redis_up +"), "not PromQL"),
            (asking(f"redis_up{{{SERVER}}}", datasource={"uid": "P123"}), "asks P123, not ${datasource}"),
            (asking('redis_up{namespace=~"$namespace"}'), "redis_up is not selected by instance, job"),
            (asking(f"redis_up{{{SERVER}}}", legend=""), "has no legend"),
            (asking(f"redis_evicted_keys_total{{{SERVER}}}"), "only grows: show its rate()"),
            (asking(f"rate(redis_up{{{SERVER}}}[$__rate_interval])"), "is a gauge: rate() is for counters"),
            (asking(f"delta(redis_evicted_keys_total{{{SERVER}}}[1h])"), "delta() is for gauges"),
            (asking(f"rate(redis_evicted_keys_total{{{SERVER}}}[5m])"), "use $__rate_interval"),
            (asking(f"sum(redis_up{{{SERVER}}})", "{{cmd}}"), "its legend has {{cmd}}"),
            (asking(f"redis_memory_used_bytes{{{SERVER}}}"), "is shown in none, not in bytes"),
            (asking(f"inference_cache_sample_error_ratio{{{SERVER}}}"), "not in percentunit"),
            (changed("memory.json", "Fragmentation", description=""), "does not say what it shows"),
            (changed("memory.json", "Fragmentation", fieldConfig={"defaults": {}}), "it has no unit"),
            (
                changed("memory.json", "Fragmentation", fieldConfig={"defaults": {"unit": "percent"}}),
                "its unit is percent",
            ),
            (changed("memory.json", "Fragmentation", title="Memory"), "two panels are called 'Memory'"),
            (changed("memory.json", "Fragmentation", maxDataPoints=100), "maxDataPoints hides spikes"),
            (changed("memory.json", "Fragmentation", targets=[]), "it asks nothing"),
            (
                changed("memory.json", "Fragmentation", gridPos={"x": 20, "y": 500, "w": 8, "h": 8}),
                "wider than the grid",
            ),
            (
                changed("memory.json", "Fragmentation", gridPos={"x": 0, "y": 1, "w": 8, "h": 8}),
                "'Memory' and 'Fragmentation' overlap",
            ),
        ],
    )
    def test_a_broken_panel_is_found(self, files: dict[str, str], problem: str) -> None:
        assert any(problem in found for found in lint(files)), lint(files)

    @pytest.mark.parametrize(
        ("key", "value", "problem"),
        [
            ("uid", "", "its uid has not 1 to 40 characters"),
            ("description", "", "it has no description"),
            ("id", 12, "it has the id of one Grafana's database"),
            ("templating", {"list": []}, "it has no variable datasource"),
            ("annotations", {"list": []}, "it has no annotation Alerts"),
            ("links", [], "it links to no other dashboard"),
        ],
    )
    def test_a_broken_dashboard_is_found(self, key: str, value: Any, problem: str) -> None:
        board = {**BOARDS["memory.json"], key: value}
        assert any(problem in found for found in lint({"memory.json": json.dumps(board)}))
