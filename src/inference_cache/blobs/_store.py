"""The store: calls of users turned into requests, and their replies into outcomes."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, Self
from weakref import WeakSet

from inference_cache.blobs._frame import (
    MAX_CHUNKS,
    Damage,
    Header,
    chunk_key,
    is_chunk_key,
    manifest_frame,
    new_generation,
    parse_header,
    whole_header,
)
from inference_cache.blobs._outcome import INCOMPLETE, Outcome, Status
from inference_cache.blobs._requests import (
    Commands,
    Load,
    LoadChunk,
    Request,
    StoreChunk,
    StoreWhole,
    get_header,
)
from inference_cache.blobs._switch import erase, expiry, is_wrong_type, switch
from inference_cache.blobs._transport import Transport, full_url
from inference_cache.blobs._wire import Arg, Payload
from inference_cache.connection import Endpoint, Options, connect, parse_url, remaining_s
from inference_cache.errors import CacheError, ServerFull, UsageError
from inference_cache.keyspace import Keyspace, Part

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["BlobKey", "BlobStore"]

BlobKey = bytes | tuple[Part, ...]
"""A whole key of the store's keyspace, or the parts of one."""

_MIB: Final = 1024 * 1024
_ERASE_AT_ONCE: Final = 256
_STAGING_S: Final = 60.0
_FIELD_NAME: Final = re.compile(":[^:]*:")


_stores: WeakSet[BlobStore] = WeakSet()


class _Default(Enum):
    TTL = "the store's"


