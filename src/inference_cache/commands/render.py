"""``inference-cache render``: dashboards, rules and manifests from the contract."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["GENERATED", "add", "rendered"]

GENERATED = ("alerts", "dashboards", "deploy")
"""Packages of the suite with a ``generate.files(contract)``."""


def add(commands: Any) -> None:
    """Add the parser of ``render``."""
    render = commands.add_parser(
        "render",
        help="write dashboards, rules and manifests made from the contract",
        description="Write what is made from the contract: Grafana dashboards, Prometheus rules and "
        "Kubernetes manifests, into a folder for each below --out. A file that is right already is left "
        "alone; one that this contract does not make is named, never removed.",
    )
    render.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where to (default, in a checkout: the generated folders that are committed)",
    )
    render.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    render.add_argument(
        "--only", action="append", choices=GENERATED, default=[], help="make only this (repeatable)"
    )
    render.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 and name the files that differ, are missing, or are not made",
    )
    render.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    packages = tuple(options.only) or GENERATED
    folders = _folders(packages, options.out)
    wanted = {
        folders[package] / name: text
        for package, made in rendered(options.contract, packages=packages).items()
        for name, text in made.items()
    }
    different = [path for path, text in wanted.items() if _text(path) != text]
    not_made = [path for folder in folders.values() for path in _files_in(folder) if path not in wanted]
    if options.check:
        for path in different:
            print(f"{'differs' if path.exists() else 'is missing'}: {path}")
        for path in not_made:
            print(f"is not made from this contract: {path}")
        if different or not_made:
            print("inference-cache render, with the same options and without --check, makes them")
            return ExitCode.NOT_CONFORMANT
        print(f"{len(wanted)} files are as the contract makes them")
        return ExitCode.CONFORMANT
    for path in different:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], "utf-8")
        print(f"wrote {path}")
    for path in not_made:
        print(f"left alone, is not made from this contract: {path}", file=sys.stderr)
    print(f"{len(different)} of {len(wanted)} files written, the others were right already")
    return ExitCode.CONFORMANT


def _folders(packages: Sequence[str], out: Path | None) -> dict[str, Path]:
    """Where the files of each package go."""
    from inference_cache.gate.suite import suite_folder

    if out is not None:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out}: is a file; name a folder")
        return {package: out / package for package in packages}
    suite = suite_folder()
    if not (suite / "pyproject.toml").is_file():
        raise UsageError("write --out DIR: there is no checkout here whose files could be remade")
    return {package: suite / package / "generated" for package in packages}


def rendered(
    contract_name: str | None = None, *, packages: Sequence[str] = GENERATED
) -> dict[str, dict[str, str]]:
    """Every generated file, by package and by path below its folder.

    Raises:
        ContractError: the contract is wrong.
        UsageError: something names a metric that nobody exposes, with the nearest that somebody does.
        MissingExtra: what a generator needs is not installed.
    """
    from inference_cache.gate.suite import suite_folder

    contract = load(contract_name)
    folder = str(suite_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return {
        package: dict(sorted(importlib.import_module(f"{package}.generate").files(contract).items()))
        for package in packages
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
