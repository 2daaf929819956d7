"""What each call does, step by step, for both the blocking and the asyncio cache.

A flow is a generator: it yields what is to be done next, and is sent what came of it. Who runs it decides how
to wait, so there is one text of the logic and two short loops that run it.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from inference_cache.embeddings._counters import Tally
from inference_cache.embeddings._flights import Bell, Flight, Flights
from inference_cache.embeddings._frame import Framing, Refusal
from inference_cache.embeddings._identity import Identity
from inference_cache.embeddings._vectors import Layout
from inference_cache.errors import CacheError, CommandRejected, DeadlineExceeded, NotValkey, UsageError
from inference_cache.keyspace import Keyspace

if TYPE_CHECKING:
    from inference_cache.embeddings._vectors import Array

__all__ = ["COMPUTING", "Compute", "Flow", "Flows", "Pause", "Read", "Send", "Step", "WaitFor"]

Command: TypeAlias = "tuple[bytes | str | int, ...]"
Rows: TypeAlias = dict[bytes, memoryview]

_T = TypeVar("_T")

_RELEASE: Final = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)
"""Deletes a lease that is still the caller's: it may have run out, and be somebody else's by now."""
_FIRST_POLL_S: Final = 0.005
_LONGEST_POLL_S: Final = 0.05

COMPUTING: Final[ContextVar[tuple[Flight, ...]]] = ContextVar("inference_cache_computing", default=())
"""The flights whose ``compute`` the running code is part of."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """Seconds that may be spent on the cache; those in which ``compute`` runs do not count."""

    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One exchange that reads keys: a list with bytes or None for each."""

    keys: Sequence[bytes]
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """One exchange that carries commands: a list with a reply or an error for each."""

    commands: Sequence[Command]
    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """A call of the caller's ``compute``: whatever it returns."""

    texts: list[str]
    flight: Flight


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitFor:
    """Waiting until another flight has news."""

    bell: Bell


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Time in which another process may get ready."""

    seconds: float


Step = Read | Send | Compute | WaitFor | Pause
Flow: TypeAlias = Generator[Step, Any, _T]


@dataclass(slots=True, kw_only=True)
class _Call:
    """What one call of the cache has left and holds."""

    budget: Budget
    answering: bool = True
    """Whether the server has answered so far. One that did not is not asked again in this call."""
    token: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    leases: list[bytes] = field(default_factory=list)
    """Digests whose lease this call holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """The flows of one cache."""

    identity: Identity
    layout: Layout
    framing: Framing
    keyspace: Keyspace
    flights: Flights
    ttl_s: int | None
    sliding: bool
    deadline_s: float
    lease_s: float | None
    wait_s: float | None
    max_text_bytes: int
    tally: Tally = field(default_factory=Tally)
    _value_head: bytes = field(init=False, repr=False)
    _lease_head: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_value_head", self.keyspace.key("sha256", ""))
        object.__setattr__(self, "_lease_head", self.keyspace.key("lease", ""))

    def key(self, digest: bytes) -> bytes:
        return self._value_head + digest.hex().encode()

    def digests(self, texts: Sequence[str]) -> list[bytes]:
        """The digest of each text. Raises InvalidText, and UsageError for one text instead of a list."""
        if isinstance(texts, (str, bytes)):
            raise UsageError("texts is a list of texts, and this is a single one: put it into a list")
        return [self.identity.digest(text, max_text_bytes=self.max_text_bytes) for text in texts]

    # --- whole calls ---------------------------------------------------------------------------------------

    def get_or_compute(self, texts: Sequence[str]) -> Flow[Array]:
        digests = self.digests(texts)
        wanted = dict(zip(digests, texts, strict=True))
        call = self._call()
        got: Rows = {}
        while len(got) < len(wanted):
            own, others = self.flights.board(digest for digest in wanted if digest not in got)
            if own is not None:
                got |= yield from self._fly(call, own, wanted)
            for flight, awaited in others.items():
                got |= yield from self._ride(flight, awaited)
        return self.layout.matrix([got[digest] for digest in digests])

    def get_many(self, texts: Sequence[str]) -> Flow[list[Array | None]]:
        digests = self.digests(texts)
        found = yield from self._look_up(self._call(), list(dict.fromkeys(digests)))
        return [self.layout.matrix([found[one]])[0] if one in found else None for one in digests]

    def put_many(self, texts: Sequence[str], vectors: Any) -> Flow[int]:
        digests = self.digests(texts)
        if not digests:
            return 0
        rows = self.layout.rows(vectors, count=len(digests))
        return (yield from self._store(self._call(), dict(zip(digests, rows, strict=True))))

    def invalidate(self, texts: Sequence[str]) -> Flow[int]:
        commands: list[Command] = [("UNLINK", self.key(one)) for one in dict.fromkeys(self.digests(texts))]
        if not commands:
            return 0
        replies = yield Send(commands=commands, budget=self._call().budget)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return sum(replies)

    # --- a flight ------------------------------------------------------------------------------------------

    def _fly(self, call: _Call, flight: Flight, texts: Mapping[bytes, str]) -> Flow[Rows]:
        error: Exception | None = None
        try:
            found = yield from self._look_up(call, flight.digests)
            missing = [digest for digest in flight.digests if digest not in found]
            if missing:
                flight.publish(found)
                mine, theirs = yield from self._claim(call, missing)
                if mine:
                    yield from self._compute(call, flight, mine, texts)
                if theirs:
                    yield from self._wait_for_owners(call, flight, theirs, texts)
            else:
                flight.rows.update(found)
            return flight.rows
        except GeneratorExit:
            call.leases.clear()
            raise
        except Exception as raised:
            error = raised
            raise
        finally:
            self.flights.land(flight, error=error)
            if call.leases:
                yield from self._exchange(call, Send(commands=self._releases(call), budget=call.budget))

    def _ride(self, flight: Flight, awaited: Sequence[bytes]) -> Flow[Rows]:
        """What another flight brings; without what it brings not, if it was given up."""
        if flight in COMPUTING.get():
            raise UsageError(
                "compute asks for a text that it was called to compute, and would wait for itself"
            )
        while True:
            bell, landed = flight.bell, flight.landed
            if landed or all(digest in flight.rows for digest in awaited):
                break
            yield WaitFor(bell=bell)
        got = {digest: flight.rows[digest] for digest in awaited if digest in flight.rows}
        self.tally.add(joined=len(got))
        if len(got) < len(awaited) and flight.error is not None:
            raise flight.error
        return got

    def _compute(
        self, call: _Call, flight: Flight, digests: Sequence[bytes], texts: Mapping[bytes, str]
    ) -> Flow[None]:
        vectors = yield Compute(texts=[texts[digest] for digest in digests], flight=flight)
        rows = dict(zip(digests, self.layout.rows(vectors, count=len(digests)), strict=True))
        self.tally.add(computed=len(rows))
        flight.publish(rows)
        yield from self._store(call, rows)

    # --- leases --------------------------------------------------------------------------------------------

    def _claim(self, call: _Call, digests: Sequence[bytes]) -> Flow[tuple[list[bytes], list[bytes]]]:
        """Splits what is missing: to be computed here, and being computed by another process."""
        if self.lease_s is None:
            return list(digests), []
        commands = [self._lease(call, digest) for digest in digests]
        replies = yield from self._exchange(call, Send(commands=commands, budget=call.budget))
        mine: list[bytes] = []
        theirs: list[bytes] = []
        for digest, reply in zip(digests, replies or [False] * len(digests), strict=True):
            (theirs if reply is None else mine).append(digest)
            if reply is True:
                call.leases.append(digest)
        return mine, theirs

    def _wait_for_owners(
        self, call: _Call, flight: Flight, awaited: Sequence[bytes], texts: Mapping[bytes, str]
    ) -> Flow[None]:
        """Polls for values of other processes; what is given up by its owner, or late, is computed here."""
        wait = Budget(left_s=self.wait_s or call.budget.left_s / 2)
        if self.wait_s is None:
            # The other half stays for storing: if nobody could, everybody would wait until the lease is void.
            call.budget.left_s -= wait.left_s
        pause_s = _FIRST_POLL_S
        left = list(awaited)
        while left and call.answering and wait.left_s > 0:
            nap_s = min(pause_s * random.uniform(0.5, 1), wait.left_s)
            yield Pause(seconds=nap_s)
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
            commands: list[Command] = []
            for digest in left:
                commands += [self._lease(call, digest), ("GET", self.key(digest))]
            poll = Budget(left_s=call.budget.left_s)
            replies = yield from self._exchange(call, Send(commands=commands, budget=poll))
            wait.left_s -= nap_s + call.budget.left_s - poll.left_s
            if replies is None:
                break
            found: Rows = {}
            abandoned: list[bytes] = []
            for digest, lease, value in zip(left, replies[::2], replies[1::2], strict=True):
                if lease is True:
                    call.leases.append(digest)
                row = self._opened(digest, value)
                if isinstance(row, memoryview):
                    found[digest] = row
                elif lease is not None:
                    abandoned.append(digest)
            self.tally.add(waited=len(found))
            flight.publish(found)
            if abandoned:
                yield from self._compute(call, flight, abandoned, texts)
            left = [digest for digest in left if digest not in flight.rows]
        if left:
            yield from self._compute(call, flight, left, texts)

    def _lease(self, call: _Call, digest: bytes) -> Command:
        assert self.lease_s is not None
        name = self._lease_head + digest.hex().encode()
        return ("SET", name, call.token, "NX", "PX", max(1, round(self.lease_s * 1000)))

    def _releases(self, call: _Call) -> list[Command]:
        held, call.leases = call.leases, []
        return [("EVAL", _RELEASE, 1, self._lease_head + one.hex().encode(), call.token) for one in held]

    # --- exchanges with the server -------------------------------------------------------------------------

    def _call(self) -> _Call:
        return _Call(budget=Budget(left_s=self.deadline_s))

    def _look_up(self, call: _Call, digests: Sequence[bytes]) -> Flow[Rows]:
        """The vectors that the cache has, by digest; counts what it has not, by reason."""
        if not digests:
            return {}
        keys = [self.key(digest) for digest in digests]
        step: Read | Send = Read(keys=keys, budget=call.budget)
        if self.sliding:
            assert self.ttl_s is not None
            step = Send(commands=[("GETEX", key, "EX", self.ttl_s) for key in keys], budget=call.budget)
        values = yield from self._exchange(call, step)
        if values is not None and len(values) != len(keys):
            self._degrade(call, NotValkey(f"{len(keys)} keys were asked for and {len(values)} values came"))
        if values is None or not call.answering:
            self.tally.add(unread=len(keys))
            return {}
        opened = [self._opened(one, value) for one, value in zip(digests, values, strict=True)]
        rows = {one: row for one, row in zip(digests, opened, strict=True) if isinstance(row, memoryview)}
        counts = Counter(
            "absent" if row is None else row.value for row in opened if not isinstance(row, memoryview)
        )
        self.tally.add(hits=len(rows), **counts)
        return rows

    def _opened(self, digest: bytes, value: Any) -> memoryview | Refusal | None:
        if value is None:
            return None
        return self.framing.unwrap(digest, value) if isinstance(value, bytes) else Refusal.FOREIGN

    def _store(self, call: _Call, rows: Rows) -> Flow[int]:
        """Writes vectors and gives back the leases, in one exchange; gives the number written."""
        expiry: Command = () if self.ttl_s is None else ("EX", self.ttl_s)
        commands: list[Command] = [
            ("SET", self.key(digest), self.framing.wrap(digest, row), *expiry) for digest, row in rows.items()
        ]
        if not commands:
            return 0
        step = Send(commands=commands + self._releases(call), budget=call.budget)
        replies = yield from self._exchange(call, step)
        stored = sum(reply is True for reply in (replies or ())[: len(rows)])
        self.tally.add(stored=stored, unstored=len(rows) - stored)
        return stored

    def _exchange(self, call: _Call, step: Read | Send) -> Flow[list[Any] | None]:
        """The replies, errors among them, or None when the server does not answer or did not before."""
        if step.budget.left_s <= 0:
            self._degrade(call, DeadlineExceeded("no time is left to ask the server"))
        if not call.answering:
            return None
        began_s = time.monotonic()
        try:
            replies: list[Any] = yield step
        except CacheError as error:
            self._degrade(call, error)
            return None
        finally:
            step.budget.left_s -= time.monotonic() - began_s
        refused = next(filter(_refuses, replies), None)
        if refused is not None:
            self._degrade(call, refused)
        return replies

    def _degrade(self, call: _Call, error: CacheError) -> None:
        if call.answering:
            call.answering = False
            self.tally.degrade(error)


def _refuses(reply: Any) -> bool:
    """Whether the server would not carry a command out. A key of another type is only in the way."""
    foreign = isinstance(reply, CommandRejected) and reply.code == "WRONGTYPE"
    return isinstance(reply, CacheError) and not foreign
