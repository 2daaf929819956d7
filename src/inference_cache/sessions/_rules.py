"""What the stores do, without doing it: each operation yields calls of scripts and is sent their replies.

So the blocking and the asyncio store follow the same rules. Arguments are checked before the first call.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from inference_cache.errors import (
    KeyFormatError,
    SessionConflict,
    SessionCorrupt,
    SessionError,
    SessionExists,
    SessionLost,
    SessionUncertain,
    SessionUnknown,
    UsageError,
)
from inference_cache.keyspace import Keyspace, Tagged
from inference_cache.sessions import _scripts as scripts
from inference_cache.sessions._memory import Known, Memory
from inference_cache.sessions._turns import (
    MAX_IDEMPOTENCY_KEY_BYTES,
    State,
    Turn,
    check_state,
    decode_state,
    decode_turn,
    encode_state,
    encode_turn,
    same_turn,
)

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_TURNS",
    "MAX_ID_BYTES",
    "SESSIONS",
    "Call",
    "Operation",
    "Rules",
    "SessionHandle",
    "SessionId",
    "SessionKeys",
    "Target",
    "session_keys",
]

SESSIONS: Final = Keyspace("session:")

MAX_ID_BYTES: Final = 1024
"""Longest id, all its parts together."""
MAX_BATCH_TURNS: Final = 1000
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""What ``append_many`` takes at once; the server does nothing else meanwhile."""

_PAGE_TURNS: Final = 512
_PAGE_BYTES: Final = 1024 * 1024
_FIRST_STEP_TURNS: Final = 16
_MAX_TTL_S: Final = 100 * 365 * 86_400

SessionId = str | bytes | int | tuple[str | bytes | int, ...]
"""One part or several: ``"a1b2"``, ``("user", 123)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHandle:
    """One session, and no other that is begun under the same id later.

    It can be stored and made anew from its fields; the id is kept as given.
    """

    id: SessionId
    generation: str
    """16 hexadecimal digits."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{16}", self.generation):
            raise UsageError(f"a generation has 16 hexadecimal digits, not {self.generation!r:.40}")


