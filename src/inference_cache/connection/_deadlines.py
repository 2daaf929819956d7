"""The deadline of a thread or task: an end that every wait inside looks at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from inference_cache.errors import UsageError

_ends_at_s: ContextVar[float | None] = ContextVar("inference_cache_deadline", default=None)


@contextmanager
def deadline(limit_s: float) -> Iterator[None]:
    """Every call inside must end within ``limit_s`` seconds from now.

    Scopes nest and only ever tighten: the earliest end wins. The scope belongs to the running thread or task
    (it is a context variable); a thread started inside does not inherit it.

    Raises UsageError when ``limit_s`` is not a positive number. Calls that run into the end raise
    DeadlineExceeded.
    """
    if not 0 < limit_s < float("inf"):
        raise UsageError(f"a deadline is a positive number of seconds, not {limit_s!r}")
    ends_at_s = time.monotonic() + limit_s
    outer = _ends_at_s.get()
    token = _ends_at_s.set(ends_at_s if outer is None else min(outer, ends_at_s))
    try:
        yield
    finally:
        _ends_at_s.reset(token)


def remaining_s() -> float | None:
    """Seconds left in the :func:`deadline` scope, negative when it has passed, None outside of one."""
    ends_at_s = _ends_at_s.get()
    return None if ends_at_s is None else ends_at_s - time.monotonic()
