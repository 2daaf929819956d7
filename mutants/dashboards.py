"""Dashboards that are wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from inference_cache.contract import Contract
from mutants.liveness import note_adapter

__all__ = ["hard_coded_datasource", "nobodys_label", "percent_of_a_ratio", "unknown_metric"]

_FILE = "memory.json"


def unknown_metric(contract: Contract) -> dict[str, str]:
    """One panel asks for a metric under the name that another exporter gives it."""

    def change(panel: dict[str, Any]) -> bool:
        return _replace(panel, "redis_memory_used_rss_bytes", "redis_memory_rss_bytes")

    return _changed(contract, "unknown_metric", change)


def hard_coded_datasource(contract: Contract) -> dict[str, str]:
    """One panel asks the Prometheus of the Grafana that it was drawn in."""

    def change(panel: dict[str, Any]) -> bool:
        for holder in (panel, *panel["targets"]):
            holder["datasource"] = {"type": "prometheus", "uid": "PBFA97CFB590B2093"}
        return True

    return _changed(contract, "hard_coded_datasource", change)


def percent_of_a_ratio(contract: Contract) -> dict[str, str]:
    """One panel shows a ratio of 0 to 1 as so many percent."""

    def change(panel: dict[str, Any]) -> bool:
        defaults = panel["fieldConfig"]["defaults"]
        is_ratio = bool(defaults.get("unit") == "percentunit" and defaults.get("max") == 1)
        if is_ratio:
            defaults["unit"] = "percent"
        return is_ratio

    return _changed(contract, "percent_of_a_ratio", change)


def nobodys_label(contract: Contract) -> dict[str, str]:
    """One panel selects by a label that its exporter calls otherwise."""

    def change(panel: dict[str, Any]) -> bool:
        return _replace(panel, "redis_db_keys{", 'redis_db_keys{database="0", ')

    return _changed(contract, "nobodys_label", change)


def _changed(contract: Contract, name: str, change: Callable[[dict[str, Any]], bool]) -> dict[str, str]:
    """The shipped dashboards, the first panel that the change applies to changed."""
    from dashboards.generate import files

    made = files(contract)
    board = json.loads(made[_FILE])
    if any(change(panel) for panel in _panels(board)):
        note_adapter(name)
    return {**made, _FILE: json.dumps(board)}


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def _replace(panel: dict[str, Any], old: str, new: str) -> bool:
    acted = False
    for target in panel["targets"]:
        if old in target["expr"]:
            target["expr"] = target["expr"].replace(old, new)
            acted = True
    return acted
