"""Where the suite lies and how it is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from inference_cache.errors import InferenceCacheError, MissingExtra
from inference_cache.gate.spec_index import spec_index

__all__ = ["pytest_command", "suite_environment", "suite_folder", "usable_cpus"]


def suite_folder() -> Path:
    """The folder that holds ``conformance``, ``fixtures`` and ``mutants``: inside the installed wheel, or the
    checkout.

    Raises:
        InferenceCacheError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "suite", package.parent.parent):
        if (candidate / "conformance" / "pytest.ini").is_file():
            return candidate
    raise InferenceCacheError(
        f"the conformance suite is neither in {package / 'suite'} nor beside a checkout; "
        "reinstall inference-cache"
    )


def suite_environment() -> dict[str, str]:
    """The environment in which :func:`pytest_command` finds the suite."""
    paths = [str(suite_folder()), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def pytest_command(
    options: Sequence[str], *, workers: int, clause_ids: Collection[str] | None = None
) -> list[str]:
    """The command line that runs the suite with these options; ``workers`` 0 runs it in one process.

    With ``clause_ids`` only the files that hold specs of these clauses are read.

    Raises:
        MissingExtra: pytest, or what the suite needs beside it, is not installed.
    """
    for module in ("pytest", "xdist", "hypothesis", "jinja2", "prometheus_client"):
        if find_spec(module) is None:
            raise MissingExtra(module=module, extra="gate")
    folder = suite_folder()
    # -P: a folder called "fixtures" where the user happens to stand is not ours.
    command = [sys.executable, "-P", "-m", "fixtures.run", "-c", str(folder / "conformance" / "pytest.ini")]
    command += ["--rootdir", str(folder), "-q", "--no-header", "--no-summary", "--tb=short"]
    if workers:
        command += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1"]
    return [*command, *_sources(folder / "conformance", clause_ids), *options]


def _sources(conformance: Path, clause_ids: Collection[str] | None) -> list[str]:
    """What pytest is to collect: the folder, unless a choice of its files holds all specs of the clauses."""
    if clause_ids is None:
        return [str(conformance)]
    index = spec_index(conformance)
    names = {name.partition("::")[0] for clause_id in clause_ids for name in index.get(clause_id, ())}
    return [str(conformance / name) for name in sorted(names)] or [str(conformance)]
