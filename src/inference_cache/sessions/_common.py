"""What the blocking and the asyncio store have in common: how they are made, and what asks no server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Generic, TypeVar

from inference_cache.connection import AsyncClient, Client, deadline
from inference_cache.keyspace import Keyspace
from inference_cache.sessions._rules import SESSIONS, Rules, SessionId, SessionKeys, session_keys

__all__ = ["RETRY_PAUSES_S", "Sessions"]

RETRY_PAUSES_S: Final = (0.01, 0.05, 0.2)
"""Before each further try of a call whose connection was lost."""

C = TypeVar("C", Client, AsyncClient)


class Sessions(Generic[C]):
    """A store with a client of either kind."""

    _connect: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        client: C | str,
        *,
        keyspace: Keyspace = SESSIONS,
        ttl_s: float | None = 86_400,
        deadline_s: float = 1.0,
        max_turn_bytes: int = 1024 * 1024,
        max_state_bytes: int = 1024 * 1024,
        remember_updates: int = 250,
        remember_sessions: int = 10_000,
    ) -> None:
        """``client`` is one from :func:`~inference_cache.connection.connect`, or for the asyncio store from
        :func:`~inference_cache.connection.connect_async`, or a URL.

        ``max_turn_bytes`` bounds content and metadata of a turn together. ``remember_updates`` counts per
        session, and is fixed when a session is created; each takes 50 bytes in the cache, or 120 when there
        are more than 250, which a server no longer stores compactly.
        ``remember_sessions`` counts for this store, and takes some 300 bytes each here; as many updates
        without an answer are remembered too.

        Raises UsageError for a wrong setting or URL.
        """
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
            self._client: C = (
                type(self)._connect(client, deadline_s=deadline_s) if isinstance(client, str) else client
            )

    def keys(self, id: SessionId) -> SessionKeys:
        """All keys that a session of this id has or may have."""
        return session_keys(self.keyspace, id)

    def forget(self, id: SessionId) -> None:
        """Accepts that the session was lost or replaced: the store takes what it finds next as it is."""
        self._rules.forget(id)
