"""Alerts: the generated files are current, valid, complete, and prove themselves."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import alerts.live
from alerts.__main__ import pages
from alerts.documents import SECTIONS, by_name
from alerts.generate import all_alerts, files
from alerts.live import read
from alerts.model import Alert, Context, Kind, Settings, Severity, duration
from inference_cache.contract import Contract, load
from inference_cache.errors import UsageError
from inference_cache.metrics import metric, names_in

ROOT = Path(__file__).parents[1]
CONTRACT = load()
SAFE = load("adr_0023_safe")
FILES = files(CONTRACT)
ALERTS = by_name(all_alerts(Context(contract=CONTRACT)))
RULES = [path for path in FILES if path.startswith("rules/")]
TESTS = [path for path in FILES if path.startswith("tests/")]
RUNBOOKS = ROOT / "docs" / "runbooks"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here: apt-get install prometheus"
)


def rules_of(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Generated files by contract."""
    made = {}
    for contract in (CONTRACT, SAFE):
        folder = tmp_path_factory.mktemp(contract.name)
        for name, text in files(contract).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        made[contract.name] = folder
    return made


class TestGeneratedFiles:
    def test_what_is_committed_is_current(self) -> None:
        folder = ROOT / "alerts" / "generated"
        committed = {
            str(path.relative_to(folder)): path.read_text("utf-8")
            for path in folder.rglob("*")
            if path.is_file()
        }

        assert committed == FILES, "write it anew: inference-cache render --only alerts"

    def test_pages_are_current(self) -> None:
        stale = [
            str(path.relative_to(ROOT))
            for path, text in pages(ROOT).items()
            if not path.exists() or path.read_text("utf-8") != text
        ]

        assert stale == [], "write them anew: python -m alerts"

    def test_the_manifest_holds_the_same_groups_as_the_plain_rules(self) -> None:
        manifest = yaml.safe_load(FILES["prometheusrule.yaml"])
        plain = [group for path in RULES for group in yaml.safe_load(FILES[path])["groups"]]

        assert manifest["kind"] == "PrometheusRule"
        assert manifest["metadata"]["namespace"] == "ai-ml"
        assert manifest["spec"]["groups"] == plain

    def test_an_address_that_is_no_service_names_no_namespace(self) -> None:
        instance = dataclasses.replace(CONTRACT.instance, address="10.0.0.1:6379")
        made = files(dataclasses.replace(CONTRACT, instance=instance))

        assert "namespace" not in yaml.safe_load(made["prometheusrule.yaml"])["metadata"]

    def test_an_unknown_metric_is_refused_with_the_nearest_known(self, monkeypatch: Any) -> None:
        from alerts import memory

        wrong = dataclasses.replace(
            ALERTS["InferenceCacheMaxmemoryUnset"][0], expr="redis_memory_max_byte == 0"
        )
        monkeypatch.setattr(memory, "alerts", lambda context: (wrong,))

        with pytest.raises(UsageError, match=r"redis_memory_max_byte.*did you mean redis_memory_max_bytes"):
            files(CONTRACT)


@needs_promtool
class TestPromtool:
    @pytest.mark.parametrize("contract", [CONTRACT, SAFE], ids=lambda contract: contract.name)
    def test_rules_are_valid_to_its_strictest_lint(
        self, contract: Contract, folders: dict[str, Path]
    ) -> None:
        rules = sorted((folders[contract.name] / "rules").glob("*.yaml"))
        done = promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, rules))

        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("SUCCESS") == len(rules)

    @pytest.mark.parametrize("path", TESTS)
    def test_unit_tests_pass(self, path: str, folders: dict[str, Path]) -> None:
        test = folders[CONTRACT.name] / path
        done = promtool("test", "rules", test.name, cwd=test.parent)

        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    def test_unit_tests_of_the_safe_contract_pass_where_it_differs(self, folders: dict[str, Path]) -> None:
        tests = folders[SAFE.name] / "tests"
        done = promtool("test", "rules", "memory.yaml", "contention.yaml", cwd=tests)

        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    def test_unit_tests_fail_for_another_threshold(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """The tests of the tests: a rule that is off by a little is told from the right one."""
        source = folders[CONTRACT.name]
        rules = (source / "rules" / "memory.yaml").read_text("utf-8")
        danger = next(one for one in re.findall(r"> (\d{6,})", rules))
        (tmp_path / "rules").mkdir()
        (tmp_path / "tests").mkdir()
        (tmp_path / "rules" / "memory.yaml").write_text(
            rules.replace(f"> {danger}", f"> {int(danger) - 2048}"), "utf-8"
        )
        shutil.copy(source / "tests" / "memory.yaml", tmp_path / "tests" / "memory.yaml")
        done = promtool("test", "rules", "memory.yaml", cwd=tmp_path / "tests")

        assert done.returncode == 1
        assert "InferenceCacheOOMKillRisk stays quiet just under" in done.stdout + done.stderr


def promtool(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not here: apt-get install prometheus-alertmanager"
)
class TestAlertmanager:
    def test_the_example_is_valid(self, folders: dict[str, Path]) -> None:
        config = folders[CONTRACT.name] / "alertmanager.yaml"
        done = subprocess.run(
            ["amtool", "check-config", str(config)], capture_output=True, text=True, timeout=60, check=False
        )

        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("severity", "receiver"), [("critical", "on-call"), ("warning", "tickets"), ("info", "nobody")]
    )
    def test_severity_decides_who_is_told(
        self, severity: str, receiver: str, folders: dict[str, Path]
    ) -> None:
        config = folders[CONTRACT.name] / "alertmanager.yaml"
        labels = ["alertname=InferenceCacheDown", f"severity={severity}", "namespace=ai-ml"]
        done = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={config}", *labels],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert done.stdout.strip() == receiver


