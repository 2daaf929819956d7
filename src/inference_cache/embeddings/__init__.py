"""Embeddings by text: computed once, kept in Valkey, given back bit by bit.

::

    cache = EmbeddingCache(
        "valkey://valkey.ai-ml.svc.cluster.local:6379",
        model="BAAI/bge-m3", revision="5617a9f6", dimensions=1024, dtype="float32",
    )
    matrix = cache.get_or_compute(["what is a tensor?", "what is a vector?"], encode)   # (2, 1024) float32

- Order is kept, a text that stands in a batch twice is computed once, and only what is missing is computed.
- A batch is looked up in one exchange with the server and stored in one.
- An entry is bound to its key and checksummed: one that is corrupt, foreign or of another shape is a miss,
  and is overwritten by the value that is computed.
- Several callers who want the same new text in one process get it from one computation; between processes a
  lease makes a second computation rare, and a lost lease never blocks anybody.
- A cache that is slow, down or full costs at most ``deadline_s`` in a call and never fails it.

Needs numpy and xxhash, and ml_dtypes for bfloat16: ``pip install 'inference-cache[embeddings]'``.
"""

from __future__ import annotations

from inference_cache.embeddings._cache import AsyncEmbeddingCache, EmbeddingCache
from inference_cache.embeddings._counters import Counters
from inference_cache.embeddings._vectors import Dtype

__all__ = ["AsyncEmbeddingCache", "Counters", "Dtype", "EmbeddingCache"]
