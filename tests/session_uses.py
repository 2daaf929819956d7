"""What the tests of sessions share: ids, every use of a session, a store's contents, and lost replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fixtures.faults.fault import Context, Cut, Fault, OnReply
from fixtures.faults.proxy import FaultProxy
from fixtures.faults.resp import Command, Frame
from fixtures.targets.embedded import EmbeddedServer
from inference_cache.connection import Client
from inference_cache.sessions import SessionHandle, SessionId, SessionStore, Target, Turn

VOLATILE = {"save": "", "appendonly": "no"}
NASTY: tuple[SessionId, ...] = (
    "a", "a*", "*", "?", "[ab]", "[^a]", "a\\*", "{a}", "}{", "a:turns", "a:state", "a%3Aturns",
    b"\0\r\n\xff", bytes(range(256)), ("a", "turns"), ("user", 123), ("user", "1", "turns"), 123, "é", " ",
)  # fmt: skip


def url(proxy: FaultProxy) -> str:
    return f"valkey://127.0.0.1:{proxy.port}"


@contextmanager
def proxy_to(server: EmbeddedServer) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", server.port)) as running:
        yield running


def contents(turns: list[Turn]) -> list[bytes]:
    return [turn.content for turn in turns]


def snapshot(client: Client) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


def filled(store: SessionStore, id: SessionId, *, turns: int = 3, state: bool = True) -> SessionHandle:
    handle = store.create(id)
    for number in range(turns):
        store.append(handle, b"turn %d" % number, idempotency_key=f"fill {number}")
    if state:
        store.compare_and_set(handle, b"state", 0)
    return handle


@dataclass(kw_only=True, eq=False)
class NowAndThen(Fault):
    """Cuts the reply to one script in ``every`` somewhere, after the server has carried it out."""

    inside_exec = False

    every: int
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def on_reply(self, ctx: Context, command: Command, reply: Frame) -> OnReply:
        if command.name not in (b"EVAL", b"EVALSHA") or self.chance.randrange(self.every):
            return None
        self.act()
        return Cut(after_bytes=self.chance.randrange(len(reply.raw)), reset=True)


Use = Callable[[SessionStore, Target], object]
WRITES: dict[str, Use] = {
    "append": lambda store, session: store.append(session, b"x", idempotency_key="w"),
    "append_many": lambda store, session: store.append_many(session, [b"x", b"y"], idempotency_key="m"),
    "compare_and_set": lambda store, session: store.compare_and_set(session, b"new", 1),
}
READS: dict[str, Use] = {
    "read": lambda store, session: store.read(session),
    "window": lambda store, session: store.window(session, last_turns=2),
    "window of tokens": lambda store, session: store.window(
        session, last_tokens=9, count_tokens=lambda turn: len(turn.content)
    ),
    "get_state": lambda store, session: store.get_state(session),
}
STILL: dict[str, Use] = {
    "read, still": lambda store, session: store.read(session, slide=False),
    "window, still": lambda store, session: store.window(session, last_turns=2, slide=False),
    "get_state, still": lambda store, session: store.get_state(session, slide=False),
    "exists": lambda store, session: store.exists(session),
}
SLIDING: dict[str, Use] = {
    **WRITES,
    **READS,
    "touch": lambda store, session: store.touch(session),
    "open": lambda store, session: store.open(session.id if isinstance(session, SessionHandle) else session),
}
USES: dict[str, Use] = {**SLIDING, **STILL}
