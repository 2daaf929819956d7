"""vLLM's KV offload: the engine's own series beside the cache's."""

from __future__ import annotations

from dashboards._adapters import prefix_panels
from dashboards._model import Board, Panel, Query, Row, Unit
from dashboards._shared import RATE
from inference_cache.contract import Contract

__all__ = ["WORKLOAD", "offload"]

WORKLOAD = "vllm_kv"


def offload(contract: Contract) -> Board:
    """The dashboard for 'does the offload pay'."""
    workload = contract.workloads[WORKLOAD]
    return Board(
        uid="inference-cache-offload",
        title="Inference cache: KV offload",
        description="Does offloading KV blocks pay, and does it ever hold requests up: vLLM's own numbers "
        "above, the tier's and the cache's below.",
        engine="vllm:num_requests_running",
        rows=(
            Row(title="Does it pay (vLLM)", panels=_pays()),
            Row(title="What moves (vLLM)", panels=_moves()),
            Row(title="Where it stalls (vLLM)", panels=_stalls()),
            Row(title="The tier on Valkey (vLLM)", panels=_tier()),
            Row(title="The cache", panels=prefix_panels(workload, what="blocks")),
        ),
    )


def _pays() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Tokens found",
            description="Part of the looked-up tokens that were found: in vLLM's own prefix cache, and in "
            "external storage for what was not. The second is what offloading adds.",
            unit=Unit.RATIO,
            queries=(
                Query(expr=_found("vllm:prefix_cache"), legend="own prefix cache"),
                Query(expr=_found("vllm:external_prefix_cache"), legend="external"),
            ),
            maximum=1,
        ),
        Panel(
            title="Time to the first token",
            description="Median and 99th percentile. When offloading works, both fall for prompts with a "
            "known beginning.",
            unit=Unit.SECONDS,
            queries=(
                Query(expr=_quantile(0.5, "vllm:time_to_first_token_seconds"), legend="p50"),
                Query(expr=_quantile(0.99, "vllm:time_to_first_token_seconds"), legend="p99"),
            ),
        ),
        Panel(
            title="Requests",
            description="Requests that run and that wait. Waiting ones with idle offload are a problem of "
            "compute, not of the cache.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(vllm:num_requests_running{@})", legend="running"),
                Query(expr="sum(vllm:num_requests_waiting{@})", legend="waiting"),
            ),
        ),
    )


def _moves() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Bytes between GPU and host",
            description="Bytes a second that vLLM stores into, and loads from, its first offload tier.",
            unit=Unit.BYTES_PER_S,
            queries=(
                Query(expr=f"sum(rate(vllm:kv_offload_store_bytes_total{{@}}{RATE}))", legend="stored"),
                Query(expr=f"sum(rate(vllm:kv_offload_load_bytes_total{{@}}{RATE}))", legend="loaded"),
            ),
        ),
        Panel(
            title="Bytes between host and tiers",
            description="Bytes a second written to and read from each further tier, of which the cache is "
            "one.",
            unit=Unit.BYTES_PER_S,
            queries=(
                Query(
                    expr=f"sum by (tier) (rate(vllm:kv_offload_tiering_write_bytes_total{{@}}{RATE}))",
                    legend="written {{tier}}",
                ),
                Query(
                    expr=f"sum by (tier) (rate(vllm:kv_offload_tiering_read_bytes_total{{@}}{RATE}))",
                    legend="read {{tier}}",
                ),
            ),
        ),
        Panel(
            title="Chunks found in tiers",
            description="Part of the looked-up chunks that a tier had. It falls when the cache evicts "
            "blocks before they are asked for again.",
            unit=Unit.RATIO,
            queries=(
                Query(
                    expr=f"sum by (tier) (rate(vllm:kv_offload_tiering_chunk_hits_total{{@}}{RATE})) / "
                    f"sum by (tier) (rate(vllm:kv_offload_tiering_chunk_queries_total{{@}}{RATE}))",
                    legend="{{tier}}",
                ),
            ),
            maximum=1,
        ),
    )


