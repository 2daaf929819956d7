"""The storage: objects in and out, without Ray. ``_plug`` puts it where Ray looks for one."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Self

from inference_cache.blobs import Outcome, Status
from inference_cache.connection import Client, connect, deadline
from inference_cache.contract import load
from inference_cache.errors import (
    BlobCorrupt,
    BlobError,
    CacheError,
    InferenceCacheError,
    MissingExtra,
    Unreachable,
    UnsafeServer,
    WriteRefused,
)
from inference_cache.keyspace import Keyspace
from inference_cache.metrics import Durations
from inference_cache.ray_spill._breaker import Breaker
from inference_cache.ray_spill._counters import Counters, QuietLog
from inference_cache.ray_spill._janitor import SweepReport, sweep
from inference_cache.ray_spill._metrics import write_textfile
from inference_cache.ray_spill._names import SpillNames, parse_url
from inference_cache.ray_spill._nodes import NodeBook
from inference_cache.ray_spill._params import SpillParams
from inference_cache.ray_spill._record import SpilledObject, parse_head, record_bytes, record_of
from inference_cache.ray_spill._records import RecordStore
from inference_cache.ray_spill._safety import check_server
from inference_cache.ray_spill._source import PiecewiseSource, Source

__all__ = ["Deliver", "SpillStorage", "TornRestore"]

_logger = logging.getLogger(__name__)
_TICK_S: Final = 0.5
_RECHECK_S: Final = 60.0
_METRICS_S: Final = 2.0
_PROBE: Final = "probe"
"""The id of no object: under its key nothing is, and whoever may read objects may read it."""
_LATER_MOST: Final = 1_000_000
_LONGEST_CALL_S: Final = 86_400.0
"""For calls that a ``deadline()`` scope bounds, by their size."""


class TornRestore(InferenceCacheError):
    """An object was begun in Ray's store and cannot be ended: this process has to go, and the object with it.

    Only an object in several chunks can be torn; others are whole before they are begun.
    """


Deliver = Callable[[bytes, bytes, int, Source], None]
"""Takes owner's address, metadata, length of the object, and its bytes, which it reads, all or none."""


