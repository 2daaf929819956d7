"""How a tier behaves: times, bounds, threads."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from inference_cache.errors import KeyFormatError, UsageError
from inference_cache.keyspace import Keyspace

__all__ = ["TierSettings"]

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """Settings of a tier. Raises UsageError, which says what to write, for any that cannot be used."""

    prefix: str = "vllm:kv:"
    ttl_s: float = 3600.0
    """Time to live of a block, counted from its store."""
    sliding_ttl: bool = False
    """Whether it begins anew each time the block is loaded, at the price of one more write to each load."""
    lookup_deadline_s: float = 0.25
    """After that a block whose lookup has no answer is a miss."""
    load_deadline_s: float = 1.0
    """After that a block that is not loaded is computed anew; from the submission."""
    store_deadline_s: float = 5.0
    """After that a block that is not stored is given up; from the submission."""
    connections: int = 2
    """Of each thread that moves blocks, at most."""
    load_threads: int = 1
    """Threads that only load."""
    shared_threads: int = 1
    """Threads that load when something is to be loaded, and store otherwise."""
    queue_bytes: int = 512 * _MIB
    """What may wait to be moved; the blocks stay pinned in the engine's memory meanwhile."""
    most_lookups: int = 100_000
    """Blocks that may be asked about at a time."""
    failures_to_open: int = 3
    """Failed calls in a row after which the server counts as away."""
    first_pause_s: float = 0.2
    longest_pause_s: float = 2.0
    """How long the server is left alone between two tries, while it is away."""

    def __post_init__(self) -> None:
        try:
            Keyspace(self.prefix)
        except KeyFormatError as error:
            raise UsageError(f"prefix: {error}; write 'vllm:kv:'") from None
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in ("prefix", "sliding_ttl"):
                continue
            example = f"such as {setting.default}"
            if setting.name.endswith("_s"):
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise UsageError(
                        f"{setting.name}: {value!r}; write a positive number of seconds, {example}"
                    )
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{setting.name}: {value!r}; write a whole number of at least 1, {example}")