class BlobStore:
    """Values from nothing to 1 GiB under one prefix, checked on the way out.

    ``url`` is as for :func:`inference_cache.connection.connect`, but not of a cluster. ``deadline_s`` bounds
    each call, whatever it does and however many keys it has; a ``deadline()`` scope around a call may end it
    earlier. ``connections`` is the number of connections at most, over which large batches are spread;
    ``window`` that of values on the way on each. Values above ``chunk_bytes`` are stored in chunks of that
    size; values above ``max_bytes`` are refused. With ``max_bytes <= chunk_bytes`` no value is ever chunked,
    and each store is a single SET; all stores of a keyspace must agree on that. ``ttl_s`` is the time to live
    of what is stored, in seconds, and None means for ever.

    With ``on_loss="miss"`` a failure is an outcome. With ``on_loss="raise"``, for values that exist nowhere
    else, the first outcome of a call that is no success is raised, once all keys have had their turn; see
    :meth:`Outcome.require`. That a key is not there is an answer to ``exists``, ``delete`` and ``touch`` and
    is not raised by them.

    ``connect_options`` are those of :func:`inference_cache.connection.connect`: user, password, TLS, name.

    Threads may share a store, and so may forked processes. Every argument is checked before anything is sent.

    Raises:
        UsageError: from the constructor and from every call, for an argument that cannot be used.
        KeyFormatError: for parts that make no key.
    """

    def __init__(
        self,
        url: str | Endpoint,
        *,
        keyspace: Keyspace,
        deadline_s: float,
        connections: int = 2,
        window: int = 8,
        chunk_bytes: int = 64 * _MIB,
        max_bytes: int = 1024 * _MIB,
        ttl_s: float | None = None,
        on_loss: Literal["miss", "raise"] = "miss",
        connect_options: Options | None = None,
    ) -> None:
        _require_positive(
            connections=connections, window=window, chunk_bytes=chunk_bytes, max_bytes=max_bytes
        )
        if -(-max_bytes // chunk_bytes) > MAX_CHUNKS:
            raise UsageError(
                f"{max_bytes} bytes in chunks of {chunk_bytes} make more than {MAX_CHUNKS} chunks; raise "
                "chunk_bytes, or lower max_bytes"
            )
        if on_loss not in ("miss", "raise"):
            raise UsageError(f"on_loss is 'miss' or 'raise', not {on_loss!r}")
        text = url if isinstance(url, str) else full_url(url)
        endpoint = parse_url(text)
        if endpoint.kind == "cluster":
            raise UsageError(
                f"{endpoint}: a blob store needs one server, or sentinels; the chunks of a value would "
                "lie on several nodes of a cluster, where nothing can switch them at once"
            )
        options: Options = {"client_name": "inference-cache-blobs", **(connect_options or {})}
        options |= {"deadline_s": deadline_s, "max_connections": connections, "protocol": 2}
        options.setdefault("connect_deadline_s", deadline_s)
        self.keyspace = keyspace
        self.endpoint = endpoint
        self.deadline_s = deadline_s
        self.chunk_bytes = chunk_bytes
        self.max_bytes = max_bytes
        self._ttl_ms = _ttl_ms(ttl_s)
        self._raises = on_loss == "raise"
        self._staging_ms = int(1000 * max(_STAGING_S, 4 * deadline_s))
        self._transport = Transport(connect(text, **options), connections=connections, window=window)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._counting = threading.Lock()
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<BlobStore {self.endpoint} {self.keyspace.prefix!r} deadline_s={self.deadline_s:g}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections; a later call opens them again."""
        self._transport.close()

    @property
    def counters(self) -> Mapping[tuple[str, str], int]:
        """How often each operation ended how, since the beginning, by (operation, reason).

        Operations are ``store``, ``load``, ``exists``, ``delete``, ``touch`` and ``size``, counted once for
        each key; reasons are those of :class:`Outcome`. This is a copy.
        """
        with self._counting:
            return dict(self._counts)

    # --- one key

    def store(
        self,
        key: BlobKey,
        buffer: ReadableBuffer,
        *,
        ttl_s: float | Literal[_Default.TTL] | None = _Default.TTL,
    ) -> Outcome:
        """Stores the bytes of ``buffer``, any C-contiguous one: STORED, LATE, REFUSED or UNAVAILABLE.

        Readers see the old value or the new one, never a part or a mixture. The buffer must not change during
        the call. A SET whose reply was lost is sent again, with the same value; between the two another
        writer's value may have come and gone.
        """
        return self.store_many([(key, buffer)], ttl_s=ttl_s)[0]

    def load_into(self, key: BlobKey, buffer: WriteableBuffer) -> Outcome:
        """Fills ``buffer``, which is as long as the value: HIT, MISS, CORRUPT, LATE, REFUSED or UNAVAILABLE.

        After anything but a HIT the content of the buffer is unspecified: it may have been overwritten.
        """
        return self.load_many_into([(key, buffer)])[0]

    def load(self, key: BlobKey) -> bytearray | None:
        """The value in new memory, or None for every outcome but a HIT: ``counters`` tell which."""
        wanted = _Wanted(self._key(key), None, self.max_bytes)
        ends_at_s = self._ends_at_s()
        outcomes = self._load([wanted], ends_at_s)
        self._deliver("load", outcomes)
        return wanted.value if outcomes[0].ok else None

    def size_of(self, key: BlobKey) -> int | None:
        """The length of the value in bytes, or None for every outcome but a HIT. Reads the header only."""
        name = self._key(key)
        header = self._headers([name], self._ends_at_s())[name]
        self._deliver("size", [_found(name, header)])
        return header.total_bytes if isinstance(header, Header) else None

    # --- many keys

    def store_many(
        self,
        items: Iterable[tuple[BlobKey, ReadableBuffer]],
        *,
        ttl_s: float | Literal[_Default.TTL] | None = _Default.TTL,
    ) -> list[Outcome]:
        """:meth:`store` for each item, in order of the items; not in order of time, so no key comes twice."""
        ttl_ms = self._ttl_ms if ttl_s is _Default.TTL else _ttl_ms(ttl_s)
        values = [(self._key(key), self._readable(buffer)) for key, buffer in items]
        if len({key for key, _ in values}) != len(values):
            raise UsageError("a key stands in the batch twice, and which value would win is not defined")
        ends_at_s = self._ends_at_s()
        small = [(key, view) for key, view in values if view.nbytes <= self.chunk_bytes]
        outcomes = self._store_whole(small, ttl_ms, ends_at_s)
        for key, view in values:
            if view.nbytes > self.chunk_bytes:
                outcomes[key] = self._store_chunked(key, view, ttl_ms, ends_at_s)
        return self._deliver("store", [outcomes[key] for key, _ in values])

    def load_many_into(self, items: Iterable[tuple[BlobKey, WriteableBuffer]]) -> list[Outcome]:
        """:meth:`load_into` for each item, in order of the items."""
        wanted = [_Wanted(self._key(key), _writable(buffer), self.max_bytes) for key, buffer in items]
        return self._deliver("load", self._load(wanted, self._ends_at_s()))

    def exists_many(self, keys: Iterable[BlobKey]) -> list[Outcome]:
        """HIT or MISS for each key, by its main key alone: a value may still be gone when it is loaded."""
        names = [self._key(key) for key in keys]
        requests = [Commands(name, [(b"EXISTS", name)]) for name in names]
        self._transport.run(requests, ends_at_s=self._ends_at_s(), what="EXISTS")
        return self._deliver(
            "exists",
            [
                _settled(request, Status.HIT if request.replies == [1] else Status.MISS)
                for request in requests
            ],
        )

    def delete_many(self, keys: Iterable[BlobKey]) -> list[Outcome]:
        """Removes values, chunks and all, in one step: DELETED, or MISS when there was nothing."""
        names = [self._key(key) for key in keys]
        ends_at_s = self._ends_at_s()
        outcomes: list[Outcome] = []
        for at in range(0, len(names), _ERASE_AT_ONCE):
            outcomes += self._erase(names[at : at + _ERASE_AT_ONCE], ends_at_s)
        return self._deliver("delete", outcomes)

    def touch_many(self, keys: Iterable[BlobKey], *, ttl_s: float | None) -> list[Outcome]:
        """Gives values, chunks and all, a new time to live from now: HIT, MISS or CORRUPT."""
        ttl_ms = _ttl_ms(ttl_s)
        names = [self._key(key) for key in keys]
        ends_at_s = self._ends_at_s()
        requests = [Commands(name, [get_header(name), expiry(name, ttl_ms)]) for name in names]
        self._transport.run(requests, ends_at_s=ends_at_s, what="PEXPIRE")
        headers = [_header_of(request) for request in requests]
        outcomes = [_found(name, header) for name, header in zip(names, headers, strict=True)]
        chunks = [
            (index, header.chunk_keys(names[index]))
            for index, header in enumerate(headers)
            if isinstance(header, Header) and header.chunks
        ]
        follow_ups = [
            Commands(names[index], [*(expiry(name, ttl_ms) for name in chunk_keys), (b"EXISTS", *chunk_keys)])
            for index, chunk_keys in chunks
        ]
        self._transport.run(follow_ups, ends_at_s=ends_at_s, what="PEXPIRE")
        for (index, chunk_keys), request in zip(chunks, follow_ups, strict=True):
            outcomes[index] = _settled(request, Status.HIT)
            if outcomes[index].ok and request.replies[-1] != len(chunk_keys):
                outcomes[index] = Outcome.incomplete(names[index])
        return self._deliver("touch", outcomes)

    # --- loading

    def _load(self, wanted: Sequence[_Wanted], ends_at_s: float) -> list[Outcome]:
        """Loads until each has an outcome: a value that is overwritten meanwhile is begun again."""
        todo = list(wanted)
        while todo:
            loads = [Load(each.key, each.place, expected_bytes=each.size_bytes) for each in todo]
            self._transport.run(loads, ends_at_s=ends_at_s, what="GET")
            chunked: list[tuple[_Wanted, list[LoadChunk]]] = []
            for each, load in zip(todo, loads, strict=True):
                each.again = False
                each.outcome = _loaded(load)
                if load.manifest is not None:
                    chunks = each.begin_chunks(load.manifest, load.digests)
                    chunked += [(each, chunks)] if chunks else []
            every = [chunk for _, chunks in chunked for chunk in chunks]
            self._transport.run(every, ends_at_s=ends_at_s, what="GET")
            for each, chunks in chunked:
                each.end_chunks(chunks)
            todo = [each for each, _ in chunked if each.again]
        return [each.outcome for each in wanted]

    # --- storing

    def _store_whole(
        self, values: Sequence[tuple[bytes, memoryview]], ttl_ms: int | None, ends_at_s: float
    ) -> dict[bytes, Outcome]:
        """Stores values below the chunk limit: a pipeline of SETs, save where they replace chunked ones."""
        swap = self.max_bytes > self.chunk_bytes
        headers = self._headers([key for key, _ in values], ends_at_s) if swap else {}
        outcomes: dict[bytes, Outcome] = {}
        stores: list[StoreWhole] = []
        for key, view in values:
            before = headers.get(key)
            if isinstance(before, Header) and before.chunks:
                value = Payload(view, before=whole_header(key, view.nbytes), sums=True)
                outcomes[key] = self._switch(key, value, [], None, ttl_ms, ends_at_s)
            else:
                stores.append(StoreWhole(key, view, ttl_ms=ttl_ms, swap=swap))
        self._transport.run(stores, ends_at_s=ends_at_s, what="SET")
        outcomes |= {store.key: _settled(store, Status.STORED) for store in stores}
        # Another writer may have put a chunked value there in between.
        replaced = [(store.key, store.replaced) for store in stores]
        unlinks = [
            Commands(key, [(b"UNLINK", *header.chunk_keys(key))])
            for key, header in replaced
            if header is not None
        ]
        self._transport.run(unlinks, ends_at_s=ends_at_s, what="UNLINK")
        return outcomes

    def _store_chunked(self, key: bytes, view: memoryview, ttl_ms: int | None, ends_at_s: float) -> Outcome:
        """Chunks first, which expire by themselves; then, in one step, manifest and times to live."""
        generation = new_generation()
        stores = [
            StoreChunk(
                chunk_key(key, generation, index), view[at : at + self.chunk_bytes], ttl_ms=self._staging_ms
            )
            for index, at in enumerate(range(0, len(view), self.chunk_bytes))
        ]
        self._transport.run(stores, ends_at_s=ends_at_s, what="SET")
        names = [store.key for store in stores]
        error = next((store.error for store in stores if store.error is not None), None)
        if error is not None:
            outcome = Outcome.failed(key, error)
        else:
            frame = manifest_frame(
                key,
                total_bytes=view.nbytes,
                chunk_bytes=self.chunk_bytes,
                generation=generation,
                digests=[store.digest for store in stores],
            )
            outcome = self._switch(key, frame, names, generation, ttl_ms, ends_at_s)
        if outcome.status is Status.REFUSED:
            self._transport.run([Commands(key, [(b"UNLINK", *names)])], ends_at_s=ends_at_s, what="UNLINK")
        return outcome

    def _switch(
        self,
        key: bytes,
        value: Arg,
        chunk_keys: Sequence[bytes],
        generation: bytes | None,
        ttl_ms: int | None,
        ends_at_s: float,
    ) -> Outcome:
        try:
            complete = self._transport.converse(
                lambda wire: switch(wire, key, value, generation, chunk_keys, ttl_ms),
                ends_at_s=ends_at_s,
                what="EXEC",
            )
        except CacheError as error:
            return Outcome.failed(key, error)
        if complete:
            return Outcome.of(key, Status.STORED)
        self._erase([key], ends_at_s, only=generation)
        return Outcome.failed(
            key, ServerFull(f"{self.endpoint} evicted chunks of {key!r:.200} before the last was written")
        )

    # --- removing

    def _erase(self, keys: Sequence[bytes], ends_at_s: float, *, only: bytes | None = None) -> list[Outcome]:
        """Removes values in one transaction; with ``only`` those of that generation."""
        try:
            removed = self._transport.converse(
                lambda wire: erase(wire, keys, only), ends_at_s=ends_at_s, what="UNLINK"
            )
        except CacheError as error:
            return [Outcome.failed(key, error) for key in keys]
        return [
            Outcome.of(key, Status.DELETED if count else Status.MISS)
            for key, count in zip(keys, removed, strict=True)
        ]

    def _headers(
        self, keys: Sequence[bytes], ends_at_s: float
    ) -> dict[bytes, Header | Damage | CacheError | None]:
        requests = [Commands(key, [get_header(key)]) for key in keys]
        self._transport.run(requests, ends_at_s=ends_at_s, what="GETRANGE")
        return {request.key: _header_of(request) for request in requests}

    # --- arguments and results

    def _key(self, key: BlobKey) -> bytes:
        if isinstance(key, tuple):
            name = self.keyspace.key(*key)
        elif isinstance(key, bytes):
            name = key
            if not self.keyspace.contains(key):
                raise UsageError(f"{key!r:.200} does not start with {self.keyspace.prefix!r}")
        else:
            raise UsageError(
                f"a key is bytes with the prefix, or a tuple of parts without it, not {type(key).__name__}"
            )
        if is_chunk_key(name):
            raise UsageError(f"{name!r:.200} has the shape of a chunk's key")
        return name

    def _readable(self, buffer: ReadableBuffer) -> memoryview:
        view = _as_bytes(buffer)
        if view.nbytes > self.max_bytes:
            raise UsageError(f"a value of {view.nbytes} bytes is larger than max_bytes, {self.max_bytes}")
        return view

    def _ends_at_s(self) -> float:
        left_s = remaining_s()
        return time.monotonic() + (self.deadline_s if left_s is None else min(left_s, self.deadline_s))

    def _deliver(self, operation: str, outcomes: list[Outcome]) -> list[Outcome]:
        reasons = Counter([outcome.reason for outcome in outcomes])
        with self._counting:
            for reason, count in reasons.items():
                self._counts[operation, reason] += count
        if self._raises:
            absence_is_loss = operation in ("load", "size")
            for outcome in outcomes:
                if outcome.status is not Status.MISS or absence_is_loss:
                    outcome.require()
        return outcomes


def _after_fork() -> None:
    # A thread that is not there in the child may have held the lock.
    for store in list(_stores):
        store._counting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class _Wanted:
    """A value that is being loaded: where to, and how far that is."""

    outcome: Outcome
    again = False
    """Whether it was replaced while its chunks were being read."""
    value: bytearray | None = None
    _generation = b""

    def __init__(self, key: bytes, view: memoryview | None, max_bytes: int) -> None:
        self.key = key
        self._view = view
        self._max_bytes = max_bytes

    @property
    def size_bytes(self) -> int:
        """The length that is expected, 0 when any is."""
        return 0 if self._view is None else self._view.nbytes

    def place(self, size_bytes: int) -> memoryview | None:
        """Where a value of that length goes, None when it is not wanted."""
        if self._view is not None:
            return self._view if size_bytes == self._view.nbytes else None
        if size_bytes > self._max_bytes:
            return None
        self.value = bytearray(size_bytes)
        return memoryview(self.value)

    def begin_chunks(self, manifest: Header, digests: Sequence[bytes]) -> list[LoadChunk]:
        """What to load next; nothing when the value has another length than the caller's buffer."""
        self.again = self._generation != manifest.generation
        self._generation = manifest.generation
        view = self.place(manifest.total_bytes)
        if view is None:
            self.outcome = Outcome.corrupt(self.key, Damage.SIZE)
            return []
        return [
            LoadChunk(name, view[start:end], due_digest=due)
            for name, (start, end), due in zip(
                manifest.chunk_keys(self.key), manifest.spans(), digests, strict=True
            )
        ]

    def end_chunks(self, loads: Sequence[LoadChunk]) -> None:
        """The outcome of a chunked value, or that it has to be loaded again."""
        missing = False
        self.outcome = Outcome.of(self.key, Status.HIT)
        for load in loads:
            if load.error is not None:
                self.outcome = Outcome.failed(self.key, load.error)
            elif load.damage is not None and self.outcome.ok:
                self.outcome = Outcome.corrupt(self.key, load.damage)
            missing = missing or load.missing
        if missing and self.outcome.ok:
            self.outcome = Outcome.incomplete(self.key)
        self.again = self.again and self.outcome.reason == INCOMPLETE


def _loaded(load: Load) -> Outcome:
    if load.error is not None:
        return Outcome.failed(load.key, load.error)
    if load.damage is not None:
        return Outcome.corrupt(load.key, load.damage)
    return Outcome.of(load.key, Status.MISS if load.missing else Status.HIT)


def _settled(request: Request, status: Status) -> Outcome:
    if request.error is not None:
        return Outcome.failed(request.key, request.error)
    return Outcome.of(request.key, status)


def _header_of(request: Commands) -> Header | Damage | CacheError | None:
    """What the first reply, to GETRANGE, says of the value; None when there is none."""
    if request.refusal is not None and is_wrong_type(request.refusal):
        return Damage.FOREIGN
    if request.error is not None:
        return request.error
    head = request.replies[0]
    return parse_header(head, request.key) if isinstance(head, bytes) and head else None


def _found(key: bytes, header: Header | Damage | CacheError | None) -> Outcome:
    if isinstance(header, CacheError):
        return Outcome.failed(key, header)
    if isinstance(header, Damage):
        return Outcome.corrupt(key, header)
    return Outcome.of(key, Status.MISS if header is None else Status.HIT)


def _ttl_ms(ttl_s: float | None) -> int | None:
    if ttl_s is None:
        return None
    if not 0 < ttl_s < math.inf:
        raise UsageError(f"ttl_s is a positive number of seconds, or None for ever, not {ttl_s!r}")
    return max(1, round(ttl_s * 1000))


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} is at least 1, not {number!r}")


def _as_bytes(buffer: ReadableBuffer) -> memoryview:
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError, BufferError) as error:
        raise UsageError(
            f"a value is bytes or any other buffer, and this {type(buffer).__name__} gives none: {error}"
        ) from None
    if not view.c_contiguous:
        raise UsageError("the buffer's bytes do not lie in one piece (C-contiguous); make a copy that does")
    if view.format == "B" and view.ndim == 1:
        return view
    if "O" in _FIELD_NAME.sub("", view.format):
        raise UsageError("the buffer holds Python objects, whose bytes are addresses")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _writable(buffer: WriteableBuffer) -> memoryview:
    view = _as_bytes(buffer)
    if view.readonly:
        raise UsageError("the buffer is read-only, and cannot be loaded into")
    return view
