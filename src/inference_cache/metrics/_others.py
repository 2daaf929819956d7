"""Families of vLLM, Ray, Prometheus and Kubernetes that stand beside ours."""

from __future__ import annotations

from inference_cache.metrics._model import Kind, Metric, Source

__all__ = ["KUBERNETES", "PROMETHEUS", "RAY", "VLLM"]

_OFFLOADS = "in a vLLM that offloads KV blocks"
_TIERS = "in a vLLM that offloads KV blocks to a secondary tier"
_WATCHED_TIERS = "in a vLLM that offloads to a tier with a backpressure detector in its configuration"
_VLLM = ("model_name", "engine")


def _vllm(kind: Kind, name: str, text: str, *labels: str, when: str = "in a vLLM server") -> Metric:
    return Metric(
        name=f"vllm:{name}", kind=kind, help=text, labels=(*_VLLM, *labels), source=Source.VLLM, when=when
    )


# From vLLM 0.32's own definitions; prometheus_client adds _total to its counters.
VLLM: tuple[Metric, ...] = (
    _vllm("gauge", "num_requests_running", "Requests that run."),
    _vllm("gauge", "num_requests_waiting", "Requests that wait."),
    _vllm("gauge", "kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1."),
    _vllm("counter", "prefix_cache_queries_total", "Tokens looked up in the own prefix cache."),
    _vllm("counter", "prefix_cache_hits_total", "Tokens found in the own prefix cache."),
    _vllm("counter", "external_prefix_cache_queries_total", "Tokens looked up in external caches."),
    _vllm("counter", "external_prefix_cache_hits_total", "Tokens found in external caches."),
    _vllm("counter", "num_preemptions_total", "Requests preempted."),
    _vllm("counter", "prompt_tokens_total", "Tokens of prompts."),
    _vllm("counter", "generation_tokens_total", "Tokens generated."),
    _vllm("histogram", "time_to_first_token_seconds", "Time to the first token."),
    _vllm("histogram", "inter_token_latency_seconds", "Time between tokens."),
    _vllm("histogram", "e2e_request_latency_seconds", "Time of whole requests."),
    _vllm("counter", "kv_offload_load_bytes_total", "Bytes loaded from offload storage.", when=_OFFLOADS),
    _vllm("counter", "kv_offload_load_time_total", "Seconds spent loading.", when=_OFFLOADS),
    _vllm("histogram", "kv_offload_load_size", "Bytes of a load.", when=_OFFLOADS),
    _vllm("counter", "kv_offload_store_bytes_total", "Bytes stored to offload storage.", when=_OFFLOADS),
    _vllm("counter", "kv_offload_store_time_total", "Seconds spent storing.", when=_OFFLOADS),
    _vllm("histogram", "kv_offload_store_size", "Bytes of a store.", when=_OFFLOADS),
    _vllm("counter", "kv_offload_allocation_failure_total", "Stores without room.", when=_OFFLOADS),
    _vllm("histogram", "kv_offload_lookup_sync_delay_seconds", "Time of one look-up call.", when=_OFFLOADS),
    _vllm(
        "histogram",
        "kv_offload_lookup_async_delay_seconds",
        "Time from a look-up that was put off to its answer.",
        when=_OFFLOADS,
    ),
    _vllm(
        "gauge",
        "kv_offload_cpu_cache_usage_perc",
        "Part of the CPU tier pinned by transfers, 0 to 1.",
        when=_OFFLOADS,
    ),
    _vllm("counter", "kv_offload_tiering_read_bytes_total", "Bytes read from a tier.", "tier", when=_TIERS),
    _vllm("counter", "kv_offload_tiering_read_time_total", "Seconds spent reading.", "tier", when=_TIERS),
    _vllm("counter", "kv_offload_tiering_write_bytes_total", "Bytes written to a tier.", "tier", when=_TIERS),
    _vllm("counter", "kv_offload_tiering_write_time_total", "Seconds spent writing.", "tier", when=_TIERS),
    _vllm("counter", "kv_offload_tiering_chunk_queries_total", "Chunks looked up.", "tier", when=_TIERS),
    _vllm("counter", "kv_offload_tiering_chunk_hits_total", "Chunks found.", "tier", when=_TIERS),
    _vllm(
        "counter",
        "kv_offload_tiering_promotion_job_failures_total",
        "Failed jobs that read from a tier.",
        "tier",
        when=_TIERS,
    ),
    _vllm(
        "counter",
        "kv_offload_tiering_cascade_job_failures_total",
        "Failed jobs that write to a tier.",
        "tier",
        when=_TIERS,
    ),
    _vllm(
        "counter",
        "kv_offload_tiering_promotion_allocation_failures_total",
        "Reads from a tier for which there was no room.",
        when=_TIERS,
    ),
    _vllm("gauge", "kv_offload_tiering_active_promotion_jobs", "Jobs that read now.", "tier", when=_TIERS),
    _vllm("gauge", "kv_offload_tiering_active_cascade_jobs", "Jobs that write now.", "tier", when=_TIERS),
    _vllm(
        "histogram",
        "kv_offload_tiering_lookup_sync_delay_seconds",
        "Time of one look-up call in a tier.",
        "tier",
        when=_TIERS,
    ),
    _vllm(
        "counter",
        "kv_offload_tiering_backpressure_stores_dropped_total",
        "Stores dropped because a tier was slow.",
        "tier",
        when=_WATCHED_TIERS,
    ),
    _vllm(
        "counter",
        "kv_offload_tiering_backpressure_blocks_dropped_total",
        "Blocks of the stores that were dropped because a tier was slow.",
        "tier",
        when=_WATCHED_TIERS,
    ),
)

