"""The two caches: how each of them runs the flows."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Required, Self, TypedDict, TypeVar, Unpack, assert_never

from inference_cache.connection import (
    AsyncClient,
    Client,
    connect,
    connect_async,
    deadline,
    remaining_s,
)
from inference_cache.connection import Options as ConnectOptions
from inference_cache.embeddings._counters import Counters
from inference_cache.embeddings._flights import Flights
from inference_cache.embeddings._flow import COMPUTING, Compute, Flow, Flows, Pause, Read, Send, Step, WaitFor
from inference_cache.embeddings._frame import Framing
from inference_cache.embeddings._identity import Identity
from inference_cache.embeddings._vectors import Dtype, Layout
from inference_cache.errors import DeadlineExceeded, UsageError
from inference_cache.keyspace import Keyspace

if TYPE_CHECKING:
    from inference_cache.embeddings._vectors import Array

__all__ = ["AsyncEmbeddingCache", "EmbeddingCache"]

_T = TypeVar("_T")

_KEYSPACE: Final = Keyspace("emb:")
_TTL_S: Final = 30 * 24 * 3600
_DEADLINE_S: Final = 1.0
_LEASE_S: Final = 10.0
_MAX_TEXT_BYTES: Final = 1 << 20
_CONNECT_S: Final = 2.0


class _Common:
    """What both caches are told, and what they can say without waiting."""

    _make_bell: Callable[[], Any]

    def __init__(
        self,
        *,
        model: str,
        revision: str,
        dimensions: int,
        dtype: Dtype,
        task: str = "",
        keyspace: Keyspace = _KEYSPACE,
        ttl_s: int | None = _TTL_S,
        sliding: bool = False,
        deadline_s: float = _DEADLINE_S,
        lease_s: float | None = _LEASE_S,
        wait_s: float | None = None,
        max_text_bytes: int = _MAX_TEXT_BYTES,
    ) -> None:
        if ttl_s is not None and (not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or ttl_s < 1):
            raise UsageError(f"ttl_s is a whole number of seconds from 1, or None for no TTL, not {ttl_s!r}")
        if sliding and ttl_s is None:
            raise UsageError("sliding extends a TTL, and ttl_s is None")
        for name, seconds in (("deadline_s", deadline_s), ("lease_s", lease_s), ("wait_s", wait_s)):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise UsageError(f"{name} is a positive number of seconds, not {seconds!r}")
        if max_text_bytes < 1:
            raise UsageError(f"max_text_bytes is at least 1, not {max_text_bytes!r}")
        layout = Layout(dtype=dtype, dimensions=dimensions)
        self._flows = Flows(
            identity=Identity(model=model, revision=revision, dimensions=dimensions, dtype=dtype, task=task),
            layout=layout,
            framing=Framing(dtype_code=layout.code, dimensions=dimensions, row_bytes=layout.row_bytes),
            keyspace=keyspace,
            flights=Flights(self._make_bell),
            ttl_s=ttl_s,
            sliding=sliding,
            deadline_s=deadline_s,
            lease_s=lease_s,
            wait_s=wait_s,
            max_text_bytes=max_text_bytes,
        )

    @property
    def counters(self) -> Counters:
        """What happened since this cache was made."""
        return self._flows.tally.snapshot()

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self._flows.framing.row_bytes

    def key(self, text: str) -> bytes:
        """The key of a text's entry: ``emb:sha256:`` and 64 hexadecimal digits. Raises InvalidText."""
        return self._flows.key(self._flows.digests([text])[0])

    def _limits(self) -> ConnectOptions:
        """Options for a client of this cache's own."""
        limit_s = self._flows.deadline_s
        return {"deadline_s": limit_s, "connect_deadline_s": min(limit_s, _CONNECT_S)}

    def __repr__(self) -> str:
        who = self._flows.identity
        return (
            f"<{type(self).__name__} {self._flows.keyspace.prefix!r} model={who.model!r} "
            f"revision={who.revision!r} dimensions={who.dimensions} dtype={who.dtype!r} task={who.task!r}>"
        )


