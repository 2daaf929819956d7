"""The blocking store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from inference_cache.connection import Client, connect, deadline, remaining_s
from inference_cache.errors import CommandRejected, Unreachable
from inference_cache.sessions._common import RETRY_PAUSES_S, Sessions
from inference_cache.sessions._rules import Call, Operation, SessionHandle, SessionId, Target
from inference_cache.sessions._turns import State, Turn

__all__ = ["SessionStore"]

T = TypeVar("T")


class SessionStore(Sessions[Client]):
    """Conversations in one Valkey, for any number of threads and processes.

    A session is named by its id, ``"a1b2"`` or in parts ``("user", 123)``, or by the handle that
    :meth:`create` and :meth:`open` return, which means that session and no other begun under its id later.

    **Exactly once.** An update, which is a call of :meth:`append`, :meth:`append_many` or
    :meth:`compare_and_set`, takes place as a whole or not at all. One that comes again with the same
    idempotency key changes nothing and gives the same answer. From the store that got no answer this holds
    however late it comes; from another store as long as fewer than ``remember_updates`` other updates of the
    session came between. The store itself repeats a call whose connection was lost, up to three times within
    its deadline. After Unreachable or DeadlineExceeded the update may or may not have taken place: call again
    with the same key.

    **One lifetime.** All keys of a session get the same deadline, ``ttl_s`` from the server's now, at each
    update and each read (unless ``slide=False``). With ``ttl_s=None`` there is none. All stores that share
    sessions should have the same.

    **Lost is not new.** Only :meth:`create` and ``open(create=True)`` begin a session; everything else raises
    SessionLost or SessionUnknown without one. A session of which a part is missing raises SessionLost, always
    and everywhere. So does one that is gone as a whole, or lacks what was acknowledged, where that can be
    known: with a handle, or in a store that has met the session among the last ``remember_sessions``. To
    anybody else a session that is gone as a whole looks like one that never was.

    Every method ends within ``deadline_s`` seconds, or an earlier
    :func:`~inference_cache.connection.deadline` around it. Besides what it documents it raises UsageError for
    a wrong argument, before anything is sent, SessionLost, SessionUnknown and SessionCorrupt, and CacheError
    when the cache gives no answer.
    """

    _connect = staticmethod(connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections, if the store was made from a URL."""
        if self._owns_client:
            self._client.close()

    def create(self, id: SessionId, *, replace: bool = False) -> SessionHandle:
        """Begins a session, if there is no trace of one.

        ``replace`` removes what is there, whole or not, and forgets that it was.

        Raises SessionExists, and SessionLost for one that was there and is gone, even as a whole.
        """
        return self._run(self._rules.create(id, replace=replace))

    def open(self, id: SessionId, *, create: bool = False) -> SessionHandle:
        """A handle for the session that is there; ``create`` begins one if there is no trace of any."""
        return self._run(self._rules.open(id, create=create))

    def exists(self, session: Target) -> bool:
        """Whether the session is there, whole; leaves its deadline alone. Raises SessionLost if it was."""
        return self._run(self._rules.exists(session))

    def touch(self, session: Target) -> None:
        """Moves the deadline of the session."""
        self._run(self._rules.touch(session))

    def delete(self, session: Target) -> None:
        """Removes this session and no other; afterwards no key of it is left.

        Given an id it takes whatever is there, also the rest of a lost session. Given a handle it raises
        SessionLost and removes nothing when another session has begun under the id.
        """
        self._run(self._rules.delete(session))

    def append(self, session: Target, turn: Turn | bytes, *, idempotency_key: str) -> int:
        """Adds a turn at the end and returns its position, counted from 0. Bytes are a turn without a role.

        Raises UsageError also when the key was used to append something else.
        """
        return self._run(self._rules.append(session, [turn], idempotency_key))[0]

    def append_many(
        self, session: Target, turns: Sequence[Turn | bytes], *, idempotency_key: str
    ) -> list[int]:
        """Adds turns at the end, all or none and none of others between, and returns their positions.

        Takes up to 1000 turns and 16 MiB. Raises UsageError also when the key was used to append something
        else.
        """
        return self._run(self._rules.append(session, turns, idempotency_key))

    def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        """All turns, as they were when the call began, in pages of a MiB or 512 turns.

        With ``slide=False`` nothing is written, so that it works on a replica or with a full disk.
        """
        return self._run(self._rules.read(session, slide=slide))

    def window(
        self,
        session: Target,
        *,
        last_turns: int | None = None,
        last_tokens: int | None = None,
        count_tokens: Callable[[Turn], int] | None = None,
        slide: bool = True,
    ) -> list[Turn]:
        """The end of the conversation, oldest turn first.

        Either the last ``last_turns`` turns, or as many whole turns from the end as have ``last_tokens``
        tokens by ``count_tokens``; none if the very last one has more. Reads from the end, in pages.
        """
        return self._run(
            self._rules.window(
                session,
                last_turns=last_turns,
                last_tokens=last_tokens,
                count_tokens=count_tokens,
                slide=slide,
            )
        )

    def get_state(self, session: Target, *, slide: bool = True) -> State:
        """The state and its version; empty with version 0 as long as none was set."""
        return self._run(self._rules.get_state(session, slide=slide))

    def compare_and_set(
        self, session: Target, new: bytes, expected_version: int, *, idempotency_key: str | None = None
    ) -> int:
        """Sets the state if its version is still the expected one, and returns the new version.

        Give an ``idempotency_key`` to call again after an error without taking the own update for somebody
        else's; without, only the store's own retries are safe.

        Raises SessionConflict, and SessionUncertain when it was tried before, got no answer, and comes so
        late that nobody knows any more whether it took place.
        """
        return self._run(self._rules.compare_and_set(session, new, expected_version, idempotency_key))

    def _run(self, operation: Operation[T]) -> T:
        with deadline(self.deadline_s):
            try:
                call = next(operation)
                while True:
                    try:
                        reply = self._call(call)
                    except BaseException as error:
                        call = operation.throw(error)
                    else:
                        call = operation.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    def _call(self, call: Call) -> Any:
        # Every script may run twice: updates are known by their key, and the rest changes nothing more.
        for pause_s in RETRY_PAUSES_S:
            try:
                return self._send(call)
            except Unreachable:
                if pause_s >= (remaining_s() or 0):
                    raise
                time.sleep(pause_s)
            call = call.repeated or call
        return self._send(call)

    def _send(self, call: Call) -> Any:
        rest = (len(call.keys), *call.keys, *call.arguments)
        try:
            return self._client.execute_command("EVALSHA", call.script.sha1, *rest)
        except CommandRejected as error:
            if error.code != "NOSCRIPT":
                raise
            return self._client.execute_command("EVAL", call.script.source, *rest)
