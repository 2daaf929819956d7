"""What each key of a contract may hold, in words for its author and as a test."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from inference_cache.contract._model import CAPABILITIES, Clause, Deadlines, Instance, Waiver, Workload

__all__ = ["NAME", "POLICIES", "RULES", "WORKLOAD_NAME", "Rule"]

POLICIES: Final = (
    "noeviction",
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """``accepts`` is asked about a value that already has the type of its field."""

    allowed: str
    accepts: Callable[[Any], bool] = lambda value: True


_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?):(?P<port>[0-9]{1,5})")
_PREFIX = re.compile(r"([A-Za-z0-9_.-]+:)+")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)?")
_SCHEDULE = re.compile(r"([1-9][0-9]* [0-9]+( (?=[0-9]))?)*")
_SERVER = re.compile(r"[a-z][a-z0-9_-]*")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match["port"]) <= 65535


def _within(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_text(text: str | None) -> bool:
    return text is None or bool(text.strip())


def _all_of(pattern: re.Pattern[str]) -> Callable[[tuple[str, ...]], bool]:
    return lambda items: bool(items) and all(pattern.fullmatch(item) for item in items)


_SIZE = Rule('a size with its unit, such as "1536mb" or "2Gi", above 0', _is_positive)
_SECONDS = Rule("a number of seconds above 0", _is_positive)
_YES_NO = Rule("true or false")
_TEXT = Rule("a text that says something", _is_text)
_TEXT_OR_NONE = Rule('a text that says something, or "none"', _is_text)

NAME: Final = Rule(
    "a name of letters, digits, '_', '.' and '-'", lambda text: _LABEL.fullmatch(text) is not None
)
WORKLOAD_NAME: Final = Rule(
    "a workload name of lower-case letters, digits and '_'",
    lambda text: _IDENTIFIER.fullmatch(text) is not None,
)

RULES: Final[Mapping[type, Mapping[str, Rule]]] = {
    Instance: {
        "address": Rule("host:port without a scheme or credentials", _is_address),
        "memory_request": _SIZE,
        "memory_limit": _SIZE,
        "maxmemory": _SIZE,
        "headroom_ratio": Rule("a number above 0 and at most 1", lambda ratio: 0 < ratio <= 1),
        "maxmemory_policy": Rule(f"one of {', '.join(POLICIES)}", lambda policy: policy in POLICIES),
        "maxmemory_tolerance": Rule("a number from 0 to 1", _within(0, 1)),
        "servers": Rule('a list of server names in lower case, such as ["valkey"]', _all_of(_SERVER)),
        "supported_versions": Rule(
            'a list of major or major.minor versions in quotes, such as ["8", "9.1"]', _all_of(_VERSION)
        ),
        "appendonly": _YES_NO,
        "appendfsync": Rule("one of always, everysec, no"),
        "save": Rule(
            'pairs of seconds and changes, such as "3600 1 300 100", or "" for no snapshots',
            lambda text: _SCHEDULE.fullmatch(text) is not None,
        ),
        "loss_window_s": Rule("a number of seconds, 0 or more", lambda value: 0 <= value < math.inf),
        "on_disk_full": Rule("one of stop-writes, go-on"),
        "volume": _SIZE,
        "volume_path": Rule("an absolute path in the container, such as /data", lambda p: p.startswith("/")),
        "auth": _YES_NO,
        "tls": _YES_NO,
        "reach": Rule("one of cluster-internal, anywhere"),
        "retired_addresses": Rule(
            "a list of host:port without schemes or credentials, or []",
            lambda items: all(_is_address(item) for item in items),
        ),
        "fragmentation_ratio": Rule("a number of 1 or more", lambda ratio: 1 <= ratio < math.inf),
        "chunk": _SIZE,
    },
    Workload: {
        "prefix": Rule(
            "words of letters, digits, '_', '.' and '-', each followed by ':', such as \"vllm:kv:\"",
            lambda text: _PREFIX.fullmatch(text) is not None,
        ),
        "example": _TEXT,
        "data_class": Rule("one of reconstructible, only-copy"),
        "ttl_s": Rule(
            'a whole number of seconds above 0, or "none"', lambda ttl: ttl is None or _is_positive(ttl)
        ),
        "sliding_ttl": _YES_NO,
        "value_min": _SIZE,
        "value_max": _SIZE,
        "share": Rule("a number from 0 to 1", _within(0, 1)),
        "p99_s": _SECONDS,
        "connections": Rule("a whole number of 1 or more", _is_positive),
        "evictable": _YES_NO,
        "loss_bound": _TEXT_OR_NONE,
        "accepted_by": _TEXT_OR_NONE,
    },
    Deadlines: dict.fromkeys(("connect_s", "call_s", "recovery_s", "warm_up_s", "spill_s"), _SECONDS),
    Clause: {
        "level": Rule("one of MUST, SHOULD, MAY"),
        "statement": _TEXT,
        "quote": _TEXT,
        "needs": Rule(f"a list of {', '.join(sorted(CAPABILITIES))}", lambda needs: needs <= CAPABILITIES),
        "remedy": _TEXT,
    },
    Waiver: {
        "clause": Rule("the id of a clause, such as ISO-04"),
        "reason": _TEXT,
        "issue": Rule("a link or number of the issue that tracks it", _is_text),
        "expires": Rule("the last day on which it holds, such as 2026-12-31"),
    },
}
"""Rules by the type that a table becomes, then by key as written in TOML."""
