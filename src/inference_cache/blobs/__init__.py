"""Large values, from nothing to 1 GiB: checked on the way out, and moved without being copied in Python.

::

    with BlobStore(url, keyspace=Keyspace("vllm:kv:"), deadline_s=0.5, ttl_s=3600) as blobs:
        blobs.store(("layer0", "tok123"), tensor_bytes)          # any buffer: bytes, memoryview, numpy array
        outcome = blobs.load_into(("layer0", "tok123"), target)  # a writable buffer of the same length
        if not outcome.ok:
            recompute(because=outcome.reason)

- A value is seen whole or not at all. What is short, long, altered, somebody else's, or another key's value
  is CORRUPT and never a hit.
- Each call ends within ``deadline_s``, with an :class:`Outcome` for each key and no exception, unless it was
  made with ``on_loss="raise"`` or called wrongly.
- A connection that did not get a whole reply is closed, so no call ever reads the reply of another; the next
  call opens a new one.
- Bytes go from the caller's buffer to the socket and back into the caller's buffer. The memory that a call
  needs besides does not grow with the values.

``docs/blobs.md`` has the layout of the frame, the table of failures, and a longer example.
"""

from inference_cache.blobs._frame import Damage
from inference_cache.blobs._outcome import INCOMPLETE, Outcome, Status
from inference_cache.blobs._store import BlobKey, BlobStore

__all__ = ["INCOMPLETE", "BlobKey", "BlobStore", "Damage", "Outcome", "Status"]
