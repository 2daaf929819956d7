"""What is made of a run for others: the comparison with an earlier one, SARIF, badges, and CI systems."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from jsonschema import Draft4Validator, Draft202012Validator
from sample_run import sample_run

from inference_cache.errors import UsageError
from inference_cache.gate import github
from inference_cache.gate.difference import Difference, compare, read_report
from inference_cache.gate.findings import Finding
from inference_cache.gate.outcomes import ExitCode, Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.report_badge import to_badge_json, to_badge_svg
from inference_cache.gate.report_html import to_html
from inference_cache.gate.report_json import dumps, schema, to_json
from inference_cache.gate.report_markdown import to_markdown
from inference_cache.gate.report_sarif import to_sarif
from inference_cache.gate.summary import render_summary
from inference_cache.gate.verdict import RunResult

ROOT = Path(__file__).resolve().parent.parent
RUN = sample_run()
HOSTILE = "::error::owned\r\n::set-output name=x::y\n<script> %0A </svg>"


def with_outcomes(run: RunResult, outcomes: Mapping[str, Outcome]) -> RunResult:
    clauses = tuple(
        replace(result, outcome=outcomes.get(result.clause.id, result.outcome)) for result in run.clauses
    )
    return replace(run, clauses=clauses)


def without(run: RunResult, *clause_ids: str) -> RunResult:
    return replace(run, clauses=tuple(r for r in run.clauses if r.clause.id not in clause_ids))


def difference(folder: Path, earlier: RunResult, now: RunResult = RUN) -> Difference:
    path = folder / "earlier.json"
    path.write_text(dumps(earlier), "utf-8")
    return compare(read_report(path), publishable(now))


def earlier_run() -> RunResult:
    """A run before MEM-02 broke, of an older server with another setting."""
    run = with_outcomes(RUN, {"MEM-02": Outcome.PASSED, "CFG-01": Outcome.FAILED, "RAY-01": Outcome.PASSED})
    return replace(
        run,
        verdict=Verdict.CONFORMANT,
        exit_code=ExitCode.CONFORMANT,
        started_at="2026-11-20T08:00:00+00:00",
        target=replace(run.target, server_version="8.1.2", config={**run.target.config, "hz": "25"}),
    )


class TestDifference:
    def test_same_run_differs_in_nothing(self, tmp_path: Path) -> None:
        same = difference(tmp_path, RUN)
        assert (same.clauses, same.facts) == ((), ())
        assert same.compared == len(RUN.clauses)
        assert same.still_failed == tuple(r.clause.id for r in RUN.clauses if r.outcome is Outcome.FAILED)

    def test_clauses_are_told_by_what_became_of_them(self, tmp_path: Path) -> None:
        """Failed, passed and no longer proven are three different things; the gravest comes first."""
        kinds = difference(tmp_path, earlier_run()).by_kind()
        assert {kind: [c.clause for c in changes] for kind, changes in kinds.items()} == {
            "newly failed": ["MEM-02"],
            "newly passed": ["CFG-01"],
            "no longer proven": ["RAY-01"],
        }
        assert next(iter(kinds)) == "newly failed"

    @pytest.mark.parametrize(
        ("before", "after", "kind"),
        [
            (Outcome.PASSED, Outcome.ERROR, "newly broken"),
            (Outcome.FAILED, Outcome.WAIVED, "newly waived"),
            (Outcome.NOT_PROVEN, Outcome.PASSED, "newly passed"),
            (Outcome.NOT_PROVEN, Outcome.FAILED, "newly failed"),
            (Outcome.FAILED, Outcome.NOT_PROVEN, "no longer proven"),
        ],
    )
    def test_every_change_has_a_name(
        self, tmp_path: Path, before: Outcome, after: Outcome, kind: str
    ) -> None:
        earlier, now = (with_outcomes(RUN, {"MEM-01": outcome}) for outcome in (before, after))
        [change] = difference(tmp_path, earlier, now).clauses
        assert (change.clause, change.before, change.after) == ("MEM-01", before.label, after.label)
        assert change.kind == kind

    def test_clauses_that_came_and_went_are_told(self, tmp_path: Path) -> None:
        changes = difference(tmp_path, without(RUN, "MEM-01"), without(RUN, "KV-01")).clauses
        assert [(c.clause, c.before, c.after, c.kind) for c in changes] == [
            ("MEM-01", "absent", "passed", "newly passed"),
            ("KV-01", "passed", "absent", "gone from the contract"),
        ]

    def test_what_one_run_was_not_asked_about_is_not_compared(self, tmp_path: Path) -> None:
        """Judging one group does not make every other clause 'no longer proven'."""
        part = replace(
            RUN,
            clauses=tuple(
                result
                if result.clause.group == "CFG"
                else replace(result, selected=False, outcome=Outcome.NOT_PROVEN)
                for result in RUN.clauses
            ),
        )
        for earlier, now in ((RUN, part), (part, RUN)):
            told = difference(tmp_path, earlier, now)
            assert told.clauses == ()
            assert told.compared == sum(r.clause.group == "CFG" for r in RUN.clauses)

    def test_server_settings_and_gate_are_compared(self, tmp_path: Path) -> None:
        now = replace(RUN, contract_sha256="0" * 64, version="9.9.9", strict=True)
        facts = {f.name: (f.before, f.after) for f in difference(tmp_path, earlier_run(), now).facts}
        assert facts == {
            "verdict": ("conformant", "not conformant"),
            "server": ("Valkey 8.1.2", "Valkey 8.1.4"),
            "contract values": (RUN.contract_sha256[:12], "0" * 12),
            "inference-cache": (RUN.version, "9.9.9"),
            "strict": ("no", "yes"),
            "setting hz": ("25", RUN.target.config.get("hz", "absent")),
        }

    def test_place_of_an_embedded_server_is_no_change(self, tmp_path: Path) -> None:
        """Port and folder are drawn anew for every run; what it is told to do is not."""
        config = {"port": "1", "dir": "/tmp/a", "maxmemory": "1"}
        other = {"port": "2", "dir": "/tmp/b", "maxmemory": "2"}
        first, second = (
            replace(RUN, target=replace(RUN.target, kind="embedded", run_id=str(i), config=c))
            for i, c in enumerate((config, other))
        )
        assert [f.name for f in difference(tmp_path, first, second).facts] == ["setting maxmemory"]
        live = [
            replace(run, target=replace(run.target, kind="live", address=f"valkey://{run.target.run_id}"))
            for run in (first, second)
        ]
        assert {f.name for f in difference(tmp_path, *live).facts} == {
            *("address", "server's run_id", "setting dir", "setting port", "setting maxmemory")
        }

    def test_configuration_that_was_not_observed_has_no_changes(self, tmp_path: Path) -> None:
        blind = replace(RUN, target=replace(RUN.target, config={}))
        assert difference(tmp_path, blind).facts == difference(tmp_path, RUN, blind).facts == ()

    def test_changed_password_is_not_shown(self, tmp_path: Path) -> None:
        first, second = (
            replace(RUN, target=replace(RUN.target, config={"requirepass": password}))
            for password in ("hunter2", "hunter3")
        )
        told = replace(second, difference=difference(tmp_path, first, second))
        for text in (dumps(told), to_markdown(told), to_html(told), render_summary(told)):
            assert "hunter" not in text

    def test_secret_in_the_earlier_file_is_hidden(self, tmp_path: Path) -> None:
        """A report that somebody edited, or an older version wrote, cannot give away what is secret now."""
        path = tmp_path / "earlier.json"
        report = to_json(RUN)
        report["target"]["config"]["bind"] = "hunter2"
        path.write_text(json.dumps(report), "utf-8")
        now = replace(RUN, target=replace(RUN.target, config={"requirepass": "hunter2", "bind": "::1"}))
        told = replace(now, difference=compare(read_report(path), publishable(now)))
        assert "hunter2" not in dumps(told)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (None, "No such file"),
            ("", "Invalid JSON"),
            ("[]", "Input should be an object"),
            ('{"schemaVersion": 1}', "schema_version: Field required"),
            (json.dumps({**to_json(RUN), "schema_version": 3}), "schema_version: Input should be 1 or 2"),
            (json.dumps({**to_json(RUN), "clauses": [{"id": "X"}]}), r"clauses\.0\.outcome: Field required"),
        ],
    )
    def test_wrong_file_is_told(self, tmp_path: Path, text: str | None, told: str) -> None:
        path = tmp_path / "old.json"
        if text is not None:
            path.write_text(text, "utf-8")
        with pytest.raises(
            UsageError, match=rf"--diff .*old\.json: .*{told}.*name the report\.json"
        ) as error:
            read_report(path)
        assert len(str(error.value)) < 400

    def test_report_of_the_first_schema_can_be_compared(self, tmp_path: Path) -> None:
        """Version 1 lacked ``difference``."""
        old = {**to_json(RUN), "schema_version": 1}
        del old["difference"]
        path = tmp_path / "v1.json"
        path.write_text(json.dumps(old), "utf-8")
        assert compare(read_report(path), publishable(RUN)).clauses == ()

    def test_every_report_tells_it(self, tmp_path: Path) -> None:
        run = replace(RUN, difference=difference(tmp_path, earlier_run()))
        Draft202012Validator(schema()).validate(json.loads(dumps(run)))
        told = json.loads(dumps(run))["difference"]
        assert told["clauses"][1] == {
            "id": "MEM-02",
            "kind": "newly failed",
            "before": "passed",
            "after": "failed",
            "reason": run.clauses[16].reason,
        }
        assert "| MEM-02 | newly failed | passed |" in to_markdown(run)
        assert "1 newly failed (MEM-02)" in to_markdown(run)
        assert 'id="since"' in to_html(run)
        summary = render_summary(run, width=100)
        assert "since 2026-11-20T08:00:00+00:00 (conformant)" in summary
        assert "  newly failed      MEM-02" in summary
        assert "  server: Valkey 8.1.2, now Valkey 8.1.4" in summary

    def test_summary_still_fits_a_screen(self, tmp_path: Path) -> None:
        """Every clause that got worse is named, and however many settings changed, six changes are told."""
        config = {f"setting-{n}": "1" for n in range(40)}
        earlier = replace(earlier_run(), target=replace(RUN.target, config=config))
        now = replace(RUN, target=replace(RUN.target, config=dict.fromkeys(config, "2")))
        lines = render_summary(replace(now, difference=difference(tmp_path, earlier, now)), width=120)
        began = lines.splitlines().index("since 2026-11-20T08:00:00+00:00 (conformant)")
        assert lines.splitlines()[began:].index("") <= 12
        assert "and 35 more changes, in the report" in lines

    def test_hostile_earlier_report_stays_text(self, tmp_path: Path) -> None:
        earlier = replace(
            earlier_run(), target=replace(RUN.target, server_version="<script>alert(1)</script>")
        )
        run = replace(RUN, difference=difference(tmp_path, earlier))
        assert "<script>alert" not in to_html(run)
        assert "<script>alert" not in to_markdown(run)


class TestSarif:
    SCHEMA = json.loads((ROOT / "tests/data/sarif-2.1.0.schema.json").read_text("utf-8"))

    def log(self, run: RunResult = RUN) -> dict[str, Any]:
        log: dict[str, Any] = json.loads(to_sarif(run))
        return log

    @pytest.mark.parametrize("verdict", Verdict)
    def test_fits_the_official_schema(self, verdict: Verdict) -> None:
        Draft4Validator.check_schema(self.SCHEMA)
        Draft4Validator(self.SCHEMA).validate(self.log(replace(RUN, verdict=verdict)))

    def test_hostile_text_fits_it_too(self) -> None:
        finding = Finding(
            expected=HOSTILE, observed="\ud800", evidence={"tags": HOSTILE, "inf": float("inf")}
        )
        clauses = tuple(replace(r, reason=HOSTILE, findings=(finding,)) for r in RUN.clauses)
        Draft4Validator(self.SCHEMA).validate(self.log(replace(RUN, clauses=clauses)))

    def test_schema_is_strict_about_results(self) -> None:
        """The schema in use refuses what a viewer would."""
        log = self.log()
        log["runs"][0]["results"][0]["level"] = "fatal"
        assert not Draft4Validator(self.SCHEMA).is_valid(log)

    def test_violations_are_results_and_nothing_else_is(self) -> None:
        """Failed and waived clauses; what is not proven must not look like a violation."""
        [run] = self.log()["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert rules == [r.clause.id for r in RUN.clauses]
        failed = {r.clause.id for r in RUN.clauses if r.outcome in (Outcome.FAILED, Outcome.WAIVED)}
        assert {result["ruleId"] for result in run["results"]} == failed
        assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
        levels = {result["ruleId"]: result["level"] for result in run["results"]}
        assert levels["MEM-02"] == "error"
        assert levels["CFG-05"] == "note", "a SHOULD clause that does not decide"

    def test_waiver_is_a_suppression_with_its_reason(self) -> None:
        results = {result["ruleId"]: result for result in self.log()["runs"][0]["results"]}
        [suppression] = results["ISO-06"]["suppressions"]
        assert "until 2027-01-31" in suppression["justification"]
        assert "suppressions" not in results["MEM-02"]

    def test_open_and_broken_clauses_are_notifications(self) -> None:
        [invocation] = self.log()["runs"][0]["invocations"]
        notes = invocation["toolExecutionNotifications"]
        levels = {note["associatedRule"]["id"]: note["level"] for note in notes}
        assert levels["OBS-05"] == "error"
        assert levels["RAY-01"] == "note"
        assert (invocation["exitCode"], invocation["executionSuccessful"]) == (1, True)
        assert not self.log(replace(RUN, verdict=Verdict.BROKEN))["runs"][0]["invocations"][0][
            "executionSuccessful"
        ]

    def test_same_violation_keeps_its_fingerprint(self) -> None:
        """Other numbers in the observation, and another run, are no new alert."""
        again = tuple(
            replace(r, findings=tuple(replace(f, observed="other numbers") for f in r.findings))
            for r in RUN.clauses
        )
        prints = [
            [result["partialFingerprints"] for result in self.log(run)["runs"][0]["results"]]
            for run in (RUN, replace(RUN, clauses=again, seed=1))
        ]
        assert prints[0] == prints[1]
        assert len({json.dumps(p) for p in prints[0]}) == len(prints[0])


class TestBadge:
    @pytest.mark.parametrize("verdict", Verdict)
    def test_endpoint_has_what_the_service_reads(self, verdict: Verdict) -> None:
        badge = json.loads(to_badge_json(replace(RUN, verdict=verdict)))
        assert badge["schemaVersion"] == 1
        assert badge["label"] == RUN.contract_name
        assert badge["message"] == f"{verdict.value}, 58 of 78 clauses proven"
        assert set(badge) == {"schemaVersion", "label", "message", "color", "isError"}

    def test_only_conformant_is_green(self) -> None:
        colors = {v: json.loads(to_badge_json(replace(RUN, verdict=v)))["color"] for v in Verdict}
        assert [v for v, color in colors.items() if "green" in color] == [Verdict.CONFORMANT]

    @pytest.mark.parametrize("verdict", Verdict)
    def test_picture_is_well_formed_and_says_the_same(self, verdict: Verdict) -> None:
        run = replace(RUN, verdict=verdict, contract_name="a & <b>")
        picture = ET.fromstring(to_badge_svg(run))
        texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
        assert texts == ["a & <b>", json.loads(to_badge_json(run))["message"]]


class TestGitHub:
    def commands(self, run: RunResult = RUN) -> list[str]:
        return list(github.workflow_commands(run))

    def test_violations_become_annotations(self) -> None:
        commands = self.commands()
        assert commands[0].startswith("::error title=MEM-02 violated::expected ")
        assert "observed recent and old keys survive alike" in commands[0]
        assert "Set `maxmemory-samples 5`" in commands[0]
        assert any(c.startswith("::notice title=CFG-05 violated::") for c in commands)
        assert any(c.startswith("::error title=OBS-05%3A the suite broke::") for c in commands)
        assert commands[-1].startswith("::notice title=16 MUST clauses not proven::")

    def test_should_clause_that_decides_is_a_warning(self) -> None:
        assert any(c.startswith("::warning title=CFG-05") for c in self.commands(replace(RUN, strict=True)))

    @pytest.mark.parametrize("verdict", [Verdict.BROKEN, Verdict.INCOMPLETE, Verdict.NOTHING_VERIFIED])
    def test_run_without_a_good_end_is_an_error(self, verdict: Verdict) -> None:
        commands = self.commands(replace(RUN, verdict=verdict, reason="why: so"))
        assert f"::error title=ADR-0023%3A {verdict.value}::why: so" in commands

    def test_text_of_a_server_is_no_command(self) -> None:
        """Every line is one command of ours: newlines and percent signs in it are data."""
        finding = Finding(expected=HOSTILE, observed=HOSTILE, remedy=HOSTILE)
        clauses = tuple(
            replace(r, findings=(finding,), reason=HOSTILE) if r.findings else r for r in RUN.clauses
        )
        for command in self.commands(replace(RUN, clauses=clauses)):
            assert re.fullmatch(r"::(error|warning|notice) title=[^:,\r\n]*::[^\r\n]*", command)
            assert "%0A " not in command.replace("%250A", "")

    def test_switch_cannot_be_guessed(self) -> None:
        (off, on), (other_off, _) = github.command_switch(), github.command_switch()
        assert off == f"::stop-commands::{on.strip(':')}"
        assert off != other_off

    def test_summary_page_is_appended(self, tmp_path: Path) -> None:
        page = tmp_path / "summary.md"
        page.write_text("before\n", "utf-8")
        github.append_step_summary(RUN, page)
        assert page.read_text("utf-8") == f"before\n{to_markdown(RUN)}"

    def test_long_page_is_cut_where_github_would_drop_it(self, tmp_path: Path) -> None:
        page = tmp_path / "summary.md"
        clauses = tuple(replace(r, reason="ä" * 20_000) for r in RUN.clauses)
        github.append_step_summary(replace(RUN, clauses=clauses), page)
        text = page.read_text("utf-8")
        assert page.stat().st_size < 1024 * 1024
        assert text.endswith("\n\nCut here: the rest is in report.md.\n")


class TestExamples:
    @pytest.mark.parametrize(
        ("name", "schema_name"),
        [("github-actions.yml", "github-workflows"), ("gitlab-ci.yml", "gitlab-ci")],
    )
    def test_example_fits_the_schema_of_its_ci(self, name: str, schema_name: str) -> None:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema_name}"),
                *("--data-transform", "gitlab-ci", str(ROOT / "docs" / "ci" / name)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    @pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
    def test_commands_of_the_example_exist(self, name: str) -> None:
        """Every call of the gate parses, and every report that is uploaded is one that the gate writes."""
        from inference_cache.cli import _parser
        from inference_cache.gate.reports import _RENDERERS

        text = (ROOT / "docs" / "ci" / name).read_text("utf-8")
        assert yaml.safe_load(text)
        calls = [
            match[1].split() for match in re.finditer(r"inference-cache (gate(?: --?\S+| \S+)*)$", text, re.M)
        ]
        assert len(calls) >= 3
        for call in calls:
            _parser().parse_args(call)
        assert {Path(p).name for p in re.findall(r"reports/[a-z]+\.[a-z]+", text)} <= _RENDERERS.keys()


GATE = (sys.executable, "-m", "inference_cache", "gate", "--workers", "0", "--clause", "CFG-01")


def run_gate(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GITHUB_"))}
    return subprocess.run(
        [*GATE, *options],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports and output of a run that was asked for JSON."""
    folder = tmp_path_factory.mktemp("first")
    ended = run_gate(folder, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout, "utf-8")
    (folder / "stderr").write_text(ended.stderr, "utf-8")
    return folder


