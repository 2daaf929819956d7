"""Turns and states: what a caller gives and gets, and the bytes that stand for it in the cache.

A stored turn is its position and time (8 bytes each, big-endian), a seal of 16 hex digits, and the turn: the
two bytes ``T1``, a digest, and what the digest covers. The digest is made by the client that appends, and the
seal by the server: it binds the digest to the session's generation, the position and the time. So a turn that
was damaged, moved, or left over from an earlier session of the same id is found out.

A stored state is the generation, the two bytes ``S1``, a digest, and what that covers: the version, the
digest of the update that set it, and the value. The scripts know where these things stand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from inference_cache.errors import SessionCorrupt, UsageError

__all__ = [
    "MAX_IDEMPOTENCY_KEY_BYTES",
    "MAX_ROLE_BYTES",
    "State",
    "Turn",
    "check_state",
    "decode_state",
    "decode_turn",
    "encode_state",
    "encode_turn",
    "same_turn",
]

MAX_ROLE_BYTES: Final = 256
MAX_IDEMPOTENCY_KEY_BYTES: Final = 256

_PLACE: Final = Struct(">QQ")
_LENGTHS: Final = Struct(">HHI")
_TURN_MAGIC: Final = b"T1"
_STATE_MAGIC: Final = b"S1"
_VERSION: Final = Struct(">Q")
_GENERATION_BYTES: Final = 16
_SEAL_BYTES: Final = 16
_DIGEST_BYTES: Final = 8
_DIGEST_AT: Final = _PLACE.size + _SEAL_BYTES + len(_TURN_MAGIC)
_COVERED_AT: Final = _DIGEST_AT + _DIGEST_BYTES
_CONTENT_AT: Final = _COVERED_AT + _LENGTHS.size
_UPDATE_BYTES: Final = 16
_STATE_COVERED_AT: Final = _GENERATION_BYTES + len(_STATE_MAGIC) + _DIGEST_BYTES
_STATE_VALUE_AT: Final = _STATE_COVERED_AT + _VERSION.size + _UPDATE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation. ``content`` and ``metadata`` are kept byte for byte.

    The last three are set on turns that were read, and ignored on those that are appended.
    """

    content: bytes
    role: str = ""
    """At most :data:`MAX_ROLE_BYTES` of UTF-8."""
    metadata: bytes = b""
    """Whatever belongs to the turn: tool calls as JSON, a model's name."""
    idempotency_key: str = ""
    """The key that it was appended with; turns appended together share one."""
    position: int | None = None
    """Counted from 0 without a gap."""
    at_ms: int | None = None
    """When it was appended: milliseconds since 1970 on the server's clock."""


class State(NamedTuple):
    """The state of a session, and the version to give to ``compare_and_set``."""

    value: bytes
    """Empty as long as ``version`` is 0."""
    version: int
    """0 as long as no state was set, and one more with each that is."""


def _digest(covered: bytes | memoryview) -> bytes:
    return hashlib.blake2b(covered, digest_size=_DIGEST_BYTES).digest()


def encode_turn(turn: Turn, *, idempotency_key: bytes, max_bytes: int) -> bytes:
    """The turn as the client sends it, without place and seal. ``max_bytes`` bounds content and metadata.

    Raises UsageError for a field of a wrong type or size.
    """
    for name, value in (("content", turn.content), ("metadata", turn.metadata)):
        if not isinstance(value, bytes):
            raise UsageError(f"the {name} of a turn is bytes, not {type(value).__name__}")
    if not isinstance(turn.role, str):
        raise UsageError(f"the role of a turn is str, not {type(turn.role).__name__}")
    try:
        role = turn.role.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the role of a turn is not valid Unicode: {error.reason}") from error
    if len(role) > MAX_ROLE_BYTES:
        raise UsageError(f"the role of a turn has {len(role)} bytes; {MAX_ROLE_BYTES} are allowed")
    size_bytes = len(turn.content) + len(turn.metadata)
    if size_bytes > max_bytes:
        raise UsageError(
            f"content and metadata of a turn have {size_bytes} bytes; max_turn_bytes is {max_bytes}"
        )
    lengths = _LENGTHS.pack(len(role), len(idempotency_key), len(turn.metadata))
    covered = b"".join((lengths, role, idempotency_key, turn.metadata, turn.content))
    return b"".join((_TURN_MAGIC, _digest(covered), covered))