class Options(TypedDict, total=False):
    """What both caches take, with the default. The first four decide the vectors, and have none."""

    model: Required[str]
    """What computes the vectors, as ``"BAAI/bge-m3"``."""
    revision: Required[str]
    """Which version of it, as a commit."""
    dimensions: Required[int]
    dtype: Required[Dtype]
    task: str
    """What else decides a vector: ``"query"``, ``"passage"``, a prompt; ``""``."""
    keyspace: Keyspace
    """Where entries stand; ``Keyspace("emb:")``."""
    ttl_s: int | None
    """Seconds that an entry lives, None for ever; 30 days."""
    sliding: bool
    """Whether a read extends that time; False."""
    deadline_s: float
    """Seconds that one call may spend on the server, altogether; 1. Time in ``compute`` is extra."""
    lease_s: float | None
    """Seconds after which a lease is void whose owner died; 10. A computation that takes longer may be
    repeated by another process. None: processes do not wait for each other."""
    wait_s: float | None
    """Seconds to wait for another process that computes the same text, before computing too. They come on top
    of ``deadline_s``; None, the default, takes half of what is left of it."""
    max_text_bytes: int
    """The longest text that is taken, in UTF-8; 1 MiB."""


class EmbeddingCache(_Common):
    """Embeddings of one model, computed once and kept; for any number of threads.

    ``client_or_url`` is a :class:`~inference_cache.connection.Client`, which stays the caller's to close, or
    a URL for :func:`~inference_cache.connection.connect`. No connection is opened before it is needed.

    Model, revision, dimensions, dtype and task go into the key, so caches that differ in any share nothing.

    Raises UsageError for a wrong argument, and MissingExtra when numpy, xxhash or, for bfloat16, ml_dtypes is
    not installed.
    """

    _make_bell = threading.Event

    def __init__(self, client_or_url: Client | str, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        _require_client(client_or_url, Client)
        self._owns_client = isinstance(client_or_url, str)
        self._client = (
            connect(client_or_url, **self._limits()) if isinstance(client_or_url, str) else client_or_url
        )

    def get_or_compute(self, texts: Sequence[str], compute: Callable[[list[str]], Any]) -> Array:
        """The vectors of the texts, in their order: a new array of shape (len(texts), dimensions).

        ``compute`` is called with the texts that are missing, each once, and returns their vectors in order:
        a C-contiguous array of shape (n, dimensions) of the declared dtype (for bfloat16 also the bits, as
        uint16), or a list of lists of numbers. It is called at most once for a text, usually once for all. It
        must not ask this cache for the texts that it is given.

        Never fails because of the server: what cannot be read is computed, what cannot be stored is not.

        Raises InvalidText and UsageError before anything is sent; InvalidVectors when ``compute`` returns
        something else, with nothing stored; whatever ``compute`` raises, in every caller who waits for it;
        DeadlineExceeded when a :func:`~inference_cache.connection.deadline` around the call ends while
        another thread computes.
        """
        return self._run(self._flows.get_or_compute(texts), compute)

    def get_many(self, texts: Sequence[str]) -> list[Array | None]:
        """The vectors that the cache has, each a new array of shape (dimensions,), and None for the others.

        When the server does not answer these are all. Raises InvalidText, UsageError.
        """
        return self._run(self._flows.get_many(texts))

    def put_many(self, texts: Sequence[str], vectors: Any) -> int:
        """Stores vectors, shaped as those of ``compute``; gives the number written, 0 without the server.

        Raises InvalidText, InvalidVectors, UsageError; nothing is written then.
        """
        return self._run(self._flows.put_many(texts, vectors))

    def invalidate(self, texts: Sequence[str]) -> int:
        """Removes entries; gives the number of those that there were. What is being computed is stored still.

        Raises InvalidText, UsageError, and CacheError when the server does not answer or refuses.
        """
        return self._run(self._flows.invalidate(texts))

    def close(self) -> None:
        """Closes the connections, if this cache opened them."""
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Flow[_T], compute: Callable[[list[str]], Any] | None = None) -> _T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = self._do(step, compute)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as stop:
            result: _T = stop.value
            return result

    def _do(self, step: Step, compute: Callable[[list[str]], Any] | None) -> Any:
        match step:
            case Read():
                with deadline(step.budget.left_s):
                    return self._client.mget(step.keys)
            case Send():
                with deadline(step.budget.left_s):
                    pipeline = self._client.pipeline(transaction=False)
                    for command in step.commands:
                        pipeline.execute_command(*command)
                    return pipeline.execute(raise_on_error=False)
            case Compute():
                assert compute is not None
                within = COMPUTING.set((*COMPUTING.get(), step.flight))
                try:
                    return compute(step.texts)
                finally:
                    COMPUTING.reset(within)
            case WaitFor():
                assert isinstance(step.bell, threading.Event)
                left_s = remaining_s()
                if not step.bell.wait(None if left_s is None else max(left_s, 0)):
                    raise DeadlineExceeded("another thread is still computing one of the texts")
                return None
            case Pause():
                left_s = remaining_s()
                time.sleep(step.seconds if left_s is None else max(min(step.seconds, left_s), 0))
                return None
            case _:
                assert_never(step)


