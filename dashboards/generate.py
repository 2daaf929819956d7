"""Makes the dashboards: ``files(contract)`` gives them by name, with the contract's numbers in them."""

from __future__ import annotations

import json
from collections.abc import Callable

from dashboards._grafana import dashboard_json
from dashboards._model import Board
from dashboards.conformance import conformance
from dashboards.contention import contention
from dashboards.memory import memory
from dashboards.offload import WORKLOAD as OFFLOAD_WORKLOAD
from dashboards.offload import offload
from dashboards.overview import overview
from dashboards.persistence import persistence
from dashboards.spill import WORKLOAD as SPILL_WORKLOAD
from dashboards.spill import spill
from inference_cache.contract import Contract

__all__ = ["boards", "files"]

_Maker = Callable[[Contract], Board]
_MAKERS: tuple[tuple[_Maker, str], ...] = (
    (overview, ""),
    (memory, ""),
    (contention, ""),
    (persistence, ""),
    (offload, OFFLOAD_WORKLOAD),
    (spill, SPILL_WORKLOAD),
    (conformance, ""),
)
"""Each dashboard, with the workload without which there is nothing to show."""


def boards(contract: Contract) -> tuple[Board, ...]:
    """The dashboards for this contract, in the order in which they link to each other."""
    return tuple(
        make(contract) for make, workload in _MAKERS if not workload or workload in contract.workloads
    )


def files(contract: Contract) -> dict[str, str]:
    """Every dashboard as JSON that Grafana imports, by file name.

    Raises:
        MissingExtra: grafanalib or promql-parser is not installed.
        UsageError: a query names a metric that nobody exposes, with the nearest one that somebody does.
    """
    made = boards(contract)
    return {
        f"{board.uid.removeprefix('inference-cache-')}.json": json.dumps(
            dashboard_json(board, made), indent=2, sort_keys=True, ensure_ascii=False
        )
        + "\n"
        for board in made
    }
