"""Dashboards are made from the contract, in today's form, and read back as what they ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard_changes import BOARDS, FILES, SERVER, asking, changed

from dashboards._modernize import SCHEMA_VERSION, modernize
from dashboards._queries import bind
from dashboards.generate import boards, files
from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.metrics import METRICS, Source, metric, names_in
from inference_cache.panels import EMPTY_IS_HEALTH, describe, read_panels, substitute

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = load()
PICTURES = ROOT / "docs" / "img" / "dashboards"


class TestFiles:
    def test_there_are_seven_dashboards_with_stable_uids(self) -> None:
        assert sorted(FILES) == [
            "conformance.json",
            "contention.json",
            "memory.json",
            "offload.json",
            "overview.json",
            "persistence.json",
            "spill.json",
        ]
        assert {f"{board['uid']}.json" for board in BOARDS.values()} == {
            f"inference-cache-{name}" for name in FILES
        }

    def test_what_has_no_workload_has_no_dashboard(self, tmp_path: Path) -> None:
        contract = load()
        without = {name: one for name, one in contract.workloads.items() if name == "sessions"}
        small = type(contract)(
            **{
                name: without if name == "workloads" else getattr(contract, name)
                for name in contract.__dataclass_fields__
            }
        )
        assert {board.uid for board in boards(small)} == {
            f"inference-cache-{name}"
            for name in ("overview", "memory", "contention", "persistence", "conformance")
        }

    def test_numbers_come_from_the_contract(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine.toml"
        mine.write_text(
            'extends = "adr_0023"\n[instance]\nmemory_limit = "8Gi"\nmaxmemory = "6gb"\n', "utf-8"
        )
        made = files(load(str(mine)))
        assert str(8 * 1024**3) in made["memory.json"]
        assert "8 GiB" in made["memory.json"]
        assert str(8 * 1024**3) not in FILES["memory.json"]

    def test_without_an_append_only_file_there_is_no_panel_about_it(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine.toml"
        mine.write_text('extends = "adr_0023"\n[instance]\nappendonly = false\n', "utf-8")
        titles = {panel.title for panel in read_panels(files(load(str(mine))))}
        assert "Append-only file" not in titles
        assert "Append-only file" in {panel.title for panel in read_panels(FILES)}

    def test_each_links_to_all_the_others_and_keeps_choices_and_time(self) -> None:
        for board in BOARDS.values():
            others = {f"/d/{other['uid']}" for other in BOARDS.values()} - {f"/d/{board['uid']}"}
            assert {link["url"] for link in board["links"]} == others
            assert all(link["includeVars"] and link["keepTime"] for link in board["links"])

    def test_dashboards_that_alerts_link_to_exist(self) -> None:
        from alerts.generate import files as rules

        linked = {
            line.rpartition("/d/")[2]
            for name, text in rules(CONTRACT).items()
            if name.startswith("rules/")
            for line in text.splitlines()
            if line.strip().startswith("dashboard:")
        }
        assert linked
        assert linked <= {board["uid"] for board in BOARDS.values()}

    def test_vllms_own_offload_series_are_shown_and_every_metric_is_known(self) -> None:
        asked = {
            name
            for panel in read_panels(FILES)
            for query in panel.queries
            for name in names_in(substitute(query.expr, {**VARIABLES}))
        }
        assert {name for name in asked if metric(name).source is Source.VLLM} >= {
            "vllm:kv_offload_load_bytes_total",
            "vllm:kv_offload_store_bytes_total",
            "vllm:kv_offload_tiering_chunk_hits_total",
            "vllm:kv_offload_tiering_promotion_job_failures_total",
        }
        assert asked <= METRICS.keys()

    def test_a_picture_of_each_stands_in_the_documents(self) -> None:
        for name in FILES:
            picture = PICTURES / f"{Path(name).stem}.png"
            assert picture.read_bytes()[:4] == b"\x89PNG"
            assert picture.stat().st_size < 250_000


VARIABLES = {
    **dict.fromkeys(("namespace", "job", "instance", "prefix", "engine"), "x"),
    "__rate_interval": "1m",
}


class TestBind:
    def test_fills_in_the_matchers_of_the_metrics_source(self) -> None:
        assert bind("sum(redis_up{@})") == f"sum(redis_up{{{SERVER}}})"
        assert bind('ray_object_store_memory{@, Location="SPILLED"}') == (
            'ray_object_store_memory{namespace=~"$namespace", job=~"$engine", Location="SPILLED"}'
        )

    def test_adds_the_prefix_where_there_is_one_unless_it_is_said(self) -> None:
        assert 'prefix=~"$prefix"' in bind("inference_cache_prefix_bytes{@}")
        assert bind('inference_cache_prefix_bytes{@, prefix="emb:"}').count("prefix") == 2

    def test_an_unknown_metric_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(
            UsageError, match=r"redis_evicted_key_total.*did you mean redis_evicted_keys_total"
        ):
            bind("rate(redis_evicted_key_total{@}[5m])")

    def test_a_selector_for_every_cache_there_is_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"write redis_up\{@\}"):
            bind("sum(redis_up)")


class TestModernize:
    def test_leaves_what_it_is_given_as_it_is(self) -> None:
        raw = {"panels": [], "rows": [], "style": "dark", "schemaVersion": 12}
        modernize(raw)
        assert raw == {"panels": [], "rows": [], "style": "dark", "schemaVersion": 12}

    def test_changes_nothing_that_is_modern(self) -> None:
        for board in BOARDS.values():
            assert modernize(board) == board

    def test_no_trace_of_the_old_form_is_left(self) -> None:
        for board in BOARDS.values():
            assert board["schemaVersion"] == SCHEMA_VERSION
            assert "rows" not in board
            for panel in board["panels"]:
                assert "maxDataPoints" not in panel
                assert "span" not in panel

    def test_a_threshold_begins_at_minus_infinity(self) -> None:
        steps = [
            panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            for board in BOARDS.values()
            for panel in board["panels"]
            if "thresholds" in panel.get("fieldConfig", {}).get("defaults", {})
        ]
        assert steps
        for one in steps:
            assert one[0]["value"] is None
            assert all(isinstance(step["value"], int | float) for step in one[1:])


class TestPanels:
    def test_emptiness_that_is_health_is_said_in_the_description(self) -> None:
        text = describe("Shows a thing.", empty_is_health="nothing broke.")
        files = changed("memory.json", "Fragmentation", description=text)
        panel = next(panel for panel in read_panels(files) if panel.title == "Fragmentation")
        assert panel.empty_is_health == "nothing broke."
        assert EMPTY_IS_HEALTH in panel.description

    def test_a_plain_description_makes_no_such_claim(self) -> None:
        panel = next(panel for panel in read_panels(FILES) if panel.title == "Fragmentation")
        assert panel.empty_is_health == ""

    def test_a_query_without_a_data_source_has_its_panels(self) -> None:
        files = asking("up", datasource=None)
        panel = next(panel for panel in read_panels(files) if panel.title == "Fragmentation")
        assert panel.queries[0].datasource == "${datasource}"

    def test_what_is_no_dashboard_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"broken\.json: not a Grafana dashboard"):
            read_panels({"broken.json": "{}"})

    def test_variables_in_both_notations_are_filled_in(self) -> None:
        assert substitute("$a ${a} ${a:regex}", {"a": "1"}) == "1 1 1"

    def test_a_variable_without_a_value_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"no value for \$b"):
            substitute("$b", {"a": "1"})
