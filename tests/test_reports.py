"""The reports: valid, complete, safe to open, and without a secret."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import quote
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_format
from sample_run import sample_run

from inference_cache.errors import UsageError
from inference_cache.gate import reports
from inference_cache.gate._digest import abbreviate
from inference_cache.gate._quantity import duration, nice_ticks, quantity, short, split_unit
from inference_cache.gate._svg import plot_svg
from inference_cache.gate.findings import Finding, Plot, Series
from inference_cache.gate.github import workflow_commands
from inference_cache.gate.outcomes import ExitCode, Outcome, Verdict
from inference_cache.gate.redact import MASK, publishable, redact_config, redact_text
from inference_cache.gate.report_badge import to_badge_json, to_badge_svg
from inference_cache.gate.report_html import to_html
from inference_cache.gate.report_json import dumps, schema, to_json
from inference_cache.gate.report_junit import to_junit
from inference_cache.gate.report_markdown import to_markdown
from inference_cache.gate.report_metrics import to_metrics
from inference_cache.gate.report_sarif import to_sarif
from inference_cache.gate.reports import write_reports
from inference_cache.gate.summary import render_summary
from inference_cache.gate.verdict import ClauseResult, RunResult

RUN = sample_run()
WRITERS: dict[str, Callable[[RunResult], str]] = {
    "report.json": dumps,
    "junit.xml": to_junit,
    "report.md": to_markdown,
    "report.html": to_html,
    "metrics.prom": to_metrics,
    "report.sarif": to_sarif,
    "badge.json": to_badge_json,
    "badge.svg": to_badge_svg,
    "annotations": lambda run: "\n".join(workflow_commands(run)),
    "summary": lambda run: render_summary(run, width=100, color=True),
}
KINDS: tuple[Literal["line", "bar"], ...] = ("line", "bar")
SECRET = "correct horse@battery/staple"
HOSTILE = "<script>alert(1)</script> \x00\x1b[31m\ud800 ]]> | `x` & \"quoted\" 'too'\nsecond line"


numbers = st.floats(-1e18, 1e18) | st.sampled_from([math.nan, math.inf, -math.inf])


def openmetrics(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call] # annotated only in half


def with_clause(run: RunResult, clause_id: str, **changes: object) -> RunResult:
    return replace(
        run,
        clauses=tuple(
            replace(result, **changes) if result.clause.id == clause_id else result  # type: ignore[arg-type]
            for result in run.clauses
        ),
    )


def hostile_run() -> RunResult:
    finding = Finding(
        expected=HOSTILE,
        observed=HOSTILE,
        evidence={HOSTILE: HOSTILE, "rate": math.inf, "share": math.nan, "none": None, "yes": True},
        remedy=HOSTILE,
        reproduce=HOSTILE,
    )
    plot = Plot(
        title=HOSTILE,
        kind="line",
        x_label=HOSTILE,
        y_label=HOSTILE,
        series=(Series(name=HOSTILE, x=(0.0, 1.0, 2.0), y=(1.0, math.nan, 3.0)),),
        limit=math.inf,
        limit_label=HOSTILE,
        note=HOSTILE,
    )
    run = with_clause(RUN, "MEM-02", reason=HOSTILE, findings=(finding,), plots=(plot,), proven_on=HOSTILE)
    target = replace(run.target, server_version=HOSTILE, config={"bind": HOSTILE}, notes=(HOSTILE,))
    return replace(run, reason=HOSTILE, target=target)


def secret_run() -> RunResult:
    """A run with its password everywhere that a careless caller could leave it."""
    url = f"valkey://default:{quote(SECRET, safe='')}@valkey:6379"
    finding = Finding(
        expected=f"AUTH {SECRET} is refused",
        observed=f"{url} answered",
        evidence={f"user {SECRET}": SECRET, "requirepass": "hunter2", "url": url},
        remedy=f"stop using {SECRET}",
        reproduce=f"inference-cache gate --url {url}",
    )
    plot = Plot(
        title=SECRET,
        kind="bar",
        x_label=SECRET,
        y_label=SECRET,
        series=(Series(name=SECRET, x=(SECRET,), y=(1.0,)),),
        limit=1.0,
        limit_label=SECRET,
        note=SECRET,
    )
    run = with_clause(
        RUN,
        "MEM-02",
        reason=f"seen {SECRET}",
        findings=(finding,),
        plots=(plot,),
        measurements={"greeting": SECRET},
        proven_on=url,
    )
    config = {"requirepass": SECRET, "masterauth": "hunter2", "maxmemory": "0", "tls-key-file-pass": ""}
    target = replace(run.target, address=url, config=config, notes=(f"logged in with {SECRET}",))
    return replace(run, reason=f"{url} refused", target=target)


class TestJson:
    @pytest.mark.parametrize("make", [sample_run, hostile_run, secret_run])
    def test_fits_its_schema(self, make: Callable[[], RunResult]) -> None:
        """report.json keeps to report.schema.json, also with NaN and hostile text in it."""
        Draft202012Validator.check_schema(schema())
        Draft202012Validator(schema()).validate(json.loads(dumps(make()).encode()))

    def test_schema_knows_every_verdict_outcome_and_exit_code(self) -> None:
        """A new word in the code cannot miss the schema."""
        properties = schema()["properties"]
        assert properties["verdict"]["enum"] == [verdict.value for verdict in Verdict]
        assert properties["exit_code"]["enum"] == [int(code) for code in ExitCode]
        labels = [outcome.label for outcome in Outcome]
        assert schema()["$defs"]["clause"]["properties"]["outcome"]["enum"] == labels
        assert list(properties["counts"]["properties"]) == [*labels, "total"]

    def test_schema_refuses_what_it_does_not_know(self) -> None:
        """An added field is a change of the schema."""
        assert not Draft202012Validator(schema()).is_valid({**to_json(RUN), "extra": 1})

    def test_counts_add_up(self) -> None:
        """The outcomes add up to the total, which is the number of clauses."""
        report = to_json(RUN)
        counts = dict(report["counts"])
        assert counts.pop("total") == sum(counts.values()) == len(report["clauses"]) == 78

    def test_server_is_told_in_both_ways(self) -> None:
        """target.server.version and target.server_version are the version observed."""
        target = to_json(RUN)["target"]
        assert target["server"] == {"name": "Valkey", "version": "8.1.4"}
        assert (target["server_name"], target["server_version"]) == ("Valkey", "8.1.4")


class TestJUnit:
    @pytest.mark.parametrize("make", [sample_run, hostile_run])
    def test_is_well_formed_and_complete(self, make: Callable[[], RunResult]) -> None:
        """One suite per group, one case per clause, and the attributes agree with the elements."""
        run = make()
        root = ET.fromstring(to_junit(run))
        suites = root.findall("testsuite")
        assert [suite.get("name") for suite in suites] == list(
            dict.fromkeys(r.clause.group for r in run.clauses)
        )
        assert [case.get("name") for case in root.iter("testcase")] == [r.clause.id for r in run.clauses]
        for element in (root, *suites):
            cases = list(element.iter("testcase"))
            assert element.get("tests") == str(len(cases))
            assert element.get("failures") == str(len(list(element.iter("failure"))))
            assert element.get("errors") == str(len(list(element.iter("error"))))
        assert all(s.get("skipped") == str(len(list(s.iter("skipped")))) for s in suites)

    def test_each_outcome_has_its_element(self) -> None:
        """Failed is a failure, error an error; waived and not proven are skipped, with the reason."""
        cases = {case.get("name"): case for case in ET.fromstring(to_junit(RUN)).iter("testcase")}
        failure = cases["MEM-02"].find("failure")
        skipped = cases["RAY-01"].find("skipped")
        waived = cases["ISO-06"].find("skipped")
        assert failure is not None
        assert skipped is not None
        assert waived is not None
        assert "remedy:    Set `maxmemory-samples 5`" in (failure.text or "")
        assert "Ray is not installed" in skipped.get("message", "")
        assert "until 2027-01-31" in waived.get("message", "")
        assert cases["OBS-05"].find("error") is not None
        assert [child.tag for child in cases["MEM-01"]] == ["system-out"]

    @given(st.text())
    def test_any_text_gives_well_formed_xml(self, text: str) -> None:
        """Control characters and lone surrogates cannot break the file."""
        ET.fromstring(to_junit(with_clause(RUN, "MEM-02", reason=text, findings=())).encode())

    def test_properties_say_what_was_judged(self) -> None:
        """A CI system shows verdict, server and contract without another file."""
        properties = {
            p.get("name"): p.get("value")
            for p in ET.fromstring(to_junit(RUN)).findall("testsuite[1]//property")
        }
        assert properties["verdict"] == "not conformant"
        assert properties["server.version"] == "8.1.4"
        assert "only copy" in (properties["accepted_risk.ray"] or "")


class TestMarkdown:
    def test_tells_what_a_reviewer_needs(self) -> None:
        """Verdict, risks, counts, findings with numbers and remedy, what is not proven, every clause."""
        text = to_markdown(RUN)
        assert text.startswith("# ❌ Not conformant\n")
        assert "## Accepted risks" in text
        assert "❌ 3 failed" in text
        assert "| maxmemory_bytes | 50,331,648 (48 MiB) |" in text
        assert "## MUST clauses not proven: 16" in text
        assert all(result.clause.id in text for result in RUN.clauses)
        assert f"```console\n{RUN.clauses[16].findings[0].reproduce}\n```" in text

    def test_hostile_text_stays_text(self) -> None:
        """No markup, no broken table, no fence closed early."""
        finding = Finding(expected=HOSTILE, observed="a | b", reproduce="echo ```` | cat")
        text = to_markdown(with_clause(RUN, "MEM-02", reason=HOSTILE, findings=(finding,)))
        assert "<script>" not in text
        assert r"a \| b" in text
        assert "`````console\necho ```` | cat\n`````" in text
        rows = [line for line in text.splitlines() if re.match(r"\| \S+ \w", line)]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert widths <= {3, 8}


class _Page(HTMLParser):
    """Collects what the tests ask about a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]


