"""Grafana dashboards for one inference cache, made from the contract and the metric registry.

:func:`dashboards.generate.files` makes them; ``dashboards/generated`` holds what the shipped contract gives.
Their uids are stable, because alerts and bookmarks link to them:

====================================  =====================================================
``inference-cache-overview``          is it well, in one screen
``inference-cache-memory``            memory pressure: level, evictions, refused writes
``inference-cache-contention``        who takes whose memory, by prefix
``inference-cache-persistence``       persistence and availability
``inference-cache-offload``           vLLM's KV offload, its own series beside the cache's
``inference-cache-spill``             Ray's spilled objects
``inference-cache-conformance``       the acceptance gate's last verdict
====================================  =====================================================
"""
