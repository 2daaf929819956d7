"""From a URL to a client whose every call ends in time, with an answer or with a typed error.

::

    client = connect("valkey://valkey.ai-ml.svc.cluster.local:6379", deadline_s=0.5)
    client.get(b"emb:sha256:abc123")

    with deadline(0.05):          # tighter, for the calls inside; the earliest deadline wins
        client.get(b"session:user:123")

What differs from plain valkey-py, whose client this is:

- A call has one deadline for everything: waiting for a free connection, resolving the name, connecting, TLS,
  AUTH, sending, and the whole reply. A server that sends a byte a second cannot outlive it.
- A connection goes back to the pool only after a whole reply. After a deadline, a broken reply, an interrupt
  or a lost connection it is closed, so no caller ever reads the reply of another.
- Nothing is sent twice unless that is known to be safe: connecting is tried again, and a command that only
  reads is sent once more when an idle connection turns out to be dead. See :class:`RetryPolicy`.
- Failures are errors of :mod:`inference_cache.errors`. ``valkey.exceptions.WatchError`` passes as it is: it
  says that a watched key changed, and the caller's loop waits for it.
- Keys and values are bytes; replies are never decoded.

Connections open lazily: :func:`connect` does not fail when the server is down, the first call does.
"""

from inference_cache.connection import _errors
from inference_cache.connection._asyncio import AsyncClient, AsyncPipeline, AsyncPubSub
from inference_cache.connection._client import Client, Pipeline, PubSub
from inference_cache.connection._cluster import ClusterClient, ClusterPipeline
from inference_cache.connection._connect import Options, connect, connect_async
from inference_cache.connection._deadlines import deadline, remaining_s
from inference_cache.connection._plan import RetryPolicy
from inference_cache.connection._url import Endpoint, parse_url, redact_url

__all__ = [
    "AsyncClient",
    "AsyncPipeline",
    "AsyncPubSub",
    "Client",
    "ClusterClient",
    "ClusterPipeline",
    "Endpoint",
    "Options",
    "Pipeline",
    "PubSub",
    "RetryPolicy",
    "connect",
    "connect_async",
    "deadline",
    "parse_url",
    "redact_url",
    "remaining_s",
]

# For inference_cache.blobs, which speaks over these connections itself.
_from_reply = _errors.from_reply
_translated = _errors.translated
