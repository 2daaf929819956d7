"""Block hashes that do not depend on PYTHONHASHSEED, so that every replica finds every replica's blocks.

vLLM chains block hashes from a root that it derives from PYTHONHASHSEED where that is set, and from a fixed
text otherwise, or, for hashes that are not cryptographic, from random bytes. Two replicas with different
values would store the same prompts under different keys: nothing wrong, and nothing shared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from vllm.v1.core import kv_cache_utils

__all__ = ["report_seed", "share_block_hashes"]

_logger = logging.getLogger(__name__)


def share_block_hashes() -> bool:
    """Makes vLLM derive the root of cryptographic block hashes from its fixed text in this process.

    To be called before the engine does that, which it does after it has made its scheduler and tiers. Returns
    False when this vLLM has no such place; then :func:`report_seed` says what follows.
    """
    resolve: Callable[[Any], str] | None = getattr(kv_cache_utils, "resolve_none_hash_seed", None)
    weak = getattr(kv_cache_utils, "_NON_CRYPTO_HASH_FUNCTIONS", None)
    fixed = getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None)
    if resolve is None or weak is None or fixed is None:
        return False
    if not hasattr(resolve, "shares_block_hashes"):

        def resolve_shared(hash_function: Any) -> str:
            return resolve(hash_function) if hash_function in weak else str(fixed)

        resolve_shared.shares_block_hashes = True  # type: ignore[attr-defined]
        kv_cache_utils.resolve_none_hash_seed = resolve_shared
    return True


def report_seed(*, fixed_by_default: bool, hash_algorithm: str) -> str | None:
    """Says loudly, in the log, with whom this process will not share blocks; returns what it said."""
    seed = os.environ.get("PYTHONHASHSEED")
    said: str | None = None
    if hash_algorithm.startswith("xxhash"):
        said = (
            f"block hashes by {hash_algorithm} can be made to collide, and differ between processes unless "
            "PYTHONHASHSEED is the same: start vLLM with --prefix-caching-hash-algo sha256"
        )
    elif seed is not None:
        said = (
            f"PYTHONHASHSEED is {seed}: KV blocks are shared only with processes that have the same; unset "
            "it everywhere, or leave 'hash_seed' at 'shared'"
        )
    elif not fixed_by_default:
        said = (
            "PYTHONHASHSEED is not set, and this vLLM then hashes blocks differently in each process: no KV "
            "block will ever be found by another; set it to the same number, such as 0, in all of them"
        )
    if said is not None:
        _logger.error("%s", said)
    return said
