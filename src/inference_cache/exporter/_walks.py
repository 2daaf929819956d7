"""Ways through a keyspace: which commands to send next, and what their replies say.

Only SCAN and MEMORY USAGE are sent (and OBJECT IDLETIME, where it is asked for). Neither of the two changes a
key's place in the LRU order, nor keyspace_hits or keyspace_misses; TYPE, TTL, EXISTS and OBJECT all count as
hits, which is why they are not used.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inference_cache.exporter._estimate import Estimate, Tally, Window

__all__ = ["Command", "FullWalk", "RandomWalk", "Walk"]

Command = tuple[str | bytes | int, ...]

_KEYS_PER_SCAN = 10
"""SCAN's COUNT, at least. Small, so that no call holds the server up for more than tens of microseconds."""
_LONGEST_REMEMBERED_BYTES = 1024
"""Longer keys are measured, but not looked at again."""


class Walk(Protocol):
    """One way; ``next`` and ``absorb`` take turns."""

    complete: bool
    """Whether its estimates rest on every key."""

    def next(self, allowance: int, now_s: float) -> list[Command]:
        """Commands to send now, not more than the allowance."""

    def absorb(self, commands: Sequence[Command], replies: Sequence[Any], now_s: float) -> None:
        """The replies to these commands, in order."""

    def estimates(self, population: int, now_s: float) -> list[Estimate] | None:
        """By prefix, given the number of keys now; None before the first result."""

    def sample_keys(self) -> int:
        """How many sizes the estimates rest on."""

    def age_s(self, now_s: float) -> float:
        """Age of the oldest of them."""


@dataclass(frozen=True, slots=True)
class _Sampled:
    at_s: float
    key: bytes
    prefix: int


