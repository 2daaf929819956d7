"""Sessions: the turns of a conversation and its state, in the only copy there is.

::

    store = SessionStore("valkey://valkey.ai-ml.svc.cluster.local:6379")
    session = store.create(("user", 123))
    store.append(session, Turn(role="user", content=b"Hello"), idempotency_key="request-1")
    store.window(session, last_turns=20)

What it promises, and where that ends, is told by :class:`SessionStore`; :class:`AsyncSessionStore` keeps the
same rules. Lost is never taken for new: a session that was evicted or has expired, as a whole or in part,
raises SessionLost.
"""

from inference_cache.sessions._async_store import AsyncSessionStore
from inference_cache.sessions._rules import (
    MAX_BATCH_BYTES,
    MAX_BATCH_TURNS,
    MAX_ID_BYTES,
    SessionHandle,
    SessionId,
    SessionKeys,
    Target,
)
from inference_cache.sessions._store import SessionStore
from inference_cache.sessions._turns import MAX_IDEMPOTENCY_KEY_BYTES, MAX_ROLE_BYTES, State, Turn

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_TURNS",
    "MAX_IDEMPOTENCY_KEY_BYTES",
    "MAX_ID_BYTES",
    "MAX_ROLE_BYTES",
    "AsyncSessionStore",
    "SessionHandle",
    "SessionId",
    "SessionKeys",
    "SessionStore",
    "State",
    "Target",
    "Turn",
]