def decode_turn(entry: object, *, key: bytes, generation: bytes, position: int) -> Turn:
    """The turn that must stand at ``position``.

    Raises SessionCorrupt when anything about the entry is not as it was written.
    """
    if not isinstance(entry, bytes) or len(entry) < _CONTENT_AT:
        raise SessionCorrupt(f"the turn at position {position} is too short to be one", key=key)
    found_at, at_ms = _PLACE.unpack_from(entry)
    place = entry[: _PLACE.size]
    seal = entry[_PLACE.size : _PLACE.size + _SEAL_BYTES]
    digest = entry[_DIGEST_AT:_COVERED_AT]
    expected = hashlib.sha1(generation + place + digest, usedforsecurity=False).hexdigest()
    if seal != expected[:_SEAL_BYTES].encode() or found_at != position:
        raise SessionCorrupt(f"the turn at position {position} was not written there", key=key)
    covered = memoryview(entry)[_COVERED_AT:]
    if entry[_DIGEST_AT - len(_TURN_MAGIC) : _DIGEST_AT] != _TURN_MAGIC or _digest(covered) != digest:
        raise SessionCorrupt(f"the turn at position {position} is damaged", key=key)
    role_bytes, idempotency_bytes, metadata_bytes = _LENGTHS.unpack_from(entry, _COVERED_AT)
    role_end = _CONTENT_AT + role_bytes
    idempotency_end = role_end + idempotency_bytes
    content_at = idempotency_end + metadata_bytes
    return Turn(
        content=entry[content_at:],
        role=entry[_CONTENT_AT:role_end].decode(),
        metadata=entry[idempotency_end:content_at],
        idempotency_key=entry[role_end:idempotency_end].decode(),
        position=found_at,
        at_ms=at_ms,
    )


def same_turn(turn: Turn, sent: Turn, *, idempotency_key: str) -> bool:
    """Whether the turn that was read is the one that was sent."""
    return (turn.content, turn.role, turn.metadata, turn.idempotency_key) == (
        sent.content,
        sent.role,
        sent.metadata,
        idempotency_key,
    )


def check_state(value: object, *, max_bytes: int) -> None:
    """Raises UsageError for a value that is not bytes or larger than ``max_bytes``."""
    if not isinstance(value, bytes):
        raise UsageError(f"a state is bytes, not {type(value).__name__}")
    if len(value) > max_bytes:
        raise UsageError(f"the state has {len(value)} bytes; max_state_bytes is {max_bytes}")


def encode_state(value: bytes, *, version: int, update: bytes) -> bytes:
    """The state as the client sends it, to become this version by this update (16 bytes)."""
    covered = b"".join((_VERSION.pack(version), update, value))
    return b"".join((_STATE_MAGIC, _digest(covered), covered))


def decode_state(entry: object, *, key: bytes, generation: bytes, version: int) -> State:
    """The state, which must be this version.

    Raises SessionCorrupt when it is not as it was written.
    """
    if version == 0:
        return State(b"", 0)
    if not isinstance(entry, bytes) or len(entry) < _STATE_VALUE_AT:
        raise SessionCorrupt("the state is too short to be one", key=key)
    covered = memoryview(entry)[_STATE_COVERED_AT:]
    beginning = generation + _STATE_MAGIC + _digest(covered) + _VERSION.pack(version)
    if not entry.startswith(beginning):
        raise SessionCorrupt("the state is damaged, or not that of this session", key=key)
    return State(entry[_STATE_VALUE_AT:], version)