_OURS = "in a vLLM that uses our tier"

# Of our own tier, which vLLM exposes among its metrics.
VLLM += (
    _vllm(
        "counter",
        "kv_offload_valkey_blocks_total",
        "Blocks by operation (lookup, load, store) and by how it ended.",
        "operation",
        "reason",
        when=_OURS,
    ),
    _vllm(
        "histogram",
        "kv_offload_valkey_load_block_seconds",
        "Time of a load from its submission to its end, divided by its blocks.",
        when=_OURS,
    ),
    _vllm("gauge", "kv_offload_valkey_waiting_bytes", "Bytes that wait to be moved.", when=_OURS),
    _vllm("gauge", "kv_offload_valkey_pending_lookups", "Blocks looked up without an answer.", when=_OURS),
    _vllm("gauge", "kv_offload_valkey_away", "1 while the server counts as away.", when=_OURS),
    _vllm("gauge", "kv_offload_valkey_writes_paused", "1 while the server refuses to store.", when=_OURS),
)

_RAYLET = ("SessionName", "Version", "NodeAddress", "Component")
_NODE = ("SessionName", "Version", "ip")


def _ray(name: str, text: str, *labels: str, common: tuple[str, ...] = _RAYLET) -> Metric:
    return Metric(
        name=f"ray_{name}",
        kind="gauge",
        help=text,
        labels=(*common, *labels),
        source=Source.RAY,
        when="in a Ray cluster",
    )


# Ray 2.60 exposes these as gauges, also the one that ends in _total.
RAY: tuple[Metric, ...] = (
    _ray(
        "object_store_memory",
        "Bytes of objects by where they are now (MMAP_SHM, MMAP_DISK, SPILLED, WORKER_HEAP).",
        "Location",
        "ObjectState",
    ),
    _ray("object_store_available_memory", "Bytes free in the object store."),
    _ray("object_store_used_memory", "Bytes used in the object store."),
    _ray("object_store_fallback_memory", "Bytes allocated on disk because the store was full."),
    _ray("object_store_num_local_objects", "Objects in the store."),
    _ray("spill_manager_objects", "Objects by state (Pinned, PendingSpill, PendingRestore).", "State"),
    _ray(
        "spill_manager_objects_bytes",
        "Bytes by state: Pinned, PendingSpill and PendingRestore now; Spilled and Restored since the start.",
        "State",
    ),
    _ray("spill_manager_request_total", "Requests (Spilled, Restored, FailedDeletion) so far.", "Type"),
    _ray("spill_manager_throughput_mb", "Throughput in MB/s (Spilled, Restored).", "Type"),
    _ray("pull_manager_requests", "Pulls by kind.", "Type"),
    _ray("resources", "Logical resources by name and state.", "Name", "State"),
    _ray("node_mem_used", "Bytes of memory used on the node.", common=_NODE),
    _ray("node_mem_total", "Bytes of memory of the node.", common=_NODE),
)


