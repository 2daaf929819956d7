"""Dashboards hold against the types of @grafana/schema, as a JSON schema that our ``schema.mjs`` makes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from dashboards import _grafana
from dashboards.generate import files
from inference_cache.contract import load

DATA = Path(__file__).parent / "data" / "grafana-schema-13.2.2.json.gz"
SCHEMA = json.loads(gzip.decompress(DATA.read_bytes()))
DASHBOARD = Draft7Validator(SCHEMA["dashboard"])
PANELS = {
    kind: {part: Draft7Validator(schema) for part, schema in parts.items()}
    for kind, parts in SCHEMA["panels"].items()
}
FIELDS: dict[str, Any] = {"fieldConfig": {"defaults": {}, "overrides": []}}


def violations(board: dict[str, Any]) -> Iterator[str]:
    """What Grafana's types do not allow, with where it stands."""
    for error in DASHBOARD.iter_errors(board):
        yield f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        parts = {
            "options": panel.get("options", {}),
            "custom": panel["fieldConfig"]["defaults"].get("custom", {}),
        }
        for part, value in parts.items():
            for error in PANELS[panel["type"]][part].iter_errors(value):
                path = "/".join(map(str, error.absolute_path))
                yield f"{panel['title']}: {part}/{path}: {error.message}"


@pytest.mark.parametrize(("name", "text"), files(load()).items())
def test_no_dashboard_violates_grafanas_types(name: str, text: str) -> None:
    assert list(violations(json.loads(text))) == []


def test_without_the_step_of_modernizing_they_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grafana, "modernize", lambda raw: raw)
    found = [one for text in files(load()).values() for one in violations(json.loads(text))]
    assert len(found) > 500


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schemaVersion": "42"}, "schemaVersion"),
        ({"style": "dark"}, "style"),
        ({"panels": [{"type": "stat", "title": "x", "span": 3, "fieldConfig": {"defaults": {}}}]}, "span"),
        (
            {"panels": [{"type": "stat", "title": "x", "options": {"colorMode": "neon"}, **FIELDS}]},
            "colorMode",
        ),
    ],
)
def test_the_schema_finds_what_is_wrong(change: dict[str, Any], where: str) -> None:
    board = {**json.loads(files(load())["overview.json"]), **change}
    assert any(where in violation for violation in violations(board))


def test_the_schema_says_whose_types_it_is() -> None:
    assert SCHEMA["source"].startswith("@grafana/schema 13.2.2 (Apache-2.0)")