class TestEachAlert:
    @pytest.mark.parametrize("name", ALERTS)
    def test_has_all_three_kinds_of_cases(self, name: str) -> None:
        for rule in ALERTS[name]:
            assert {case.kind for case in rule.cases} == set(Kind)

    @pytest.mark.parametrize("name", ALERTS)
    def test_its_cases_show_what_they_say(self, name: str) -> None:
        for rule in ALERTS[name]:
            for case in rule.cases:
                seen = [look.reads is not None for look in case.evals]
                assert seen[-1] is (case.kind is Kind.FIRES) or (case.kind is Kind.FIRES and any(seen))
                assert case.kind is not Kind.RESOLVES or seen == [True, False]
                assert case.kind is not Kind.QUIET or not any(seen)

    @pytest.mark.parametrize("name", ALERTS)
    def test_says_what_an_operator_needs(self, name: str) -> None:
        mine = [rule for path in RULES for rule in rules_of(FILES[path]) if rule["alert"] == name]
        assert len(mine) == len(ALERTS[name])
        for rule in mine:
            notes = rule["annotations"]
            assert notes["summary"]
            assert "$" not in notes["summary"]
            assert notes["description"].endswith((".", "}"))
            assert notes["runbook_url"].endswith(f"/docs/runbooks/{name}.md")
            assert notes["dashboard"].rpartition("/")[2].startswith("inference-cache-")
            assert rule["labels"]["severity"] in set(Severity)

    @pytest.mark.parametrize("name", ALERTS)
    def test_links_to_a_dashboard_that_is_made(self, name: str) -> None:
        made = {
            json.loads(path.read_text("utf-8"))["uid"]
            for path in (ROOT / "dashboards" / "generated").glob("*.json")
        }
        assert {f"inference-cache-{rule.dashboard}" for rule in ALERTS[name]} <= made

    @pytest.mark.parametrize("name", ALERTS)
    def test_names_only_metrics_of_the_registry(self, name: str) -> None:
        for rule in ALERTS[name]:
            named = names_in(rule.expr)
            assert named
            for one in named:
                metric(one)

    @pytest.mark.parametrize("name", [name for name, rules in ALERTS.items() if len(rules) > 1])
    def test_rules_of_one_name_are_told_apart_by_their_workload(self, name: str) -> None:
        workloads = [rule.workload for rule in ALERTS[name]]
        assert len(set(workloads)) == len(workloads)

    def test_silences_only_alerts_that_there_are(self) -> None:
        named = {target for rules in ALERTS.values() for rule in rules for target in rule.inhibits}
        unknown = [one for one in named if not any(re.fullmatch(one, name) for name in ALERTS)]

        assert unknown == []


def _leads_somewhere(link: str) -> bool:
    """Whether there is such a page beside the runbooks, and such a heading on it, if one is named."""
    name, _, anchor = link.partition("#")
    path = RUNBOOKS / name
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M) if path.exists() else []
    return path.exists() and (not anchor or anchor in [h.lower().replace(" ", "-") for h in headings])


class TestRunbooks:
    @pytest.mark.parametrize("name", ALERTS)
    def test_is_complete(self, name: str) -> None:
        page = (RUNBOOKS / f"{name}.md").read_text("utf-8")
        sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))

        assert tuple(sections) == SECTIONS
        thin = [section for section, text in sections.items() if len(text.split()) < 3]
        assert thin == []
        assert "```promql" in sections["Look at"]
        assert "```sh" in sections["Look at"]

    def test_there_is_none_without_an_alert(self) -> None:
        assert {path.stem for path in RUNBOOKS.glob("Inf*.md")} == set(ALERTS)

    @pytest.mark.parametrize("name", ALERTS)
    def test_its_queries_name_metrics_that_there_are(self, name: str) -> None:
        page = (RUNBOOKS / f"{name}.md").read_text("utf-8").partition("<!-- /made -->")[2]
        for block in re.findall(r"```promql\n(.*?)```", page, re.S):
            for query in block.strip().splitlines():
                for one in names_in(query):
                    metric(one)

    @pytest.mark.parametrize("name", ALERTS)
    def test_its_links_and_clauses_lead_somewhere(self, name: str) -> None:
        page = (RUNBOOKS / f"{name}.md").read_text("utf-8")
        dead = [link for link in re.findall(r"\]\(([^)]+)\)", page) if not _leads_somewhere(link)]
        assert dead == []
        clauses = set(re.findall(r"\b([A-Z]{2,3}-\d\d)\b", page))
        assert clauses <= set(CONTRACT.clauses)


