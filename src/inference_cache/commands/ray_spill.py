"""``inference-cache ray-spill``: make Ray spill to Valkey, look whether it can, sweep up after the dead."""

from __future__ import annotations

import argparse
import json
from typing import Any

from inference_cache.errors import CacheError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["add"]

_PASSED_ON = ("prefix", "contract", "username", "password_env", "password_file", "tls_ca_file", "chunk_bytes")


def add(commands: Any) -> None:
    """Add the parsers of ``ray-spill``."""
    parser = commands.add_parser(
        "ray-spill",
        help="Ray's spilled objects in Valkey: configuration, check-up of a node, janitor",
        description="Ray's spilled objects in Valkey; docs/ray_spill.md has the whole story.",
    )
    parser.set_defaults(run=lambda options: _help(parser))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    config = actions.add_parser(
        "config",
        help="print the argument for 'ray start --head'",
        description="Print the configuration: ray start --head $(inference-cache ray-spill config --url ...)",
    )
    _add_connection(config)
    config.add_argument(
        "--format",
        choices=("argument", "json"),
        default="argument",
        help="the argument of 'ray start' (default), or the JSON of ray.init's _system_config",
    )
    config.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="another parameter of the storage, such as restore_s=60 (repeatable)",
    )
    config.set_defaults(run=_config)

    doctor = actions.add_parser(
        "doctor",
        help="check that this node and the server are ready",
        description="Check this node and the server. Exit codes: 0 ready, 1 not ready, 2 usage.",
    )
    _add_connection(doctor)
    doctor.set_defaults(run=_doctor)

    sweep = actions.add_parser(
        "sweep",
        help="remove what dead sessions left behind",
        description="Remove the objects of sessions that are over, and never those of a node that lives. "
        "Exit codes: 0 done, 3 the server did not answer.",
    )
    _add_connection(sweep)
    sweep.add_argument(
        "--lease",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="look at nodes that have not renewed their lease for so long (default: 60)",
    )
    sweep.add_argument(
        "--abandoned-after",
        type=float,
        default=86_400.0,
        metavar="SECONDS",
        help="take nodes that nobody can say anything about for dead after so long (default: a day)",
    )
    sweep.add_argument(
        "--session",
        action="append",
        default=[],
        metavar="NAME",
        help="a session that you know to be over, whatever can be found out about it (repeatable)",
    )
    sweep.set_defaults(run=_sweep)


def _help(parser: argparse.ArgumentParser) -> ExitCode:
    parser.print_help()
    return ExitCode.USAGE


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="the server, as valkey://HOST:PORT, without a password")
    parser.add_argument("--prefix", help="of all keys (default: ray:)")
    parser.add_argument("--contract", help="a contract that declares that spilled objects may be evicted")
    parser.add_argument("--username", help="for the server")
    parser.add_argument("--password-env", metavar="NAME", help="environment variable that holds the password")
    parser.add_argument("--password-file", metavar="FILE", help="file that holds the password")
    parser.add_argument("--tls-ca-file", metavar="FILE", help="certificates of the authorities to trust")
    parser.add_argument("--chunk-bytes", type=int, metavar="N", help="larger objects are stored in chunks")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    named = {name: getattr(options, name) for name in _PASSED_ON if getattr(options, name) is not None}
    return {"url": options.url, **named}


def _config(options: argparse.Namespace) -> ExitCode:
    from inference_cache.errors import UsageError
    from inference_cache.ray_spill import config

    given = _given(options)
    for item in options.set:
        name, mark, value = item.partition("=")
        try:
            given[name] = json.loads(value)
        except ValueError:
            raise UsageError(f"--set {item}: write NAME=JSON, as in restore_s=60") from None
        if not mark:
            raise UsageError(f"--set {item}: write NAME=JSON, as in restore_s=60")
    made = config(**given)
    print(json.dumps(made.system_config) if options.format == "json" else made.ray_start)
    return ExitCode.CONFORMANT


def _doctor(options: argparse.Namespace) -> ExitCode:
    from inference_cache.ray_spill import SpillParams
    from inference_cache.ray_spill._doctor import diagnose

    marks = {"ok": "ok    ", "unsure": "unsure", "wrong": "WRONG "}
    ready = True
    for found in diagnose(SpillParams.of(_given(options))):
        ready = ready and found.state != "wrong"
        print(f"{marks[found.state]}  {found.what}: {found.detail}", flush=True)
    return ExitCode.CONFORMANT if ready else ExitCode.NOT_CONFORMANT


def _sweep(options: argparse.Namespace) -> ExitCode:
    from inference_cache.ray_spill import SpillParams, SpillStorage

    given = {**_given(options), "lease_s": options.lease, "abandoned_s": options.abandoned_after}
    with SpillStorage(SpillParams.of(given), session="session_sweep", node="sweep") as storage:
        try:
            report = storage.sweep(dead_sessions=options.session)
        except CacheError as error:
            print(f"the sweep did not end: {error}")
            return ExitCode.BROKEN
    print(report)
    for title, names in (
        ("removed", report.dead),
        ("kept, for others may restore its objects", report.kept_restorable),
        ("kept, for nobody can say whether it lives", report.kept_unknown),
    ):
        for name in names:
            print(f"  {title}: {name}")
    return ExitCode.CONFORMANT
