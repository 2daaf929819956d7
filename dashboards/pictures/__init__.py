"""Pictures of the dashboards, drawn with Grafana's own panels from a Prometheus that watched a real cache.

``python -m dashboards.pictures --out docs/img/dashboards`` remakes them, from the root of a checkout. It
needs node with npm, chromium, prometheus, prometheus-redis-exporter and Pillow, about 400 MB for Grafana's
packages from npm, and ten minutes. It is a tool of the checkout, and the only part of :mod:`dashboards` that
stands on :mod:`fixtures`.
"""
