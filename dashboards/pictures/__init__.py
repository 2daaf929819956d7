"""Pictures of the dashboards, drawn with Grafana's own panels from a Prometheus that watched a real cache.

``python -m dashboards.pictures --out docs/img/dashboards`` remakes all but those of the two engines, from the
root of a checkout; ``benchmarks/live_engines.py --pictures`` remakes these. Both need node with npm,
chromium, prometheus, prometheus-redis-exporter and Pillow, about 400 MB for Grafana's packages from npm, and
ten minutes. They are tools of the checkout, and the only part of :mod:`dashboards` that stands on
:mod:`fixtures`.
"""

from dashboards.pictures._draw import Watched, draw, require_tools, say

__all__ = ["Watched", "draw", "require_tools", "say"]
