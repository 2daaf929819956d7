"""The thread that asks the server, within its budget, and what it knows at any moment."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from inference_cache.connection import Client, connect, parse_url
from inference_cache.contract import Contract, may_evict
from inference_cache.errors import CacheError, UsageError
from inference_cache.exporter._estimate import Estimate
from inference_cache.exporter._losses import Losses
from inference_cache.exporter._settings import Settings
from inference_cache.exporter._walks import Command, FullWalk, RandomWalk, Walk
from inference_cache.keyspace import Keyspace, workload_of

__all__ = ["OTHER", "IdleTimes", "Sample", "Server", "Snapshot", "Watcher"]

T = TypeVar("T")

OTHER: Final = "other"
"""Stands for every key without a declared prefix, so that the number of series is fixed."""
_BATCH: Final = 50
"""Commands sent at once, at most: the server answers these before it turns to others."""
_AFTER_FAILURE_S: Final = 1.0
"""Pause before the server is asked again after it failed to answer."""
_IDLE_KEPT_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Who answers."""

    run_id: str
    name: str
    version: str
    tcp_port: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleTimes:
    """How long sampled keys of a prefix had neither been read nor written."""

    oldest_s: float
    median_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is known of the keyspace."""

    complete: bool
    keys: int
    age_s: float
    explained: float | None
    """Mean size of the sampled keys, times the keys that INFO counted, over its used_memory_dataset; None for
    an empty server. Scaled, so that a sample younger than the last INFO is not held against older data.
    """
    by_prefix: Mapping[str, Estimate]
    idle: Mapping[str, IdleTimes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that the watcher knows at one moment."""

    up: bool
    tried: bool
    """Whether the server has been asked at all."""
    server: Server | None
    """None unless it is up."""
    sample: Sample | None
    """None unless it is up and some keys, or their absence, were seen."""
    evicted: Mapping[str, float]
    expired: Mapping[str, float]
    vanished: Mapping[str, int]
    errors: Mapping[str, int]
    """Failures to ask, by :attr:`inference_cache.errors.CacheError.reason`."""
    operations: int
    counted_hits: int


