"""The asyncio store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from inference_cache.connection import AsyncClient, connect_async, deadline, remaining_s
from inference_cache.errors import CommandRejected, Unreachable
from inference_cache.sessions._common import RETRY_PAUSES_S, Sessions
from inference_cache.sessions._rules import Call, Operation, SessionHandle, SessionId, Target
from inference_cache.sessions._turns import State, Turn

__all__ = ["AsyncSessionStore"]

T = TypeVar("T")


class AsyncSessionStore(Sessions[AsyncClient]):
    """The asyncio twin of :class:`~inference_cache.sessions.SessionStore`: same rules, arguments and errors.

    Use it in one event loop, and close it there with :meth:`aclose` or ``async with``.
    """

    _connect = staticmethod(connect_async)

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
