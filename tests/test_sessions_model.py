"""Whatever is done to several sessions, each behaves as a plain Python object of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.connection import Client
from inference_cache.errors import SessionConflict, SessionExists, SessionLost, SessionUnknown, UsageError
from inference_cache.sessions import SessionHandle, SessionId, SessionStore, Turn
from tests.session_uses import VOLATILE

IDS: tuple[SessionId, ...] = ("a", "a*", "[a]", "a:turns", ("a", "turns"), b"\xff?", "{a}")
REMEMBERED = 5

ids = st.sampled_from(IDS)
turns = st.builds(
    Turn, content=st.binary(max_size=40), role=st.text(max_size=5), metadata=st.binary(max_size=5)
)


@pytest.fixture(scope="module", params=shipped_executables().values(), ids=shipped_executables())
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(request.param, VOLATILE) as running:
        yield running


@dataclass(slots=True, kw_only=True)
class Model:
    """What a session should be."""

    handle: SessionHandle
    turns: list[Turn] = field(default_factory=list)
    state: bytes = b""
    version: int = 0
    updates: list[tuple[str, list[Turn], int]] = field(default_factory=list)
    """Key, turns and first position of each append; an empty key for a state."""


class Sessions(RuleBasedStateMachine):
    client: Client

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.stores = [SessionStore(self.client, remember_updates=REMEMBERED) for _ in range(2)]
        self.models: dict[SessionId, Model] = {}
        self.old_handles: list[SessionHandle] = []
        self.keys_drawn = 0

    def store(self, which: int) -> SessionStore:
        return self.stores[which]

    def draw_key(self) -> str:
        self.keys_drawn += 1
        return f"key {self.keys_drawn}"

    def gone(self, id: SessionId, which: int) -> bool:
        """Whether the session is not there; then no use of it may say otherwise."""
        if id in self.models:
            return False
        for use in (
            lambda: self.store(which).read(id),
            lambda: self.store(which).append(id, b"x", idempotency_key="x"),
            lambda: self.store(which).compare_and_set(id, b"x", 0),
        ):
            with pytest.raises((SessionUnknown, SessionLost)):
                use()
        return True

    @rule(id=ids, which=st.integers(0, 1))
    def create(self, id: SessionId, which: int) -> None:
        if id in self.models:
            with pytest.raises((SessionExists, SessionLost)):
                self.store(which).create(id)
            return
        # The other store may have met one that this one deleted.
        self.store(which).forget(id)
        self.models[id] = Model(handle=self.store(which).create(id))
        self.store(1 - which).forget(id)

    @rule(id=ids, which=st.integers(0, 1))
    def replace(self, id: SessionId, which: int) -> None:
        if id in self.models:
            self.old_handles.append(self.models[id].handle)
        self.models[id] = Model(handle=self.store(which).create(id, replace=True))
        self.store(1 - which).forget(id)

    @rule(id=ids, which=st.integers(0, 1), sent=st.lists(turns, min_size=1, max_size=4))
    def append(self, id: SessionId, which: int, sent: list[Turn]) -> None:
        if self.gone(id, which):
            return
        model, key = self.models[id], self.draw_key()
        first = len(model.turns)
        positions = self.store(which).append_many(model.handle, sent, idempotency_key=key)
        assert positions == list(range(first, first + len(sent)))
        model.turns += sent
        model.updates.append((key, sent, first))

    @rule(id=ids, which=st.integers(0, 1), back=st.integers(1, REMEMBERED))
    def append_again(self, id: SessionId, which: int, back: int) -> None:
        if self.gone(id, which) or len(self.models[id].updates) < back:
            return
        key, sent, first = self.models[id].updates[-back]
        if not key:
            return
        positions = self.store(which).append_many(id, sent, idempotency_key=key)
        assert positions == list(range(first, first + len(sent)))
        with pytest.raises(UsageError):
            self.store(which).append_many(id, [*sent, b"more"], idempotency_key=key)

    @rule(id=ids, which=st.integers(0, 1), new=st.binary(max_size=20), off=st.integers(-1, 1))
    def compare_and_set(self, id: SessionId, which: int, new: bytes, off: int) -> None:
        if self.gone(id, which):
            return
        model = self.models[id]
        expected = max(model.version + off, 0)
        if expected != model.version:
            with pytest.raises(SessionConflict):
                self.store(which).compare_and_set(id, new, expected)
            return
        model.version += 1
        model.state = new
        assert self.store(which).compare_and_set(id, new, expected) == model.version
        model.updates.append(("", [], 0))

    @rule(id=ids, which=st.integers(0, 1), last=st.integers(0, 6))
    def window(self, id: SessionId, which: int, last: int) -> None:
        if self.gone(id, which):
            return
        expected = self.models[id].turns
        found = self.store(which).window(id, last_turns=last)
        assert [plain(turn) for turn in found] == expected[max(len(expected) - last, 0) :]

    @rule(id=ids, which=st.integers(0, 1))
    def touch(self, id: SessionId, which: int) -> None:
        if not self.gone(id, which):
            self.store(which).touch(id)

    @rule(id=ids, which=st.integers(0, 1), by_handle=st.booleans())
    def delete(self, id: SessionId, which: int, by_handle: bool) -> None:
        model = self.models.pop(id, None)
        self.store(which).delete(model.handle if model and by_handle else id)
        if model:
            self.old_handles.append(model.handle)

    @rule(which=st.integers(0, 1))
    def use_old_handles(self, which: int) -> None:
        for handle in self.old_handles:
            with pytest.raises(SessionLost):
                self.store(which).read(handle)

    @invariant()
    def every_session_is_its_model(self) -> None:
        for id, model in self.models.items():
            assert [plain(turn) for turn in self.stores[0].read(id, slide=False)] == model.turns
            assert self.stores[1].get_state(model.handle, slide=False) == (model.state, model.version)

    @invariant()
    def no_key_is_left_over_or_outlives_another(self) -> None:
        expected = set()
        for id, model in self.models.items():
            keys = self.stores[0].keys(id)
            there = {keys.root} | ({keys.turns} if model.turns else set())
            there |= {keys.state} if model.version else set()
            assert len({self.client.pexpiretime(key) for key in there}) == 1
            assert self.client.pexpiretime(keys.root) > 0
            expected |= there
        assert set(self.client.scan_iter()) == expected


def plain(turn: Turn) -> Turn:
    return Turn(content=turn.content, role=turn.role, metadata=turn.metadata)


def test_sessions_behave_as_their_models(server: EmbeddedServer) -> None:
    with ExitStack() as stack:
        connected = stack.enter_context(server.connect())
        machine = type("Sessions", (Sessions,), {"client": connected})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
        )
