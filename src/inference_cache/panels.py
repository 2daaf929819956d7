"""What a generated dashboard asks: its panels and their queries, read from Grafana's JSON.

The one thing that Grafana has no field for stands in the panel's description, where its reader sees it too: a
last paragraph that begins with :data:`EMPTY_IS_HEALTH` says that no data is good news, and why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inference_cache.errors import UsageError

__all__ = ["EMPTY_IS_HEALTH", "ShownPanel", "ShownQuery", "describe", "read_panels", "substitute"]

EMPTY_IS_HEALTH = "No data means health:"
"""Begins the paragraph of a description that makes an empty panel good news."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownQuery:
    """One query of a panel; ``datasource`` is the uid that it is sent to, often a variable."""

    ref: str
    expr: str
    legend: str
    datasource: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPanel:
    """A panel as it will stand in Grafana."""

    dashboard: str
    """The dashboard's title."""
    title: str
    kind: str
    unit: str
    """Grafana's id of the unit of its values, or ``""``."""
    description: str
    queries: tuple[ShownQuery, ...]
    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.dashboard} / {self.title}"

    @property
    def empty_is_health(self) -> str:
        """Why no data is good news, or ``""`` where it is a defect."""
        _, found, reason = self.description.rpartition(EMPTY_IS_HEALTH)
        return reason.strip() if found else ""


def describe(text: str, *, empty_is_health: str = "") -> str:
    """A panel's description with what an empty panel means."""
    return f"{text}\n\n{EMPTY_IS_HEALTH} {empty_is_health}" if empty_is_health else text


def read_panels(files: Mapping[str, str]) -> list[ShownPanel]:
    """Every panel with queries of the dashboards among these files (by name, ``*.json``).

    Raises:
        UsageError: a file is not a dashboard in JSON.
    """
    panels: list[ShownPanel] = []
    for name, text in sorted(files.items()):
        if not name.endswith(".json"):
            continue
        try:
            board = json.loads(text)
            panels += (_panel(board["title"], raw) for raw in _flat(board["panels"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{name}: not a Grafana dashboard in JSON: {error!r}") from error
    return panels


def _flat(panels: Any) -> Iterator[Mapping[str, Any]]:
    for panel in panels:
        if panel["type"] == "row":
            yield from _flat(panel.get("panels", ()))
        elif panel["type"] != "text":
            yield panel


def _panel(dashboard: str, raw: Mapping[str, Any]) -> ShownPanel:
    default = _uid(raw.get("datasource"))
    return ShownPanel(
        dashboard=dashboard,
        title=raw["title"],
        kind=raw["type"],
        unit=raw.get("fieldConfig", {}).get("defaults", {}).get("unit", ""),
        description=raw.get("description", ""),
        queries=tuple(
            ShownQuery(
                ref=target["refId"],
                expr=target["expr"],
                legend=target.get("legendFormat", ""),
                datasource=_uid(target.get("datasource")) or default,
            )
            for target in raw.get("targets", ())
        ),
        raw=raw,
    )


def _uid(datasource: Any) -> str:
    if isinstance(datasource, Mapping):
        return str(datasource.get("uid", ""))
    return str(datasource or "")


def substitute(text: str, values: Mapping[str, str]) -> str:
    """The text with ``$name`` and ``${name}`` replaced.

    Raises:
        UsageError: a variable without a value, which Grafana would leave standing there.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in values:
            raise UsageError(f"no value for ${name} in {text!r}; known: {', '.join(sorted(values))}")
        return values[name]

    return _VARIABLE.sub(value, text)
