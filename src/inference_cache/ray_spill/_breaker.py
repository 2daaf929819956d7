"""The breaker: after a failure nothing is sent that the server would only refuse, or never answer.

Ray asks again at once when a spill fails, up to a hundred times a second, and each time all the bytes would
go out. While a spill is under way Ray waits for it; when none is and memory is short, it falls back after two
seconds to files on the local disk. So a spill that cannot succeed has to be told so at once and for nothing.
"""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["Breaker"]

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 4.0


class Breaker:
    """Closed: all may pass. Open: nobody, for a pause that doubles with each failure in a row.

    Then one caller at a time may try; :meth:`closed` and :meth:`failed` say what came of it. Threads may
    share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._opens_until_s = 0.0
        self._trying_until_s = 0.0
        self._since_s: float | None = None
        self.reason = ""
        """Why it is open."""

    @property
    def is_open(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    @property
    def open_for_s(self) -> float:
        """Seconds since the first failure in a row, 0 when closed."""
        since_s = self._since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def admits(self, *, tries_for_s: float = 30.0) -> bool:
        """Whether to go on. A caller that is let in while it is open is the only one for that long."""
        with self._lock:
            if not self._failures:
                return True
            now_s = time.monotonic()
            if now_s < max(self._opens_until_s, self._trying_until_s):
                return False
            self._trying_until_s = now_s + tries_for_s
            return True

    def failed(self, reason: str) -> None:
        """A try failed: the next one is due after the pause."""
        with self._lock:
            now_s = time.monotonic()
            pause_s = min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S)
            self._failures = min(self._failures + 1, 16)
            self._opens_until_s = now_s + pause_s
            self._trying_until_s = 0.0
            self._since_s = now_s if self._since_s is None else self._since_s
            self.reason = reason

    def closed(self) -> None:
        """It works again."""
        with self._lock:
            self._failures = 0
            self._opens_until_s = self._trying_until_s = 0.0
            self._since_s = None
            self.reason = ""
