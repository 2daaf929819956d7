"""ADR-0023 as data: the instance, its workloads and deadlines, and the clauses that a server is held against.

``load()`` gives the shipped contract, ``load("adr_0023_safe")`` the one that never evicts an only copy, and
``load("my.toml")`` an organisation's own.
"""

from __future__ import annotations

from inference_cache.contract._layers import DEFAULT, SHIPPED
from inference_cache.contract._load import load
from inference_cache.contract._model import (
    CAPABILITIES,
    Clause,
    Contract,
    DataClass,
    Deadlines,
    Instance,
    Level,
    Waiver,
    Workload,
    may_evict,
)
from inference_cache.contract._rules import POLICIES
from inference_cache.contract._sizes import format_size, parse_size

__all__ = [
    "CAPABILITIES",
    "DEFAULT",
    "POLICIES",
    "SHIPPED",
    "Clause",
    "Contract",
    "DataClass",
    "Deadlines",
    "Instance",
    "Level",
    "Waiver",
    "Workload",
    "format_size",
    "load",
    "may_evict",
    "parse_size",
]
