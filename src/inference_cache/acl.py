"""The ACL file of an instance: a user for each workload, confined to its prefix, and three for the staff.

::

    Path("users.acl").write_text(render_acl(load(), passwords={"vllm_kv": "...", "embeddings": "...", ...}))
    # valkey-server --aclfile users.acl

- Each workload has a user of its name, who may run the commands of adapters on keys below its prefix.
- ``exporter`` measures: INFO, SCAN, and type, TTL and size of any key, but no value. It has neither CONFIG
  GET nor SLOWLOG GET, because they show passwords and the arguments of other clients' commands.
- ``operator`` looks deeper, with CONFIG GET and SLOWLOG GET, and purges a workload: SCAN, and UNLINK below
  the declared prefixes.
- ``gate`` judges: it looks as ``operator`` does, and does what the workloads do below the declared prefixes.
  It reads no value outside of them.

A key pattern does not confine SCAN, KEYS, RANDOMKEY and DBSIZE, which tell of everybody's keys, so the user
of a workload has none of them. Scripts run with the rights of their caller: a key that a script does not
declare is refused when the script touches it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from inference_cache.contract import Contract
from inference_cache.errors import UsageError

__all__ = ["EXPORTER", "GATE", "OPERATOR", "render_acl"]

EXPORTER: Final = "exporter"
OPERATOR: Final = "operator"
GATE: Final = "gate"
_DEFAULT: Final = "default"
_STAFF: Final = (EXPORTER, OPERATOR, GATE)
_RESERVED: Final = (*_STAFF, _DEFAULT)

# Commands are named one by one: a category grows with the server's version, and would let new commands in.
_CONNECTION: Final = ("auth", "hello", "ping", "client|setinfo", "client|setname")
_ADAPTER: Final = (
    *_CONNECTION,
    *("get", "mget", "getrange", "strlen"),
    *("set", "mset", "setex", "psetex", "getex", "getdel", "incr", "incrby"),
    *("exists", "type", "touch", "del", "unlink"),
    *("ttl", "pttl", "expiretime", "pexpiretime"),
    *("expire", "pexpire", "expireat", "pexpireat", "persist"),
    *("hget", "hmget", "hgetall", "hexists", "hlen", "hset", "hsetnx", "hincrby", "hdel"),
    *("llen", "lindex", "lrange", "lpush", "rpush", "ltrim"),
    *("scard", "sismember", "smembers", "sadd", "srem"),
    *("zcard", "zscore", "zrange", "zadd", "zrem"),
    *("watch", "unwatch", "multi", "exec", "discard"),
    *("eval", "evalsha", "script|load", "script|exists"),
    "time",
)
_LOOK: Final = ("type", "ttl", "pttl", "memory|usage", "exists")
"""What tells of a key without its value."""
_EXPORTER: Final = (
    *_CONNECTION,
    *("info", "dbsize", "scan", "type", "ttl", "pttl", "memory|usage"),
    *("slowlog|len", "latency|latest", "latency|history", "latency|histogram"),
)
_PROOFS: Final = ("append", "getset", "setrange", "xadd", "xrange")
"""What specs do beyond adapters: any operation on one key must leave the others alone (ISO-02)."""
_OPERATOR: Final = (
    *_EXPORTER,
    *("config|get", "slowlog|get", "client|list", "acl|dryrun"),
    *("memory|stats", "memory|doctor", "latency|doctor"),
    *("exists", "unlink"),
)


def render_acl(
    contract: Contract,
    *,
    passwords: Mapping[str, str] | None = None,
    default_user: Literal["keep", "off"] = "keep",
) -> str:
    """The text of an ACL file, for ``aclfile`` in valkey.conf; each line without ``user`` is an ACL SETUSER.

    ``passwords`` gives clear text by user, and only digests are written: one for each workload, and at choice
    for ``default``, and for ``exporter``, ``operator`` and ``gate``, who are off without. If none are given,
    each user is let in with any, which guards against mistakes and not against malice.

    ``default_user`` is who everybody is that does not authenticate. ``off`` shuts it out. ``keep`` leaves it
    with all rights, behind its password in ``passwords``. Mind that a server that loads an ACL file forgets
    ``requirepass``: on one with auth, ``keep`` without that password lets everybody in.

    Raises:
        UsageError: a password is missing, empty or of nobody, or a workload is named as one of these users.
    """
    _check_names(contract, passwords, default_user)
    own = {name: (f"~{workload.prefix}*",) for name, workload in contract.workloads.items()}
    every_own = [pattern for patterns in own.values() for pattern in patterns]
    users = [_user(name, _entry(name, passwords), patterns, _ADAPTER) for name, patterns in own.items()]
    users += [
        _user(EXPORTER, _entry(EXPORTER, passwords), ["%R~*"], _EXPORTER),
        _user(OPERATOR, _entry(OPERATOR, passwords), ["%R~*", *every_own], _OPERATOR),
        _user(GATE, _entry(GATE, passwords), every_own, dict.fromkeys((*_OPERATOR, *_ADAPTER, *_PROOFS)))
        + f" (%R~* {' '.join(f'+{command}' for command in _LOOK)})",
    ]
    if default_user == "off":
        users.append(f"user {_DEFAULT} off resetpass resetkeys resetchannels -@all")
    elif passwords is not None and _DEFAULT in passwords:
        users.append(f"user {_DEFAULT} {_entry(_DEFAULT, passwords)} ~* &* +@all")
    return "\n".join(users) + "\n"


def _user(name: str, entry: str, patterns: Iterable[str], commands: Iterable[str]) -> str:
    rights = " ".join(f"+{command}" for command in commands)
    return f"user {name} {entry} resetkeys {' '.join(patterns)} resetchannels -@all {rights}"


def _entry(name: str, passwords: Mapping[str, str] | None) -> str:
    """How the user gets in."""
    if passwords is None:
        return "on nopass"
    if name not in passwords:
        return "off resetpass"
    return f"on #{hashlib.sha256(passwords[name].encode()).hexdigest()}"


def _check_names(contract: Contract, passwords: Mapping[str, str] | None, default_user: str) -> None:
    if taken := [name for name in contract.workloads if name in _RESERVED]:
        raise UsageError(
            f"a workload cannot be named {taken[0]!r}, which is a user of every instance: rename it in "
            f"contract {contract.name}"
        )
    if passwords is None:
        return
    known = [*contract.workloads, *_STAFF, *([_DEFAULT] if default_user == "keep" else [])]
    if unknown := [name for name in passwords if name not in known]:
        raise UsageError(f"a password for {unknown[0]!r}, who is no user; there are {', '.join(known)}")
    if empty := [name for name in known if passwords.get(name) == ""]:
        raise UsageError(f"the password of {empty[0]!r} is empty")
    if missing := [name for name in contract.workloads if name not in passwords]:
        raise UsageError(f"no password for {', '.join(missing)}: give one for each workload, or none at all")
