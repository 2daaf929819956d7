"""A circuit breaker: while the server is away nobody waits for it, and one at a time tries it."""

from __future__ import annotations

import threading
import time

__all__ = ["Breaker"]


class Breaker:
    """Closed after a success; open after ``threshold`` failures in a row.

    While it is open, :meth:`allows` is true for one caller each ``pause`` seconds, who tries for all; the
    pause doubles with each failed try, from ``first_pause_s`` up to ``longest_pause_s``. Threads may share
    it; no method ever waits.
    """

    def __init__(self, *, threshold: int, first_pause_s: float, longest_pause_s: float) -> None:
        self._threshold = threshold
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = first_pause_s
        self._next_try_s = 0.0
        self._open = False
        self.opened = 0
        """How often it has opened."""

    @property
    def is_open(self) -> bool:
        """Whether the server counts as away."""
        return self._open

    def allows(self) -> bool:
        """Whether to ask the server now. While it is open, who is told so is the one who tries."""
        if not self._open:
            return True
        with self._lock:
            now_s = time.monotonic()
            if self._open and now_s < self._next_try_s:
                return False
            self._next_try_s = now_s + self._pause_s
            return True

    def succeeded(self) -> None:
        """The server answered."""
        with self._lock:
            self._failures = 0
            self._open = False
            self._pause_s = self._first_pause_s

    def failed(self) -> None:
        """It did not."""
        with self._lock:
            self._failures += 1
            if self._open:
                self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
            elif self._failures >= self._threshold:
                self._open = True
                self.opened += 1
                self._pause_s = self._first_pause_s
            else:
                return
            self._next_try_s = time.monotonic() + self._pause_s
