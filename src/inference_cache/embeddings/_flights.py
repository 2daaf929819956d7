"""Single flight: of the callers in one process who want the same text, one goes and the others wait."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Bell", "Flight", "Flights"]

Bell = threading.Event | asyncio.Event


class Flight:
    """One caller's way to the vectors of the texts that it was the first to ask for.

    Vectors are there for others as soon as they are known. A flight that landed with neither a vector nor an
    error was given up, by a cancelled task or an interrupt, and whoever waited for it goes itself.
    """

    def __init__(self, digests: Sequence[bytes], make_bell: Callable[[], Bell]) -> None:
        self.digests = digests
        self.rows: dict[bytes, memoryview] = {}
        self.error: Exception | None = None
        self.landed = False
        self.bell = make_bell()
        """Rung at the next news, and then replaced: take it first, look for news, wait for it last."""
        self._make_bell = make_bell

    def publish(self, rows: Mapping[bytes, memoryview]) -> None:
        """Makes vectors known to those who wait."""
        self.rows.update(rows)
        self._ring()

    def land(self, error: Exception | None) -> None:
        """There will be no more news. Harmless when repeated."""
        if not self.landed:
            self.error = error
            self.landed = True
            self._ring()

    def _ring(self) -> None:
        bell, self.bell = self.bell, self._make_bell()
        bell.set()


class Flights:
    """All flights that are under way, by digest; for any number of threads."""

    def __init__(self, make_bell: Callable[[], Bell]) -> None:
        self._make_bell = make_bell
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._by_digest: dict[bytes, Flight] = {}

    def board(self, digests: Iterable[bytes]) -> tuple[Flight | None, dict[Flight, list[bytes]]]:
        """A new flight for the digests that nobody is busy with, if any, and whom to ask for the others."""
        if self._pid != os.getpid():
            # After a fork: those who fly are threads of the parent, and will never land here.
            self._begin()
        mine: list[bytes] = []
        others: dict[Flight, list[bytes]] = {}
        with self._lock:
            for digest in digests:
                flight = self._by_digest.get(digest)
                if flight is None:
                    mine.append(digest)
                else:
                    others.setdefault(flight, []).append(digest)
            if not mine:
                return None, others
            own = Flight(mine, self._make_bell)
            self._by_digest.update(dict.fromkeys(mine, own))
        return own, others

    def land(self, flight: Flight, *, error: Exception | None = None) -> None:
        """Ends a flight: its texts are anybody's again."""
        with self._lock:
            for digest in flight.digests:
                if self._by_digest.get(digest) is flight:
                    del self._by_digest[digest]
        flight.land(error)