class TestCommand:
    def test_standard_output_is_the_report_and_nothing_else(self, first: Path) -> None:
        assert (first / "stdout").read_text("utf-8") == (first / "reports/report.json").read_text("utf-8")
        assert "CONFORMANT  exit 0" in (first / "stderr").read_text("utf-8")

    def test_report_is_json_on_a_violation_too(self, tmp_path: Path) -> None:
        """Exit code and JSON come together, and --diff may name the file that is about to be replaced."""
        contract = tmp_path / "strict.toml"
        contract.write_text('[instance]\nmaxmemory = "1gb"\n', "utf-8")
        before = run_gate(tmp_path, "--seed", "1")
        assert before.returncode == 0, before.stdout
        after = run_gate(
            tmp_path,
            *("--contract", str(contract), "--seed", "2", "--format=json"),
            *("--diff", "reports/report.json"),
        )
        told = json.loads(after.stdout)
        assert told["difference"]["since"] != ""
        assert {fact["name"] for fact in told["difference"]["facts"]} >= {"contract values"}
        assert after.returncode == told["exit_code"]

    def test_wrong_earlier_report_is_usage_before_anything_runs(self, tmp_path: Path) -> None:
        ended = run_gate(tmp_path, "--diff", "nowhere.json", "--format", "json")
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "--diff nowhere.json: No such file or directory" in ended.stderr
        assert not (tmp_path / "reports").exists()

    def test_plain_pytest_cannot_keep_its_output_apart(self, tmp_path: Path) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", str(ROOT / "conformance"), "--format", "json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 2
        assert "--format json is for inference-cache gate" in ended.stdout + ended.stderr

    def test_github_gets_annotations_and_a_page(self, tmp_path: Path) -> None:
        """The text that quotes the server stands where the runner obeys nothing."""
        page = tmp_path / "page.md"
        ended = run_gate(tmp_path, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(page))
        assert ended.returncode == 0
        lines = ended.stdout.splitlines()
        [off] = [n for n, line in enumerate(lines) if line.startswith("::stop-commands::")]
        on = lines.index(f"::{lines[off].removeprefix('::stop-commands::')}::")
        [verdict] = [n for n, line in enumerate(lines) if line.startswith("CONFORMANT")]
        [notice] = [n for n, line in enumerate(lines) if line.startswith("::notice title=")]
        assert off < verdict < on < notice
        assert page.read_text("utf-8") == (tmp_path / "reports/report.md").read_text("utf-8")

    def test_page_that_cannot_be_written_changes_no_verdict(self, tmp_path: Path) -> None:
        ended = run_gate(tmp_path, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "page"))
        assert ended.returncode == 0
        assert "GITHUB_STEP_SUMMARY was not written" in ended.stdout

    def test_outside_of_github_there_is_no_command(self, first: Path) -> None:
        assert "::" not in re.sub(r"\w::\w", "", (first / "stderr").read_text("utf-8"))
