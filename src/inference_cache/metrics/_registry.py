"""All families by name, and which of them a PromQL expression reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_cache.errors import MissingExtra, UsageError
from inference_cache.metrics._model import Metric
from inference_cache.metrics._others import KUBERNETES, PROMETHEUS, RAY, VLLM
from inference_cache.metrics._ours import ADAPTERS, EXPORTER, GATE
from inference_cache.metrics._redis_exporter import REDIS_EXPORTER

if TYPE_CHECKING:
    import promql_parser

__all__ = ["METRICS", "metric", "names_in"]

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        family.name: family
        for group in (REDIS_EXPORTER, EXPORTER, ADAPTERS, GATE, VLLM, RAY, PROMETHEUS, KUBERNETES)
        for family in group
    }
)
"""Every family that rules, dashboards and exporters may name, by name."""

_FAMILY_OF_SERIES: Mapping[str, str] = {
    series: family.name for family in METRICS.values() for series in family.series
}
# What Grafana fills in before a query reaches Prometheus: durations, unless they stand in quotes.
_GRAFANA_DURATION = re.compile(
    r"\$(?:__rate_interval|__interval|__range|\{(?:__rate_interval|__interval|__range)\})"
)


def metric(name: str) -> Metric:
    """The family of this name, or of a series of it such as ``..._bucket``.

    Raises:
        UsageError: there is none, with the nearest that there are.
    """
    try:
        return METRICS[_FAMILY_OF_SERIES.get(name, name)]
    except KeyError:
        near = difflib.get_close_matches(name, [*METRICS, *_FAMILY_OF_SERIES], n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
        raise UsageError(
            f"no metric {name!r} is known{hint} (inference_cache.metrics lists those that may be used)"
        ) from None


def names_in(expr: str) -> set[str]:
    """The families that an expression reads: of a histogram's or a summary's series the family, of any other
    name the name itself, known or not, so that a recording rule's own name comes back as it is.

    Grafana's ``$__rate_interval``, ``$__interval`` and ``$__range`` stand for durations.

    Raises:
        UsageError: it is not PromQL, or selects metrics by a pattern, which nothing can check.
        MissingExtra: promql-parser is not installed.
    """
    try:
        import promql_parser
    except ImportError as error:
        raise MissingExtra(module="promql_parser", extra="observability") from error

    try:
        tree = promql_parser.parse(_GRAFANA_DURATION.sub("5m", expr))
    except ValueError as error:
        raise UsageError(f"not PromQL ({error}): {expr}") from error
    names: set[str] = set()

    def collect(node: object) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name or _name_matched(node.matchers.matchers, expr))

    promql_parser.walk(tree, collect)
    return {_FAMILY_OF_SERIES.get(name, name) for name in names}


def _name_matched(matchers: Iterable[promql_parser.Matcher], expr: str) -> str:
    from promql_parser import MatchOp

    for matcher in matchers:
        if matcher.name == "__name__" and matcher.op == MatchOp.Equal:
            return matcher.value
    raise UsageError(
        f"a selector without a metric name, or with a pattern for one, cannot be checked: {expr}"
    )
