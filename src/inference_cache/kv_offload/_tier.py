"""The tier itself, for any engine: blocks between its memory and the server, and nobody ever waits."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from inference_cache.blobs import BlobStore, Outcome, Status
from inference_cache.connection import Options, connect, deadline
from inference_cache.errors import CacheError, DeadlineExceeded, UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload._breaker import Breaker
from inference_cache.kv_offload._identity import (
    BlockId,
    RunIdentity,
    block_key,
    record_key,
    request_scope,
    run_record,
)
from inference_cache.kv_offload._jobs import Job, JobQueue, JobResult, Transfer
from inference_cache.kv_offload._lookups import Found, Lookups
from inference_cache.kv_offload._settings import TierSettings

__all__ = ["BlockTier"]

_NO_ANSWER: Final = frozenset((Status.UNAVAILABLE, Status.LATE, Status.REFUSED))
_IDLE_S: Final = 0.25
"""How long a thread sleeps at most before it looks around."""
_MARGIN_S: Final = 5.0
"""What a call may take beyond its deadline on a machine that stands still."""
_LOOK_AT_ONCE: Final = 4096
_YIELD_S: Final = 0.0001

_logger = logging.getLogger(__name__)


class BlockTier:
    """Stores and loads the blocks of one run, each in one row of ``memory``.

    ``memory`` is the engine's own: C-contiguous, one row of ``identity.value_bytes`` for each slot. Bytes go
    from its rows to the socket and back, with no copy; the engine must keep the rows of a job as they are
    until the job's result is there.

    The engine's thread calls :meth:`lookup`, :meth:`submit_store`, :meth:`submit_load`, :meth:`results`,
    :meth:`flush` and :meth:`forget`; none of them waits for the server or raises because of it. A block that
    is reported as loaded has the bytes that were stored for its key; everything else is a miss, counted by
    its reason in :attr:`counters`. Each job submitted has one result, at the latest when :meth:`drain` or
    :meth:`close` returns.

    Raises UsageError for a memory that does not fit the identity, and for a URL that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        memory: memoryview,
        identity: RunIdentity,
        settings: TierSettings | None = None,
        connect_options: Options | None = None,
    ) -> None:
        self.settings = settings or TierSettings()
        self.keyspace = Keyspace(self.settings.prefix)
        self._set_identity(identity)
        if not memory.c_contiguous or memory.readonly or memory.nbytes % identity.value_bytes:
            raise UsageError(
                f"a tier's memory is writable, in one piece, and rows of {identity.value_bytes} bytes; this "
                f"has {memory.nbytes}, readonly={memory.readonly}, c_contiguous={memory.c_contiguous}"
            )
        self._memory = memory.cast("B")
        self._slots = memory.nbytes // identity.value_bytes
        options: Options = {"client_name": "inference-cache-kv", **(connect_options or {})}
        records: Options = {**options, "deadline_s": self.settings.lookup_deadline_s, "max_connections": 1}
        longest_s = max(self.settings.load_deadline_s, self.settings.store_deadline_s)
        threads = self.settings.load_threads + self.settings.shared_threads
        self._stores = [
            self._open(url, longest_s, self.settings.connections, options) for _ in range(threads)
        ]
        self._asks = self._open(url, self.settings.lookup_deadline_s, 2, options)
        self._records = connect(url, **records)
        self._record_written_s: dict[str, float] = {}
        self._lookups = Lookups(
            deadline_s=self.settings.lookup_deadline_s, most_pending=self.settings.most_lookups
        )
        self._queue = JobQueue(most_bytes=self.settings.queue_bytes)
        self._results: deque[JobResult] = deque()
        self._reads = self._breaker()
        self._writes = self._breaker()
        self._counting = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._storing: set[bytes] = set()
        self._threads = [threading.Thread(target=self._answer_lookups, name="kv-lookup", daemon=True)]
        for number, store in enumerate(self._stores):
            kinds = [Transfer.LOAD]
            if number >= self.settings.load_threads:
                kinds.append(Transfer.STORE)
            self._threads.append(
                threading.Thread(
                    target=self._move_blocks, args=(store, kinds), name=f"kv-blocks-{number}", daemon=True
                )
            )
        for thread in self._threads:
            thread.start()

    def _set_identity(self, identity: RunIdentity) -> None:
        self.identity = identity
        self.fingerprint = identity.fingerprint

    def _open(self, url: str, deadline_s: float, connections: int, options: Options) -> BlobStore:
        size = self.identity.value_bytes
        return BlobStore(
            url,
            keyspace=self.keyspace,
            deadline_s=deadline_s,
            connections=connections,
            # A block is one value, whatever its length: stored by one SET, seen whole or not at all.
            chunk_bytes=size,
            max_bytes=size,
            ttl_s=self.settings.ttl_s,
            connect_options=options,
        )

    def _breaker(self) -> Breaker:
        return Breaker(
            threshold=self.settings.failures_to_open,
            first_pause_s=self.settings.first_pause_s,
            longest_pause_s=self.settings.longest_pause_s,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._asks.endpoint} {self.keyspace.prefix}{self.fingerprint}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- keys

    @staticmethod
    def scope_of(*, adapter: str = "", salt: str = "") -> bytes:
        """What a request adds to its blocks' keys; see :func:`request_scope`."""
        return request_scope(adapter=adapter, salt=salt)

    @classmethod
    def key_of(cls, keyspace: Keyspace, identity: RunIdentity, block: BlockId) -> bytes:
        """The key of a block of a run."""
        return block_key(keyspace, identity.fingerprint, block)

    def _key(self, block: BlockId) -> bytes:
        return self.key_of(self.keyspace, self.identity, block)

    def renew(self, identity: RunIdentity) -> None:
        """Goes on under another identity: what is stored so far is found no more. Drain before.

        Raises UsageError when its blocks have another length.
        """
        if identity.value_bytes != self.identity.value_bytes:
            raise UsageError(
                f"blocks of {identity.value_bytes} bytes do not fit rows of {self.identity.value_bytes}"
            )
        self._set_identity(identity)

    # --- the engine's thread

    def lookup(self, block: BlockId, *, request: str) -> Found:
        """Whether the block is there; LATER means to ask again after the next :meth:`flush`.

        The answer for a request that is alive does not change, but for one: a block that could not be loaded
        is a miss from then on.
        """
        if self._reads.is_open:
            self._lookups.settle(block, request, found=False)
            self._count("lookup", "away")
            return Found.MISS
        found, word = self._lookups.look(block, request)
        if word:
            self._count("lookup", word)
        return found

    def flush(self) -> None:
        """Sends the lookups since the last time: to be called once each step of the engine.

        While lookups or loads are under way it gives their threads a tenth of a millisecond.
        """
        self._lookups.flush()
        if self._queue.loading or self._lookups.pending:
            # An engine that has nothing else to do steps again at once, and keeps the interpreter: after each
            # system call a load would wait for the 5 ms of a forced switch.
            time.sleep(_YIELD_S)

    def forget(self, request: str) -> None:
        """Drops what was looked up for a request: to be called when it is finished."""
        self._lookups.forget(request)

    def submit_store(self, number: int, items: Iterable[tuple[BlockId, int]]) -> None:
        """Stores blocks from their slots. ``number`` is what its result will have."""
        self._submit(number, Transfer.STORE, items)

    def submit_load(self, number: int, items: Iterable[tuple[BlockId, int]]) -> None:
        """Loads blocks into their slots."""
        self._submit(number, Transfer.LOAD, items)

    def _submit(self, number: int, transfer: Transfer, items: Iterable[tuple[BlockId, int]]) -> None:
        chosen = tuple((block, int(slot)) for block, slot in items)
        for _, slot in chosen:
            if not 0 <= slot < self._slots:
                raise UsageError(
                    f"job {number}: slot {slot} is outside of the {self._slots} slots of the memory"
                )
        size = len(chosen) * self.identity.value_bytes
        job = Job(number=number, transfer=transfer, items=chosen, size_bytes=size)
        if not chosen:
            self._finish(job, [])
        elif self._reads.is_open:
            self._give_up(job, "away")
        else:
            waits, pushed_out = self._queue.put(job)
            for store in pushed_out:
                self._give_up(store, "pushed_out")
            if not waits:
                self._give_up(job, "closed" if self._queue.closed else "queue_full")

    def results(self) -> list[JobResult]:
        """The results of jobs that have ended since the last time."""
        ended: list[JobResult] = []
        while self._results:
            ended.append(self._results.popleft())
        return ended

    def drain(self) -> None:
        """Gives up the jobs that wait, and waits for those that run: all have a result then.

        Raises DeadlineExceeded when a job runs on long after its deadline.
        """
        for job in self._queue.clear():
            self._give_up(job, "drained")
        longest_s = max(self.settings.load_deadline_s, self.settings.store_deadline_s) + _MARGIN_S
        if not self._queue.wait_idle(wait_s=longest_s):
            raise DeadlineExceeded(f"a job of {self!r} still runs after {longest_s:g} s")

    def close(self) -> None:
        """Drains, ends all threads and closes all connections. The memory is not touched any more."""
        self._queue.close()
        self._lookups.close()
        self.drain()
        for thread in self._threads:
            thread.join(_MARGIN_S)
        for store in (*self._stores, self._asks):
            store.close()
        self._records.close()
        self._memory.release()

    # --- what can be seen

    @property
    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each operation ended how for a block, by (operation, reason). A copy.

        Operations are ``lookup``, ``load`` and ``store``, and ``load_bytes`` and ``store_bytes`` with the one
        reason ``moved``. Reasons are those of :class:`inference_cache.blobs.Outcome`; and ``present`` or
        ``in_flight`` for a store that was not needed; ``queue_full``, ``pushed_out``, ``late``, ``away``,
        ``drained`` or ``closed`` for what was never sent; ``suspect`` for the lookup of a block that was
        found damaged; ``error`` for a fault of the tier itself, which is logged.
        """
        with self._counting:
            return dict(self._counts)

    @property
    def gauges(self) -> Mapping[str, float]:
        """As it is now: ``waiting_bytes``, ``pending_lookups``, ``away`` and ``writes_paused`` (0 or 1)."""
        return {
            "waiting_bytes": float(self._queue.waiting_bytes),
            "pending_lookups": float(self._lookups.pending),
            "away": float(self._reads.is_open),
            "writes_paused": float(self._writes.is_open),
        }

    def _count(self, operation: str, reason: str, number: int = 1) -> None:
        with self._counting:
            self._counts[operation, reason] += number

    # --- prefixes, for engines that ask for a whole prompt at once

    def prefix_found(self, blocks: Sequence[BlockId]) -> int:
        """How many of these blocks, from the first on, are there without a hole. Waits for the answer.

        At most ``lookup_deadline_s``; 0 when the server does not answer.
        """
        return self._run_of_hits(self._exist(blocks))

    @staticmethod
    def _run_of_hits(found: Sequence[bool]) -> int:
        return next((index for index, there in enumerate(found) if not there), len(found))

    @staticmethod
    def agree(lengths: Iterable[int]) -> int:
        """The prefix that all ranks may use, given what each found: the smallest."""
        return min(lengths, default=0)

    # --- the lookup thread

    def _answer_lookups(self) -> None:
        idle_s = min(_IDLE_S, self.settings.first_pause_s)
        while not self._queue.closed:
            batch = self._lookups.next_batch(wait_s=idle_s)
            if batch is not None:
                found = [False] * len(batch.blocks)
                try:
                    found = self._exist(batch.blocks)
                except Exception:
                    self._report("lookup", len(batch.blocks))
                finally:
                    self._lookups.answer(batch, found)
            elif self._reads.is_open and self._reads.allows():
                # Whether the server is back is found out here, where no request waits for it.
                self._see(self._reads, self._asks.exists_many([record_key(self.keyspace, self.fingerprint)]))

    def _exist(self, blocks: Sequence[BlockId]) -> list[bool]:
        found: list[bool] = []
        ends_at_s = time.monotonic() + self.settings.lookup_deadline_s
        for at in range(0, len(blocks), _LOOK_AT_ONCE):
            left_s = ends_at_s - time.monotonic()
            if left_s <= 0 or self._reads.is_open:
                break
            with deadline(left_s):
                outcomes = self._asks.exists_many([self._key(b) for b in blocks[at : at + _LOOK_AT_ONCE]])
            self._see(self._reads, outcomes)
            found += [outcome.ok for outcome in outcomes]
        return found + [False] * (len(blocks) - len(found))

    # --- the threads that move blocks

    def _move_blocks(self, store: BlobStore, kinds: Sequence[Transfer]) -> None:
        while True:
            job = self._queue.take(kinds, wait_s=_IDLE_S)
            if job is None:
                if self._queue.closed:
                    return
                continue
            try:
                self._run(job, store)
            except Exception:
                self._report(job.transfer.value, len(job.items))
            finally:
                self._queue.ended(job)

    def _run(self, job: Job, store: BlobStore) -> None:
        loads = job.transfer is Transfer.LOAD
        limit_s = self.settings.load_deadline_s if loads else self.settings.store_deadline_s
        left_s = limit_s - (time.monotonic() - job.submitted_s)
        if left_s <= 0:
            self._give_up(job, "late")
        elif self._reads.is_open or not (loads or self._writes.allows()):
            self._give_up(job, "away")
        else:
            done = [False] * len(job.items)
            moved = 0
            try:
                with deadline(left_s):
                    moved = self._load(job, store, done) if loads else self._store(job, store, done)
            finally:
                # Whatever happens in this thread, the engine gets its rows back.
                self._finish(job, done, moved)

    def _load(self, job: Job, store: BlobStore, done: list[bool]) -> int:
        """Fills ``done`` and returns how many blocks were moved."""
        outcomes = store.load_many_into((self._key(block), self._row(slot)) for block, slot in job.items)
        self._see(self._reads, outcomes)
        done[:] = [outcome.status is Status.HIT for outcome in outcomes]
        missed = [block for (block, _), hit in zip(job.items, done, strict=True) if not hit]
        self._lookups.miss(missed)
        for (block, _), outcome in zip(job.items, outcomes, strict=True):
            self._count("load", outcome.reason)
            if outcome.status is Status.CORRUPT:
                self._lookups.suspect(block)
        if self.settings.sliding_ttl and any(done):
            loaded = [self._key(block) for (block, _), hit in zip(job.items, done, strict=True) if hit]
            store.touch_many(loaded, ttl_s=self.settings.ttl_s)
        return sum(done)

    def _store(self, job: Job, store: BlobStore, done: list[bool]) -> int:
        """Fills ``done`` and returns how many blocks were moved."""
        mine = self._claim(job, done)
        try:
            todo = self._not_there(job, mine, store, done)
            if not todo:
                return 0
            outcomes = store.store_many((mine[index], self._row(job.items[index][1])) for index in todo)
            self._see(self._writes, outcomes)
            for index, outcome in zip(todo, outcomes, strict=True):
                done[index] = outcome.status is Status.STORED
                self._count("store", outcome.reason)
            self._lookups.trust(job.items[index][0] for index in todo if done[index])
            stored = sum(outcome.ok for outcome in outcomes)
            if stored:
                self._write_record()
            return stored
        finally:
            with self._counting:
                self._storing.difference_update(mine.values())

    def _claim(self, job: Job, done: list[bool]) -> dict[int, bytes]:
        """The keys of a job that no other job is storing, each once."""
        keys = [self._key(block) for block, _ in job.items]
        mine: dict[int, bytes] = {}
        with self._counting:
            for index, key in enumerate(keys):
                if key in self._storing:
                    done[index] = True
                    self._counts["store", "in_flight"] += 1
                else:
                    self._storing.add(key)
                    mine[index] = key
        return mine

    def _not_there(
        self, job: Job, mine: Mapping[int, bytes], store: BlobStore, done: list[bool]
    ) -> list[int]:
        """Which of the claimed blocks the server lacks, or has damaged."""
        outcomes = dict(zip(mine, store.exists_many(mine.values()), strict=True))
        self._see(self._reads, outcomes.values())
        todo: list[int] = []
        for index, outcome in outcomes.items():
            if outcome.status is Status.HIT and not self._lookups.is_suspect(job.items[index][0]):
                done[index] = True
                self._count("store", "present")
            elif outcome.status in _NO_ANSWER:
                self._count("store", outcome.reason)
            else:
                todo.append(index)
        return todo

    def _row(self, slot: int) -> memoryview:
        size = self.identity.value_bytes
        return self._memory[slot * size : (slot + 1) * size]

    @staticmethod
    def _see(breaker: Breaker, outcomes: Iterable[Outcome]) -> None:
        statuses = {outcome.status for outcome in outcomes}
        if statuses - _NO_ANSWER:
            breaker.succeeded()
        elif statuses:
            breaker.failed()

    def _report(self, operation: str, blocks: int) -> None:
        """An error of ours, which costs the blocks of one call and no thread."""
        _logger.exception("%r: %s of %d blocks failed", self, operation, blocks)
        self._count(operation, "error", blocks)

    def _give_up(self, job: Job, reason: str) -> None:
        self._count(job.transfer.value, reason, len(job.items))
        if job.transfer is Transfer.LOAD:
            self._lookups.miss(block for block, _ in job.items)
        self._finish(job, [False] * len(job.items))

    def _finish(self, job: Job, done: Sequence[bool], moved: int = 0) -> None:
        moved_bytes = moved * self.identity.value_bytes
        self._count(f"{job.transfer.value}_bytes", "moved", moved_bytes)
        self._results.append(
            JobResult(
                number=job.number,
                transfer=job.transfer,
                done=tuple(done),
                moved_bytes=moved_bytes,
                took_s=time.monotonic() - job.submitted_s,
            )
        )

    def _write_record(self) -> None:
        """Writes the run's record when it is missing or a quarter of its life old."""
        now_s = time.monotonic()
        written_s = self._record_written_s.get(self.fingerprint)
        if written_s is not None and now_s - written_s < self.settings.ttl_s / 4:
            return
        record = run_record(self.identity, writer="inference-cache")
        life_ms = round(2000 * self.settings.ttl_s)
        try:
            self._records.set(record_key(self.keyspace, self.fingerprint), record, px=life_ms)
        except CacheError as error:
            self._count("record", error.reason)
        else:
            self._record_written_s[self.fingerprint] = now_s
            self._count("record", "stored")
