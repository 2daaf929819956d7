"""Run one system through the gate and say what the suite made of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fixtures.engines import missing_engines
from fixtures.faults.wrapper import LIVENESS_ENV, write_launcher
from fixtures.targets.embedded import shipped_executables
from inference_cache.contract import load, parse_size
from inference_cache.errors import MissingExtra
from inference_cache.gate.suite import suite_environment
from mutants.environments import ENVIRONMENTS
from mutants.liveness import note, read_liveness
from mutants.manifests import write_manifests
from mutants.model import GoodSystem, Mutant, System, Way
from mutants.suite import SUITE_CHECKS, Gate

__all__ = ["Judgment", "Standing", "judge_system", "missing_for"]

_TIMEOUT_S = 600


class Standing(StrEnum):
    """What came of a system. The second half of each pair is a defect of the suite, or of the mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    WRONG_REASON = "rejected for the wrong reason"
    BROKEN = "broken mutant"
    ACCEPTED = "accepted"
    FALSE_ALARM = "false alarm"
    NOT_JUDGED = "not judged"
    """Its clause needs an engine that is not installed here: neither good nor bad, and counted by itself."""

    @property
    def good(self) -> bool:
        return self in (Standing.KILLED, Standing.ACCEPTED)

    @property
    def bad(self) -> bool:
        return not self.good and self is not Standing.NOT_JUDGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One system, judged."""

    system: System
    standing: Standing
    detail: str
    outcomes: dict[str, str]
    """Outcome of each clause that was judged, by id."""
    acted: int
    duration_s: float


def judge_system(
    system: System, *, clauses: Sequence[str] = (), stop: threading.Event | None = None
) -> Judgment:
    """Judge a mutant by its own clause, a good system by all, or either by the clauses given.

    Once ``stop`` is set, the gate that runs is interrupted, and it cleans up after itself.
    """
    began = time.monotonic()
    if isinstance(system, Mutant) and (missing := missing_for(system)):
        return Judgment(
            system=system,
            standing=Standing.NOT_JUDGED,
            detail="; ".join(f"needs {name}, which is not here: {how}" for name, how in missing.items()),
            outcomes={},
            acted=0,
            duration_s=0.0,
        )
    with tempfile.TemporaryDirectory(prefix="inference-cache-selftest-") as name, ExitStack() as stack:
        folder = Path(name)
        liveness = folder / "liveness.json"
        if system.suite_checks:
            return _judge_suite(system, folder, liveness, began)
        values = {"folder": str(folder / "beside")}
        (folder / "beside").mkdir()
        if system.environment:
            values |= stack.enter_context(ENVIRONMENTS[system.environment](liveness))
        if system.manifests:
            note(liveness, system.manifests, write_manifests(system.manifests, folder / "manifests"))
            options = ["--manifest", str(folder / "manifests")]
        elif "url" in values:
            # What a twin shows does not depend on how its original is reached.
            options = ["--url", values["url"], "--no-twin"]
        else:
            options = ["--valkey", str(_executable(system, folder, liveness, values))]
        if system.contract:
            contract = folder / "contract.toml"
            contract.write_text(system.contract.format_map(values), "utf-8")
            options += ["--contract", str(contract)]
        for adapter, path in system.implementation.items():
            options += ["--implementation", f"{adapter}={path}"]
        options += ["--protocol", system.protocol]
        chosen = clauses or ([system.clause] if isinstance(system, Mutant) else [])
        options += [f"--clause={clause}" for clause in chosen]
        if isinstance(system, GoodSystem):
            options += [f"--group={group}" for group in system.groups]
            options += [] if system.engines else ["--no-engines"]
        # One violation of its clause is what a mutant is for: the clause's other specs may take an engine.
        behind = []
        if isinstance(system, Mutant):
            behind = ["--", "--exitfirst", *(("-k", system.spec) if system.spec else ())]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "inference_cache", "gate", "--workers", str(system.workers)),
                *("--report-dir", str(folder / "reports"), *options, *behind),
            ],
            env=_environment(liveness),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output = _finish(process, stop)
        report_file = folder / "reports" / "report.json"
        if not report_file.exists():
            report: dict[str, Any] = {
                "clauses": [],
                "reason": f"exit {process.returncode}: {output.strip()[-600:]}",
            }
        else:
            report = json.loads(report_file.read_text("utf-8"))
        acted = _acted(system, report, liveness, values)
    standing, detail = _standing(system, report, acted)
    return Judgment(
        system=system,
        standing=standing,
        detail=detail,
        outcomes={c["id"]: c["outcome"] for c in report["clauses"] if c["selected"]},
        acted=acted,
        duration_s=round(time.monotonic() - began, 1),
    )


def missing_for(mutant: Mutant) -> dict[str, str]:
    """Engines that the mutant's clause needs and that are not installed, with what installs each."""
    clause = load().clauses.get(mutant.clause)
    return missing_engines(clause.needs) if clause else {}


