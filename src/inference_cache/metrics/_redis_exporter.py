"""Families of redis_exporter 1.45, read from a scrape of a Valkey 9.1; later versions keep these names.

Not listed, because nothing should be built on it: ``redis_instance_info``'s ``redis_version``, which is the
version of Redis that Valkey claims compatibility with.
"""

from __future__ import annotations

from inference_cache.metrics._model import Kind, Metric, Source

__all__ = ["REDIS_EXPORTER"]

_GROUPS = "with -check-key-groups"
_ERRORS = "after the first error reply of this kind: rate() misses a burst that creates the series"
_COMMANDS = "after the first call of the command"
_LATENCY = "with latency-monitor-threshold above 0, after the first spike"


def _of(kind: Kind, name: str, text: str, *labels: str, when: str = "") -> Metric:
    return Metric(
        name=f"redis_{name}", kind=kind, help=text, labels=labels, source=Source.REDIS_EXPORTER, when=when
    )


REDIS_EXPORTER: tuple[Metric, ...] = (
    # Availability
    _of("gauge", "up", "1 while the exporter gets answers from the server."),
    _of("gauge", "uptime_in_seconds", "Seconds since the server started."),
    _of("gauge", "start_time_seconds", "Unix time at which the server started."),
    _of("gauge", "process_id", "Process id of the server, in its own namespace."),
    _of(
        "gauge",
        "instance_info",
        "1, with what the server says of itself.",
        "maxmemory_policy",
        "os",
        "process_id",
        "redis_build_id",
        "redis_mode",
        "redis_version",
        "role",
        "run_id",
        "tcp_port",
    ),
    _of("gauge", "loading_dump_file", "1 while the data set is loaded."),
    _of("gauge", "exporter_last_scrape_error", "1 when the last scrape failed.", "err"),
    _of("gauge", "exporter_last_scrape_duration_seconds", "How long the last scrape took."),
    _of("counter", "exporter_scrapes_total", "Scrapes of the exporter."),
    # Memory
    _of("gauge", "memory_used_bytes", "used_memory: what counts against maxmemory, nearly."),
    _of("gauge", "memory_used_rss_bytes", "Resident memory: what the memory limit of a container counts."),
    _of("gauge", "memory_used_peak_bytes", "Highest used_memory since the start."),
    _of("gauge", "memory_used_dataset_bytes", "Used memory without overheads."),
    _of("gauge", "memory_used_overhead_bytes", "Buffers, replication, tables: used memory that is no data."),
    _of("gauge", "memory_used_startup_bytes", "Used memory of an empty server."),
    _of("gauge", "memory_used_lua_bytes", "Memory of the Lua engine."),
    _of("gauge", "memory_used_scripts_bytes", "Memory of cached scripts."),
    _of("gauge", "memory_max_bytes", "maxmemory; 0 for none."),
    _of("gauge", "mem_fragmentation_ratio", "Resident over used memory."),
    _of("gauge", "mem_fragmentation_bytes", "Resident less used memory."),
    _of("gauge", "mem_not_counted_for_eviction_bytes", "Used memory that maxmemory does not bound."),
    _of("gauge", "mem_clients_normal", "Bytes of buffers of ordinary clients."),
    _of("gauge", "mem_clients_slaves", "Bytes of buffers of replicas."),
    _of("gauge", "allocator_allocated_bytes", "Bytes handed out by the allocator."),
    _of("gauge", "allocator_active_bytes", "Bytes in the allocator's active pages."),
    _of("gauge", "allocator_resident_bytes", "Bytes in the allocator's resident pages."),
    _of("gauge", "allocator_frag_bytes", "Active less allocated bytes."),
    _of("gauge", "allocator_frag_ratio", "Active over allocated bytes."),
    _of("gauge", "allocator_rss_bytes", "Resident less active bytes."),
    _of("gauge", "allocator_rss_ratio", "Resident over active bytes."),
    _of("gauge", "active_defrag_running", "CPU percent at which active defragmentation runs now; 0 for not."),
    _of("counter", "evicted_keys_total", "Keys evicted because of maxmemory."),
    _of("gauge", "lazyfree_pending_objects", "Objects that wait to be freed in the background."),
    _of(
        "gauge",
        "total_system_memory_bytes",
        "Memory of the host: not the limit of the container.",
        when="with -include-system-metrics",
    ),
    # Keys
    _of("gauge", "db_keys", "Keys of a database.", "db"),
    _of("gauge", "db_keys_expiring", "Keys with a time to live.", "db"),
    _of(
        "gauge",
        "db_avg_ttl_seconds",
        "Average time to live of keys that have one.",
        "db",
        when="for a database with keys",
    ),
    _of("counter", "keyspace_hits_total", "Look-ups that found their key."),
    _of("counter", "keyspace_misses_total", "Look-ups that did not find their key."),
    _of("counter", "expired_keys_total", "Keys whose time to live had passed."),
    _of(
        "gauge",
        "expired_stale_percentage",
        "Estimated percent of keys that have expired and are still there.",
    ),
    _of("gauge", "key_group_count", "Keys of a group.", "db", "key_group", when=_GROUPS),
    _of(
        "gauge",
        "key_group_memory_usage_bytes",
        "Bytes of keys of a group, by MEMORY USAGE.",
        "db",
        "key_group",
        when=_GROUPS,
    ),
    _of("gauge", "last_key_groups_scrape_duration_milliseconds", "How long the groups took.", when=_GROUPS),
    # Clients
    _of("gauge", "connected_clients", "Client connections, without replicas."),
    _of("gauge", "blocked_clients", "Clients that wait in a blocking command."),
    _of(
        "gauge",
        "config_maxclients",
        "Most clients at once.",
        when="unless CONFIG is forbidden",
    ),
    _of(
        "gauge",
        "config_maxmemory",
        "maxmemory in bytes, from CONFIG GET.",
        when="unless CONFIG is forbidden",
    ),
    _of("counter", "connections_received_total", "Connections accepted."),
    _of("counter", "rejected_connections_total", "Connections refused because of maxclients."),
    _of("gauge", "client_recent_max_input_buffer_bytes", "Largest recent input buffer."),
    _of("gauge", "client_recent_max_output_buffer_bytes", "Largest recent output buffer."),
    # Commands
    _of("counter", "commands_processed_total", "Commands processed."),
    _of("counter", "commands_total", "Calls of a command.", "cmd", when=_COMMANDS),
    _of("counter", "commands_duration_seconds_total", "Time spent in a command.", "cmd", when=_COMMANDS),
    _of(
        "counter",
        "commands_failed_calls_total",
        "Calls of a command that failed while it ran.",
        "cmd",
        when=_COMMANDS,
    ),
    _of(
        "counter",
        "commands_rejected_calls_total",
        "Calls of a command that were refused before it ran (OOM, MISCONF, NOAUTH).",
        "cmd",
        when=_COMMANDS,
    ),
    _of(
        "summary",
        "latency_percentiles_usec",
        'Execution time in microseconds since the start; its quantiles are named "50", "99" and "99.9".',
        "cmd",
        when=_COMMANDS,
    ),
    _of("gauge", "latency_spike_last", "Unix time of the last spike.", "event_name", when=_LATENCY),
    _of("gauge", "latency_spike_duration_seconds", "Length of the last spike.", "event_name", when=_LATENCY),
    _of("gauge", "slowlog_length", "Entries in the slow log."),
    _of("gauge", "slowlog_last_id", "Id of the newest entry of the slow log; it grows by one with each."),
    _of("gauge", "last_slow_execution_duration_seconds", "How long the newest slow command took."),
    _of("counter", "errors_total", "Error replies by their first word.", "err", when=_ERRORS),
    _of("counter", "total_error_replies", "Error replies."),
    _of("counter", "unexpected_error_replies", "Error replies to a primary or from the AOF."),
    # Processor and network
    _of("counter", "cpu_user_seconds_total", "User processor time, without children."),
    _of("counter", "cpu_sys_seconds_total", "System processor time, without children."),
    _of("counter", "cpu_user_main_thread_seconds_total", "User processor time of the main thread."),
    _of("counter", "cpu_sys_main_thread_seconds_total", "System processor time of the main thread."),
    _of("counter", "cpu_user_children_seconds_total", "User processor time of background children."),
    _of("counter", "cpu_sys_children_seconds_total", "System processor time of background children."),
    _of("counter", "net_input_bytes_total", "Bytes received."),
    _of("counter", "net_output_bytes_total", "Bytes sent."),
    # Snapshots
    _of("gauge", "rdb_last_bgsave_status", "1 when the last snapshot succeeded."),
    _of("gauge", "rdb_last_save_timestamp_seconds", "Unix time of the last good snapshot."),
    _of("gauge", "rdb_changes_since_last_save", "Changes since the last good snapshot."),
    _of("gauge", "rdb_bgsave_in_progress", "1 while a snapshot is taken."),
    _of("gauge", "rdb_last_bgsave_duration_sec", "Seconds that the last snapshot took; -1 for none."),
    _of(
        "gauge",
        "rdb_current_bgsave_duration_sec",
        "Seconds that the running snapshot has taken; -1 for none.",
    ),
    _of("gauge", "rdb_last_cow_size_bytes", "Memory that was copied while the last snapshot was taken."),
    _of("gauge", "latest_fork_seconds", "How long the last fork stopped the server."),
    # Append-only file
    _of("gauge", "aof_enabled", "1 when the append-only file is on."),
    _of("gauge", "aof_last_write_status", "1 when the last write to the append-only file succeeded."),
    _of("gauge", "aof_last_bgrewrite_status", "1 when the last rewrite succeeded."),
    _of("gauge", "aof_rewrite_in_progress", "1 while the file is rewritten."),
    _of("gauge", "aof_rewrite_scheduled", "1 when a rewrite waits for a snapshot."),
    _of("gauge", "aof_last_rewrite_duration_sec", "Seconds that the last rewrite took; -1 for none."),
    _of(
        "gauge",
        "aof_current_rewrite_duration_sec",
        "Seconds that the running rewrite has taken; -1 for none.",
    ),
    _of("gauge", "aof_last_cow_size_bytes", "Memory that was copied during the last rewrite."),
    _of("gauge", "aof_current_size_bytes", "Size of the append-only file.", when="with appendonly yes"),
    _of("gauge", "aof_base_size_bytes", "Its size after the last rewrite.", when="with appendonly yes"),
    _of("gauge", "aof_buffer_length", "Bytes that wait to be written.", when="with appendonly yes"),
    _of("gauge", "aof_pending_bio_fsync", "fsyncs that wait in the background.", when="with appendonly yes"),
    _of("gauge", "aof_delayed_fsync", "fsyncs delayed so far: it only grows.", when="with appendonly yes"),
    # Replication
    _of("gauge", "connected_slaves", "Replicas connected."),
    _of("gauge", "replication_backlog_bytes", "Size of the replication backlog."),
)