class AsyncEmbeddingCache(_Common):
    """The asyncio twin of :class:`EmbeddingCache`, for one event loop; close it with ``aclose()``.

    A call that is cancelled while it computes leaves its texts to whoever waits for them.
    """

    _make_bell = asyncio.Event

    def __init__(self, client_or_url: AsyncClient | str, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        _require_client(client_or_url, AsyncClient)
        self._owns_client = isinstance(client_or_url, str)
        self._client = (
            connect_async(client_or_url, **self._limits())
            if isinstance(client_or_url, str)
            else client_or_url
        )

    async def get_or_compute(
        self, texts: Sequence[str], compute: Callable[[list[str]], Awaitable[Any] | Any]
    ) -> Array:
        """As :meth:`EmbeddingCache.get_or_compute`; ``compute`` may be a coroutine function."""
        return await self._run(self._flows.get_or_compute(texts), compute)

    async def get_many(self, texts: Sequence[str]) -> list[Array | None]:
        """As :meth:`EmbeddingCache.get_many`."""
        return await self._run(self._flows.get_many(texts))

    async def put_many(self, texts: Sequence[str], vectors: Any) -> int:
        """As :meth:`EmbeddingCache.put_many`."""
        return await self._run(self._flows.put_many(texts, vectors))

    async def invalidate(self, texts: Sequence[str]) -> int:
        """As :meth:`EmbeddingCache.invalidate`."""
        return await self._run(self._flows.invalidate(texts))

    async def aclose(self) -> None:
        """Closes the connections, if this cache opened them."""
        if self._owns_client:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[_T], compute: Callable[[list[str]], Any] | None = None) -> _T:
        try:
            step = next(flow)
            while True:
                try:
                    outcome = await self._do(step, compute)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(outcome)
        except StopIteration as stop:
            result: _T = stop.value
            return result

    async def _do(self, step: Step, compute: Callable[[list[str]], Any] | None) -> Any:
        match step:
            case Read():
                with deadline(step.budget.left_s):
                    return await self._client.mget(step.keys)
            case Send():
                with deadline(step.budget.left_s):
                    pipeline = self._client.pipeline(transaction=False)
                    for command in step.commands:
                        pipeline.execute_command(*command)
                    return await pipeline.execute(raise_on_error=False)
            case Compute():
                assert compute is not None
                within = COMPUTING.set((*COMPUTING.get(), step.flight))
                try:
                    vectors = compute(step.texts)
                    return await vectors if inspect.isawaitable(vectors) else vectors
                finally:
                    COMPUTING.reset(within)
            case WaitFor():
                assert isinstance(step.bell, asyncio.Event)
                try:
                    async with asyncio.timeout(remaining_s()):
                        await step.bell.wait()
                except TimeoutError:
                    raise DeadlineExceeded("another task is still computing one of the texts") from None
                return None
            case Pause():
                left_s = remaining_s()
                await asyncio.sleep(step.seconds if left_s is None else max(min(step.seconds, left_s), 0))
                return None
            case _:
                assert_never(step)


def _require_client(given: object, wanted: type[Client] | type[AsyncClient]) -> None:
    if not isinstance(given, (wanted, str)):
        source = "connect()" if wanted is Client else "connect_async()"
        raise UsageError(f"give a URL or what {source} returned, not {type(given).__name__}")