class TestHtml:
    def test_loads_nothing(self) -> None:
        """One file: no source, import, url() or link that leads out of the page."""
        text = to_html(RUN)
        page = _Page(text)
        assert page.values("src") == []
        assert all(target.startswith("#") for target in page.values("href"))
        assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base"}
        assert "url(" not in text
        assert "@import" not in text

    def test_hostile_text_stays_text(self) -> None:
        """Whatever a server answers is shown, not run."""
        text = to_html(hostile_run())
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert text.count("<script") == 1
        assert not [name for name in _names(text) if name.startswith("on")]

    def test_policy_allows_the_own_script_alone(self) -> None:
        """The content security policy names the hash of the script that is in the page."""
        text = to_html(RUN)
        script = text.partition("<script>")[2].partition("</script>")[0]
        assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in text
        assert "default-src 'none'" in text

    def test_every_clause_has_one_row_and_every_link_a_place(self) -> None:
        """Ids are unique and no link leads nowhere."""
        page = _Page(to_html(RUN))
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert {r.clause.id for r in RUN.clauses} <= set(ids)
        assert {target.removeprefix("#") for target in page.values("href")} <= set(ids)
        assert len(page.values("data-only")) == len(Outcome)

    def test_shows_findings_and_plots(self) -> None:
        """Each finding is a card with a command to copy; each plot is drawn and described."""
        page = _Page(to_html(RUN))
        assert [text.rpartition(" ")[2] for text in page.values("data-copy")] == [
            "MEM-02",
            "DUR-02",
            "CFG-05",
        ]
        drawings = [attrs for tag, attrs in page.elements if tag == "svg"]
        assert len(drawings) == 6
        for drawing in drawings:
            assert set((drawing["aria-labelledby"] or "").split()) <= set(page.values("id"))

    def test_conformant_run_needs_no_finding(self) -> None:
        """The page stands without findings, errors, waivers, risks, plots and configuration."""
        clauses = tuple(
            ClauseResult(clause=r.clause, selected=True, outcome=Outcome.PASSED, reason="", duration_s=1.0)
            for r in RUN.clauses
        )
        run = replace(
            RUN,
            verdict=Verdict.CONFORMANT,
            exit_code=ExitCode.CONFORMANT,
            clauses=clauses,
            accepted_risks=(),
            target=replace(RUN.target, config={}, notes=(), capabilities=(), run_id=""),
        )
        text = to_html(run)
        assert "Every MUST clause was checked, and none is violated." in text
        assert 'class="finding' not in text

    @pytest.mark.parametrize("verdict", Verdict)
    def test_every_verdict_has_a_page(self, verdict: Verdict) -> None:
        """No verdict is without a headline and a colour."""
        assert f"<title>{verdict.value.capitalize()}: Valkey" in to_html(replace(RUN, verdict=verdict))

    def test_works_in_a_browser(self, tmp_path: Path) -> None:
        """The script runs under the page's own policy: it shows the filters and counts the rows."""
        chromium = (
            shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        )
        if chromium is None:
            pytest.skip("no Chromium on PATH: the page's script was not run")
        page = write_reports(RUN, tmp_path)["report.html"]
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        dom = subprocess.run(
            [chromium, *flags, "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        assert '<html lang="en" class="js">' in dom
        assert "<output>78 of 78</output>" in dom
        [form] = re.findall(r'<form class="filters"[^>]*>', dom)
        assert "hidden" not in form


def _names(text: str) -> list[str]:
    return [name for _, attrs in _Page(text).elements for name in attrs]


class TestMetrics:
    def families(self, run: RunResult = RUN) -> dict[str, dict[str, float]]:
        return {
            family.name: {",".join(sample.labels.values()): sample.value for sample in family.samples}
            for family in openmetrics(to_metrics(run))
        }

    def test_openmetrics_parser_takes_it(self) -> None:
        """It ends as OpenMetrics must, and holds verdict, exit code, counts, times and clauses."""
        assert to_metrics(RUN).endswith("# EOF\n")
        families = self.families()
        verdicts = families["inference_cache_gate_verdict"]
        assert verdicts.pop("not conformant") == 1
        assert set(verdicts.values()) == {0}
        assert families["inference_cache_gate_exit_code"] == {"": 1}
        assert sum(families["inference_cache_gate_clauses"].values()) == 78
        assert families["inference_cache_gate_duration_seconds"] == {"": 94.2}
        assert families["inference_cache_gate_timestamp_seconds"] == {"": 1795542927}

    def test_every_clause_has_one_outcome(self) -> None:
        """Of the series of a clause exactly one is 1."""
        outcomes = self.families()["inference_cache_gate_clause_outcome"]
        assert len(outcomes) == 78 * len(Outcome)
        assert sum(outcomes.values()) == 78
        assert outcomes["MEM-02,MEM,MUST,failed"] == 1

    def test_info_names_versions_and_contract(self) -> None:
        """An alert can say which server and which contract it is about."""
        [info] = [f for f in openmetrics(to_metrics(RUN)) if f.name == "inference_cache_gate_info"]
        [sample] = info.samples
        assert sample.labels["server_version"] == "8.1.4"
        assert sample.labels["contract"] == "adr_0023"

    def test_textfile_collector_can_read_it(self) -> None:
        """The classic text format knows no info and no state set: the file has gauges only."""
        types = {family.type for family in text_format(to_metrics(RUN))}
        assert types == {"gauge"}

    def test_hostile_labels_stay_labels(self) -> None:
        """Quotes, newlines and lone surrogates in a version do not break the file."""
        assert self.families(hostile_run())["inference_cache_gate_exit_code"] == {"": 1}


class TestSummary:
    def test_fits_a_screen_beside_the_findings(self) -> None:
        """At most 24 lines are not findings."""
        lines = render_summary(RUN, width=120, color=False, reports=Path("build/reports")).splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith("MEM-02")) - 1
        last = max(n for n, line in enumerate(lines) if line.startswith("  reproduce"))
        assert len(lines) - (last - first + 1) <= 24

    def test_tells_what_to_do(self) -> None:
        """Verdict, server observed, counts, findings, risks, waivers, what is open, where the reports are."""
        text = render_summary(RUN, width=100, color=False, reports=Path("build/reports"))
        assert text.startswith("NOT CONFORMANT  exit 1")
        for part in (
            "Valkey 8.1.4 (live, valkey://valkey.ai-ml.svc.cluster.local:6379)",
            "1 error, 3 failed, 55 passed, 2 waived, 17 not proven; 78 in all",
            "  remedy     Set `maxmemory-samples 5`",
            f"  reproduce  {RUN.clauses[16].findings[0].reproduce}",
            "accepted risks\n  ray  ray:* is the only copy",
            "ISO-06  until 2027-01-31",
            "RAY-01..05, RAY-07, RAY-08  needs ray",
            "reports  build/reports",
        ):
            assert part in text

    @pytest.mark.parametrize("width", [40, 80, 120])
    def test_keeps_to_the_width(self, width: int) -> None:
        """Nothing is wider than the terminal but commands, which are there to be copied."""
        for line in render_summary(RUN, width=width, color=False).splitlines():
            assert len(line) <= width or line.startswith(("  reproduce", "NOT CONFORMANT", "clauses"))

    def test_has_no_colour_codes_without_colour(self) -> None:
        """Neither own ones nor those that a server sent."""
        assert "\x1b" not in render_summary(hostile_run(), width=80, color=False)
        assert "\x1b[31;1mNOT CONFORMANT\x1b[0m" in render_summary(RUN, width=80, color=True)

    def test_server_cannot_move_the_cursor(self) -> None:
        """Control characters from outside never reach the terminal, colours or not."""
        text = render_summary(hostile_run(), width=80, color=True)
        assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?!\[[0-9;]+m)", text)
        assert "\x1b[31m" not in text.replace("\x1b[31m3 failed\x1b[0m", "")

    def test_accepted_risks_are_told_even_when_all_is_well(self) -> None:
        """A declared danger stands in every summary."""
        run = replace(RUN, verdict=Verdict.CONFORMANT, exit_code=ExitCode.CONFORMANT, clauses=RUN.clauses[:2])
        assert "accepted risks" in render_summary(run, width=80, color=False)


class TestSecrets:
    @pytest.mark.parametrize("name", WRITERS)
    def test_planted_password_is_in_no_report(self, name: str) -> None:
        """Neither as it is nor percent-encoded, whatever the caller left in the run."""
        text = WRITERS[name](secret_run())
        for shape in (SECRET, quote(SECRET, safe=""), quote(SECRET), "horse", "staple", "hunter2"):
            assert shape not in text

    def test_secret_of_the_caller_is_hidden(self, tmp_path: Path) -> None:
        """write_reports hides values that only its caller knows to be secret."""
        run = replace(RUN, reason="the prompt was: tell me about llamas")
        for path in write_reports(run, tmp_path, secrets=["tell me about llamas"]).values():
            assert "llamas" not in path.read_text(encoding="utf-8")

    def test_publishing_twice_changes_nothing(self) -> None:
        """Writers may redact what was redacted already."""
        once = publishable(secret_run())
        assert publishable(once) == once

    def test_config_keeps_what_is_harmless(self) -> None:
        """Secret settings are masked, empty ones stay empty, the others are what was read."""
        assert redact_config(
            {
                "requirepass": "x",
                "masterauth": "x",
                "primaryauth": "x",
                "masteruser": "x",
                "tls-key-file-pass": "",
                "tls-client-key-file-pass": "x",
                "protected-mode": "no",
                "acl-pubsub-default": "resetchannels",
                "maxmemory": "0",
            }
        ) == {
            "requirepass": MASK,
            "masterauth": MASK,
            "primaryauth": MASK,
            "masteruser": MASK,
            "tls-key-file-pass": "",
            "tls-client-key-file-pass": MASK,
            "protected-mode": "no",
            "acl-pubsub-default": "resetchannels",
            "maxmemory": "0",
        }

    @pytest.mark.parametrize(
        ("url", "redacted"),
        [
            ("valkey://valkey:6379/0", "valkey://valkey:6379/0"),
            ("valkey://:pw@valkey:6379/0", "valkey://:***@valkey:6379/0"),
            ("valkeys://app:pw@valkey:6379", "valkeys://app:***@valkey:6379"),
            ("valkey://app:@valkey:6379", "valkey://app:@valkey:6379"),
            ("valkey://pw@valkey:6379", "valkey://***@valkey:6379"),
            ("valkey://:p@ss/w#rd@valkey:6379", "valkey://:***@valkey:6379"),
            ("unix:///run/valkey.sock?db=1&password=pw", "unix:///run/valkey.sock?db=1&password=***"),
            ("valkey://:a@one:1,valkey://:b@two:2", "valkey://:***@one:1,valkey://:***@two:2"),
            ("valkey://:pw@[::1", "valkey://:***@[::1"),
            ("unix:///run/valkey@1.sock", "unix:///run/valkey@1.sock"),
            ("not a url", "not a url"),
            ("", ""),
        ],
    )
    def test_url_in_a_text_loses_its_password_alone(self, url: str, redacted: str) -> None:
        """Also a badly encoded one; the words around it and text without a URL stay as they are."""
        assert redact_text(f"ask ops@example {url} (seen)") == f"ask ops@example {redacted} (seen)"

    def test_address_loses_its_password(self) -> None:
        """The address of the target is a URL, and is treated as one."""
        target = replace(RUN.target, address="valkey://valkey:hunter2/0")
        assert publishable(replace(RUN, target=target)).target.address == "valkey://valkey:***/0"

    @given(st.text(min_size=4), st.text())
    def test_text_loses_the_secret(self, secret: str, around: str) -> None:
        """Wherever it stands, and however long it is."""
        assert secret not in redact_text(around + secret + around, [secret]).replace(MASK, "")

    def test_longer_secret_goes_first(self) -> None:
        """A secret that contains another one leaves no rest behind."""
        assert redact_text("hunter2hunter", ["hunter", "hunter2hunter"]) == MASK


class TestWriting:
    def test_writes_every_report(self, tmp_path: Path) -> None:
        """Into a directory that it makes, and nothing else is left there."""
        directory = tmp_path / "deep" / "reports"
        paths = write_reports(RUN, directory)
        assert list(paths) == [
            *("report.json", "junit.xml", "report.md", "report.html"),
            *("report.sarif", "metrics.prom", "badge.json", "badge.svg"),
        ]
        assert sorted(directory.iterdir()) == sorted(paths.values())
        assert all(path.stat().st_size for path in paths.values())

    def test_hostile_run_can_be_written(self, tmp_path: Path) -> None:
        """Text that UTF-8 cannot hold breaks no writer."""
        for path in write_reports(hostile_run(), tmp_path).values():
            assert path.read_text(encoding="utf-8")

    def test_interrupted_write_leaves_the_old_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A report is the old one or the new one, never half of one, and no draft stays behind."""
        paths = write_reports(RUN, tmp_path)
        before = {name: path.read_bytes() for name, path in paths.items()}

        def full_disk(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(UsageError, match="No space left on device"):
            write_reports(replace(RUN, seed=7), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_broken_writer_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reports of two runs never stand side by side."""

        def broken(_: RunResult) -> str:
            raise RuntimeError("cannot render")

        monkeypatch.setitem(reports._RENDERERS, "metrics.prom", broken)
        with pytest.raises(RuntimeError, match="cannot render"):
            write_reports(RUN, tmp_path / "reports")
        assert not (tmp_path / "reports").exists()

    def test_impossible_directory_is_a_usage_error(self, tmp_path: Path) -> None:
        """The message names the directory and says what to do."""
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UsageError, match=r"cannot write the reports to .*file.*; name a directory"):
            write_reports(RUN, tmp_path / "file" / "reports")


