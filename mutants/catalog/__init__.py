"""The systems. Ids of mutants follow the shared list; U ids are this project's own additions."""

from __future__ import annotations

from mutants.catalog import base, kv_offload, live, observability, ray, sharing
from mutants.model import GoodSystem, Mutant

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]

_PARTS = (base, live, observability, ray, kv_offload, sharing)

MUTANTS: tuple[Mutant, ...] = tuple(mutant for part in _PARTS for mutant in part.MUTANTS)

GOOD_SYSTEMS: tuple[GoodSystem, ...] = tuple(system for part in _PARTS for system in part.GOOD_SYSTEMS)