def _tier() -> tuple[Panel, ...]:
    blocks = "vllm:kv_offload_valkey_blocks_total"
    return (
        Panel(
            title="Blocks looked up",
            description="Blocks a second that the tier was asked for, by what it answered. Misses of blocks "
            "that were stored a while ago mean that the cache evicts them too early.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f'sum by (reason) (rate({blocks}{{@, operation="lookup"}}{RATE}))',
                    legend="{{reason}}",
                ),
            ),
        ),
        Panel(
            title="Blocks loaded and stored",
            description="Blocks a second, by how it ended: hit and stored are well, checksum and its like "
            "are damage, queue_full, pushed_out, late and deadline are a tier that is too slow.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f'sum by (operation, reason) (rate({blocks}{{@, operation=~"load|store"}}{RATE}))',
                    legend="{{operation}} {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Time to load a block",
            description="What loads took from their submission to their end, for each block that they asked "
            "for: median and 99th percentile. The budget alerts judge it by the contract's p99_s.",
            unit=Unit.SECONDS,
            queries=(
                Query(expr=_quantile(0.5, "vllm:kv_offload_valkey_load_block_seconds"), legend="p50"),
                Query(expr=_quantile(0.99, "vllm:kv_offload_valkey_load_block_seconds"), legend="p99"),
            ),
        ),
        Panel(
            title="Waiting for a connection",
            description="Bytes that wait to be stored or loaded. What does not fit into the queue is "
            "dropped, stores before loads.",
            unit=Unit.BYTES,
            queries=(Query(expr="sum(vllm:kv_offload_valkey_waiting_bytes{@})", legend="waiting"),),
        ),
        Panel(
            title="Away or refusing",
            description="Engines for which the server counts as away (nobody waits for it; blocks are "
            "computed), and engines whose stores it refuses because it is full or cannot save.",
            unit=Unit.COUNT,
            queries=(
                Query(expr="sum(vllm:kv_offload_valkey_away{@})", legend="away"),
                Query(expr="sum(vllm:kv_offload_valkey_writes_paused{@})", legend="refusing"),
            ),
        ),
    )


def _stalls() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Time of one look-up",
            description="99th percentile of look-ups in vLLM's scheduler: synchronous calls into a tier "
            "hold up every request, deferred ones only their own.",
            unit=Unit.SECONDS,
            queries=(
                Query(
                    expr=_quantile(0.99, "vllm:kv_offload_tiering_lookup_sync_delay_seconds"),
                    legend="in a tier",
                ),
                Query(expr=_quantile(0.99, "vllm:kv_offload_lookup_async_delay_seconds"), legend="deferred"),
            ),
        ),
        Panel(
            title="Jobs that fail",
            description="Jobs a second that failed to read from a tier (the blocks are computed again) and "
            "to write to it (the blocks are not kept).",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr="sum by (tier) "
                    f"(rate(vllm:kv_offload_tiering_promotion_job_failures_total{{@}}{RATE}))",
                    legend="read {{tier}}",
                ),
                Query(
                    expr="sum by (tier) "
                    f"(rate(vllm:kv_offload_tiering_cascade_job_failures_total{{@}}{RATE}))",
                    legend="write {{tier}}",
                ),
            ),
            empty_is_health="no job ever failed: these series begin with the first failure.",
        ),
        Panel(
            title="Stores that do not happen",
            description="Stores a second for which vLLM had no room, or that it dropped because a tier was "
            "slow (where the tier's configuration has a backpressure detector), and blocks a second that our "
            "tier gave up because they waited or took too long.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f"sum(rate(vllm:kv_offload_allocation_failure_total{{@}}{RATE}))", legend="no room"
                ),
                Query(
                    expr=f"sum(rate(vllm:kv_offload_tiering_backpressure_stores_dropped_total{{@}}{RATE}))",
                    legend="dropped by vLLM",
                ),
                Query(
                    expr="sum by (reason) (rate(vllm:kv_offload_valkey_blocks_total"
                    f'{{@, operation="store", reason=~"queue_full|pushed_out|late|deadline"}}{RATE}))',
                    legend="blocks given up: {{reason}}",
                ),
            ),
            empty_is_health="no store was ever given up: these series begin with the first.",
        ),
    )


def _found(family: str) -> str:
    return f"sum(rate({family}_hits_total{{@}}{RATE})) / sum(rate({family}_queries_total{{@}}{RATE}))"


def _quantile(quantile: float, family: str) -> str:
    return f"histogram_quantile({quantile:g}, sum by (le) (rate({family}_bucket{{@}}{RATE})))"