def _prometheus(kind: Kind, name: str, text: str, *labels: str, when: str = "") -> Metric:
    return Metric(name=name, kind=kind, help=text, labels=labels, source=Source.PROMETHEUS, when=when)


PROMETHEUS: tuple[Metric, ...] = (
    _prometheus("gauge", "up", "1 when the last scrape of the target succeeded."),
    _prometheus("gauge", "scrape_duration_seconds", "How long the last scrape took."),
    _prometheus("gauge", "scrape_samples_scraped", "Samples of the last scrape."),
    _prometheus("gauge", "scrape_samples_post_metric_relabeling", "Samples that were kept."),
    _prometheus("gauge", "scrape_series_added", "Series that were new in the last scrape."),
    _prometheus(
        "gauge",
        "ALERTS",
        "1 for each pending or firing alert.",
        "alertname",
        "alertstate",
        "severity",
        when="while an alert is pending or fires",
    ),
    _prometheus(
        "gauge",
        "ALERTS_FOR_STATE",
        "Unix time since which an alert has been active.",
        "alertname",
        "severity",
        when="while an alert is pending or fires",
    ),
    _prometheus("gauge", "process_start_time_seconds", "Unix time at which the process started."),
    _prometheus("counter", "process_cpu_seconds_total", "Processor time of the process."),
    _prometheus("gauge", "process_resident_memory_bytes", "Resident memory of the process."),
    _prometheus("gauge", "process_open_fds", "Open file descriptors."),
    _prometheus("gauge", "process_max_fds", "Most open file descriptors."),
    _prometheus(
        "counter",
        "prometheus_rule_evaluation_failures_total",
        "Failed evaluations of rules.",
        "rule_group",
        when="at Prometheus itself",
    ),
    _prometheus("gauge", "prometheus_tsdb_head_series", "Series in memory.", when="at Prometheus itself"),
    _prometheus(
        "counter",
        "alertmanager_notifications_failed_total",
        "Notifications that failed.",
        "integration",
        when="at Alertmanager itself",
    ),
)


def _kubernetes(kind: Kind, name: str, text: str, *labels: str) -> Metric:
    return Metric(
        name=name, kind=kind, help=text, labels=labels, source=Source.KUBERNETES, when="in Kubernetes"
    )


_CONTAINER = ("namespace", "pod", "container")
_VOLUME = ("namespace", "persistentvolumeclaim")

KUBERNETES: tuple[Metric, ...] = (
    _kubernetes("counter", "kube_pod_container_status_restarts_total", "Restarts.", *_CONTAINER),
    _kubernetes(
        "gauge",
        "kube_pod_container_status_last_terminated_reason",
        "1 for the reason of the last end (OOMKilled, Error, ...).",
        *_CONTAINER,
        "reason",
    ),
    _kubernetes(
        "gauge", "kube_pod_container_resource_limits", "Declared limits.", *_CONTAINER, "resource", "unit"
    ),
    _kubernetes(
        "gauge", "kube_pod_status_ready", "1 when the pod is ready.", "namespace", "pod", "condition"
    ),
    _kubernetes("gauge", "kubelet_volume_stats_available_bytes", "Free bytes of a volume.", *_VOLUME),
    _kubernetes("gauge", "kubelet_volume_stats_capacity_bytes", "Size of a volume.", *_VOLUME),
    _kubernetes("gauge", "kubelet_volume_stats_used_bytes", "Used bytes of a volume.", *_VOLUME),
    _kubernetes("gauge", "container_memory_working_set_bytes", "Memory that the limit counts.", *_CONTAINER),
    _kubernetes("gauge", "container_memory_rss", "Resident anonymous memory in bytes.", *_CONTAINER),
    _kubernetes("counter", "container_oom_events_total", "OOM kills in the container.", *_CONTAINER),
    _kubernetes("counter", "container_cpu_cfs_periods_total", "Scheduling periods.", *_CONTAINER),
    _kubernetes("counter", "container_cpu_cfs_throttled_periods_total", "Periods throttled.", *_CONTAINER),
)