class Watcher:
    """Asks one server from a thread of its own; :meth:`snapshot` never waits for the server.

    Raises UsageError for a cluster: there each node is watched by an exporter of its own.
    """

    def __init__(self, url: str, *, contract: Contract, settings: Settings, seed: int | None = None) -> None:
        if parse_url(url).kind == "cluster":
            raise UsageError(
                "an exporter watches one node: start one for each, with its own valkey://HOST:PORT"
            )
        self._settings = settings
        self._spaces = {w.name: Keyspace(w.prefix) for w in contract.workloads.values()}
        self._index = {name: number for number, name in enumerate(self._spaces)}
        self._prefixes = [*(space.prefix for space in self._spaces.values()), OTHER]
        self._expirable = [*(w.ttl_s is not None for w in contract.workloads.values()), True]
        self._rng = random.Random(seed)
        self._client: Client = connect(
            url,
            deadline_s=settings.deadline_s,
            connect_deadline_s=settings.deadline_s,
            max_connections=1,
            client_name="inference-cache-exporter",
        )
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)
        # What the lock guards:
        self._tried = False
        self._up = False
        self._server: Server | None = None
        self._info: Mapping[str, str] = {}
        self._population = 0
        self._losses = Losses(len(self._prefixes))
        self._walk: Walk | None = None
        self._errors: Counter[str] = Counter()
        self._operations = 0
        self._counted_hits = 0
        self._idle: list[deque[tuple[float, float]]] = [deque() for _ in self._prefixes]
        # What the thread has for itself:
        self._next_info_s = 0.0
        self._idle_tokens = [0.0] * len(self._prefixes)
        self._idle_wanted: deque[tuple[bytes, int]] = deque()
        self._idle_refused = False

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread and the connection. Safe to call twice."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._settings.deadline_s + 5)
        self._client.close()

    def snapshot(self) -> Snapshot:
        """What is known now. Numbers of the keyspace are absent while the server does not answer."""
        now_s = time.monotonic()
        with self._lock:
            return Snapshot(
                up=self._up,
                tried=self._tried,
                server=self._server if self._up else None,
                sample=self._sample(now_s) if self._up else None,
                evicted=self._named(self._losses.evicted),
                expired=self._named(self._losses.expired),
                vanished=self._named(self._losses.vanished),
                errors=dict(self._errors),
                operations=self._operations,
                counted_hits=self._counted_hits,
            )

    def _named(self, values: Sequence[T]) -> dict[str, T]:
        return dict(zip(self._prefixes, values, strict=True))

    def _sample(self, now_s: float) -> Sample | None:
        if self._walk is None:
            return None
        estimates = self._walk.estimates(self._population, now_s)
        if estimates is None:
            return None
        dataset = int(self._info.get("used_memory_dataset", "0"))
        keys = sum(each.keys for each in estimates)
        expected = sum(each.bytes for each in estimates) / keys * self._population if keys else 0.0
        return Sample(
            complete=self._walk.complete,
            keys=self._walk.sample_keys(),
            age_s=self._walk.age_s(now_s),
            explained=expected / dataset if expected and dataset > 0 else None,
            by_prefix=self._named(estimates),
            idle={
                prefix: IdleTimes(
                    oldest_s=max(idle for _, idle in seen),
                    median_s=statistics.median(idle for _, idle in seen),
                )
                for prefix, seen in zip(self._prefixes, self._idle, strict=True)
                if seen
            },
        )

    # --- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        budget_ops_s = self._settings.budget_ops_s
        # Twice as often as whole batches would need, since not every one is full.
        pace_s = min(1.0, max(0.005, _BATCH / budget_ops_s / 2))
        tokens, last_s = 0.0, time.monotonic()
        while not self._ended.is_set():
            now_s = time.monotonic()
            elapsed_s, last_s = now_s - last_s, now_s
            tokens = min(max(2.0, budget_ops_s), tokens + elapsed_s * budget_ops_s)
            self._earn_idle(elapsed_s)
            try:
                tokens -= self._turn(min(_BATCH, int(tokens)), now_s)
            except CacheError as error:
                with self._lock:
                    self._tried, self._up = True, False
                    self._errors[error.reason] += 1
                self._next_info_s = 0.0  # who answers next may be another
                self._ended.wait(_AFTER_FAILURE_S)
            else:
                self._ended.wait(pace_s)

    def _turn(self, allowance: int, now_s: float) -> int:
        """One exchange of at most ``allowance`` commands; how many it took.

        Raises:
            CacheError: the server did not answer, or refused a command.
        """
        if allowance < 1:
            return 0
        if now_s >= self._next_info_s:
            self._read_info(now_s)
            self._next_info_s = now_s + self._settings.info_every_s
            return 2
        idle_keys = [self._idle_wanted.popleft() for _ in range(min(len(self._idle_wanted), allowance // 2))]
        with self._lock:
            walk = self._walk
            assert walk is not None  # INFO comes first, and sets it
            commands: list[Command] = walk.next(allowance - len(idle_keys), now_s)
        batch = [*commands, *(("OBJECT IDLETIME", key) for key, _ in idle_keys)]
        if not batch:
            # Not a PING either: a server that cannot save refuses that (MISCONF), and counts it as an error
            # that an operator will look into. INFO tells soon enough whether the server is there.
            return 0
        pipeline = self._client.pipeline(transaction=False)
        for command in batch:
            pipeline.execute_command(*command)
        replies = pipeline.execute(raise_on_error=False)
        walked, idle = replies[: len(commands)], replies[len(commands) :]
        with self._lock:
            self._operations += len(batch)
            if commands:
                _raise_first(walked)
                walk.absorb(commands, walked, now_s)
            for (_, prefix), reply in zip(idle_keys, idle, strict=False):
                if isinstance(reply, CacheError):
                    self._idle_refused = True  # an LFU policy keeps no idle times
                elif reply is not None:
                    self._counted_hits += 1
                    self._idle[prefix].append((now_s, float(reply)))
            for seen in self._idle:
                while seen and seen[0][0] < now_s - _IDLE_KEPT_S:
                    seen.popleft()
            self._up = True
        return len(batch)

    def _read_info(self, now_s: float) -> None:
        # "INFO default" as one name, so that valkey-py does not interpret the fields: 9.10 is no number.
        pipeline = self._client.pipeline(transaction=False)
        pipeline.execute_command("INFO default").execute_command("DBSIZE")
        replies = pipeline.execute(raise_on_error=False)
        _raise_first(replies)
        info, population = _fields(replies[0]), int(replies[1])
        with self._lock:
            self._operations += 2
            server = Server(
                run_id=info.get("run_id", ""),
                name=info.get("server_name", "redis"),
                version=info.get("valkey_version", info.get("redis_version", "")),
                tcp_port=info.get("tcp_port", ""),
            )
            if self._server is not None and self._server.run_id == server.run_id:
                self._share_out(info)
            else:
                self._walk = None  # another process: what was sampled was in another memory
                for seen in self._idle:
                    seen.clear()
                self._idle_refused = False
            self._server, self._info, self._population = server, info, population
            self._tried = self._up = True
            self._choose_walk()

    def _share_out(self, info: Mapping[str, str]) -> None:
        policy = info.get("maxmemory_policy", "")
        since = {
            name: max(0, int(info.get(name, "0")) - int(self._info.get(name, "0")))
            for name in ("evicted_keys", "expired_keys")
        }
        self._losses.share_out(
            since["evicted_keys"],
            since["expired_keys"],
            evictable=[may_evict(policy, has_ttl=has_ttl) for has_ttl in self._expirable],
            expirable=self._expirable,
        )

    def _choose_walk(self) -> None:
        """Whole passes while the budget allows one in time, a random sample above that."""
        settings = self._settings
        most = settings.budget_ops_s * settings.full_pass_s
        # Some slack, so that a keyspace about this size does not go to and fro.
        if self._walk is not None and self._population <= most * (1.2 if self._walk.complete else 0.8):
            wanted_complete = True
        else:
            wanted_complete = self._walk is None and self._population <= most
        if self._walk is not None and self._walk.complete == wanted_complete:
            return
        prefixes = len(self._prefixes)
        self._walk = (
            FullWalk(
                self._classify,
                prefixes=prefixes,
                pause_s=1.0,
                on_gone=self._losses.saw_gone,
                on_seen=self._maybe_idle,
            )
            if wanted_complete
            else RandomWalk(
                self._classify,
                prefixes=prefixes,
                window_s=settings.window_s,
                recheck_s=settings.recheck_s,
                on_gone=self._losses.saw_gone,
                on_seen=self._maybe_idle,
                rng=self._rng,
            )
        )

    def _classify(self, key: bytes) -> int:
        name = workload_of(key, self._spaces)
        return len(self._spaces) if name is None else self._index[name]

    def _earn_idle(self, elapsed_s: float) -> None:
        gain = elapsed_s * self._settings.idle_keys / 60
        self._idle_tokens = [min(5.0, tokens + gain) for tokens in self._idle_tokens]

    def _maybe_idle(self, key: bytes, prefix: int) -> None:
        if self._idle_tokens[prefix] >= 1 and not self._idle_refused:
            self._idle_tokens[prefix] -= 1
            self._idle_wanted.append((key, prefix))


def _raise_first(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _fields(raw: bytes | str) -> dict[str, str]:
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    lines = (
        line.partition(":")
        for line in text.removeprefix("txt:").splitlines()
        if line and not line.startswith("#")
    )
    return {name: value for name, _, value in lines}
