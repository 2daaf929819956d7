"""Fills the dashboard's variables into expressions, and refuses metrics that nobody exposes."""

from __future__ import annotations

import re

from inference_cache.errors import UsageError
from inference_cache.metrics import Metric, Source, metric, names_in

__all__ = ["ENGINE", "bind"]

ENGINE = "engine"
"""Variable that holds the jobs of vLLM or Ray."""

_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{@(?:, )?")
_NAMESPACE = 'namespace=~"$namespace"'
_SERVER = f'{_NAMESPACE}, job=~"$job", instance=~"$instance"'
_MATCHERS = {
    Source.REDIS_EXPORTER: _SERVER,
    Source.EXPORTER: _SERVER,
    # Adapters live in applications, and any job may serve the verdict: neither is the server's own.
    Source.ADAPTERS: _NAMESPACE,
    Source.GATE: _NAMESPACE,
    Source.VLLM: f'{_NAMESPACE}, job=~"${ENGINE}"',
    Source.RAY: f'{_NAMESPACE}, job=~"${ENGINE}"',
    Source.PROMETHEUS: _SERVER,
    Source.KUBERNETES: _NAMESPACE,
}

_FREE = {"ALERTS"}
"""Chosen by the names of our alerts, not by the server that they are about."""


def bind(expr: str, *, with_prefix: bool = True) -> str:
    """The expression with ``{@...}`` replaced by the matchers that fit each metric's source.

    Raises:
        UsageError: it is not PromQL, names a metric that nobody exposes (with the nearest that somebody
            does), or has a selector without ``@``, which would show every cache there is.
    """
    marked = {match[1] for match in _SELECTOR.finditer(expr)}
    bound = _SELECTOR.sub(lambda match: _open(match, expr, with_prefix=with_prefix), expr).replace(", }", "}")
    for name in sorted(names_in(bound) - _FREE):
        metric(name)
        if not any(metric(one).name == name for one in marked):
            raise UsageError(f"{name} has no selector: write {name}{{@}} in {expr}")
    return bound


def _open(match: re.Match[str], expr: str, *, with_prefix: bool) -> str:
    family = metric(match[1])
    matchers = _MATCHERS[family.source]
    if with_prefix and _by_prefix(family) and "prefix=" not in expr[match.end() :].partition("}")[0]:
        matchers += ', prefix=~"$prefix"'
    return f"{match[1]}{{{matchers}, "


def _by_prefix(family: Metric) -> bool:
    return "prefix" in family.labels
