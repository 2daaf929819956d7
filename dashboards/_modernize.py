"""From what grafanalib 0.7.1 writes to what Grafana's schema of today takes.

grafanalib's last release is older than Grafana's present dashboard schema. Left as it is, its JSON has
violations in every panel, and two faults that nobody sees: ``maxDataPoints`` 100, which hides spikes in a
view of a day, and a schema version so old that Grafana runs thirty migrations over it. :func:`modernize` is
the only place that knows; it raises nothing and changes nothing that is already in the present form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["SCHEMA_VERSION", "modernize"]

SCHEMA_VERSION = 42
"""Version of the dashboard model that the output is written in."""

Json = dict[str, Any]

_DASHBOARD_KEYS_GONE = ("__inputs", "gnetId", "hideControls", "rows", "sharedCrosshair", "style")
_PANEL_KEYS_GONE = (
    "cacheTimeout",
    "color",
    "columns",
    "editable",
    "error",
    "fontSize",
    "height",
    "hideTimeOverride",
    "mappings",
    "maxDataPoints",
    "minSpan",
    "span",
)
_TARGET_KEYS_GONE = ("intervalFactor", "metric", "query", "step", "target")
_VARIABLE_KEYS_GONE = ("auto", "auto_count", "auto_min", "tagValuesQuery", "tagsQuery", "useTags")


def modernize(raw: Mapping[str, Any]) -> Json:
    """The dashboard in today's form; ``raw`` is grafanalib's JSON data, left untouched."""
    board = _without(raw, _DASHBOARD_KEYS_GONE)
    board["schemaVersion"] = SCHEMA_VERSION
    board["panels"] = [_panel(panel) for panel in raw.get("panels", ())]
    board["timepicker"] = _without(raw.get("timepicker", {}), ("time_options",))
    board["templating"] = {"list": [_variable(one) for one in raw.get("templating", {}).get("list", ())]}
    pruned: Json = _pruned(board)
    pruned["id"] = None
    return pruned


def _panel(raw: Mapping[str, Any]) -> Json:
    panel = _without(raw, _PANEL_KEYS_GONE)
    kind = panel.get("type")
    if kind == "row":
        return _row(panel)
    defaults = panel.setdefault("fieldConfig", {}).setdefault("defaults", {})
    if kind == "bargauge":
        _lift_field_options(panel, defaults)
    if kind == "timeseries":
        _finish_timeseries(panel, defaults)
    if kind == "table":
        _finish_table(defaults)
    if kind == "stat":
        defaults.pop("custom", None)
    panel["fieldConfig"].setdefault("overrides", [])
    steps = defaults.get("thresholds", {}).get("steps")
    if steps:
        defaults["thresholds"]["steps"] = [
            _step(step, first=number == 0) for number, step in enumerate(steps)
        ]
    else:
        defaults.pop("thresholds", None)
    if panel.get("repeat") is None:
        for key in ("repeat", "repeatDirection", "maxPerRow"):
            panel.pop(key, None)
    panel["targets"] = [_without(target, _TARGET_KEYS_GONE) for target in panel.get("targets", ())]
    return panel


def _row(panel: Mapping[str, Any]) -> Json:
    return {
        "collapsed": panel["collapsed"],
        "gridPos": panel["gridPos"],
        "id": panel["id"],
        "panels": [_panel(inner) for inner in panel.get("panels", ())],
        "title": panel["title"],
        "type": "row",
    }


def _lift_field_options(panel: Json, defaults: Json) -> None:
    """Bar gauges keep their field options where Grafana 6 looked for them."""
    options = panel["options"]
    old = options.pop("fieldOptions", {})
    options.pop("showThresholdLabels", None)
    options.pop("showThresholdMarkers", None)
    if old:
        defaults.update({k: v for k, v in old["defaults"].items() if k not in ("title", "links")})
        defaults["mappings"] = old.get("mappings", [])
        defaults["thresholds"] = {"mode": "absolute", "steps": old.get("thresholds", [])}
        options["reduceOptions"] = {"calcs": old["calcs"], "fields": "", "values": old["values"]}
    options.setdefault("showUnfilled", True)
    options.setdefault("valueMode", "color")
    options.setdefault("namePlacement", "left" if options.get("orientation") == "horizontal" else "auto")
    options.setdefault("sizing", "auto")


def _finish_timeseries(panel: Json, defaults: Json) -> None:
    custom = defaults["custom"]
    scale = custom.get("scaleDistribution", {})
    if scale.get("type") == "linear":
        scale.pop("log", None)
    if not custom.get("stacking"):
        custom["stacking"] = {"group": "A", "mode": "none"}
    panel["options"]["legend"].setdefault("showLegend", True)


def _finish_table(defaults: Json) -> None:
    custom = defaults["custom"]
    if custom.get("displayMode") == "auto":
        del custom["displayMode"]
        custom["cellOptions"] = {"type": "auto"}
    custom.setdefault("inspect", False)


def _step(raw: Mapping[str, Any], *, first: bool) -> Json:
    value = raw["value"]
    return {"color": raw["color"], "value": None if first or value == "null" else value}


def _variable(raw: Mapping[str, Any]) -> Json:
    variable = _without(raw, _VARIABLE_KEYS_GONE)
    current = variable.get("current")
    if not current or current.get("value") is None:
        variable.pop("current", None)
    else:
        current = dict(current)
        current.pop("tags", None)
        variable["current"] = current
    return variable


def _without(raw: Mapping[str, Any], gone: Sequence[str]) -> Json:
    return {key: _copied(value) for key, value in raw.items() if key not in gone}


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(inner) for inner in value]
    return value


def _pruned(value: Any, *, key: str = "") -> Any:
    """Without keys that say null, except a threshold's first value, which means minus infinity."""
    if isinstance(value, dict):
        is_step = key == "steps"
        return {
            name: _pruned(inner, key=name)
            for name, inner in value.items()
            if inner is not None or (is_step and name == "value")
        }
    if isinstance(value, list):
        return [_pruned(inner, key=key) for inner in value]
    return value
