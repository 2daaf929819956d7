"""``inference-cache kv``: what the KV cache holds, and how to configure vLLM for it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from inference_cache.contract import format_size, load
from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import ExitCode

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the parser of ``kv`` and of what it can do."""
    kv = commands.add_parser("kv", help="list vLLM's KV blocks, or print vLLM's configuration for them")
    kv.set_defaults(run=lambda _: _explain(kv))
    actions = kv.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("ls", help="models, blocks, bytes and ages in the cache, by SCAN")
    listing.add_argument("--url", required=True, metavar="URL", help="the server, as valkey://HOST:PORT")
    listing.add_argument("--prefix", help="of the blocks (default: the contract's)")
    listing.add_argument("--most-keys", type=int, default=1_000_000, metavar="N", help="stop after so many")
    listing.add_argument("--within", type=float, default=60.0, metavar="SECONDS", help="stop after so long")
    listing.add_argument("--format", choices=("table", "json"), default="table")
    listing.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    listing.set_defaults(run=_list)
    config = actions.add_parser(
        "config", help="print the JSON for vllm serve --kv-transfer-config", description=_CONFIG_HELP
    )
    config.add_argument("--url", required=True, metavar="URL", help="the server, as valkey://HOST:PORT")
    config.add_argument("--prefix", help="of all keys (default: the contract's)")
    config.add_argument("--ttl", type=float, metavar="SECONDS", help="of a block (default: the contract's)")
    config.add_argument(
        "--vllm", metavar="VERSION", help="to write for (default: the installed or newest known)"
    )
    config.add_argument("--contract", metavar="NAME_OR_FILE", help="another contract than adr_0023")
    config.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="anything else, as host_memory=16gb")
    config.set_defaults(run=_config)


_TEXTS = ("revision", "weights_digest", "adapters", "host_memory")
"""Settings that are text even when they look like a number."""
_CONFIG_HELP = (
    'Prints one line: vllm serve MODEL --kv-transfer-config "$(inference-cache kv config --url URL)"'
)


def _explain(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return ExitCode.USAGE


def _list(options: argparse.Namespace) -> int:
    from inference_cache.connection import connect
    from inference_cache.kv_offload import list_runs

    workload = load(options.contract).workloads["vllm_kv"]
    with connect(options.url, deadline_s=min(10.0, options.within)) as client:
        listing = list_runs(
            client,
            prefix=options.prefix or workload.prefix,
            ttl_s=float(workload.ttl_s or 3600),
            deadline_s=options.within,
            most_keys=options.most_keys,
        )
    if options.format == "json":
        print(json.dumps(_as_json(listing), indent=1))
        return ExitCode.CONFORMANT
    print(f"{'model':<40} {'blocks':>9} {'memory':>10} {'youngest':>9} {'oldest':>9}  fingerprint")
    for run in listing.runs:
        model = run.identity.model if run.identity else "(its record is gone)"
        print(
            f"{model[-40:]:<40} {run.blocks:>9} {_size(run.memory_bytes):>10} {_age(run.youngest_s):>9} "
            f"{_age(run.oldest_s):>9}  {run.fingerprint}"
        )
    end = "all of them" if listing.complete else "not all of them: --most-keys or --within ended it"
    print(f"{listing.keys_seen} keys seen, {end}; {listing.foreign_keys} are no block of a run")
    return ExitCode.CONFORMANT


def _as_json(listing: Any) -> dict[str, Any]:
    return {
        "runs": [
            {
                "fingerprint": run.fingerprint,
                "run": run.identity.as_dict() if run.identity else None,
                "blocks": run.blocks,
                "memory_bytes": run.memory_bytes,
                "groups": sorted(run.groups),
                "youngest_s": run.youngest_s,
                "oldest_s": run.oldest_s,
            }
            for run in listing.runs
        ],
        "keys_seen": listing.keys_seen,
        "foreign_keys": listing.foreign_keys,
        "complete": listing.complete,
    }


def _size(size_bytes: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return format_size(size_bytes)


def _age(age_s: float | None) -> str:
    return "-" if age_s is None else f"{age_s:.0f} s"


def _config(options: argparse.Namespace) -> int:
    from inference_cache.kv_offload import kv_cache_config

    workload = load(options.contract).workloads["vllm_kv"]
    config: dict[str, Any] = {
        "type": "valkey",
        "url": options.url,
        "prefix": options.prefix or workload.prefix,
        "ttl": options.ttl if options.ttl is not None else workload.ttl_s,
    }
    for setting in options.settings:
        key, mark, value = setting.partition("=")
        if not mark:
            raise UsageError(f"{setting!r}: write KEY=VALUE, as host_memory=16gb")
        config[key] = value if key in _TEXTS else _value(value)
    print(json.dumps(kv_cache_config(config, vllm_version=options.vllm)))
    return ExitCode.CONFORMANT


def _value(text: str) -> Any:
    """Numbers and true or false as JSON has them, anything else as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