class RandomWalk:
    """Keys drawn at random for ever: SCAN from random places of the hash table.

    The server hashes keys with a secret of its own, so where a key lies says nothing about its prefix or
    size. Each key is looked at a second time ``recheck_s`` later; ``on_gone`` is told the prefix of those
    that are not there any more.
    """

    complete = False

    def __init__(
        self,
        classify: Callable[[bytes], int],
        *,
        prefixes: int,
        window_s: float,
        recheck_s: float,
        on_gone: Callable[[int], None],
        on_seen: Callable[[bytes, int], None],
        rng: random.Random,
    ) -> None:
        self._classify = classify
        self._window = Window(prefixes, length_s=window_s)
        self._recheck_s = recheck_s
        self._on_gone = on_gone
        self._on_seen = on_seen
        self._rng = rng
        self._to_measure: deque[tuple[bytes, int]] = deque()
        self._to_recheck: deque[_Sampled] = deque()
        self._asked: deque[tuple[bytes, int, bool]] = deque()

    def next(self, allowance: int, now_s: float) -> list[Command]:
        commands: list[Command] = []
        while len(commands) < allowance:
            due = bool(self._to_recheck) and self._to_recheck[0].at_s + self._recheck_s <= now_s
            # Looking again goes first: late answers would count losses of a longer time.
            if due:
                again = self._to_recheck.popleft()
                commands.append(("MEMORY USAGE", again.key))
                self._asked.append((again.key, again.prefix, False))
            elif self._to_measure:
                key, prefix = self._to_measure.popleft()
                commands.append(("MEMORY USAGE", key))
                self._asked.append((key, prefix, True))
            else:
                # No more than what the next batches have room to measure.
                room = max(1, (allowance - len(commands)) // (1 + _KEYS_PER_SCAN))
                places = (self._rng.getrandbits(48) for _ in range(room))
                commands += [("SCAN", place, "COUNT", _KEYS_PER_SCAN) for place in places]
                break
        return commands

    def absorb(self, commands: Sequence[Command], replies: Sequence[Any], now_s: float) -> None:
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "SCAN":
                _, keys = reply
                self._to_measure.extend((key, self._classify(key)) for key in keys)
                continue
            key, prefix, first = self._asked.popleft()
            if first and reply is not None:
                self._window.add(now_s, prefix, reply)
                self._on_seen(key, prefix)
                if len(key) <= _LONGEST_REMEMBERED_BYTES:
                    self._to_recheck.append(_Sampled(now_s, key, prefix))
            elif not first and reply is None:
                self._on_gone(prefix)
        self._window.forget(now_s)

    def estimates(self, population: int, now_s: float) -> list[Estimate] | None:
        return self._window.tally.sampled(population) if self._window.tally.keys else None

    def sample_keys(self) -> int:
        return self._window.tally.keys

    def age_s(self, now_s: float) -> float:
        return self._window.age_s(now_s)


class FullWalk:
    """Every key, in passes: one pass's result stands until the next is whole.

    A key of one pass that is missing in the next is gone.
    """

    complete = True

    def __init__(
        self,
        classify: Callable[[bytes], int],
        *,
        prefixes: int,
        pause_s: float,
        on_gone: Callable[[int], None],
        on_seen: Callable[[bytes, int], None],
    ) -> None:
        """``pause_s`` is the least time from the begin of one pass to that of the next."""
        self._classify = classify
        self._prefixes = prefixes
        self._pause_s = pause_s
        self._on_gone = on_gone
        self._on_seen = on_seen
        self._cursor: int | None = 0
        """None when the pass has named all keys, and some are still to be measured."""
        self._began_s: float | None = None
        self._not_before_s = 0.0
        self._keys: dict[bytes, int] = {}
        self._tally = Tally(prefixes)
        self._to_measure: deque[tuple[bytes, int]] = deque()
        self._result: Tally | None = None
        self._result_began_s = 0.0
        self._before: dict[bytes, int] | None = None

    @property
    def named(self) -> int:
        """Keys that this pass has found so far."""
        return len(self._keys)

    def next(self, allowance: int, now_s: float) -> list[Command]:
        if self._began_s is None:
            if now_s < self._not_before_s:
                return []
            self._began_s = now_s
        commands: list[Command] = []
        for key, _ in self._to_measure:
            if len(commands) >= allowance:
                return commands
            commands.append(("MEMORY USAGE", key))
        if self._cursor is not None and len(commands) < allowance:
            # The next batch measures what this names: as many as may be sent at once.
            commands.append(("SCAN", self._cursor, "COUNT", max(_KEYS_PER_SCAN, allowance)))
        return commands

    def absorb(self, commands: Sequence[Command], replies: Sequence[Any], now_s: float) -> None:
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "SCAN":
                cursor, keys = reply
                self._cursor = cursor or None
                for key in keys:
                    if key not in self._keys:  # SCAN may name a key twice
                        self._keys[key] = prefix = self._classify(key)
                        self._to_measure.append((key, prefix))
                continue
            key, prefix = self._to_measure.popleft()
            if reply is None:
                continue  # gone since SCAN named it; if it was there before, it is missing from the next pass
            self._tally.add(prefix, reply)
            self._on_seen(key, prefix)
        if self._cursor is None and not self._to_measure:
            self._finish(now_s)

    def _finish(self, now_s: float) -> None:
        for key, prefix in (self._before or {}).items():
            if key not in self._keys:
                self._on_gone(prefix)
        self._before, self._keys = self._keys, {}
        self._result, self._tally = self._tally, Tally(self._prefixes)
        self._result_began_s = self._began_s if self._began_s is not None else now_s
        self._not_before_s = self._result_began_s + self._pause_s
        self._cursor, self._began_s = 0, None

    def estimates(self, population: int, now_s: float) -> list[Estimate] | None:
        return self._result.exact(population) if self._result is not None else None

    def sample_keys(self) -> int:
        return self._result.keys if self._result is not None else 0

    def age_s(self, now_s: float) -> float:
        return now_s - self._result_began_s if self._result is not None else 0.0
