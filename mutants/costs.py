"""Which mutants a quick self-test takes: for each clause the one that is killed soonest.

``costs.json`` holds the seconds that each mutant took in a full run on two cores. They only rank mutants: a
new one without an entry counts as the last of its clause.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fixtures.engines import ENGINES
from inference_cache.contract import load
from mutants.catalog import MUTANTS

__all__ = ["quick_choice"]

_UNKNOWN_S = 1e6


def quick_choice(clause_ids: Iterable[str]) -> tuple[frozenset[str], list[str]]:
    """Ids of the mutants, and the clauses that are left out because only a real engine shows them."""
    costs: dict[str, float] = json.loads(Path(__file__).with_name("costs.json").read_text("utf-8"))
    contract = load()
    chosen, left_out = set(), []
    for clause_id in clause_ids:
        candidates = [mutant.id for mutant in MUTANTS if mutant.clause == clause_id]
        if contract.clauses[clause_id].needs & ENGINES.keys():
            left_out.append(clause_id)
        elif candidates:
            chosen.add(min(candidates, key=lambda i: costs.get(i, _UNKNOWN_S)))
    return frozenset(chosen), left_out
