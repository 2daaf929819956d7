"""From our model to Grafana's JSON: grafanalib's classes, then :func:`dashboards._modernize.modernize`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dashboards._model import Board, Column, Kind, Panel, Step, Unit
from dashboards._modernize import Json, modernize
from dashboards._queries import bind
from dashboards._variables import links, marks, variables
from inference_cache.errors import MissingExtra
from inference_cache.panels import describe

__all__ = ["DATASOURCE", "dashboard_json"]

DATASOURCE = "${datasource}"
"""What every query asks: the Prometheus that the viewer chose."""

_COLUMNS = 24
_SMALL = 4
"""Up to this height a stat is only its number."""
_WIDE = 12
"""From this width on there is room for a legend with numbers beside the plot."""


def dashboard_json(board: Board, boards: Sequence[Board]) -> Json:
    """The dashboard that Grafana imports, with links to the other boards.

    Raises:
        MissingExtra: grafanalib is not installed.
        UsageError: a query names a metric that nothing exports, or misses its selector.
    """
    try:
        from grafanalib import core
        from grafanalib._gen import DashboardEncoder
    except ImportError as error:
        raise MissingExtra(module="grafanalib", extra="observability") from error
    drawn = core.Dashboard(
        title=board.title,
        description=board.description,
        uid=board.uid,
        tags=list(board.tags),
        timezone="browser",
        refresh="30s",
        editable=False,
        graphTooltip=core.GRAPH_TOOLTIP_MODE_SHARED_CROSSHAIR,
        time=core.Time("now-3h", "now"),
        timePicker=core.TimePicker(refreshIntervals=["10s", "30s", "1m", "5m", "15m", "1h"], timeOptions=[]),
        templating=core.Templating(list=variables(core, board)),
        annotations=core.Annotations(list=marks()),
        links=links(core, board, boards),
        panels=list(_laid_out(core, board)),
    ).auto_panel_ids()
    raw = json.loads(json.dumps(drawn.to_json_data(), cls=DashboardEncoder))
    return modernize(raw)


def _laid_out(core: Any, board: Board) -> Iterator[Any]:
    """Rows and panels with their places in the grid, from the top down."""
    top = 0
    for row in board.rows:
        yield core.RowPanel(
            title=row.title, gridPos=core.GridPos(h=1, w=_COLUMNS, x=0, y=top), collapsed=False
        )
        top += 1
        left, tallest = 0, 0
        for panel in row.panels:
            if left + panel.width > _COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            place = core.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            yield _DRAWN_BY[panel.kind](core, panel, _common(core, panel, place))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _common(core: Any, panel: Panel, place: Any) -> dict[str, Any]:
    is_table = panel.kind is Kind.TABLE
    # The last of a range would be an old value where there is none now.
    instant = is_table or (panel.kind is Kind.STAT and bool(panel.empty_is_health))
    return {
        "title": panel.title,
        "description": describe(panel.description, empty_is_health=panel.empty_is_health),
        "dataSource": {"type": "prometheus", "uid": DATASOURCE},
        "gridPos": place,
        "targets": [
            core.Target(
                expr=bind(query.expr),
                legendFormat=query.legend,
                refId=chr(ord("A") + number),
                datasource={"type": "prometheus", "uid": DATASOURCE},
                instant=instant,
                format="table" if is_table else "time_series",
            )
            for number, query in enumerate(panel.queries)
        ],
    }


def _timeseries(core: Any, panel: Panel, common: Mapping[str, Any]) -> Any:
    wide = panel.width >= _WIDE
    defaults: Json = {"min": panel.minimum, "max": panel.maximum, "decimals": panel.decimals}
    if panel.steps:
        defaults["thresholds"] = {"mode": "absolute", "steps": _steps(panel.steps)}
    if panel.texts:
        defaults["mappings"] = _mappings(panel)
    if panel.empty_is_health:
        defaults["noValue"] = _reason(panel)
    return core.TimeSeries(
        **common,
        unit=panel.unit.value,
        lineWidth=2,
        drawStyle="bars" if panel.bars else "line",
        fillOpacity=70 if panel.bars else 35 if panel.stacked else 8,
        showPoints="never",
        stacking={"mode": "normal", "group": "A"} if panel.stacked else {},
        thresholdsStyleMode="dashed" if panel.steps else "off",
        scaleDistributionType="log" if panel.logarithmic else "linear",
        scaleDistributionLog=2 if panel.unit is Unit.BYTES else 10,
        legendDisplayMode="table" if wide else "list",
        legendPlacement="right" if wide else "bottom",
        legendCalcs=["lastNotNull", "max"] if wide else [],
        tooltipMode="multi",
        tooltipSort="desc",
        overrides=[
            *(_dashed(legend) for legend in panel.dashed),
            *(_colored(legend, color) for legend, color in panel.colors.items()),
        ],
        extraJson={"fieldConfig": {"defaults": defaults}},
    )


def _reason(panel: Panel) -> str:
    """Why it is empty, where the data would be."""
    text = panel.empty_is_health.rstrip(".")
    return text[:1].upper() + text[1:]


def _colored(legend: str, color: str) -> Json:
    return {
        "matcher": {"id": "byName", "options": legend},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
    }


def _dashed(legend: str) -> Json:
    settings: Json = {
        "custom.lineStyle": {"fill": "dash", "dash": [10, 6]},
        "custom.fillOpacity": 0,
        "custom.stacking": {"mode": "none", "group": "limit"},
        "color": {"mode": "fixed", "fixedColor": "red"},
    }
    return {
        "matcher": {"id": "byName", "options": legend},
        "properties": [{"id": name, "value": value} for name, value in settings.items()],
    }


def _stat(core: Any, panel: Panel, common: Mapping[str, Any]) -> Any:
    several = any("{{" in query.legend for query in panel.queries) or len(panel.queries) > 1
    return core.Stat(
        **common,
        format=panel.unit.value,
        decimals=panel.decimals,
        reduceCalc="lastNotNull",
        colorMode="value",
        graphMode="area" if panel.height > _SMALL else "none",
        textMode="value_and_name" if several else "value",
        noValue=(panel.no_value or "0") if panel.empty_is_health else "no data",
        mappings=_mappings(panel),
        color={"mode": "thresholds"},
        thresholds=_thresholds(core, panel.steps),
        extraJson={
            "fieldConfig": {"defaults": {"min": panel.minimum, "max": panel.maximum}},
            "options": {
                "wideLayout": True,
                "showPercentChange": False,
                "percentChangeColorMode": "standard",
            },
        },
    )


def _bars(core: Any, panel: Panel, common: Mapping[str, Any]) -> Any:
    return core.BarGauge(
        **common,
        format=panel.unit.value,
        decimals=panel.decimals,
        calc="lastNotNull",
        displayMode="basic",
        orientation="horizontal",
        min=panel.minimum,
        max=panel.maximum,
        thresholds=_thresholds(core, panel.steps),
        extraJson={
            "fieldConfig": {
                "defaults": {"color": {"mode": "thresholds"}},
                "overrides": [_colored(legend, color) for legend, color in panel.colors.items()],
            }
        },
    )


def _table(core: Any, panel: Panel, common: Mapping[str, Any]) -> Any:
    shown = {column.source: number for number, column in enumerate(panel.columns)}
    return core.Table(
        **common,
        unit=panel.unit.value,
        overrides=[override for column in panel.columns for override in _column(column)],
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": [column.source for column in panel.columns]}},
            },
            {
                "id": "organize",
                "options": {
                    "excludeByName": {},
                    "indexByName": shown,
                    "renameByName": {column.source: column.title for column in panel.columns},
                },
            },
        ],
        # No noValue: a table writes it into each cell that is empty.
        extraJson={"options": {"cellHeight": "sm"}},
    )


def _column(column: Column) -> Iterator[Json]:
    settings: Json = {}
    if column.unit is not None:
        settings["unit"] = column.unit.value
    if column.texts:
        settings["mappings"] = _mappings(column)
        settings["custom.cellOptions"] = {"type": "color-text"}
    if column.width is not None:
        settings["custom.width"] = column.width
    if settings:
        yield {
            "matcher": {"id": "byName", "options": column.title},
            "properties": [{"id": name, "value": value} for name, value in settings.items()],
        }


_DRAWN_BY = {
    Kind.TIMESERIES: _timeseries,
    Kind.STAT: _stat,
    Kind.BARS: _bars,
    Kind.TABLE: _table,
}


def _steps(steps: Sequence[Step]) -> list[Json]:
    return [{"color": step.color, "value": "null" if step.value is None else step.value} for step in steps]


def _thresholds(core: Any, steps: Sequence[Step]) -> list[Any]:
    given = steps or (Step(value=None, color="text"),)
    return [core.Threshold(step.color, number, float(step.value or 0.0)) for number, step in enumerate(given)]


def _mappings(panel: Panel | Column) -> list[Json]:
    mappings: list[Json] = []
    if panel.texts:
        options = {
            str(one.value): {"index": number, "text": one.text, "color": one.color}
            for number, one in enumerate(panel.texts)
        }
        mappings.append({"type": "value", "options": options})
    if isinstance(panel, Panel) and panel.not_a_number:
        result = {"index": len(panel.texts), "text": panel.not_a_number, "color": "text"}
        mappings.append({"type": "special", "options": {"match": "nan", "result": result}})
    return mappings
