"""Live servers that break the contract, and suites that judge them wrongly."""

from __future__ import annotations

from mutants.model import GoodSystem, Mutant

__all__ = ["GOOD_SYSTEMS", "MUTANTS"]

MUTANTS: tuple[Mutant, ...] = ()

GOOD_SYSTEMS: tuple[GoodSystem, ...] = ()