class TestContract:
    def test_thresholds_follow_it(self) -> None:
        changed = dataclasses.replace(
            CONTRACT.instance,
            memory_limit_bytes=8 << 30,
            maxmemory_bytes=6 << 30,
            maxmemory_policy="volatile-lru",
        )
        before = {name: [rule.expr for rule in rules] for name, rules in ALERTS.items()}
        after = by_name(all_alerts(Context(contract=dataclasses.replace(CONTRACT, instance=changed))))
        differ = {name for name, rules in after.items() if [rule.expr for rule in rules] != before[name]}

        assert {
            "InferenceCacheOOMKillRisk",
            "InferenceCacheMaxmemoryTooNearLimit",
            "InferenceCachePolicyChanged",
            "InferenceCachePrefixHog",
            "InferenceCachePrefixSqueezed",
        } <= differ

    def test_what_it_does_not_decide_has_no_alert(self) -> None:
        instance = dataclasses.replace(CONTRACT.instance, appendonly=False, save="")
        named = by_name(all_alerts(Context(contract=dataclasses.replace(CONTRACT, instance=instance))))

        assert not {name for name in named if "AOF" in name or "Snapshot" in name or "Fsync" in name}
        assert "InferenceCacheDataLost" in named

    def test_an_eviction_that_it_forbids_is_critical(self) -> None:
        def severity(contract: Contract) -> set[Severity]:
            rules: list[Alert] = by_name(all_alerts(Context(contract=contract)))[
                "InferenceCacheOnlyCopyEvicted"
            ]
            return {rule.severity for rule in rules}

        assert severity(CONTRACT) == {Severity.WARNING}
        assert severity(SAFE) == {Severity.CRITICAL}


class TestTimeFactor:
    def test_multiplies_windows_and_nothing_else(self) -> None:
        """With the durations and ages taken out, the rules of both are the same text."""
        whole = all_alerts(Context(contract=CONTRACT))
        short = all_alerts(Context(contract=CONTRACT, settings=Settings(time_factor=1 / 60)))
        for one, other in zip(whole, short, strict=True):
            assert _timeless(one.expr) == _timeless(other.expr)
        assert duration(3600) in str([rule.expr for rule in whole])

    def test_leaves_the_unit_tests_out(self) -> None:
        assert not [path for path in files(CONTRACT, time_factor=1 / 60) if path.startswith("tests/")]

    @pytest.mark.parametrize(
        ("seconds", "written"), [(3600, "1h"), (90, "90s"), (0.25, "250ms"), (86400, "1d"), (5400, "90m")]
    )
    def test_durations_are_written_as_prometheus_does(self, seconds: float, written: str) -> None:
        assert duration(seconds) == written

    def test_a_window_below_a_millisecond_is_refused(self) -> None:
        with pytest.raises(ValueError, match="millisecond"):
            duration(0.0001)


def _timeless(expr: str) -> str:
    """The expression without durations, ages in seconds and rates a second, which the factor changes."""
    without = re.sub(r"\[[^\]]+\]|offset \S+", "W", expr)
    without = re.sub(r"(time\(\)[^>]*>|uptime_in_seconds[^<]*<|\]\), ) ?[\d.]+", r"\1 T", without)
    without = re.sub(r"(predict_linear\([^,]*W, )[\d.]+", r"\1T", without)
    without = re.sub(r"(connections_received_total\{[^}]*\}W\) > )[\d.]+", r"\1T", without)
    return re.sub(r"(evicted_keys_total\{[^}]*\}W\)\) > 0\) < )[\d.]+", r"\1T", without)


def test_a_live_run_replaces_the_times_of_its_alerts_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "live_fire.json"
    file.write_text('{"B": {"firing_s": 9, "resolved_s": 1}, "A": {"firing_s": 8}}', "utf-8")
    monkeypatch.setattr(alerts.live, "_FILE", file)

    alerts.live.record("B", {"pending_s": 1, "firing_s": 2}, time_factor=0.1)

    measured = read()
    assert list(measured) == ["A", "B"]
    assert measured["A"] == {"firing_s": 8}
    assert {name: measured["B"][name] for name in measured["B"] if name != "ran"} == {
        "pending_s": 1,
        "firing_s": 2,
        "time_factor": 0.1,
    }


def test_what_was_fired_live_is_an_alert() -> None:
    live = read()

    assert set(live) <= set(ALERTS)
    for times in live.values():
        assert times["pending_s"] <= times["firing_s"]
