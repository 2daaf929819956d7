"""Plots as inline SVG, with no font or colour of their own: the page's style sheet gives light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from inference_cache.gate._quantity import Unit, nice_ticks, scale, short, split_unit
from inference_cache.gate.findings import Plot, Series

__all__ = ["PALETTE_SIZE", "limit_text", "plot_svg"]

PALETTE_SIZE = 6
"""Colours that the style sheet has for series (``.s0`` to ``.s5``)."""

_WIDTH, _HEIGHT = 480.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 12.0, 28.0, 46.0
_TURNED_BOTTOM = 96.0
_CHAR = 6.6
"""Width of a character of an axis label, about."""
_MOST_POINTS = 600
_MOST_VALUE_LABELS = 12


def plot_svg(plot: Plot, ident: str) -> str:
    """The plot as one ``<svg>`` element; ``ident`` must be unique in the page."""
    drawing = _Bars(plot) if plot.kind == "bar" else _Lines(plot)
    return "".join(
        (
            f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img"',
            f' aria-labelledby="{escape(ident)}-title {escape(ident)}-desc">',
            f'<title id="{escape(ident)}-title">{escape(plot.title)}</title>',
            f'<desc id="{escape(ident)}-desc">{escape(_describe(plot, drawing.unit))}</desc>',
            *drawing.draw(),
            "</svg>",
        )
    )


def limit_text(plot: Plot) -> str:
    """What the limit of the plot is, for its legend; empty where it has none."""
    if plot.limit is None:
        return ""
    return f"{plot.limit_label or 'limit'}: {short(plot.limit, split_unit(plot.y_label)[1])}"


def _describe(plot: Plot, unit: Unit) -> str:
    parts = [f"{plot.kind} chart of {plot.y_label} by {plot.x_label}."]
    for series in plot.series:
        if values := [y for y in series.y if math.isfinite(y)]:
            lowest, highest = short(min(values), unit), short(max(values), unit)
            parts.append(f"{series.name}: {len(values)} points from {lowest} to {highest}.")
    if limit := limit_text(plot):
        parts.append(f"The limit is {limit}.")
    return " ".join(parts)


def _labelled(label: str, unit: str) -> str:
    return f"{label} ({unit})" if label and unit else label or unit


def _text(x: float, y: float, text: str, css: str, *, turn: float = 0) -> str:
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{turned}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


class _Axes:
    """The frame that both kinds share: the y axis, the limit, the labels."""

    def __init__(self, plot: Plot) -> None:
        self.plot = plot
        self.y_label, self.unit = split_unit(plot.y_label)
        values = [y for series in plot.series for y in series.y if math.isfinite(y)]
        self.empty = not values
        if plot.limit is not None and math.isfinite(plot.limit):
            values.append(plot.limit)
        # Always from zero: a cut axis makes a small difference look like a big one.
        self.ticks = nice_ticks(min([0.0, *values]), max([0.0, *values]), unit=self.unit)
        self.number, self._word = scale(max(abs(self.ticks[0]), abs(self.ticks[-1])), self.unit)
        self.bottom = _BOTTOM
        self.left, self.right, self.top = _LEFT, _WIDTH - _RIGHT, _TOP

    def draw(self) -> Iterator[str]:
        yield from self._y_axis()
        if self.empty:
            yield _text((self.left + self.right) / 2, _HEIGHT / 2, "no data", "label mid")
        else:
            yield from self._marks()
        yield _line(self.left, self.y(0), self.right, self.y(0), "axis")
        yield from self._limit()

    def _marks(self) -> Iterator[str]:
        raise NotImplementedError

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        floor = _HEIGHT - self.bottom
        return floor - (value - low) / (high - low) * (floor - self.top)

    def _y_axis(self) -> Iterator[str]:
        for tick in self.ticks:
            yield _line(self.left, self.y(tick), self.right, self.y(tick), "grid")
            yield _text(self.left - 7, self.y(tick) + 4, self.number(tick), "tick end")
        yield _text(2, 11, _labelled(self.y_label, self._word), "label")

    def _limit(self) -> Iterator[str]:
        limit = self.plot.limit
        if limit is None or not math.isfinite(limit):
            return
        yield _line(self.left, self.y(limit), self.right, self.y(limit), "limit")

    def _x_axis(self, places: Sequence[tuple[float, str]], *, slot: float) -> Iterator[str]:
        """Labels under their places; only every n-th where all would not fit."""
        longest = max((len(label) for _, label in places), default=0) * _CHAR + 8
        step = max(1, math.ceil(longest / slot)) if not self._turned else 1
        for place, label in places[::step]:
            if self._turned:
                yield _text(place + 4, _HEIGHT - self.bottom + 16, label, "tick end", turn=-28)
            else:
                yield _text(place, _HEIGHT - self.bottom + 17, label, "tick mid")
        yield _text((self.left + self.right) / 2, _HEIGHT - 6, self._x_words, "label mid")

    @property
    def _turned(self) -> bool:
        return self.bottom == _TURNED_BOTTOM

    @property
    def _x_words(self) -> str:
        return self.plot.x_label


class _Bars(_Axes):
    def __init__(self, plot: Plot) -> None:
        super().__init__(plot)
        self._categories = list(dict.fromkeys(str(x) for series in plot.series for x in series.x))
        self._slot = (self.right - self.left) / max(1, len(self._categories))
        longest = max((len(name) for name in self._categories), default=0)
        if longest * _CHAR > self._slot and len(self._categories) <= 8:
            self.bottom = _TURNED_BOTTOM

    def _marks(self) -> Iterator[str]:
        count = max(1, len(self.plot.series))
        group = self._slot * (0.72 if count > 1 or len(self._categories) < 12 else 0.9)
        bar = min(group / count, 64.0)
        first = (self._slot - bar * count) / 2
        total = sum(len(series.y) for series in self.plot.series)
        for number, series in enumerate(self.plot.series):
            for x, value in zip(series.x, series.y, strict=False):
                if not math.isfinite(value):
                    continue
                left = self.left + self._categories.index(str(x)) * self._slot + first + number * bar
                yield self._bar(left, bar, value, series, str(x), number)
                if total <= _MOST_VALUE_LABELS:
                    top = self.y(max(value, 0)) - 4
                    yield _text(left + bar / 2, top, self.number(value), "value mid")
        places = [(self.left + (n + 0.5) * self._slot, name) for n, name in enumerate(self._categories)]
        yield from self._x_axis(places, slot=self._slot)

    def _bar(self, left: float, width: float, value: float, series: Series, x: str, number: int) -> str:
        top, bottom = sorted((self.y(value), self.y(0)))
        tip = f"{series.name}, {x}: {short(value, self.unit)}"
        return (
            f'<rect class="s{number % PALETTE_SIZE}" x="{left + 0.75:.1f}" y="{top:.1f}" rx="1.5"'
            f' width="{max(width - 1.5, 0.5):.1f}" height="{max(bottom - top, 0.8 if value else 0):.1f}">'
            f"<title>{escape(tip)}</title></rect>"
        )


class _Lines(_Axes):
    def __init__(self, plot: Plot) -> None:
        super().__init__(plot)
        points = [x for series in plot.series for x in series.x]
        self._names = (
            list(dict.fromkeys(str(x) for x in points)) if any(isinstance(x, str) for x in points) else []
        )
        self._label, self._x_unit = split_unit(plot.x_label)
        places = [self._place(x) for x in points]
        finite = [place for place in places if math.isfinite(place)] or [0.0]
        self._low, self._high = min(finite), max(finite)

    @property
    def _x_words(self) -> str:
        _, word = scale(self._high, self._x_unit)
        return _labelled(self._label, word)

    def _place(self, x: float | str) -> float:
        return float(self._names.index(str(x))) if self._names else float(x)

    def _x(self, place: float) -> float:
        span = self._high - self._low or 1.0
        return self.left + (place - self._low) / span * (self.right - self.left - 8) + 4

    def _marks(self) -> Iterator[str]:
        for number, series in enumerate(self.plot.series):
            css = f"s{number % PALETTE_SIZE}"
            for run in _unbroken((self._place(x), y) for x, y in zip(series.x, series.y, strict=False)):
                points = [(self._x(x), self.y(y)) for x, y in _thinned(run)]
                if len(points) == 1:
                    [(x, y)] = points
                    yield f'<circle class="dot {css}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
                else:
                    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                    yield f'<polyline class="line {css}" points="{path}"/>'
        if self._names:
            places = [(self._x(n), name) for n, name in enumerate(self._names)]
            slot = (self.right - self.left) / len(self._names)
        else:
            ticks = [t for t in nice_ticks(self._low, self._high, unit=self._x_unit) if self._within(t)]
            written, _ = scale(self._high, self._x_unit)
            places = [(self._x(tick), written(tick)) for tick in ticks]
            slot = (self.right - self.left) / max(1, len(ticks))
        yield from self._x_axis(places, slot=slot)

    def _within(self, tick: float) -> bool:
        slack = (self._high - self._low) * 1e-9
        return self._low - slack <= tick <= self._high + slack


def _unbroken(points: Iterable[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Runs of finite points: where a value is missing the line has a gap."""
    run: list[tuple[float, float]] = []
    for point in points:
        if all(math.isfinite(number) for number in point):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _thinned(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """At most ``_MOST_POINTS`` of them: of each stretch the lowest and the highest, so no peak is lost."""
    if len(points) <= _MOST_POINTS:
        yield from points
        return
    size = math.ceil(len(points) / (_MOST_POINTS / 2))
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        extremes = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        yield from sorted(extremes)