def _judge_suite(system: System, folder: Path, liveness: Path, began: float) -> Judgment:
    """Have the suite checked itself, as it is or patched."""
    patch = system.patch if isinstance(system, Mutant) else ""
    complaints = []
    for name in system.suite_checks:
        (folder / name).mkdir()
        gate = Gate(folder=folder / name, environment=_environment(liveness), patch=patch)
        complaints += SUITE_CHECKS[name](gate)
    acted = sum(read_liveness(liveness).values())
    if isinstance(system, GoodSystem):
        standing = Standing.FALSE_ALARM if complaints else Standing.ACCEPTED
    elif not acted:
        standing = Standing.BROKEN
    else:
        standing = Standing.KILLED if complaints else Standing.SURVIVED
    return Judgment(
        system=system,
        standing=standing,
        detail="; ".join(complaints) or "no complaint",
        outcomes={},
        acted=acted,
        duration_s=round(time.monotonic() - began, 1),
    )


def _finish(process: subprocess.Popen[str], stop: threading.Event | None) -> str:
    """What the gate printed, once it ended: by itself, interrupted, or at the time limit."""
    end = time.monotonic() + _TIMEOUT_S
    interrupted = False
    while True:
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            late = time.monotonic() >= end
            if interrupted and time.monotonic() >= end + 30:
                process.kill()
            elif not interrupted and (late or (stop is not None and stop.is_set())):
                process.terminate()
                interrupted, end = True, time.monotonic()


def _executable(system: System, folder: Path, liveness: Path, values: dict[str, str]) -> Path:
    """The system's executable: from the inside out the real server, its settings, its hook, its faults."""
    shipped = shipped_executables()
    if system.server not in shipped:
        raise MissingExtra(module=system.server, extra="gate")
    command = [str(shipped[system.server])]
    overrides = [
        word for name, value in system.settings.items() for word in (f"--{name}", value.format_map(values))
    ]
    path = folder / "server"
    if system.hook:
        kept = folder / "kept"
        kept.mkdir()
        command = [sys.executable, "-m", "mutants.launch", system.hook, *command, str(liveness), str(kept)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@" {shlex.join(overrides)}\n', "utf-8")
    path.chmod(0o755)
    if system.faults:
        return write_launcher(folder / "proxied", server=path, faults=system.faults, liveness=liveness)
    return path


def _environment(liveness: Path) -> dict[str, str]:
    # The runs of mutants are no runs of the job: GitHub must not be told of their violations.
    kept = {name: value for name, value in suite_environment().items() if not name.startswith("GITHUB_")}
    # Some images set it; compiling the suite anew for each system is a third of a short run.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, LIVENESS_ENV: str(liveness)}


def _acted(system: System, report: dict[str, Any], liveness: Path, values: dict[str, str]) -> int:
    """How often the system did what makes it one: told by the server itself, or counted where it was done."""
    if isinstance(system, GoodSystem):
        return 0
    if system.faults or system.hook or system.environment or system.implementation or system.manifests:
        return sum(read_liveness(liveness).values())
    if isinstance(system, Mutant) and system.way is Way.CONTRACT:
        return int(report.get("contract", {}).get("sha256") not in (None, load().sha256))
    config = report.get("target", {}).get("config", {})
    return sum(
        _same_setting(config.get(name, "(absent)"), value.format_map(values))
        for name, value in system.settings.items()
    )


def _same_setting(observed: str, wanted: str) -> bool:
    if observed == wanted:
        return True
    try:
        return int(observed) == parse_size(wanted)
    except ValueError:
        return False


def _standing(system: System, report: dict[str, Any], acted: int) -> tuple[Standing, str]:
    judged = {c["id"]: c for c in report["clauses"] if c["selected"]}
    if isinstance(system, Mutant):
        own = judged.get(system.clause)
        outcome = own["outcome"] if own else "no report"
        if acted == 0:
            found = own["findings"][0]["observed"] if own and own["findings"] else report.get("reason", "")
            return Standing.BROKEN, f"it never acted ({outcome}: {found})"
        if own is not None and outcome == "failed" and own["findings"]:
            return Standing.KILLED, own["findings"][0]["observed"]
        if outcome == "passed":
            return Standing.SURVIVED, f"{system.clause} passed"
        return Standing.WRONG_REASON, f"{outcome}: {own['reason'] if own else report.get('reason', '')}"
    wrong = [c for c in judged.values() if c["level"] == "MUST" and c["outcome"] in ("failed", "error")]
    if wrong:
        return Standing.FALSE_ALARM, "; ".join(f"{c['id']} {c['outcome']}: {c['reason']}" for c in wrong)
    passed = sum(c["outcome"] == "passed" for c in judged.values())
    if not passed:
        return Standing.FALSE_ALARM, f"nothing was proven: {report.get('reason', '')}"
    return Standing.ACCEPTED, f"{passed} clauses passed"
