"""House rules for dashboards, as code: what grafana/dashboard-linter and cloudflare/pint look for, and ours.

:func:`lint` reads the generated JSON and the metric registry, not our model: it judges what Grafana gets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from inference_cache.errors import UsageError
from inference_cache.metrics import Metric, Source, metric, names_in
from inference_cache.panels import ShownPanel, ShownQuery, read_panels, substitute

__all__ = ["lint"]

_MOST_UID_CHARACTERS = 40
_COLUMNS = 24
_VARIABLES = ("datasource", "namespace", "job", "instance", "prefix")
_ANNOTATIONS = ("Alerts", "Restarts", "Failed saves")
_OF_COUNTERS = frozenset({"rate", "irate", "increase"})
_OF_GAUGES = frozenset({"delta", "idelta", "deriv", "predict_linear"})
_OF_THE_SERVER = frozenset({Source.REDIS_EXPORTER, Source.EXPORTER})
_PARSED = {**dict.fromkeys((*_VARIABLES, "engine"), "x"), "__rate_interval": "97s"}
_RATE_WINDOW_S = 97.0
_LONG_WINDOW_S = 3600.0
_LABEL_IN_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_UNITS_BY_SUFFIX = {
    "_bytes": ("bytes",),
    "_bytes_total": ("binBps",),
    "_seconds": ("s",),
    "_ratio": ("percentunit",),
}


def lint(files: Mapping[str, str]) -> list[str]:
    """What is wrong with the dashboards among the files, each with where it stands."""
    problems: list[str] = []
    for name, text in sorted(files.items()):
        board = json.loads(text)
        problems += [f"{name}: {what}" for what in _board_problems(board)]
    for panel in read_panels(files):
        problems += [f"{panel.name}: {what}" for what in _panel_problems(panel)]
        for query in panel.queries:
            where = f"{panel.name} ({query.ref})"
            problems += [f"{where}: {what}" for what in _query_problems(panel, query)]
    return problems


def _board_problems(board: Mapping[str, Any]) -> Iterator[str]:
    if not 0 < len(board.get("uid", "")) <= _MOST_UID_CHARACTERS:
        yield f"its uid has not 1 to {_MOST_UID_CHARACTERS} characters"
    if not board.get("description"):
        yield "it has no description"
    if board.get("id") is not None:
        yield "it has the id of one Grafana's database"
    variables = {one["name"]: one for one in board["templating"]["list"]}
    for name in _VARIABLES:
        if name not in variables:
            yield f"it has no variable {name}"
    annotations = {one["name"] for one in board["annotations"]["list"]}
    for name in _ANNOTATIONS:
        if name not in annotations:
            yield f"it has no annotation {name}"
    if not board["links"]:
        yield "it links to no other dashboard"
    for one in (*board["annotations"]["list"], *variables.values()):
        if "datasource" in one and one["datasource"].get("uid") != "${datasource}":
            yield f"{one['name']} asks {one['datasource'].get('uid')}, not ${{datasource}}"
    titles = [panel["title"] for panel in board["panels"]]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        yield f"two panels are called {title!r}"
    for one, other in combinations(board["panels"], 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{one['title']!r} and {other['title']!r} overlap"


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def _panel_problems(panel: ShownPanel) -> Iterator[str]:
    if len(panel.description) < 30:
        yield "its description does not say what it shows"
    if not panel.unit:
        yield "it has no unit"
    if panel.unit == "percent":
        yield "its unit is percent; ratios are 0 to 1 and percentunit"
    if not panel.queries:
        yield "it asks nothing"
    if panel.raw.get("maxDataPoints"):
        yield "maxDataPoints hides spikes"
    place = panel.raw["gridPos"]
    if place["x"] + place["w"] > _COLUMNS:
        yield "it is wider than the grid"
    refs = [query.ref for query in panel.queries]
    if len(set(refs)) != len(refs):
        yield "two of its queries have one refId"


def _query_problems(panel: ShownPanel, query: ShownQuery) -> Iterator[str]:
    if query.datasource != "${datasource}":
        yield f"it asks {query.datasource or 'the default data source'}, not ${{datasource}}"
    try:
        families = {name: metric(name) for name in names_in(substitute(query.expr, _PARSED))}
    except UsageError as error:
        yield str(error)
        return
    if panel.kind != "table" and not query.legend:
        yield "it has no legend"
    tree = _parsed(query.expr)
    yield from _legend_problems(query, tree)
    yield from _unit_problems(panel, query, families, tree)
    for selector, functions, window_s in _selectors(tree):
        yield from _selector_problems(metric(selector.name), selector, functions, window_s)


def _parsed(expr: str) -> Any:
    import promql_parser

    return promql_parser.parse(substitute(expr, _PARSED))


def _selectors(
    node: Any, functions: tuple[str, ...] = (), window_s: float | None = None
) -> Iterator[tuple[Any, tuple[str, ...], float | None]]:
    """Each selector with the functions around it, innermost first, and its window in seconds."""
    import promql_parser as promql

    if isinstance(node, promql.VectorSelector):
        yield node, functions, window_s
    elif isinstance(node, promql.MatrixSelector):
        yield node.vector_selector, functions, node.range.total_seconds()
    elif isinstance(node, promql.Call):
        for argument in node.args:
            yield from _selectors(argument, (node.func.name, *functions), window_s)
    elif isinstance(node, promql.BinaryExpr):
        yield from _selectors(node.lhs, functions, window_s)
        yield from _selectors(node.rhs, functions, window_s)
    elif isinstance(node, promql.AggregateExpr | promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        yield from _selectors(node.expr, functions, window_s)


def _selector_problems(
    family: Metric, selector: Any, functions: tuple[str, ...], window_s: float | None
) -> Iterator[str]:
    matched = {one.name for one in selector.matchers.matchers}
    wanted = {"namespace", "job", "instance"} if family.source in _OF_THE_SERVER else {"namespace"}
    if missing := wanted - matched:
        yield f"{selector.name} is not selected by {', '.join(sorted(missing))}"
    grows = family.kind == "counter" or selector.name.endswith(("_bucket", "_sum", "_count"))
    used = set(functions)
    if grows and not used & (_OF_COUNTERS | {"changes", "resets"}):
        yield f"{selector.name} only grows: show its rate() or increase()"
    if not grows and used & _OF_COUNTERS:
        wrong = ", ".join(sorted(used & _OF_COUNTERS))
        yield f"{selector.name} is a {family.kind}: {wrong}() is for counters"
    if grows and used & _OF_GAUGES:
        yield f"{selector.name} is a counter: {', '.join(sorted(used & _OF_GAUGES))}() is for gauges"
    if "rate" in used and window_s not in (None, _RATE_WINDOW_S) and (window_s or 0) < _LONG_WINDOW_S:
        yield f"rate({selector.name}) over {window_s:g} s: use $__rate_interval, or an hour and more"


def _legend_problems(query: ShownQuery, tree: Any) -> Iterator[str]:
    import promql_parser as promql

    kept: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            kept.update(node.modifier.labels)

    promql.walk(tree, collect)
    for label in _LABEL_IN_LEGEND.findall(query.legend):
        if label not in kept:
            yield f"its legend has {{{{{label}}}}}, which its query does not keep"


def _unit_problems(
    panel: ShownPanel, query: ShownQuery, families: Mapping[str, Metric], tree: Any
) -> Iterator[str]:
    """A plain value, or a sum of it, has the unit that its name says."""
    if panel.kind == "table" or len(families) != 1 or _computes(tree):
        return
    (name,) = families
    for suffix, units in _UNITS_BY_SUFFIX.items():
        if name.endswith(suffix) and name != "redis_mem_fragmentation_ratio" and panel.unit not in units:
            yield f"{name} is shown in {panel.unit}, not in {' or '.join(units)}"


def _computes(tree: Any) -> bool:
    """Whether an operator or a function makes another quantity of it."""
    import promql_parser as promql

    found = False

    def look(node: Any) -> None:
        nonlocal found
        is_count = isinstance(node, promql.AggregateExpr) and str(node.op) == "count"
        changes = isinstance(node, promql.Call) and node.func.name not in ("rate", "histogram_quantile")
        found = found or isinstance(node, promql.BinaryExpr) or is_count or changes

    promql.walk(tree, look)
    return found
