"""A plan as text and as one HTML page that needs nobody else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from inference_cache.contract import format_size
from inference_cache.gate._quantity import duration, short
from inference_cache.gate._svg import PALETTE_SIZE, plot_svg
from inference_cache.gate.findings import Plot, Series
from inference_cache.plan._live import LiveSample
from inference_cache.plan._plan import PARTS, Plan

__all__ = ["live_text", "plan_html", "plan_text"]

_POINTS = 60


def plan_text(plan: Plan, sizes_bytes: Sequence[int]) -> str:
    """The plan for a terminal: what each size gives, what each hit ratio takes, what evictability costs."""
    total = plan.shared[""]
    lines = [
        f"{total.requests:,} requests over {duration(plan.seconds)}, contract {plan.contract.name}, "
        f"memory as of a server built with {plan.allocator}",
        "",
        *_table(_ratio_rows(plan, sizes_bytes)),
        "",
        *_table(_memory_rows(plan)),
    ]
    if costs := list(_cost_lines(plan, sizes_bytes)):
        lines += [
            "",
            "What evictability costs (and what the contract adr_0023_safe would cost instead)",
            *costs,
        ]
    return "\n".join(lines)


def live_text(sample: LiveSample, shares: dict[str, float], sizes_bytes: Sequence[int]) -> str:
    """A look at a live server for a terminal."""
    observed = "no reads" if sample.observed_hit_ratio is None else f"{sample.observed_hit_ratio:.1%}"
    lines = [
        f"maxmemory {_memory(sample.maxmemory_bytes)} ({sample.policy}), used {_memory(sample.used_bytes)}; "
        f"{sample.sampled:,} of {sample.keys:,} keys sampled",
        f"over {sample.watched_s:.0f} s: {sample.requests_per_s:,.0f} reads/s, hit ratio {observed}, "
        f"{sample.evicted_per_s:,.1f} evictions/s",
        "",
    ]
    rows = [["workload", "keys", "memory", "share of maxmemory", "declared", "median idle"]]
    for name in (*sample.names, ""):
        part = sample.of(name)
        if name or part.sampled:
            share = part.stored_bytes / sample.maxmemory_bytes if sample.maxmemory_bytes else math.nan
            rows.append(
                [
                    name or "(no declared prefix)",
                    f"{part.keys:,.0f}",
                    f"{_memory(part.stored_bytes)} ± {_memory(part.error_bytes)}",
                    f"{share:.1%}",
                    f"{shares[name]:.0%}" if name else "-",
                    duration(part.median_idle_s),
                ]
            )
    lines += _table(rows)
    points = sample.curve()
    if not points:
        return "\n".join([*lines, "", "No prediction: nobody read while the server was watched."])
    seen = [point for number, point in enumerate(points) if number % 6 == 5] or points[-1:]
    lines += [
        "",
        *_table([["maxmemory", "predicted hit ratio"], *([_memory(s), f"{r:.1%}"] for s, r in seen)]),
    ]
    lines += ["", *(_asked(sample, size) for size in sizes_bytes)]
    return "\n".join(lines)


def _asked(sample: LiveSample, size_bytes: int) -> str:
    predicted = sample.predicted(size_bytes)
    if predicted is None:
        return (
            f"{_memory(size_bytes)}: not predicted, a sample sees no further than what the server holds "
            f"({_memory(sample.used_bytes)}); record a trace and use --trace"
        )
    return f"{_memory(size_bytes)}: predicted hit ratio {predicted:.1%}"


def plan_html(plan: Plan, sizes_bytes: Sequence[int]) -> str:
    """The page: the same tables, and the curves."""
    style = files("inference_cache.gate").joinpath("templates").joinpath("report.css").read_text("utf-8")
    total = plan.shared[""]
    sizes = _grid(plan, sizes_bytes)
    shared = [
        _series(name or "all together", plan.shared[name].points(sizes), sizes) for name in _names(plan)
    ]
    # The first line is the same in both, and gives the workloads the same colours.
    alone = [*shared[:1], *(_series(name, plan.alone[name].points(sizes), sizes) for name in plan.workloads)]
    if len(plan.workloads) == 1:
        alone = shared
    figures = [
        _figure(
            "plan-shared",
            Plot(
                title="Hit ratio by maxmemory, everybody in one memory",
                kind="line",
                x_label="maxmemory",
                y_label="hit ratio (%)",
                series=shared,
                note="Each step to the right is the same factor of memory. Where a line is flat, more memory "
                "buys nothing.",
            ),
        ),
        _figure(
            "plan-alone",
            Plot(
                title="Hit ratio by maxmemory, each workload in a memory of its own",
                kind="line",
                x_label="maxmemory of that workload alone",
                y_label="hit ratio (%)",
                series=alone,
                note="A line far above the one in shared memory: the neighbours cost this workload its hits.",
            ),
        ),
    ]
    costs = list(_cost_lines(plan, sizes_bytes))
    cost_section = (
        "<section><h2>What evictability costs</h2><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in costs)
        + "</ul></section>"
        if costs
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>Memory plan against {escape(plan.contract.name)}</title>"
        f"<style>\n{style}\n</style></head><body>"
        '<header class="head open"><div class="page">'
        '<p class="brand">inference-cache <span>memory plan</span></p>'
        f"<h1>{_percent(total.hit_ratio(sizes_bytes[0]))} hits with {escape(_memory(sizes_bytes[0]))}</h1>"
        f'<p class="headline">{escape(_headline(plan))}</p></div></header><main class="page">'
        f"<section><h2>What a maxmemory gives</h2>{_html_table(_ratio_rows(plan, sizes_bytes))}</section>"
        f"<section><h2>What a hit ratio takes</h2>{_html_table(_memory_rows(plan))}</section>{cost_section}"
        f'<section><h2>Curves</h2><div class="gallery">{"".join(figures)}</div></section>'
        "</main></body></html>\n"
    )


def _headline(plan: Plan) -> str:
    total = plan.shared[""]
    enough = total.memory_for(0.9)
    most = f"at most {total.reachable:.1%} of {total.requests:,} requests can be hits"
    return f"{most}; {_memory(enough)} give nine tenths of these." if enough else f"{most}."


def _names(plan: Plan) -> list[str]:
    return ["", *plan.workloads] if len(plan.workloads) > 1 else plan.workloads


def _ratio_rows(plan: Plan, sizes_bytes: Sequence[int]) -> list[list[str]]:
    rows = [["hit ratio at maxmemory", *(_memory(size) for size in sizes_bytes), "unlimited"]]
    for name in _names(plan):
        curve = plan.shared[name]
        rows.append(
            [
                name or "all together",
                *(_percent(curve.hit_ratio(size)) for size in sizes_bytes),
                _percent(curve.reachable),
            ]
        )
        if name and len(plan.workloads) > 1:
            own = plan.alone[name]
            share = plan.contract.workloads[name].share
            rows.append(
                [
                    f"  alone in its share ({share:.0%})",
                    *(_percent(own.hit_ratio(size * share)) for size in sizes_bytes),
                    "",
                ]
            )
    return rows


def _memory_rows(plan: Plan) -> list[list[str]]:
    parts = ["the best" if part == 1 else f"{part:.0%} of it" for part in PARTS]
    rows = [["maxmemory for", *parts, "all keys"]]
    for name in _names(plan):
        curve = plan.shared[name]
        needed = (curve.memory_for(part) for part in PARTS)
        rows.append(
            [
                name or "all together",
                *("no hits" if size is None else _memory(size) for size in needed),
                _memory(
                    sum(c.distinct_bytes for c in plan.alone.values()) if not name else curve.distinct_bytes
                ),
            ]
        )
    return rows


def _cost_lines(plan: Plan, sizes_bytes: Sequence[int]) -> Iterable[str]:
    for size in sizes_bytes:
        cost = plan.only_copy_cost(size)
        if cost is None:
            return
        lost = ", ".join(f"{part:.2%} of repeated {name} reads" for name, part in cost.lost_reads.items())
        line = f"{_memory(size)}: {lost} find the only copy evicted"
        if plan.caches is not None:
            line += (
                f"; never evicting them pins {_memory(cost.pinned_bytes)} and takes the caches from "
                f"{cost.caches_evicting_all:.1%} to {cost.caches_beside_pinned:.1%}"
            )
        yield line


def _grid(plan: Plan, sizes_bytes: Sequence[int]) -> list[int]:
    """Sizes in equal factors, from where the first hits are to where more memory buys nothing."""
    most = max([plan.shared[name].memory_for(1.0) or 0 for name in _names(plan)] + list(sizes_bytes)) * 1.05
    least = max(1 << 20, min([plan.shared[""].memory_for(0.02) or 1 << 20, *sizes_bytes]) / 2)
    step = (most / least) ** (1 / (_POINTS - 1))
    return [int(least * step**number) for number in range(_POINTS)]


def _series(name: str, ratios: list[float], sizes_bytes: list[int]) -> Series:
    return Series(name=name, x=[_memory(size) for size in sizes_bytes], y=[100 * ratio for ratio in ratios])


def _figure(ident: str, plot: Plot) -> str:
    legend = "".join(
        f'<li><span class="swatch s{number % PALETTE_SIZE}" aria-hidden="true"></span>'
        f"{escape(series.name)}</li>"
        for number, series in enumerate(plot.series)
    )
    return (
        f'<figure class="figure"><figcaption>{escape(plot.title)}</figcaption>'
        f'<ul class="legend">{legend}</ul>'
        f'{plot_svg(plot, ident)}<p class="note">{escape(plot.note)}</p></figure>'
    )


def _html_table(rows: list[list[str]]) -> str:
    sides = ["", *(' style="text-align: right"' for _ in rows[0][1:])]
    head = "".join(
        f'<th scope="col"{side}>{escape(cell)}</th>' for side, cell in zip(sides, rows[0], strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}"


def _memory(size_bytes: float) -> str:
    """As ``maxmemory`` takes it where that is exact, else rounded: 1536mb, 3.25 GiB."""
    if size_bytes == int(size_bytes) and size_bytes >= 2**20 and int(size_bytes) % 2**20 == 0:
        return format_size(int(size_bytes))
    return short(size_bytes, "bytes")
