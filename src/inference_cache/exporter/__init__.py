"""What redis_exporter does not tell, as metrics: keys, bytes and losses by prefix, with their error, beside
the contract's own numbers and the last verdict of the gate.

It runs beside redis_exporter. It asks the server with SCAN and MEMORY USAGE only, within a budget, and so
changes neither the LRU order nor the hit and miss counters; see :class:`Settings` for the one exception,
which is off by default. :data:`inference_cache.metrics.METRICS` lists what it exposes.
"""

from __future__ import annotations

from inference_cache.exporter._server import Exporter
from inference_cache.exporter._settings import Settings

__all__ = ["Exporter", "Settings"]
