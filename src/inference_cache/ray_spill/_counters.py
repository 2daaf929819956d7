"""What happened, counted; and told in the log once, not once for each object."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

__all__ = ["Counters", "QuietLog"]

_QUIET_S: Final = 30.0


class Counters:
    """Numbers by (operation, result); ``bytes`` of an operation under (operation, "bytes")."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, operation: str, result: str, count: int = 1) -> None:
        with self._lock:
            self._counts[operation, result] += count

    def copy(self) -> Mapping[tuple[str, str], int]:
        with self._lock:
            return dict(self._counts)


class QuietLog:
    """A line for the first of its kind, then at most one each half minute, with the number left out."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, text: str) -> None:
        now_s = time.monotonic()
        with self._lock:
            said_s, held = self._said.get(kind, (-_QUIET_S, 0))
            if now_s - said_s < _QUIET_S:
                self._said[kind] = (said_s, held + 1)
                return
            self._said[kind] = (now_s, 0)
        self._logger.warning("%s%s", text, f" ({held} more like this)" if held else "")

    def info(self, text: str) -> None:
        self._logger.info("%s", text)
