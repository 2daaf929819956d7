"""Keys: a workload's prefix, then parts, built and read back without ambiguity.

::

    Keyspace("vllm:kv:").key("layer0", "tok123")     == b"vllm:kv:layer0:tok123"
    Keyspace("emb:").key("sha256", "abc123")         == b"emb:sha256:abc123"
    Keyspace("session:").key("user", 123)            == b"session:user:123"
    Keyspace("session:").key("user", "a:b")          == b"session:user:a%3Ab"
    Keyspace("session:").key(Tagged("a*"), "turns")  == b"session:{a%2A}:turns"

A part is a string of bytes. ``str`` stands for its UTF-8 and ``int`` for its decimal digits, so ``"1"``,
``b"1"`` and ``1`` are the same part: a key read back from a server has lost the Python type anyway.

Encoding: ASCII letters, digits and ``-._~/@+=,`` stand for themselves, every other byte is ``%`` and two
upper-case hex digits, and ``:`` separates parts. Hence

- two keys are equal exactly when their parts are, and are tagged in the same place;
- a key is printable ASCII after its prefix: no blank, control or glob character, and no brace but those of a
  tag, so an id of a user never picks a cluster slot by accident;
- :meth:`Keyspace.parse` accepts only what :meth:`Keyspace.key` makes, so it is its inverse.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Final

from inference_cache.connection import Client, deadline
from inference_cache.errors import CacheError, DeadlineExceeded, KeyFormatError, UsageError

__all__ = [
    "MAX_KEY_BYTES",
    "Keyspace",
    "Part",
    "PrefixProblem",
    "PurgeReport",
    "Tagged",
    "check_disjoint",
    "purge",
    "workload_of",
]

MAX_KEY_BYTES: Final = 262_144
"""Longest key that is built or parsed, encoded and with its prefix; holds a name of 64 KiB of any bytes."""

_ESCAPED: Final = re.compile(rb"[^A-Za-z0-9._~/@+=,\-]")
_ESCAPE: Final = re.compile(rb"%([0-9A-F]{2})")
_GLOB: Final = re.compile(rb"[*?\[\]\\]")
_DUBIOUS: Final = (
    (
        re.compile(r"[*?\[\]\\^]"),
        "holds a glob character, a wildcard to SCAN and to ACL rules",
    ),
    (re.compile(r"[{}]"), "holds a brace, which would put all its keys into one cluster slot"),
    (re.compile(r"[^!-~]"), "holds a blank, a control character or something outside of ASCII"),
)


class Tagged(bytes):
    """A part that decides the cluster slot: keys with equal tags share one, as a transaction needs.

    It is written in braces. The server ignores a second tag and an empty one, so both are refused. Apart from
    that it is the bytes that it holds, and compares equal to them.
    """

    def __new__(cls, part: str | bytes | int) -> Tagged:
        return super().__new__(cls, _as_bytes(part))

    def __repr__(self) -> str:
        return f"Tagged({super().__repr__()})"


Part = str | bytes | int


def _as_bytes(part: Part) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, str):
        try:
            return part.encode()
        except UnicodeEncodeError as error:
            raise KeyFormatError(f"a key part is not valid Unicode ({error.reason}): {part!r:.80}") from error
    if isinstance(part, int) and not isinstance(part, bool):
        return b"%d" % part
    raise KeyFormatError(f"a key part is bytes, str or int, not {type(part).__name__}")


def _encode(part: Part) -> bytes:
    raw = _as_bytes(part)
    text = _ESCAPED.sub(lambda match: b"%%%02X" % match[0][0], raw)
    if not isinstance(part, Tagged):
        return text
    if not text:
        raise KeyFormatError("a hash tag must not be empty: the server would ignore it")
    return b"{" + text + b"}"


def _decode(text: bytes, *, key: bytes) -> bytes:
    tagged = len(text) > 2 and text.startswith(b"{") and text.endswith(b"}")
    raw = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text[1:-1] if tagged else text)
    part = Tagged(raw) if tagged else raw
    if _encode(part) != text:
        raise KeyFormatError(f"{key!r:.200} was not built here: no part is written as {text!r:.80}")
    return part


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys that start with ``prefix``, which ends in ``:``.

    Raises KeyFormatError for an empty prefix or one without that colon. Whether prefixes go well together is
    for :func:`check_disjoint` to say.
    """

    prefix: str
    _head: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        head = _as_bytes(self.prefix)
        if not head.endswith(b":"):
            raise KeyFormatError(f"a prefix ends in ':', as 'emb:' does; this is {self.prefix!r}")
        object.__setattr__(self, "_head", head)

    def key(self, *parts: Part) -> bytes:
        """The key with these parts, one at least; a part may be empty.

        Raises KeyFormatError for a part of another type, a lone surrogate, no part at all, more than one
        :class:`Tagged` part, an empty one, or a key longer than :data:`MAX_KEY_BYTES`.
        """
        if not parts:
            raise KeyFormatError(f"a key below {self.prefix!r} needs a part")
        tags = sum(isinstance(part, Tagged) for part in parts)
        if tags and (tags > 1 or b"{" in self._head):
            raise KeyFormatError("a key has one hash tag at most: the server would ignore the second")
        key = self._head + b":".join(map(_encode, parts))
        if len(key) > MAX_KEY_BYTES:
            raise KeyFormatError(
                f"a key of {len(key)} bytes is longer than {MAX_KEY_BYTES}; hash its longest part"
            )
        return key

    def parse(self, key: bytes) -> tuple[bytes, ...]:
        """The parts of a key of this keyspace: ``parse(key(*parts)) == parts``, as bytes.

        Raises KeyFormatError for anything that :meth:`key` does not make.
        """
        if not self.contains(key):
            raise KeyFormatError(f"{key!r:.200} does not start with {self.prefix!r}")
        parts = tuple(_decode(text, key=key) for text in key[len(self._head) :].split(b":"))
        self.key(*parts)  # refuses what is well written, but has two tags or is too long
        return parts

    def contains(self, key: bytes) -> bool:
        """Whether the key lies under the prefix, in whatever form."""
        return key.startswith(self._head)

    def owns(self, key: bytes) -> bool:
        """Whether :meth:`key` makes this key."""
        try:
            self.parse(key)
        except KeyFormatError:
            return False
        return True

    def below(self, *parts: Part) -> Keyspace:
        """The keyspace of all keys that have these parts first, and more after them."""
        if not parts:
            return self
        return Keyspace(self.key(*parts).decode() + ":")

    def pattern(self, *parts: Part) -> bytes:
        """A MATCH pattern for SCAN: exactly the keys below these parts; all of the keyspace without parts."""
        return _GLOB.sub(rb"\\\g<0>", self.below(*parts)._head) + b"*"