Target = SessionId | SessionHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKeys:
    """All keys of a session; they share a cluster slot."""

    root: bytes
    turns: bytes
    state: bytes

    @property
    def all(self) -> tuple[bytes, bytes, bytes]:
        return (self.root, self.turns, self.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One script to be run."""

    script: scripts.Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | str | int, ...]
    repeated: Call | None = None
    """What to send after a try without an answer, if not the same."""


T = TypeVar("T")
Operation = Generator[Call, Any, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aim:
    """Which session a call is about, and what is known of it."""

    id: SessionId
    keys: SessionKeys
    generation: bytes
    """Empty when any will do."""
    known: Known | None

    @property
    def claim(self) -> Known:
        """What the session must be, at least."""
        if self.known is None or self.known.generation != self.generation:
            return Known(generation=self.generation)
        return self.known

    def call(
        self, script: scripts.Script, ttl_ms: int, *arguments: bytes | str | int, update: bytes = b""
    ) -> Call:
        known = self.claim
        claims = b"%d:%b:%d:%d" % (ttl_ms, known.generation, known.turns, known.version)
        return Call(script=script, keys=self.keys.all, arguments=(claims, update, *arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The reply of a script, taken apart."""

    status: bytes
    seen: Known
    number: int
    entries: list[object]


class Rules:
    """The operations of one store. Settings are checked here."""

    def __init__(
        self,
        *,
        keys: Callable[[SessionId], SessionKeys],
        ttl_s: float | None,
        max_turn_bytes: int,
        max_state_bytes: int,
        remember_updates: int,
        remember_sessions: int,
    ) -> None:
        if ttl_s is not None and not 0.001 <= ttl_s <= _MAX_TTL_S:
            raise UsageError(
                f"ttl_s is a number of seconds from 0.001 to {_MAX_TTL_S}, or None, not {ttl_s!r}"
            )
        for name, value, most in (
            ("max_turn_bytes", max_turn_bytes, MAX_BATCH_BYTES),
            ("max_state_bytes", max_state_bytes, MAX_BATCH_BYTES),
            ("remember_updates", remember_updates, 1_000_000),
            ("remember_sessions", remember_sessions, 10_000_000),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"{name} is a whole number from 1 to {most}, not {value!r}")
        self._keys = keys
        self._ttl_ms = 0 if ttl_s is None else round(ttl_s * 1000)
        self._max_turn_bytes = max_turn_bytes
        self._max_state_bytes = max_state_bytes
        self._remember_updates = remember_updates
        self._memory = Memory(remember_sessions)

    # --- beginning and ending ------------------------------------------------------------------------------

    def create(self, id: SessionId, *, replace: bool) -> Operation[SessionHandle]:
        return self._create(id, mode="replace" if replace else "new")

    def open(self, id: SessionId, *, create: bool) -> Operation[SessionHandle]:
        if create:
            return self._create(id, mode="open")
        return self._open(id)

    def _create(self, id: SessionId, *, mode: Literal["new", "open", "replace"]) -> Operation[SessionHandle]:
        aim = self._aim(id)
        since = aim.known
        if mode == "replace":
            aim = _Aim(id=aim.id, keys=aim.keys, generation=b"", known=None)
        fresh = secrets.token_hex(8)
        reply = yield aim.call(scripts.CREATE, self._ttl_ms, fresh, self._remember_updates, mode)
        answer = _answer(reply, aim)
        if answer.status == b"exists":
            raise SessionExists(
                "there is a session of this id already: open() it, or give replace=True to begin anew",
                key=aim.keys.root,
            )
        seen = _whole(answer, aim)
        self._memory.learn(aim.keys.root, seen, since=since)
        return SessionHandle(id=aim.id, generation=seen.generation.decode())

    def _open(self, id: SessionId) -> Operation[SessionHandle]:
        aim = self._aim(id)
        answer = _answer((yield aim.call(scripts.TOUCH, self._ttl_ms)), aim)
        return SessionHandle(id=aim.id, generation=self._learn(answer, aim).generation.decode())

    def touch(self, target: Target) -> Operation[None]:
        aim = self._aim(target)
        self._learn(_answer((yield aim.call(scripts.TOUCH, self._ttl_ms)), aim), aim)

    def exists(self, target: Target) -> Operation[bool]:
        aim = self._aim(target)
        answer = _answer((yield aim.call(scripts.PEEK, -1)), aim)
        try:
            self._learn(answer, aim)
        except SessionUnknown:
            return False
        return True

    def delete(self, target: Target) -> Operation[None]:
        aim = self._aim(target)
        if not isinstance(target, SessionHandle):
            aim = _Aim(id=aim.id, keys=aim.keys, generation=b"", known=aim.known)
        _whole(_answer((yield aim.call(scripts.DELETE, -1)), aim), aim)
        self._memory.forget(aim.keys.root)

    def forget(self, id: SessionId) -> None:
        self._memory.forget(self._aim(id).keys.root)

    # --- turns ---------------------------------------------------------------------------------------------

    def append(self, target: Target, turns: Sequence[Turn | bytes], key: str) -> Operation[list[int]]:
        aim = self._aim(target)
        sent = [turn if isinstance(turn, Turn) else Turn(content=turn) for turn in turns]
        if not 1 <= len(sent) <= MAX_BATCH_TURNS:
            raise UsageError(f"from 1 to {MAX_BATCH_TURNS} turns are appended at once, not {len(sent)}")
        raw_key = _idempotency_key(key)
        bodies = [encode_turn(turn, idempotency_key=raw_key, max_bytes=self._max_turn_bytes) for turn in sent]
        size_bytes = sum(map(len, bodies))
        if len(bodies) > 1 and size_bytes > MAX_BATCH_BYTES:
            raise UsageError(
                f"{size_bytes} bytes are too many to append at once: {MAX_BATCH_BYTES} are allowed"
            )
        update = _update_digest(b"append", raw_key)
        answer = yield from self._update(
            aim,
            update,
            lambda tried_at: aim.call(scripts.APPEND, self._ttl_ms, tried_at, *bodies, update=update),
        )
        seen = self._learn(answer, aim)
        first = answer.number
        if answer.status == b"repeated":
            found = [
                decode_turn(entry, key=aim.keys.root, generation=seen.generation, position=position)
                for position, entry in enumerate(answer.entries, first)
            ]
            if len(found) != len(sent) or not all(
                same_turn(turn, wanted, idempotency_key=key) for turn, wanted in zip(found, sent, strict=True)
            ):
                raise UsageError("this idempotency key was used to append something else; draw one for each")
        return list(range(first, first + len(sent)))

    def read(self, target: Target, *, slide: bool) -> Operation[list[Turn]]:
        return self._collect(
            target,
            slide=slide,
            last_turns=None,
            keep=lambda turn: True,
            steps=itertools.repeat(_PAGE_TURNS),
        )

    def window(
        self,
        target: Target,
        *,
        last_turns: int | None,
        last_tokens: int | None,
        count_tokens: Callable[[Turn], int] | None,
        slide: bool,
    ) -> Operation[list[Turn]]:
        if (last_turns is None) == (last_tokens is None):
            raise UsageError("a window is given by last_turns or by last_tokens, one of them")
        if (last_tokens is None) != (count_tokens is None):
            raise UsageError("last_tokens and count_tokens go together")
        for name, value in (("last_turns", last_turns), ("last_tokens", last_tokens)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise UsageError(f"{name} is a whole number from 0 up, not {value!r}")
        if count_tokens is None or last_tokens is None:
            return self._collect(
                target,
                slide=slide,
                last_turns=last_turns,
                keep=lambda turn: True,
                steps=itertools.repeat(_PAGE_TURNS),
            )
        left = last_tokens

        def keep(turn: Turn) -> bool:
            nonlocal left
            tokens = count_tokens(turn)
            if not isinstance(tokens, int) or tokens < 0:
                raise UsageError(f"count_tokens gives a whole number from 0 up, not {tokens!r}")
            left -= tokens
            return left >= 0

        steps = (min(_FIRST_STEP_TURNS << power, _PAGE_TURNS) for power in itertools.count())
        return self._collect(target, slide=slide, last_turns=None, keep=keep, steps=steps)

    def _collect(
        self,
        target: Target,
        *,
        slide: bool,
        last_turns: int | None,
        keep: Callable[[Turn], bool],
        steps: Iterable[int],
    ) -> Operation[list[Turn]]:
        """Goes back from the end while ``keep`` agrees, and no further than ``last_turns``.

        Positions never change, so the pages fit together even while others append.
        """
        aim = self._aim(target)
        script, ttl_ms = self._reading(scripts.READ_TURNS, scripts.PEEK_TURNS, slide)
        backwards: list[Turn] = []
        at, low = -1, 0
        for step in steps:
            wanted = step if last_turns is None else min(step, last_turns - len(backwards))
            answer = _answer((yield aim.call(script, ttl_ms, at, wanted, _PAGE_BYTES)), aim)
            seen = self._learn(answer, aim)
            if at < 0:
                aim = _Aim(id=aim.id, keys=aim.keys, generation=seen.generation, known=seen)
                at = seen.turns
                low = 0 if last_turns is None else max(at - last_turns, 0)
            if at > low and not answer.entries:
                raise SessionCorrupt(f"turns before position {at} were not answered", key=aim.keys.root)
            for entry in answer.entries:
                at -= 1
                turn = decode_turn(entry, key=aim.keys.root, generation=seen.generation, position=at)
                if not keep(turn):
                    return backwards[::-1]
                backwards.append(turn)
            if at <= low:
                break
        return backwards[::-1]

    # --- state ---------------------------------------------------------------------------------------------

    def get_state(self, target: Target, *, slide: bool) -> Operation[State]:
        aim = self._aim(target)
        script, ttl_ms = self._reading(scripts.READ_STATE, scripts.PEEK_STATE, slide)
        answer = _answer((yield aim.call(script, ttl_ms)), aim)
        seen = self._learn(answer, aim)
        entry = answer.entries[0] if answer.entries else b""
        return decode_state(entry, key=aim.keys.root, generation=seen.generation, version=seen.version)

    def compare_and_set(
        self, target: Target, new: bytes, expected_version: int, idempotency_key: str | None
    ) -> Operation[int]:
        aim = self._aim(target)
        if (
            not isinstance(expected_version, int)
            or isinstance(expected_version, bool)
            or expected_version < 0
        ):
            raise UsageError(f"expected_version is a whole number from 0 up, not {expected_version!r}")
        check_state(new, max_bytes=self._max_state_bytes)
        key = secrets.token_bytes(16) if idempotency_key is None else _idempotency_key(idempotency_key)
        # The key alone would take a second try with another value for the first one.
        update = _update_digest(b"state", key, b"%d" % expected_version, new)
        body = encode_state(new, version=expected_version + 1, update=update)

        def call(tried_at: int) -> Call:
            rest = (expected_version, body, int(tried_at >= 0))
            return aim.call(scripts.SET_STATE, self._ttl_ms, *rest, update=update)

        answer = yield from self._update(aim, update, call)
        if answer.status == b"conflict":
            raise SessionConflict(
                f"the state has version {answer.seen.version}, not {expected_version}: read it again",
                key=aim.keys.root,
                expected_version=expected_version,
                actual_version=answer.seen.version,
            )
        if answer.status == b"uncertain":
            raise SessionUncertain(
                "this update was tried before and got no answer, and too many came since to tell whether it "
                "took place; the state has been changed in any case: read it again",
                key=aim.keys.root,
            )
        self._learn(answer, aim)
        return answer.number

    # --- shared --------------------------------------------------------------------------------------------

    def _aim(self, target: Target) -> _Aim:
        handle = target if isinstance(target, SessionHandle) else None
        id = handle.id if handle is not None else target
        assert not isinstance(id, SessionHandle)
        keys = self._keys(id)
        known = self._memory.recall(keys.root)
        generation = known.generation if known is not None else b""
        if handle is not None:
            generation = handle.generation.encode()
        return _Aim(id=id, keys=keys, generation=generation, known=known)

    def _update(self, aim: _Aim, update: bytes, call: Callable[[int], Call]) -> Operation[_Answer]:
        """Makes a call that must not take effect twice; ``call`` is given the turns at its first try, or -1.

        A try without an answer leaves a doubt, so that the next one with its key knows how far to look back.
        """
        name = aim.keys.root + update
        doubted = self._memory.doubted(name, aim.generation)
        first = doubted or aim.claim
        repeated = call(first.turns)
        try:
            reply = yield repeated if doubted else replace(call(-1), repeated=repeated)
        except BaseException:
            self._memory.doubt(name, first)
            raise
        self._memory.settle(name)
        return _answer(reply, aim)

    def _learn(self, answer: _Answer, aim: _Aim) -> Known:
        seen = _whole(answer, aim)
        self._memory.learn(aim.keys.root, seen, since=aim.known)
        return seen

    def _reading(
        self, sliding: scripts.Script, still: scripts.Script, slide: bool
    ) -> tuple[scripts.Script, int]:
        return (sliding, self._ttl_ms) if slide and self._ttl_ms else (still, -1)


def session_keys(keyspace: Keyspace, id: SessionId) -> SessionKeys:
    """The keys of the session in this keyspace. Raises UsageError for what cannot be an id."""
    parts = id if isinstance(id, tuple) else (id,)
    if not parts:
        raise UsageError("the id of a session has one part at least")
    try:
        *before, tagged = (Tagged(part) for part in parts)
    except KeyFormatError as error:
        raise UsageError(f"not the id of a session: {error}") from error
    size_bytes = len(tagged) + sum(map(len, before))
    if not tagged or not all(before):
        raise UsageError("the id of a session, or a part of it, is empty")
    if size_bytes > MAX_ID_BYTES:
        raise UsageError(
            f"the id of a session has {size_bytes} bytes, and {MAX_ID_BYTES} are allowed: give a hash of it"
        )
    place = (*map(bytes, before), tagged)
    root = keyspace.key(*place)
    return SessionKeys(root=root, turns=root + b":turns", state=root + b":state")


def _idempotency_key(key: str) -> bytes:
    if not isinstance(key, str):
        raise UsageError(f"an idempotency key is str, not {type(key).__name__}")
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the idempotency key is not valid Unicode: {error.reason}") from error
    if not 1 <= len(raw) <= MAX_IDEMPOTENCY_KEY_BYTES:
        raise UsageError(
            f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes of UTF-8; this has {len(raw)}"
        )
    return raw


def _update_digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


_LOST: Final[dict[bytes, tuple[Literal["gone", "partial", "replaced", "rolled_back"], str]]] = {
    b"gone": ("gone", "no key of it is left: it expired, was evicted, or deleted by somebody else"),
    b"partial": ("partial", "some of its keys are gone: they were evicted or deleted"),
    b"replaced": ("replaced", "another session was begun under its id"),
    b"rolled_back": (
        "rolled_back",
        "updates that were acknowledged are missing: the server lost its latest data",
    ),
}


def _answer(reply: Any, aim: _Aim) -> _Answer:
    """Takes a reply apart. Raises SessionError for one that no script of ours gives."""
    first, *entries = reply if isinstance(reply, list) else [reply]
    try:
        status, generation, turns, version, besides = first.split(b":")
        seen = Known(generation=generation, turns=int(turns), version=int(version))
        return _Answer(status=status, seen=seen, number=int(besides or 0), entries=entries)
    except (AttributeError, TypeError, ValueError):
        raise SessionError(
            "the server gave an answer that no script of a session gives", key=aim.keys.root
        ) from None


def _whole(answer: _Answer, aim: _Aim) -> Known:
    """What an answer says of the session. Raises SessionError unless it is whole."""
    status, key = answer.status, aim.keys.root
    if status in (b"ok", b"repeated"):
        return answer.seen
    if status == b"gone" and not aim.generation:
        raise SessionUnknown(
            "there is no trace of this session: it was never created, or deleted, or lost before this store "
            "met it; create() begins one",
            key=key,
        )
    if status in _LOST:
        how, why = _LOST[status]
        rest = ", or forget() it to go on with what is there" if how in ("replaced", "rolled_back") else ""
        raise SessionLost(
            f"the session is lost: {why}; delete() it or create(replace=True) to begin anew{rest}",
            key=key,
            how=how,
        )
    raise SessionCorrupt("the keys of the session hold what was not written there", key=key)
