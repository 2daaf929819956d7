"""What the exporter may cost, and how long it remembers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from inference_cache.errors import UsageError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Raises UsageError for a number that is not above 0 (``idle_keys`` may be 0)."""

    budget_ops_s: float = 500.0
    """Commands a second that the server is asked at most, on average over a second."""
    window_s: float = 120.0
    """How long a sampled key counts. Longer is more certain and slower to follow."""
    full_pass_s: float = 30.0
    """A keyspace that the budget lets us read whole within this time is read whole, again and again."""
    recheck_s: float = 15.0
    """How long after it was sampled a key is looked at again, to see whether it is still there."""
    info_every_s: float = 5.0
    """How often INFO is read."""
    idle_keys: float = 0.0
    """Idle times read in a minute, for each prefix. Each is an OBJECT IDLETIME, which moves no key in the LRU
    order, but which the server counts in keyspace_hits; that is why there are none by default.
    """
    deadline_s: float = 1.0
    """For each exchange with the server."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value < 0 or (value == 0 and each.name != "idle_keys"):
                raise UsageError(f"{each.name} is a number above 0, not {value!r}")