def workload_of(key: bytes, keyspaces: Mapping[str, Keyspace]) -> str | None:
    """The name of the keyspace that the key lies in, the one with the longest prefix, or None."""
    owners = [name for name, space in keyspaces.items() if space.contains(key)]
    return max(owners, key=lambda name: len(keyspaces[name].prefix), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixProblem:
    """Why a prefix would not keep its keys apart from others."""

    prefix: str
    problem: str
    other: str | None = None
    """The prefix that it overlaps with."""

    def __str__(self) -> str:
        return f"{self.prefix!r} {self.problem}"


def check_disjoint(prefixes: Iterable[str]) -> tuple[PrefixProblem, ...]:
    """All reasons why these prefixes would not keep workloads apart; empty when they do.

    A prefix must not be empty, the beginning of another, or given twice; it must end in ``:`` and hold no
    glob character, brace, blank, control or non-ASCII character.
    """
    given = list(prefixes)
    problems: list[PrefixProblem] = []
    for prefix in given:
        if not prefix:
            problems.append(PrefixProblem(prefix=prefix, problem="is empty: every key would start with it"))
        elif not prefix.endswith(":"):
            problems.append(PrefixProblem(prefix=prefix, problem="does not end in ':'"))
        problems += [
            PrefixProblem(prefix=prefix, problem=why) for what, why in _DUBIOUS if what.search(prefix)
        ]
    for first, second in combinations(given, 2):
        short, long = sorted((first, second))  # the beginning of a text sorts before it
        if short and long.startswith(short):
            why = "stands there twice" if short == long else f"is the beginning of {long!r}"
            problems.append(PrefixProblem(prefix=short, problem=why, other=long))
    return tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """What :func:`purge` did."""

    prefix: str
    found: int
    """Keys that SCAN named; it may name one several times."""
    removed: int
    """Keys that existed when they were unlinked."""
    took_s: float


def purge(client: Client, keyspace: Keyspace, *, deadline_s: float, batch: int = 500) -> PurgeReport:
    """Removes every key of the keyspace and no other, with SCAN and UNLINK in batches of ``batch`` keys.

    Guarantee: a key that was there when the purge began is gone when it returns, unless it was written again
    meanwhile. One that is written while the purge runs may or may not survive; stop the writers first when
    none may. It is one pass over the server's keys and ends under writers too. To purge a part of a keyspace
    give ``keyspace.below(...)``. On a cluster all primaries are walked.

    Raises DeadlineExceeded, which says how many keys were removed, when that took longer than ``deadline_s``
    seconds; the purge may simply be called again. Raises any other CacheError with the number as a note.
    """
    if batch < 1:
        raise UsageError(f"batch is at least 1, not {batch!r}")
    began_s = time.monotonic()
    found = removed = 0
    try:
        with deadline(deadline_s):
            keys = client.scan_iter(match=keyspace.pattern(), count=batch)
            while named := list(islice(keys, batch)):
                found += len(named)
                # SCAN was asked for these only, but deleting somebody else's key cannot be undone.
                own = [key for key in named if keyspace.contains(key)]
                if own:
                    removed += client.unlink(*own)
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"the purge of {keyspace.prefix!r} removed {removed} keys and was not done after {deadline_s:g} s"
        ) from error
    except CacheError as error:
        error.add_note(f"the purge of {keyspace.prefix!r} had removed {removed} keys")
        raise
    return PurgeReport(
        prefix=keyspace.prefix, found=found, removed=removed, took_s=time.monotonic() - began_s
    )
