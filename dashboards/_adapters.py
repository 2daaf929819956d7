"""Panels about one workload: what its adapter sees, and what the cache holds of it."""

from __future__ import annotations

from functools import partial

from dashboards._model import Panel, Query, Step, Unit
from dashboards._shared import BAD, GOOD, RATE
from inference_cache.contract import Workload

__all__ = ["adapter_panels", "prefix_panels"]


def adapter_panels(workload: str, *, what: str) -> tuple[Panel, ...]:
    """Hits, misses by reason, errors and bytes, as the processes that use the adapter count them."""
    quarter = partial(Panel, width=6)
    mine = f'{{@, workload="{workload}"}}'
    return (
        quarter(
            title="Found and not found",
            description=f"Look-ups a second that delivered whole {what}, and those in vain by reason. "
            "Reasons other than 'absent' are damage: counted, and never handed on as data.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(expr=f"sum(rate(inference_cache_adapter_hits_total{mine}{RATE}))", legend="found"),
                Query(
                    expr=f"sum by (reason) (rate(inference_cache_adapter_misses_total{mine}{RATE}))",
                    legend="not found: {{reason}}",
                ),
            ),
        ),
        quarter(
            title="Errors of the adapter",
            description="Operations a second that the server did not answer, or refused, by reason.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f"sum by (reason) (rate(inference_cache_adapter_errors_total{mine}{RATE})) > 0",
                    legend="{{reason}}",
                ),
            ),
            empty_is_health="the server answered every operation.",
            bars=True,
        ),
        quarter(
            title="Bytes of the adapter",
            description=f"Bytes a second of {what} that were read from the server and written to it.",
            unit=Unit.BYTES_PER_S,
            queries=(
                Query(
                    expr=f"sum by (direction) (rate(inference_cache_adapter_bytes_total{mine}{RATE}))",
                    legend="{{direction}}",
                ),
            ),
        ),
    )


def prefix_panels(workload: Workload, *, what: str) -> tuple[Panel, ...]:
    """Bytes, share and losses of the workload's prefix, as the exporter samples them."""
    mine = f'{{@, prefix="{workload.prefix}"}}'
    return (
        Panel(
            title=f"Memory of {what}",
            description=f"Bytes below {workload.prefix} and what the contract's share of "
            f"{workload.share:.0%} of maxmemory comes to.",
            unit=Unit.BYTES,
            queries=(
                Query(expr=f"sum(inference_cache_prefix_bytes{mine})", legend="now"),
                Query(expr=f"{workload.share:g} * sum(redis_memory_max_bytes{{@}})", legend="declared"),
            ),
            dashed=("declared",),
        ),
        Panel(
            title=f"Share held by {what}",
            description=f"The part of all bytes that lies below {workload.prefix}; declared is "
            f"{workload.share:.0%}.",
            unit=Unit.RATIO,
            queries=(Query(expr=f"sum(inference_cache_prefix_share_ratio{mine})", legend="share"),),
            maximum=1,
            steps=(Step(value=None, color=GOOD), Step(value=min(1.0, 2 * workload.share), color=BAD)),
        ),
        Panel(
            title=f"Evictions and expirations of {what}",
            description=f"Keys below {workload.prefix} that went a second: evicted because memory was full, "
            "or expired because their time had come.",
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f"sum(rate(inference_cache_prefix_evicted_keys_total{mine}{RATE}))", legend="evicted"
                ),
                Query(
                    expr=f"sum(rate(inference_cache_prefix_expired_keys_total{mine}{RATE}))", legend="expired"
                ),
            ),
        ),
    )
