"""Families that this package exposes itself."""

from __future__ import annotations

from inference_cache.metrics._model import Kind, Metric, Source

__all__ = ["ADAPTERS", "EXPORTER", "GATE"]

_REACHED = "after the first sample of a server that answers"
_IDLE = "with --idle-keys above 0 and a policy that is not LFU: reading idle times counts as hits"


def _exporter(kind: Kind, name: str, text: str, *labels: str, when: str = "") -> Metric:
    return Metric(
        name=f"inference_cache_{name}",
        kind=kind,
        help=text,
        labels=labels,
        source=Source.EXPORTER,
        when=when,
    )


def _contract(name: str, text: str, *labels: str, kind: Kind = "gauge", when: str = "") -> Metric:
    return _exporter(kind, f"contract_{name}", text, *labels, when=when)


EXPORTER: tuple[Metric, ...] = (
    _exporter("gauge", "up", "1 while the server answers; 0 while it is gone, loading or refuses us."),
    _exporter(
        "info",
        "server_info",
        "1, with which server the numbers are of.",
        "server_name",
        "server_version",
        "run_id",
        "tcp_port",
        when=_REACHED,
    ),
    _exporter("info", "exporter_info", "1, with the version of the exporter.", "version"),
    _exporter(
        "counter", "exporter_errors_total", "Times the server could not be asked, by reason.", "reason"
    ),
    # What is there, by prefix. "other" stands for every key without a declared prefix.
    _exporter("gauge", "prefix_keys", "Keys below the prefix.", "prefix", when=_REACHED),
    _exporter(
        "gauge", "prefix_bytes", "Bytes of keys below the prefix (MEMORY USAGE).", "prefix", when=_REACHED
    ),
    _exporter(
        "gauge", "prefix_average_bytes", "Average bytes of a key below the prefix.", "prefix", when=_REACHED
    ),
    _exporter(
        "gauge",
        "prefix_share_ratio",
        "The prefix's part of the bytes of all keys, 0 to 1.",
        "prefix",
        when=_REACHED,
    ),
    _exporter(
        "gauge",
        "prefix_keys_error",
        "Half width of the 95 % interval of prefix_keys.",
        "prefix",
        when=_REACHED,
    ),
    _exporter(
        "gauge",
        "prefix_bytes_error",
        "Half width of the 95 % interval of prefix_bytes.",
        "prefix",
        when=_REACHED,
    ),
    _exporter(
        "gauge",
        "prefix_oldest_idle_seconds",
        "Longest time for which a sampled key was neither read nor written.",
        "prefix",
        when=_IDLE,
    ),
    _exporter(
        "gauge",
        "prefix_median_idle_seconds",
        "Median time for which sampled keys were neither read nor written.",
        "prefix",
        when=_IDLE,
    ),
    _exporter(
        "counter",
        "prefix_evicted_keys_total",
        "The server's evictions since the exporter started, shared out by the sampled keys that went.",
        "prefix",
        when=_REACHED,
    ),
    _exporter(
        "counter",
        "prefix_expired_keys_total",
        "The server's expirations since the exporter started, shared out by the sampled keys that went.",
        "prefix",
        when=_REACHED,
    ),
    _exporter(
        "counter",
        "prefix_vanished_keys_total",
        "Sampled keys that were gone when looked at again: how much the two counters above rest on.",
        "prefix",
        when=_REACHED,
    ),
    # The sample itself
    _exporter("gauge", "sample_keys", "Keys that the numbers by prefix rest on.", when=_REACHED),
    _exporter(
        "gauge",
        "sample_complete",
        "1 when every key was looked at, 0 when a sample was.",
        when=_REACHED,
    ),
    _exporter(
        "gauge",
        "sample_error_ratio",
        "Half width of the 95 % interval of the least certain prefix_share_ratio, 0 to 1.",
        when=_REACHED,
    ),
    _exporter("gauge", "sample_age_seconds", "Age of the oldest key size that still counts.", when=_REACHED),
    _exporter(
        "gauge",
        "sample_explained_ratio",
        "Mean size of sampled keys, times all keys, over the server's own size of its data; far from 1 means "
        "a tail was missed.",
        when=_REACHED,
    ),
    _exporter("gauge", "sample_budget_operations", "Commands a second that the exporter may send."),
    _exporter("counter", "sample_operations_total", "Commands that the exporter sent."),
    _exporter(
        "counter",
        "sample_hits_total",
        "Of those, what the server counted in keyspace_hits: 0 unless idle times are asked for.",
    ),
    # The contract
    _contract(
        "info", "1, with the contract that the thresholds come from.", "contract", "sha256", kind="info"
    ),
    _contract("memory_limit_bytes", "Memory limit of the server's container."),
    _contract("maxmemory_bytes", "Declared maxmemory."),
    _contract("headroom_ratio", "Largest part of the memory limit that maxmemory may take, 0 to 1."),
    _contract("fragmentation_ratio", "Largest resident over used memory."),
    _contract("volume_bytes", "Size of the persistent volume."),
    _contract("recovery_seconds", "Longest time from the end of a fault to the first good answer."),
    _contract("prefix_share_ratio", "Declared share of maxmemory, 0 to 1.", "prefix"),
    _contract(
        "prefix_ttl_seconds",
        "Declared time to live of a new key.",
        "prefix",
        when="for prefixes whose keys have a time to live",
    ),
    _contract("prefix_info", "1, with what a prefix is.", "prefix", "workload", "data_class", kind="info"),
    _contract("p99_seconds", "Bound on the 99th percentile of a read.", "workload", "prefix"),
    _contract("connections", "Connections that a workload may hold.", "workload", "prefix"),
)


