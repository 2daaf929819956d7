"""The asyncio store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from inference_cache.connection import AsyncClient, connect_async, deadline, remaining_s
from inference_cache.errors import CommandRejected, Unreachable
from inference_cache.keyspace import Keyspace
from inference_cache.sessions._rules import (
    SESSIONS,
    Call,
    Operation,
    Rules,
    SessionHandle,
    SessionId,
    SessionKeys,
    Target,
    session_keys,
)
from inference_cache.sessions._store import RETRY_PAUSES_S
from inference_cache.sessions._turns import State, Turn

__all__ = ["AsyncSessionStore"]

T = TypeVar("T")


class AsyncSessionStore:
    """The asyncio twin of :class:`~inference_cache.sessions.SessionStore`: same rules, arguments and errors.

    Use it in one event loop, and close it there with :meth:`aclose` or ``async with``.
    """

    def __init__(
        self,
        client: AsyncClient | str,
        *,
        keyspace: Keyspace = SESSIONS,
        ttl_s: float | None = 86_400,
        deadline_s: float = 1.0,
        max_turn_bytes: int = 1024 * 1024,
        max_state_bytes: int = 1024 * 1024,
        remember_updates: int = 250,
        remember_sessions: int = 10_000,
    ) -> None:
        """See :class:`.SessionStore`; ``client`` is one from :func:`.connect_async`, or a URL."""
        self.keyspace = keyspace
        self.deadline_s = deadline_s
        self._rules = Rules(
            keys=self.keys,
            ttl_s=ttl_s,
            max_turn_bytes=max_turn_bytes,
            max_state_bytes=max_state_bytes,
            remember_updates=remember_updates,
            remember_sessions=remember_sessions,
        )
        with deadline(deadline_s):  # which refuses what is no deadline
            self._owns_client = isinstance(client, str)
            self._client = connect_async(client, deadline_s=deadline_s) if isinstance(client, str) else client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See :meth:`.SessionStore.close`."""
        if self._owns_client:
            await self._client.aclose()

    def keys(self, id: SessionId) -> SessionKeys:
        """See :meth:`.SessionStore.keys`."""
        return session_keys(self.keyspace, id)

    async def create(self, id: SessionId, *, replace: bool = False) -> SessionHandle:
        """See :meth:`.SessionStore.create`."""
        return await self._run(self._rules.create(id, replace=replace))

    async def open(self, id: SessionId, *, create: bool = False) -> SessionHandle:
        """See :meth:`.SessionStore.open`."""
        return await self._run(self._rules.open(id, create=create))

    async def exists(self, session: Target) -> bool:
        """See :meth:`.SessionStore.exists`."""
        return await self._run(self._rules.exists(session))

    async def touch(self, session: Target) -> None:
        """See :meth:`.SessionStore.touch`."""
        await self._run(self._rules.touch(session))

    async def delete(self, session: Target) -> None:
        """See :meth:`.SessionStore.delete`."""
        await self._run(self._rules.delete(session))

    def forget(self, id: SessionId) -> None:
        """See :meth:`.SessionStore.forget`."""
        self._rules.forget(id)

    async def append(self, session: Target, turn: Turn | bytes, *, idempotency_key: str) -> int:
        """See :meth:`.SessionStore.append`."""
        return (await self._run(self._rules.append(session, [turn], idempotency_key)))[0]

    async def append_many(
        self, session: Target, turns: Sequence[Turn | bytes], *, idempotency_key: str
    ) -> list[int]:
        """See :meth:`.SessionStore.append_many`."""
        return await self._run(self._rules.append(session, turns, idempotency_key))

    async def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        """See :meth:`.SessionStore.read`."""
        return await self._run(self._rules.read(session, slide=slide))

    async def window(
        self,
        session: Target,
        *,
        last_turns: int | None = None,
        last_tokens: int | None = None,
        count_tokens: Callable[[Turn], int] | None = None,
        slide: bool = True,
    ) -> list[Turn]:
        """See :meth:`.SessionStore.window`."""
        return await self._run(
            self._rules.window(
                session,
                last_turns=last_turns,
                last_tokens=last_tokens,
                count_tokens=count_tokens,
                slide=slide,
            )
        )

    async def get_state(self, session: Target, *, slide: bool = True) -> State:
        """See :meth:`.SessionStore.get_state`."""
        return await self._run(self._rules.get_state(session, slide=slide))

    async def compare_and_set(
        self, session: Target, new: bytes, expected_version: int, *, idempotency_key: str | None = None
    ) -> int:
        """See :meth:`.SessionStore.compare_and_set`."""
        return await self._run(self._rules.compare_and_set(session, new, expected_version, idempotency_key))

    async def _run(self, operation: Operation[T]) -> T:
        with deadline(self.deadline_s):
            try:
                call = next(operation)
                while True:
                    try:
                        reply = await self._call(call)
                    except BaseException as error:
                        call = operation.throw(error)
                    else:
                        call = operation.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _call(self, call: Call) -> Any:
        # Every script may run twice: updates are known by their key, and the rest changes nothing more.
        for pause_s in RETRY_PAUSES_S:
            try:
                return await self._send(call)
            except Unreachable:
                if pause_s >= (remaining_s() or 0):
                    raise
                await asyncio.sleep(pause_s)
            call = call.repeated or call
        return await self._send(call)

    async def _send(self, call: Call) -> Any:
        rest = (len(call.keys), *call.keys, *call.arguments)
        try:
            return await self._client.execute_command("EVALSHA", call.script.sha1, *rest)
        except CommandRejected as error:
            if error.code != "NOSCRIPT":
                raise
            return await self._client.execute_command("EVAL", call.script.source, *rest)
