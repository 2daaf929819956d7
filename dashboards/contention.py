"""Who takes whose memory, by prefix."""

from __future__ import annotations

from dashboards._model import Board, Column, Kind, Panel, Query, Row, Step, Unit
from dashboards._shared import BAD, GOOD, RATE, WARN, evictions_by_prefix, memory_by_prefix, prefix_colors
from inference_cache.contract import Contract

__all__ = ["contention"]

_SHARE = "sum by (prefix) (inference_cache_prefix_share_ratio{@})"
_DECLARED = "max by (prefix) (inference_cache_contract_prefix_share_ratio{@})"


def contention(contract: Contract) -> Board:
    """The dashboard for 'somebody else's keys push mine out'."""
    return Board(
        uid="inference-cache-contention",
        title="Inference cache: Contention by prefix",
        description="Who holds the memory, who was promised how much, and whose keys go. All of it is "
        "sampled by inference-cache's exporter; how sure it is stands in the last row.",
        rows=(
            Row(title="Who holds how much", panels=_shares()),
            Row(title="Over time", panels=(memory_by_prefix(contract), _share_over_time(contract))),
            Row(title="Whose keys go", panels=_losses(contract)),
            Row(title="What they keep", panels=_keys(contract)),
            Row(title="How sure this is", panels=_certainty()),
        ),
    )


def _shares() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Share against what was declared",
            description="A prefix's part of all bytes over the share that the contract declares for it: "
            "100 % is as declared, 200 % is twice of it. A hog stands well above, and somebody else well "
            "below.",
            unit=Unit.RATIO,
            kind=Kind.BARS,
            queries=(Query(expr=f"{_SHARE} / {_DECLARED}", legend="{{prefix}}"),),
            maximum=3,
            decimals=0,
            steps=(
                Step(value=None, color="blue"),
                Step(value=0.5, color=GOOD),
                Step(value=1.5, color=WARN),
                Step(value=2, color=BAD),
            ),
            width=10,
            height=9,
        ),
        Panel(
            title="By prefix, now",
            description="Keys, bytes, average size, share and declared share of each prefix. 'other' is "
            "keys of no declared prefix, for which nothing was declared.",
            unit=Unit.COUNT,
            kind=Kind.TABLE,
            queries=(
                Query(expr="sum by (prefix) (inference_cache_prefix_keys{@})", legend=""),
                Query(expr="sum by (prefix) (inference_cache_prefix_bytes{@})", legend=""),
                Query(expr="max by (prefix) (inference_cache_prefix_average_bytes{@})", legend=""),
                Query(expr=_SHARE, legend=""),
                Query(expr=_DECLARED, legend=""),
            ),
            columns=(
                Column(source="prefix", title="Prefix", width=110),
                Column(source="Value #A", title="Keys", unit=Unit.COUNT, width=100),
                Column(source="Value #B", title="Bytes", unit=Unit.BYTES, width=110),
                Column(source="Value #C", title="Average", unit=Unit.BYTES, width=110),
                Column(source="Value #D", title="Share", unit=Unit.RATIO, width=100),
                Column(source="Value #E", title="Declared", unit=Unit.RATIO),
            ),
            width=14,
            height=9,
        ),
    )


def _share_over_time(contract: Contract) -> Panel:
    return Panel(
        title="Share of all bytes",
        description="Each prefix's part of the bytes of all keys. Shares are no quotas: nothing keeps a "
        "workload within its own, which is what the alerts about hogs and squeezed-out prefixes are for.",
        colors=prefix_colors(contract),
        unit=Unit.RATIO,
        queries=(Query(expr=_SHARE, legend="{{prefix}}"),),
        maximum=1,
        width=12,
        height=9,
    )


def _losses(contract: Contract) -> tuple[Panel, ...]:
    return (
        evictions_by_prefix(contract, width=8, height=8),
        Panel(
            title="Times replaced in five minutes",
            description="Keys of a prefix evicted in the last five minutes, over the keys it has now. From "
            "1 on, as many went as there are: nobody finds again what was stored five minutes ago.",
            colors=prefix_colors(contract),
            unit=Unit.NUMBER,
            queries=(
                Query(
                    expr="sum by (prefix) (increase(inference_cache_prefix_evicted_keys_total{@}[5m])) / "
                    "(sum by (prefix) (inference_cache_prefix_keys{@}) > 0)",
                    legend="{{prefix}}",
                ),
            ),
        ),
        Panel(
            title="Expirations by prefix",
            description="Keys a second whose time to live had passed, shared out to prefixes like evictions.",
            colors=prefix_colors(contract),
            unit=Unit.EVENTS_PER_S,
            queries=(
                Query(
                    expr=f"sum by (prefix) (rate(inference_cache_prefix_expired_keys_total{{@}}{RATE}))",
                    legend="{{prefix}}",
                ),
            ),
        ),
    )


def _keys(contract: Contract) -> tuple[Panel, ...]:
    return (
        Panel(
            title="Keys by prefix",
            description="Keys below each prefix. The scale is logarithmic: sessions and KV blocks differ "
            "by orders.",
            colors=prefix_colors(contract),
            unit=Unit.COUNT,
            queries=(Query(expr="sum by (prefix) (inference_cache_prefix_keys{@})", legend="{{prefix}}"),),
            minimum=None,
            logarithmic=True,
        ),
        Panel(
            title="Average size of a key",
            description="Average bytes of a key below each prefix, value and overhead. A jump is a new "
            "model, a new serialiser, or a workload that writes under a name that is not its own.",
            colors=prefix_colors(contract),
            unit=Unit.BYTES,
            queries=(
                Query(expr="max by (prefix) (inference_cache_prefix_average_bytes{@})", legend="{{prefix}}"),
            ),
            minimum=None,
            logarithmic=True,
        ),
        Panel(
            title="Idle time of keys",
            description="Median time since a sampled key was read or written. Under LRU the prefix with "
            "the longest loses first.",
            colors=prefix_colors(contract),
            unit=Unit.SECONDS,
            queries=(
                Query(
                    expr="max by (prefix) (inference_cache_prefix_median_idle_seconds{@})",
                    legend="{{prefix}}",
                ),
            ),
            empty_is_health="idle times are read only where the exporter is told to (--idle-keys).",
        ),
    )


def _certainty() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Error of shares",
            description="Half width of the 95 % interval of the least certain share. Differences smaller "
            "than this are noise.",
            unit=Unit.RATIO,
            queries=(Query(expr="max(inference_cache_sample_error_ratio{@})", legend="± share"),),
            decimals=2,
        ),
        Panel(
            title="Explained by the sample",
            description="Bytes of all prefixes over the server's own size of its data. Far from 100 % the "
            "sample missed a tail of large keys, or most keys are tiny.",
            unit=Unit.RATIO,
            queries=(Query(expr="max(inference_cache_sample_explained_ratio{@})", legend="explained"),),
        ),
        Panel(
            title="Cost of sampling",
            description="Commands a second that the exporter sends for its sample, under its budget.",
            unit=Unit.COMMANDS_PER_S,
            queries=(
                Query(expr=f"sum(rate(inference_cache_sample_operations_total{{@}}{RATE}))", legend="sent"),
                Query(expr="sum(inference_cache_sample_budget_operations{@})", legend="budget"),
            ),
            dashed=("budget",),
        ),
    )