class SpillStorage:
    """The spilled objects of one node of one Ray session, under ``ray:<session>:<node>:``.

    Threads may share it. Its methods are those that Ray asks for, in plain types.
    """

    def __init__(
        self, params: SpillParams, *, session: str, node: str, gcs: str = "", host: str | None = None
    ) -> None:
        self.params = params
        self.names = SpillNames(Keyspace(params.prefix), session=session, node=node)
        self.counters = Counters()
        self.durations = Durations()
        self._log = QuietLog(_logger)
        options = params.connect_options()
        self._records = RecordStore(
            params.url,
            keyspace=self.names.keyspace,
            deadline_s=_LONGEST_CALL_S,
            connections=params.connections + 1,
            chunk_bytes=params.chunk_bytes,
            max_bytes=16_384 * params.chunk_bytes,
            connect_options={**options, "client_name": "inference-cache-ray"},
        )
        options["deadline_s"] = params.call_s
        options["client_name"] = "inference-cache-ray"
        options["max_connections"] = 3
        self._client: Client = connect(params.url, **options)
        self._book = NodeBook(
            self._client, self.names, gcs=gcs, host=socket.gethostname() if host is None else host
        )
        self._writes = Breaker()
        self._reads = Breaker()
        self._unsafe = ""
        self._scratch: dict[int, bytearray] = {}
        self._restoring = threading.Lock()
        self._later: dict[bytes, None] = {}
        self._doubtful: dict[str, str] = {}
        self._pending = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread in the background and closes all connections. What is stored stays."""
        self._stop.set()
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join(2 * self.params.call_s)
        self._records.close()
        self._client.close()

    @property
    def trouble(self) -> str:
        """Why nothing is spilled at the moment, empty when it is."""
        return self._unsafe or self._writes.reason

    # --- what Ray asks for

    def check(self) -> None:
        """Refuses a server that may lose spilled objects.

        Raises:
            UnsafeServer: says what to change.
            CacheError: the server gives no answer.
        """
        contract = None if self.params.contract is None else load(self.params.contract)
        check_server(self._client, contract=contract, reserve_bytes=self.params.reserve_bytes)

    def spill(self, objects: Sequence[SpilledObject]) -> list[bytes]:
        """Stores objects; gives the URLs of those that are stored, in order, up to the first that is not.

        It raises nothing that the server is the cause of: what has no URL was not stored, and is still with
        Ray. After a failure nothing is sent for a while, and the answer is an empty list at once.
        """
        self._begin()
        if not objects or not self._may_spill():
            self.counters.add("spill", "held", len(objects))
            return []
        # While the server refuses, one object is enough to find out whether it still does.
        chosen = objects[:1] if self._writes.is_open else objects
        token = secrets.token_hex(8)
        try:
            self._book.add([item.id for item in chosen], token=token)
        except CacheError as error:
            self._not_stored(error)
            return []
        size_bytes = sum(map(record_bytes, chosen))
        items = [(self.names.key(item.id), record_of(item)) for item in chosen]
        began_s = time.monotonic()
        outcomes = self._store(items, self.params.limit_s(size_bytes))
        self.durations.observe("spill", time.monotonic() - began_s)
        stored = next((at for at, outcome in enumerate(outcomes) if not outcome.ok), len(outcomes))
        for outcome in outcomes:
            self.counters.add("spill", outcome.reason)
        self.counters.add("spill", "bytes", sum(map(record_bytes, chosen[:stored])))
        if stored == len(chosen):
            self._writes.closed()
        else:
            why = outcomes[stored].error
            assert why is not None
            self._not_stored(why)
            self._take_back(chosen[stored:], outcomes[stored:], token)
        return [
            self.names.url(key, record_bytes(item), owner=item.owner if self.params.rebuild else b"")
            for (key, _), item in zip(items[:stored], chosen[:stored], strict=True)
        ]

    def restore(self, url: str | bytes, deliver: Deliver) -> int:
        """Gives the object to ``deliver``, once it is sure to be what was stored; its length in bytes.

        A server that does not answer is waited for, for ``restore_s`` seconds since it last did.

        Raises:
            BlobLost, BlobCorrupt: the object is gone; there is no use in trying again.
            CacheError: there was no answer for so long; the object may still be there.
            TornRestore: the object was begun, and neither can it be ended.
        """
        self._begin()
        began_s = time.monotonic()
        try:
            return self._restore(url, deliver)
        finally:
            self.durations.observe("restore", time.monotonic() - began_s)

    def lists(self, url: str | bytes) -> bool:
        """Whether the object stands among those of the node that has spilled it.

        Raises:
            CacheError: the server gave no answer.
        """
        found = self.names.object_of(parse_url(url).key)
        return found is not None and self._book.has(found[1], names=found[0])

    def delete(self, urls: Sequence[str | bytes]) -> None:
        """Removes objects at once, or, while the server is away, as soon as it is back. Raises nothing."""
        self._begin()
        self._defer(parse_url(url).key for url in urls)
        if not self._reads.is_open:
            self._delete_deferred()

    def destroy(self) -> int:
        """Removes all objects of this node, and of no other; how many there were.

        Raises:
            CacheError: the server gave no answer; the janitor removes them later.
        """
        self._stop.set()
        ids = self._book.ids()
        self._remove_all(self.names, ids)
        self.counters.add("destroy", "deleted", len(ids))
        return len(ids)

    def sweep(self, *, dead_sessions: Sequence[str] = ()) -> SweepReport:
        """Removes the objects of sessions that are over, and of no other; see :func:`._janitor.sweep`.

        Raises:
            CacheError: the server gave no answer.
        """
        report = sweep(
            self._book,
            self.names,
            remove=self._remove_all,
            lease_s=self.params.lease_s,
            abandoned_s=self.params.abandoned_s,
            dead_sessions=dead_sessions,
        )
        self.counters.add("sweep", "deleted", report.removed)
        return report

    # --- storing

    def _may_spill(self) -> bool:
        if self._unsafe:
            self._log.warn("unsafe", f"nothing is spilled: {self._unsafe}")
            return False
        # Only the thread in the background finds out whether a server that was away is back: it waits for
        # nobody, and Ray does not take its question for a spill under way.
        return self._writes.reason in ("", *_REFUSALS) and self._writes.admits(tries_for_s=60)

    def _store(self, items: Sequence[tuple[bytes, object]], limit_s: float) -> list[Outcome]:
        with deadline(limit_s):
            return self._records.store_many(items)  # type: ignore[arg-type]

    def _not_stored(self, error: CacheError) -> None:
        self._writes.failed(error.reason)
        self.counters.add("spill", f"paused_{error.reason}")
        self._log.warn(
            f"spill {error.reason}",
            f"objects stay in memory, or on the local disk when that is full, for no spill works: {error}",
        )

    def _take_back(self, items: Sequence[SpilledObject], outcomes: Sequence[Outcome], token: str) -> None:
        """Undoes what Ray will not be told of. What is in doubt while the server is away is undone later."""
        with self._pending:
            self._doubtful |= {item.id: token for item in items}
        if not any(outcome.status in (Status.LATE, Status.UNAVAILABLE) for outcome in outcomes):
            self._undo_doubtful()

    def _undo_doubtful(self) -> None:
        with self._pending:
            todo = dict(self._doubtful)
        for object_id, token in todo.items():
            try:
                with deadline(self.params.call_s):
                    keys = self._records.keys_of(self.names.key(object_id))
                self._book.undo(object_id, keys, token=token)
            except CacheError:
                self._reads.failed("unreachable")
                return
            with self._pending:
                if self._doubtful.get(object_id) == token:
                    del self._doubtful[object_id]

    # --- restoring

    def _restore(self, url: str | bytes, deliver: Deliver) -> int:
        at = parse_url(url)
        key, offset, size_bytes = at.key, at.offset, at.size_bytes
        patience_s = self.params.restore_s
        away_s = self._reads.open_for_s
        if patience_s is not None and away_s > patience_s:
            # Others have waited already; the thread in the background sees when it is back.
            self.counters.add("restore", "lost_unavailable")
            raise Unreachable(f"{self._client.endpoint} has not answered for {away_s:.0f} s")
        with self._restoring:
            source = PiecewiseSource(
                self._records.pieces(
                    key,
                    self._memory,
                    size_bytes=size_bytes,
                    limit_s=self.params.limit_s,
                    patience=self._patience(),
                )
            )
            try:
                length = self._deliver(source, offset, size_bytes, deliver)
            except (BlobError, CacheError) as error:
                reason = self._lost(key, error)
                if source.begun:
                    if isinstance(error, BlobError):
                        # Ray asks again, and the next time there must be nothing to begin.
                        self._drop(key)
                    raise TornRestore(
                        f"{key!r:.200} was torn in the middle of a transfer ({reason})"
                    ) from error
                raise
            finally:
                source.close()
                # One piece of memory is worth keeping warm; the second is for the largest objects only.
                self._scratch.pop(1, None)
        self._reads.closed()
        self.counters.add("restore", "hit")
        self.counters.add("restore", "bytes", length)
        return length

    def _memory(self, turn: int, size_bytes: int) -> memoryview:
        held = self._scratch.get(turn)
        if held is None or len(held) < size_bytes:
            # Never both: a buffer that is outgrown goes before the larger one comes.
            self._scratch.pop(turn, None)
            del held
            held = self._scratch[turn] = bytearray(size_bytes)
        return memoryview(held)[:size_bytes]

    def _patience(self) -> Callable[[CacheError], None]:
        """What to do when there was no answer: return to try again, or raise."""
        patience_s = self.params.restore_s
        ends_at_s = None if patience_s is None else time.monotonic() + patience_s - self._reads.open_for_s
        pause_s = 0.1

        def wait(error: CacheError) -> None:
            nonlocal pause_s
            self._reads.failed(error.reason)
            self.counters.add("restore", f"retried_{error.reason}")
            self._log.warn(f"restore {error.reason}", f"a read of a spilled object waits: {error}")
            if ends_at_s is not None and time.monotonic() + pause_s >= ends_at_s:
                raise error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

        return wait

    def _deliver(self, source: PiecewiseSource, offset: int, size_bytes: int, deliver: Deliver) -> int:
        first = source.first()
        total_bytes = size_bytes - offset
        if offset or len(first) > total_bytes:
            raise BlobCorrupt(f"{len(first)} bytes where {total_bytes} were spilled", damage="size")
        head = parse_head(first, total_bytes=total_bytes)
        if head.before_bytes > len(first):
            raise BlobCorrupt("the record's head does not fit into its first chunk", damage="foreign")
        at = head.before_bytes - head.metadata_bytes
        owner = bytes(first[at - head.owner_bytes : at])
        metadata = bytes(first[at : head.before_bytes])
        source.skip(head.before_bytes, head.buffer_bytes)
        deliver(owner, metadata, head.buffer_bytes, source)
        return head.buffer_bytes

    def _lost(self, key: bytes, error: BlobError | CacheError) -> str:
        if isinstance(error, CacheError):
            reason = error.reason
            said = "the server did not answer in time, and its reader gets an error"
        else:
            self._reads.closed()
            reason = error.damage if isinstance(error, BlobCorrupt) else "missing"
            said = "it exists nowhere else, and its reader gets an error"
            if self.params.rebuild:
                said = "it exists nowhere else, and Ray is asked to make it again"
        self.counters.add("restore", f"lost_{reason}")
        self._log.warn(f"lost {reason}", f"a spilled object was not restored ({reason}): {error}: {said}")
        return reason

    def _drop(self, key: bytes) -> None:
        with deadline(self.params.call_s):
            self._records.delete_many([key])

    # --- removing

    def _defer(self, keys: Iterable[bytes]) -> None:
        with self._pending:
            for key in keys:
                if len(self._later) < _LATER_MOST:
                    self._later[key] = None
                else:
                    self.counters.add("delete", "forgotten")

    def _delete_deferred(self) -> None:
        with self._pending:
            keys = list(self._later)
        if not keys:
            return
        by_node: dict[str, tuple[SpillNames, list[str]]] = {}
        for key in keys:
            found = self.names.object_of(key)
            if found is not None:
                by_node.setdefault(found[0].objects.prefix, (found[0], []))[1].append(found[1])
        try:
            for names, ids in by_node.values():
                self._remove_all(names, ids)
        except CacheError as error:
            self._reads.failed(error.reason)
            self.counters.add("delete", f"deferred_{error.reason}", len(keys))
            self._log.warn(f"delete {error.reason}", f"objects are removed later: {error}")
            return
        with self._pending:
            for key in keys:
                self._later.pop(key, None)
        self.counters.add("delete", "deleted", len(keys))

    def _remove_all(self, names: SpillNames, ids: Sequence[str]) -> None:
        """Removes objects of a node and strikes them from its index; then the node, if it has none left."""
        for at in range(0, len(ids) or 1, 256):
            part = ids[at : at + 256]
            with deadline(self.params.call_s):
                outcomes = self._records.delete_many([names.key(object_id) for object_id in part])
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
            self._book.remove(part, names=names)

    # --- in the background

    def _begin(self) -> None:
        if self._keeper is None and not self._stop.is_set():
            self._keeper = threading.Thread(target=self._keep, name="ray-spill-keeper", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        """Renews the lease, finishes what was put off, asks who is back, sweeps, and checks the policy."""
        due = dict.fromkeys(("metrics", "lease", "sweep", "check"), time.monotonic())
        if self.params.sweep_every_s is not None:
            # Nodes that start together should not sweep together.
            due["sweep"] += self.params.sweep_every_s * (0.1 + secrets.randbelow(100) / 100)
        while not self._stop.wait(_TICK_S):
            try:
                self._turn(due)
            except CacheError as error:
                self._log.warn(f"keeper {error.reason}", f"what runs in the background waits: {error}")
            except InferenceCacheError as error:
                self._log.warn("keeper", f"what runs in the background failed: {error}")

    def _turn(self, due: dict[str, float]) -> None:
        now_s = time.monotonic()
        if now_s >= due["metrics"]:
            due["metrics"] = now_s + _METRICS_S
            self._write_metrics()
        for breaker in (self._writes, self._reads):
            # Whether writes are still refused only a write can tell; reads are asked for here.
            ours = breaker is self._reads or breaker.reason not in _REFUSALS
            if breaker.is_open and ours and breaker.admits(tries_for_s=self.params.call_s):
                try:
                    with deadline(min(1.0, self.params.call_s)):
                        self._client.getrange(self.names.key(_PROBE), 0, 0)
                except CacheError as error:
                    breaker.failed(error.reason)
                    return
                breaker.closed()
                self._log.info("the server answers again")
        if self._reads.is_open:
            return
        self._undo_doubtful()
        self._delete_deferred()
        if now_s >= due["lease"]:
            due["lease"] = now_s + self.params.lease_s / 4
            self._book.renew()
        if now_s >= due["check"]:
            due["check"] = now_s + _RECHECK_S
            self._recheck()
        if self.params.sweep_every_s is not None and now_s >= due["sweep"]:
            due["sweep"] = now_s + self.params.sweep_every_s
            report = self.sweep()
            if report.removed or report.kept_unknown:
                self._log.info(f"janitor: {report}")

    def _recheck(self) -> None:
        """The policy may have been changed since the cluster began."""
        try:
            self.check()
            self._unsafe = ""
        except UnsafeServer as error:
            self._unsafe = str(error)
            self.counters.add("spill", "unsafe")

    def _write_metrics(self) -> None:
        if self.params.metrics_folder is None:
            return
        labels = {"session": self.names.session, "node": self.names.node}
        try:
            write_textfile(self, Path(self.params.metrics_folder), labels)
        except (MissingExtra, OSError) as error:
            self._log.warn("metrics", f"no metrics are written: {error}")


_REFUSALS: Final = frozenset(
    {WriteRefused.reason, *(kind.reason for kind in WriteRefused.__subclasses__()), "access", "rejected"}
)
"""Reasons of failures that only another try can tell the end of: the server answers, and says no."""
