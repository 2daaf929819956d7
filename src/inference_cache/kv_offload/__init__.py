"""vLLM's KV blocks in Valkey: computed once, used by every replica, and never wrong.

::

    from inference_cache.kv_offload import kv_cache_config

    cache = {"type": "redis", "url": "redis://valkey.ai-ml.svc.cluster.local:6379", "prefix": "vllm:kv:"}
    llm = vllm.LLM(model, kv_transfer_config=kv_cache_config(cache | {"ttl": 3600}))

- A block comes back with the bits that were stored for exactly its key, or it is a miss and is computed anew.
- The key says everything that the bytes depend on: see :class:`RunIdentity`.
- Nothing here makes the engine wait: what has no answer in time is a miss, and while the server is away
  nobody asks it.

:class:`BlockTier` does the work and knows no engine. ``inference_cache.kv_offload.vllm_tier`` makes it a
secondary tier of vLLM's offloading, and needs vLLM 0.32 or 0.33. ``docs/kv_offload.md`` has the settings, the
table of failures, and what is stored.
"""

from inference_cache.kv_offload._config import kv_cache_config
from inference_cache.kv_offload._identity import BlockId, RunIdentity, request_scope
from inference_cache.kv_offload._jobs import JobResult, Transfer
from inference_cache.kv_offload._listing import RunListing, list_runs
from inference_cache.kv_offload._lookups import Found
from inference_cache.kv_offload._settings import TierSettings
from inference_cache.kv_offload._tier import BlockTier

__all__ = [
    "BlockId",
    "BlockTier",
    "Found",
    "JobResult",
    "RunIdentity",
    "RunListing",
    "TierSettings",
    "Transfer",
    "kv_cache_config",
    "list_runs",
    "request_scope",
]
