"""What a dashboard is here: rows of panels that ask questions, before any of Grafana's notation.

In an expression ``name{@}`` stands for the metric with the dashboard's variables as matchers, and
``name{@, label="value"}`` for the same with more of them; :mod:`dashboards._queries` fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Board", "Column", "Kind", "Panel", "Query", "Row", "Step", "Unit", "ValueText"]


class Unit(StrEnum):
    """Grafana's ids of the units in use. Ratios are 0 to 1 and shown as percent, never multiplied."""

    BYTES = "bytes"
    BYTES_PER_S = "binBps"
    SECONDS = "s"
    RATIO = "percentunit"
    COMMANDS_PER_S = "ops"
    EVENTS_PER_S = "eps"
    COUNT = "short"
    NUMBER = "none"


class Kind(StrEnum):
    """Grafana's ids of the visualisations in use: those that were seen drawing real data."""

    TIMESERIES = "timeseries"
    STAT = "stat"
    BARS = "bargauge"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question to Prometheus; ``legend`` is a template over the labels of the answer."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From this value on, this colour; None is where the scale begins."""

    value: float | None
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueText:
    """A value that reads better as a word."""

    value: int
    text: str
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table: the label or ``Value #A`` that fills it, its heading and its unit."""

    source: str
    title: str
    unit: Unit | None = None
    texts: Sequence[ValueText] = ()
    width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One answer on the screen.

    ``empty_is_health`` says why no data is good news; without it a panel without data is a defect.
    ``width`` and ``height`` are in Grafana's grid: 24 columns, 30 pixels a row.
    """

    title: str
    description: str
    unit: Unit
    queries: Sequence[Query]
    kind: Kind = Kind.TIMESERIES
    width: int = 8
    height: int = 8
    empty_is_health: str = ""
    no_value: str = ""
    """What stands in a stat that is empty for that reason; elsewhere the reason itself does."""
    not_a_number: str = ""
    """What a value of NaN is called, as in a ratio of nothing to nothing."""
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None
    steps: Sequence[Step] = ()
    stacked: bool = False
    texts: Sequence[ValueText] = ()
    columns: Sequence[Column] = ()
    colors: Mapping[str, str] = field(default_factory=dict)
    """Colours by legend, where a thing has the same one on every panel."""
    dashed: Sequence[str] = ()
    """Legends of lines that are limits: drawn dashed, without fill."""
    bars: bool = False
    """For what happens now and then: no line leads from one time to the next."""
    logarithmic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading, laid out from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One dashboard. ``uid`` is its address in Grafana and the name of its file: stable for good."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    engine: str = ""
    """Metric whose jobs the ``engine`` variable offers, where an engine's own series are shown."""
    tags: Sequence[str] = field(default=("inference-cache",))
