"""The metric families that may be named: by whom each is exposed, of which kind, with which labels.

``METRICS`` holds them all, ``metric(name)`` finds one or names the nearest, and ``names_in(expr)`` lists
those that a PromQL expression reads::

    for name in names_in("rate(redis_evicted_keys_total[5m]) > 10"):
        metric(name)  # UsageError for a name that nothing exposes
"""

from __future__ import annotations

from inference_cache.metrics._durations import DURATION_BUCKETS_S, Durations, Spread
from inference_cache.metrics._model import Kind, Metric, Source
from inference_cache.metrics._registry import METRICS, metric, names_in

__all__ = [
    "DURATION_BUCKETS_S",
    "METRICS",
    "Durations",
    "Kind",
    "Metric",
    "Source",
    "Spread",
    "metric",
    "names_in",
]
