"""Ray's spilled objects: the raylets' own series beside the cache's."""

from __future__ import annotations

from dashboards._adapters import adapter_panels, prefix_panels
from dashboards._model import Board, Panel, Query, Row, Unit
from dashboards._shared import RATE
from inference_cache.contract import Contract

__all__ = ["WORKLOAD", "spill"]

WORKLOAD = "ray"


def spill(contract: Contract) -> Board:
    """The dashboard for 'is Ray's data still there'."""
    workload = contract.workloads[WORKLOAD]
    return Board(
        uid="inference-cache-spill",
        title="Inference cache: Ray spill",
        description="Objects that Ray moved out of its object stores are the only copies: evicted ones are "
        "lost. Ray's own numbers above, the adapter's and the cache's below.",
        engine="ray_object_store_memory",
        rows=(
            Row(title="How much Ray spills (Ray)", panels=_ray()),
            Row(title="The adapter", panels=(*adapter_panels(WORKLOAD, what="objects"), _times())),
            Row(title="The cache", panels=prefix_panels(workload, what="objects")),
        ),
    )


def _throughput() -> Panel:
    return Panel(
        title="Throughput of spilling",
        description="Bytes a second of objects while they are spilled and restored, as Ray measures it.",
        unit=Unit.BYTES_PER_S,
        queries=(Query(expr="1e6 * avg by (Type) (ray_spill_manager_throughput_mb{@})", legend="{{Type}}"),),
        width=8,
    )


def _times() -> Panel:
    family = "inference_cache_adapter_operation_duration_seconds_bucket"
    return Panel(
        title="Time to spill and to restore",
        description="99th percentile of calls of Ray's IO workers: of a spill, which is a batch of objects, "
        "and of a restore, which is one object and includes waiting for a server that is away.",
        unit=Unit.SECONDS,
        queries=(
            Query(
                expr="histogram_quantile(0.99, sum by (le, operation) "
                f'(rate({family}{{@, workload="{WORKLOAD}"}}{RATE})))',
                legend="{{operation}}",
            ),
        ),
        width=6,
    )


def _ray() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Objects by where they are",
            description="Bytes of Ray's objects where they are now: in shared memory (MMAP_SHM), in fallback "
            "files (MMAP_DISK), in the cache (SPILLED), in workers' own memory (WORKER_HEAP).",
            unit=Unit.BYTES,
            queries=(Query(expr="sum by (Location) (ray_object_store_memory{@})", legend="{{Location}}"),),
            stacked=True,
        ),
        Panel(
            title="Object store used",
            description="Used part of the object stores of all nodes. Ray begins to spill at 80 %.",
            unit=Unit.RATIO,
            queries=(
                Query(
                    expr="sum(ray_object_store_used_memory{@}) / "
                    "(sum(ray_object_store_used_memory{@}) + sum(ray_object_store_available_memory{@}))",
                    legend="used",
                ),
            ),
            maximum=1,
        ),
        Panel(
            title="Waiting to be spilled or restored",
            description="Objects by state. Spills that stay pending mean that the cache refuses writes: "
            "objects stay in memory, and puts stall once it is full.",
            unit=Unit.COUNT,
            queries=(Query(expr="sum by (State) (ray_spill_manager_objects{@})", legend="{{State}}"),),
        ),
        Panel(
            title="Requests of the spill manager",
            description="Objects spilled and restored, and deletions that failed, in five minutes. Ray "
            "exposes these totals as gauges.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    expr="sum by (Type) (clamp_min(delta(ray_spill_manager_request_total{@}[5m]), 0))",
                    legend="{{Type}}",
                ),
            ),
            width=8,
        ),
        Panel(
            title="Bytes by state",
            description="Bytes of objects that are pinned in memory, and that wait to be spilled or "
            "restored. What Ray calls Spilled here is a total since its start; what is spilled now stands "
            "above.",
            unit=Unit.BYTES,
            queries=(
                Query(
                    expr="sum by (State) "
                    '(ray_spill_manager_objects_bytes{@, State=~"Pinned|PendingSpill|PendingRestore"})',
                    legend="{{State}}",
                ),
            ),
            width=8,
        ),
        _throughput(),
    )
