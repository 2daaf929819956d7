"""The catalogue for readers: current, complete, and tied to the specs both ways."""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from inference_cache.contract import Waiver, load
from inference_cache.errors import UsageError
from inference_cache.gate.clause_docs import explain, render_json, render_markdown, render_table
from inference_cache.gate.spec_index import spec_docs, spec_index

ROOT = Path(__file__).parents[1]
CONFORMANCE = ROOT / "conformance"
CONTRACT = load()
INDEX = spec_index(CONFORMANCE)
DOCS = spec_docs(CONFORMANCE)
COVERED_GROUPS = ("CFG", "ISO", "MEM", "DUR", "EMB", "SES", "AVL", "RAY", "SHR", "KV", "OBS", "SEC")
SUITE = {
    "test_one.py": '''
        @clause("CFG-01", needs={"read"})
        def test_first(target):
            """The first demand,
            in two lines.

            And why.
            """

        @pytest.mark.cost_s(1)
        @clause("CFG-01")
        def test_second(target):
            ...
    ''',
    "test_two.py": '''
        @clause("CFG-02")
        def test_third(target):
            """A *third* demand of <anyone>, with ``code_`` in it."""
    ''',
    "helper.py": '@clause("CFG-03")\ndef test_no_spec(): ...\n',
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for name, source in SUITE.items():
        (tmp_path / name).write_text("\n".join(line.removeprefix(" " * 8) for line in source.splitlines()))
    return tmp_path


def clauses_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [
        str(ast.literal_eval(decorator.args[0]))
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
        if decorator.func.id == "clause"
    ]


class TestSpecs:
    def test_each_names_one_clause_of_the_catalogue(self) -> None:
        wrong = {}
        for path in CONFORMANCE.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                    named = clauses_of(node)
                    if len(named) != 1 or named[0] not in CONTRACT.clauses:
                        wrong[f"{path.name}::{node.name}"] = named

        assert wrong == {}

    def test_each_is_in_the_index_once(self) -> None:
        functions = [
            f"{path.name}::{node.name}"
            for path in CONFORMANCE.glob("*.py")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
        ]
        indexed = [spec for specs in INDEX.values() for spec in specs]

        assert Counter(indexed) == Counter(functions)

    def test_each_says_what_it_demands(self) -> None:
        assert [name for name, doc in DOCS.items() if not doc] == []

    @pytest.mark.parametrize(
        "clause_id", [c.id for c in CONTRACT.clauses.values() if c.group in COVERED_GROUPS]
    )
    def test_each_clause_of_a_covered_group_has_one(self, clause_id: str) -> None:
        assert INDEX.get(clause_id)


class TestIndex:
    def test_lists_specs_by_clause_in_the_order_written(self, suite: Path) -> None:
        assert spec_index(suite) == {
            "CFG-01": ["test_one.py::test_first", "test_one.py::test_second"],
            "CFG-02": ["test_two.py::test_third"],
        }

    def test_docs_are_without_the_indent_of_the_source(self, suite: Path) -> None:
        assert spec_docs(suite) == {
            "test_one.py::test_first": "The first demand,\nin two lines.\n\nAnd why.",
            "test_one.py::test_second": "",
            "test_two.py::test_third": "A *third* demand of <anyone>, with ``code_`` in it.",
        }


class TestMarkdown:
    def test_docs_clauses_md_is_current(self) -> None:
        written = (ROOT / "docs" / "clauses.md").read_text("utf-8")

        assert written == render_markdown(CONTRACT, INDEX, docs=DOCS) + "\n", (
            "write it anew: inference-cache clauses --format md > docs/clauses.md"
        )

    def test_has_a_section_for_each_clause_in_order(self) -> None:
        headings = re.findall(r"^### (.*)$", render_markdown(CONTRACT, INDEX, docs=DOCS), re.M)

        assert headings == list(CONTRACT.clauses)

    def test_counts_add_up(self) -> None:
        rows = re.findall(
            r"^\| (\w*) ?\| .* \| (\d+) \| (\d+) \| (\d+) \|$", render_markdown(CONTRACT, INDEX), re.M
        )
        *groups, total = [[int(number) for number in row[1:]] for row in rows]

        assert [row[0] for row in rows] == [*CONTRACT.groups(), ""]
        assert [sum(column) for column in zip(*groups, strict=True)] == total
        assert total[0] == len(CONTRACT.clauses)

    def test_specs_stand_under_their_clause_with_their_demand(self, suite: Path) -> None:
        text = render_markdown(CONTRACT, spec_index(suite), docs=spec_docs(suite))
        section = text.split("### CFG-01\n")[1].split("### CFG-02\n")[0]

        assert section.endswith(
            "- Proven by:\n"
            "    - `test_one.py::test_first`: The first demand, in two lines. And why.\n"
            "    - `test_one.py::test_second`\n\n"
        )

    def test_nothing_but_code_is_markup(self, suite: Path) -> None:
        text = render_markdown(CONTRACT, spec_index(suite), docs=spec_docs(suite))

        assert r"A \*third\* demand of &lt;anyone&gt;, with `code_` in it." in text

    def test_a_clause_without_a_spec_says_so(self, suite: Path) -> None:
        text = render_markdown(CONTRACT, spec_index(suite))

        assert text.count("- Proven by: no spec yet") == len(CONTRACT.clauses) - 2

    def test_without_docs_specs_are_named_alone(self) -> None:
        assert re.search(r"^    - `[^`]*`$", render_markdown(CONTRACT, INDEX), re.M)
        assert not re.search(r"^    - `[^`]*`:", render_markdown(CONTRACT, INDEX), re.M)


class TestJson:
    def test_holds_every_clause_with_its_specs(self, suite: Path) -> None:
        catalogue = json.loads(render_json(CONTRACT, spec_index(suite), docs=spec_docs(suite)))
        clauses = {clause["id"]: clause for clause in catalogue["clauses"]}

        assert catalogue["contract"] == {"name": CONTRACT.name, "sha256": CONTRACT.sha256}
        assert list(clauses) == list(CONTRACT.clauses)
        assert clauses["CFG-02"] == {
            "id": "CFG-02",
            "level": "MUST",
            "group": "CFG",
            "statement": CONTRACT.clauses["CFG-02"].statement,
            "quote": CONTRACT.clauses["CFG-02"].quote,
            "needs": ["read"],
            "remedy": CONTRACT.clauses["CFG-02"].remedy,
            "specs": [
                {
                    "name": "test_two.py::test_third",
                    "doc": "A *third* demand of <anyone>, with ``code_`` in it.",
                }
            ],
            "waived_until": None,
        }
        assert clauses["CFG-03"]["specs"] == []


class TestExplain:
    def test_tells_all_about_one_clause(self, suite: Path) -> None:
        text = explain(CONTRACT, spec_index(suite), "CFG-01", docs=spec_docs(suite))
        flat = " ".join(text.split())
        clause = CONTRACT.clauses["CFG-01"]

        for told in (clause.statement, clause.quote, clause.remedy, "MUST, Configuration", "target: read"):
            assert told in flat
        assert "\n  test_one.py::test_first\n    The first demand, in two lines.\n    And why.\n" in text
        assert text.endswith("inference-cache gate --clause CFG-01")

    @pytest.mark.parametrize("clause_id", CONTRACT.clauses)
    def test_fits_a_terminal(self, clause_id: str) -> None:
        text = explain(CONTRACT, INDEX, clause_id, docs=DOCS)

        assert max(map(len, text.splitlines())) <= 100

    def test_a_clause_without_needs_and_specs_says_so(self) -> None:
        text = explain(CONTRACT, {}, "ISO-03")

        assert "Needs of the target: nothing" in text
        assert "Proven by no spec yet." in text

    def test_a_waiver_is_told(self) -> None:
        waiver = Waiver(clause="CFG-06", reason="maintenance", issue="ML-1", expires=dt.date(2026, 12, 31))
        contract = dataclasses.replace(CONTRACT, waivers=(waiver,))
        told = explain(contract, {}, "CFG-06")

        assert "Waived by the contract until 2026-12-31: maintenance (ML-1)" in told
        assert "Waived" not in explain(contract, {}, "CFG-05")
        assert json.loads(render_json(contract, {}))["clauses"][5]["waived_until"] == "2026-12-31"

    @pytest.mark.parametrize(
        ("given", "nearest"), [("cfg-3", "CFG-03"), ("ISO04", "ISO-04"), ("MEM-09", "MEM-0")]
    )
    def test_an_unknown_one_is_told_its_nearest(self, given: str, nearest: str) -> None:
        with pytest.raises(UsageError, match=f"no clause '{given}' .*did you mean {nearest}"):
            explain(CONTRACT, INDEX, given)


def test_readme_shows_the_current_table() -> None:
    """Remake it with ``inference-cache clauses --format table``."""
    shown = re.search(
        r"<!-- clauses: .*? -->\n(.*?)\n<!-- /clauses -->", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    assert shown is not None
    assert shown[1] == render_table(CONTRACT, INDEX)