class TestParts:
    @pytest.mark.parametrize(
        ("ids", "text"),
        [
            ([], ""),
            (["RAY-01"], "RAY-01"),
            (["RAY-01", "RAY-02"], "RAY-01, RAY-02"),
            (["RAY-01", "RAY-02", "RAY-03", "SEC-01", "CUSTOM"], "RAY-01..03, SEC-01, CUSTOM"),
            (["A-09", "A-10", "A-11"], "A-09..11"),
        ],
    )
    def test_ids_are_abbreviated(self, ids: list[str], text: str) -> None:
        """Runs of three and more become a range."""
        assert abbreviate(ids) == text

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("used_bytes", 53_477_376, "53,477,376 (51 MiB)"),
            ("used_bytes", 12, "12 B"),
            ("oldest_s", 0.0024, "2.4 ms"),
            ("oldest_s", 5400.0, "5400 s"),
            ("wait_ms", 12, "12 ms"),
            ("keys", 41_207, "41,207"),
            ("ok", True, "yes"),
            ("limit", None, "none"),
            ("rate", math.inf, "inf"),
        ],
    )
    def test_quantities_are_readable(self, name: str, value: float | None, text: str) -> None:
        """The suffix of a name gives the unit."""
        assert quantity(name, value) == text

    def test_durations_and_labels(self) -> None:
        """Times in the unit that fits; the unit of a label goes to its numbers."""
        assert [duration(s) for s in (0.117, 29.61, 94.2, 7325)] == [
            "117 ms",
            "29.6 s",
            "1 min 34 s",
            "2 h 2 min",
        ]
        assert split_unit("used memory (bytes)") == ("used memory", "bytes")
        assert split_unit("latency [ms]") == ("latency", "ms")
        assert split_unit("milliseconds") == ("", "ms")
        assert split_unit("keys") == ("keys", "")
        assert short(1.0, "s") == "1 s"

    @given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.sampled_from(["", "bytes", "s"]))
    def test_ticks_are_few_and_cover_the_range(self, low: float, span: float, unit: str) -> None:
        """Whatever is drawn lies between the first tick and the last one."""
        high = low + span
        ticks = nice_ticks(low, high, unit=unit)  # type: ignore[arg-type]
        slack = (ticks[-1] - ticks[0]) * 1e-6
        assert ticks[0] <= low + slack
        assert ticks[-1] >= high - slack
        assert 2 <= len(ticks) <= 8

    @given(
        st.sampled_from(KINDS),
        st.lists(st.tuples(numbers | st.text(), numbers)),
        st.none() | numbers,
    )
    def test_any_plot_is_drawn(
        self, kind: Literal["line", "bar"], points: list[tuple[float | str, float]], limit: float | None
    ) -> None:
        """NaN, infinity, no point at all: the picture is well-formed and has no NaN in it."""
        series = Series(name="s", x=[x for x, _ in points], y=[y for _, y in points])
        plot = Plot(
            title="t",
            kind=kind,
            x_label="x (s)",
            y_label="y (bytes)",
            series=(series,),
            limit=limit,
        )
        svg = plot_svg(publishable(with_clause(RUN, "MEM-02", plots=(plot,))).clauses[16].plots[0], "p")
        assert not re.search(r'="[^"]*(nan|inf)', re.sub(r"<(title|desc)[^>]*>.*?</\1>", "", svg, flags=re.S))

    def test_long_line_keeps_its_peak(self) -> None:
        """A line of many samples is thinned without losing its highest one."""
        y = [1.0] * 10_000
        y[7_777] = 99.0
        series = Series(name="s", x=[float(n) for n in range(10_000)], y=y)
        plot = Plot(title="t", kind="line", x_label="x", y_label="y", series=(series,))
        svg = plot_svg(plot, "p")
        [points] = re.findall(r'points="([^"]*)"', svg)
        heights = [float(point.partition(",")[2]) for point in points.split()]
        assert len(heights) <= 602
        assert min(heights) < 35