def _adapter(kind: Kind, name: str, text: str, *labels: str, when: str) -> Metric:
    return Metric(
        name=f"inference_cache_adapter_{name}",
        kind=kind,
        help=text,
        labels=("adapter", "workload", *labels),
        source=Source.ADAPTERS,
        when=when,
    )


_HAPPENED = "after it happened once"

ADAPTERS: tuple[Metric, ...] = (
    _adapter(
        "counter", "hits_total", "Look-ups that delivered a whole value.", when="in a process that uses it"
    ),
    _adapter("counter", "misses_total", "Look-ups in vain.", "reason", when=_HAPPENED),
    _adapter(
        "counter",
        "errors_total",
        "Operations that the server did not answer, or refused.",
        "reason",
        when=_HAPPENED,
    ),
    _adapter(
        "counter",
        "bytes_total",
        "Bytes of values, read from or written to the server.",
        "direction",
        when="in a process that times its adapters",
    ),
    _adapter(
        "histogram",
        "operation_duration_seconds",
        "How long a call took, as its caller saw it.",
        "operation",
        when="in a process that times its adapters",
    ),
)


def _gate(name: str, text: str, *labels: str) -> Metric:
    return Metric(
        name=f"inference_cache_gate_{name}",
        kind="gauge",
        help=text,
        labels=labels,
        source=Source.GATE,
        when="after a run of the gate",
    )


GATE: tuple[Metric, ...] = (
    _gate("verdict", "1 for the verdict of the last run, 0 for the others.", "verdict"),
    _gate("exit_code", "Exit code of the last run; 0 is conformant."),
    _gate("clauses", "Clauses by outcome; they add up to the catalogue.", "outcome"),
    _gate(
        "clause_outcome",
        "1 for the outcome of the clause, 0 for the others.",
        "clause",
        "level",
        "group",
        "outcome",
    ),
    _gate("accepted_risks", "Risks that the contract declares accepted."),
    _gate("duration_seconds", "How long the last run took."),
    _gate("timestamp_seconds", "Unix time at which the last run started."),
    _gate(
        "info",
        "What was judged, by what and against what.",
        "version",
        "server_name",
        "server_version",
        "target",
        "address",
        "contract",
        "contract_sha256",
    ),
)
