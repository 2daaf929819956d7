"""Session stores that are wrong in one way."""

from __future__ import annotations

import itertools
from typing import Any

from inference_cache.connection import Client, connect
from inference_cache.errors import CacheError, SessionConflict, SessionLost
from inference_cache.sessions import SessionHandle, SessionId, SessionKeys, SessionStore, Target, Turn
from mutants.liveness import note_adapter

__all__ = [
    "AppendsTwice",
    "ChildrenLiveForEver",
    "DeletesByPattern",
    "GivesUpForGood",
    "LastWriterWins",
    "LeaksConnections",
    "LostIsEmpty",
    "NoDeadline",
    "NoHashTag",
    "UpdateCancelsTtl",
]


class _WithRawClient(SessionStore):
    """A store whose mutations reach behind its back."""

    def _persist(self, target: Target, *, root: bool) -> None:
        id = target.id if isinstance(target, SessionHandle) else target
        keys = self.keys(id)
        for key in (keys.root,) if root else (keys.turns, keys.state):
            if self._client.persist(key):
                note_adapter(type(self).__name__)


class ChildrenLiveForEver(_WithRawClient):
    """Turns and state have no TTL."""

    def append(self, session: Target, turn: Turn | bytes, *, idempotency_key: str) -> int:
        position = super().append(session, turn, idempotency_key=idempotency_key)
        self._persist(session, root=False)
        return position


class UpdateCancelsTtl(_WithRawClient):
    """Setting the state leaves the session without a TTL, as a bare SET does."""

    def compare_and_set(
        self, session: Target, new: bytes, expected_version: int, *, idempotency_key: str | None = None
    ) -> int:
        version = super().compare_and_set(session, new, expected_version, idempotency_key=idempotency_key)
        self._persist(session, root=True)
        return version


class LastWriterWins(SessionStore):
    """The state is set whatever version it has by now: read, then write."""

    def compare_and_set(
        self, session: Target, new: bytes, expected_version: int, *, idempotency_key: str | None = None
    ) -> int:
        while True:
            current = self.get_state(session).version
            try:
                version = super().compare_and_set(session, new, current, idempotency_key=idempotency_key)
            except SessionConflict:
                continue
            if current != expected_version:
                note_adapter("LastWriterWins")
            return version


class NoHashTag(SessionStore):
    """Keys without braces: a cluster spreads a session over its nodes."""

    def keys(self, id: SessionId) -> SessionKeys:
        note_adapter("NoHashTag")
        tagged = super().keys(id)
        return SessionKeys(root=_bare(tagged.root), turns=_bare(tagged.turns), state=_bare(tagged.state))


def _bare(key: bytes) -> bytes:
    return key.replace(b"{", b"").replace(b"}", b"")


class AppendsTwice(SessionStore):
    """The idempotency key is ignored: each call appends."""

    _calls = itertools.count()

    def append(self, session: Target, turn: Turn | bytes, *, idempotency_key: str) -> int:
        note_adapter("AppendsTwice")
        return super().append(session, turn, idempotency_key=f"{id(self)}:{next(self._calls)}")


class DeletesByPattern(SessionStore):
    """Deletes whatever begins as the session's root key does."""

    def delete(self, session: Target) -> None:
        id = session.id if isinstance(session, SessionHandle) else session
        root = self.keys(id).root
        super().delete(session)
        for key in list(self._client.scan_iter(match=root.rstrip(b"}") + b"*", count=1000)):
            note_adapter("DeletesByPattern")
            self._client.unlink(key)


class LostIsEmpty(SessionStore):
    """A lost session reads as one that has just begun."""

    def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        try:
            return super().read(session, slide=slide)
        except SessionLost:
            note_adapter("LostIsEmpty")
            return []


class NoDeadline(SessionStore):
    """Waits for the server, however long it takes."""

    def __init__(self, client: Client | str, *, deadline_s: float = 1.0, **options: Any) -> None:
        note_adapter("NoDeadline")
        super().__init__(client, deadline_s=60 * deadline_s, **options)


class GivesUpForGood(SessionStore):
    """The first failure is the last word."""

    _failure: CacheError | None = None

    def create(self, id: SessionId, *, replace: bool = False) -> SessionHandle:
        if self._failure is not None:
            note_adapter("GivesUpForGood")
            raise self._failure
        try:
            return super().create(id, replace=replace)
        except CacheError as error:
            self._failure = error
            raise


class LeaksConnections(SessionStore):
    """After a failure a new client is made, and the old one kept."""

    def __init__(self, client: Client | str, **options: Any) -> None:
        super().__init__(client, **options)
        self._url = client if isinstance(client, str) else ""
        self._kept: list[Client] = []

    def create(self, id: SessionId, *, replace: bool = False) -> SessionHandle:
        try:
            return super().create(id, replace=replace)
        except CacheError:
            if self._url:
                note_adapter("LeaksConnections")
                spare = connect(self._url, deadline_s=self.deadline_s)
                self._kept.append(spare)
            raise

    def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        for spare in self._kept:
            spare.ping()
        return super().read(session, slide=slide)
