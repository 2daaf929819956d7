"""The janitor: objects of dead nodes are removed, those of living ones never.

A node whose lease was renewed lately lives. Of any other somebody else must say what became of it: the GCS of
its cluster. One that is not there any more, or belongs to another session by now, means that the session is
over, and nobody can ask for its objects any more. A node that died in a session that goes on is another
matter: Ray restores its objects on other nodes, so they stay until the session ends. Where nobody can say,
objects stay for ``abandoned_s`` seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from inference_cache.errors import CacheError
from inference_cache.ray_spill._gcs import Life, life_of
from inference_cache.ray_spill._names import SpillNames
from inference_cache.ray_spill._nodes import Lease, NodeBook

__all__ = ["SweepReport", "sweep"]

_AT_ONCE = 256


@dataclass(slots=True, kw_only=True)
class SweepReport:
    """What a sweep found and did."""

    nodes: int = 0
    """Nodes with objects."""
    alive: int = 0
    dead: list[str] = field(default_factory=list)
    """Nodes whose objects were removed, as ``session:node``."""
    kept_restorable: list[str] = field(default_factory=list)
    """Dead nodes of sessions that go on: others may still restore what they spilled."""
    kept_unknown: list[str] = field(default_factory=list)
    """Nodes without a lease, of which nobody can say whether they live."""
    removed: int = 0
    """Objects removed."""
    busy: bool = False
    """Another janitor was at work, so this one did nothing."""

    def __str__(self) -> str:
        if self.busy:
            return "another janitor is at work"
        return (
            f"{self.nodes} nodes with objects: {self.alive} alive, {len(self.dead)} dead, "
            f"{len(self.kept_restorable)} dead in a session that goes on and kept, "
            f"{len(self.kept_unknown)} unknown and kept; {self.removed} objects removed"
        )


def sweep(
    book: NodeBook,
    names: SpillNames,
    *,
    remove: Callable[[SpillNames, Sequence[str]], None],
    lease_s: float,
    abandoned_s: float | None,
    dead_sessions: Sequence[str] = (),
    life: Callable[[Lease], Life] = life_of,
) -> SweepReport:
    """Removes the objects of every node that is dead.

    ``dead_sessions`` are sessions that the caller knows to be over. ``life`` says of a node without a lease
    whether it lives. One janitor works at a time.

    Raises:
        CacheError: the server gave no answer; what was removed until then is gone.
    """
    report = SweepReport()
    leases = book.leases()
    now_s = book.now_s()
    report.nodes = len(leases)
    stale = [
        lease
        for lease in leases
        if now_s - lease.renewed_s >= lease_s or lease.names.session in dead_sessions
    ]
    report.alive = len(leases) - len(stale)
    if not stale:
        return report
    token = secrets.token_hex(8).encode()
    if not book.claim(token):
        report.busy = True
        return report
    try:
        for lease in stale:
            _judge(book, lease, report, remove, now_s, abandoned_s, dead_sessions, life)
    finally:
        book.release(token)
    return report


def _judge(
    book: NodeBook,
    lease: Lease,
    report: SweepReport,
    remove: Callable[[SpillNames, Sequence[str]], None],
    now_s: int,
    abandoned_s: float | None,
    dead_sessions: Sequence[str],
    life: Callable[[Lease], Life],
) -> None:
    name = lease.names.member.decode()
    known_dead = lease.names.session in dead_sessions
    state = Life.DEAD if known_dead else life(lease)
    if state is Life.UNKNOWN and abandoned_s is not None and now_s - lease.renewed_s >= abandoned_s:
        state = Life.DEAD
    if state is Life.ALIVE:
        report.alive += 1
        return
    if state is Life.RESTORABLE:
        report.kept_restorable.append(name)
        return
    if state is Life.UNKNOWN:
        report.kept_unknown.append(name)
        return
    ids = book.ids(lease.names)
    for at in range(0, len(ids) or 1, _AT_ONCE):
        # Whoever renews its lease now is not dead after all.
        if not known_dead and _renewed_since(book, lease):
            report.alive += 1
            return
        part = ids[at : at + _AT_ONCE]
        try:
            remove(lease.names, part)
        except CacheError as error:
            error.add_note(f"the janitor had removed {report.removed} objects")
            raise
        report.removed += len(part)
    report.dead.append(name)


def _renewed_since(book: NodeBook, lease: Lease) -> bool:
    now = book.lease_of(lease.names)
    return now is not None and now.renewed_s != lease.renewed_s
