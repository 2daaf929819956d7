"""Stored bytes are the documented ones, and nothing else is taken for them: blobs, vectors, turns, states."""

from __future__ import annotations

import hashlib
import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from inference_cache.blobs._frame import (
    HEADER_BYTES,
    MAX_CHUNKS,
    Damage,
    Header,
    Kind,
    chunk_key,
    damage_of_length,
    is_chunk_key,
    manifest_frame,
    new_generation,
    parse_header,
    whole_header,
)
from inference_cache.embeddings._frame import Framing, Refusal
from inference_cache.embeddings._identity import Identity
from inference_cache.errors import InvalidText, MissingExtra, SessionCorrupt, UsageError
from inference_cache.sessions._turns import (
    MAX_ROLE_BYTES,
    State,
    Turn,
    check_state,
    decode_state,
    decode_turn,
    encode_state,
    encode_turn,
    same_turn,
)

KEY = b"ray:object"
GENERATION = bytes(range(16))


class TestBlobs:
    """Layout by the table at the head of ``blobs/_frame.py``."""

    MAGIC = bytes.fromhex("AB4943424C4F420A")

    def header(self, **changed: Any) -> bytes:
        """A sealed manifest header of 5 chunks of 1000 bytes and a last of 1, with fields changed."""
        field = {
            "magic": self.MAGIC,
            "version": 1,
            "kind": 2,
            "reserved": 0,
            "chunks": 6,
            "total": 5001,
            "chunk": 1000,
            "generation": GENERATION,
            "key": KEY,
        } | changed
        fields = field["magic"] + struct.pack(
            "<BBHIQQ16sQ",
            *(field[name] for name in ("version", "kind", "reserved", "chunks", "total", "chunk")),
            field["generation"],
            xxh3_64_intdigest(field["key"]),
        )
        assert len(fields) == 56
        return fields + struct.pack("<Q", xxh3_64_intdigest(fields))

    def test_a_whole_value_has_the_documented_header(self) -> None:
        header = self.header(kind=1, chunks=0, total=7, chunk=0, generation=bytes(16))
        assert whole_header(KEY, 7) == header
        assert len(header) == HEADER_BYTES == 64

    def test_a_manifest_has_the_documented_bytes(self) -> None:
        digests = [bytes([number]) * 16 for number in range(6)]
        frame = manifest_frame(
            KEY, total_bytes=5001, chunk_bytes=1000, generation=GENERATION, digests=digests
        )
        assert frame == self.header() + b"".join(digests) + xxh3_128_digest(b"".join(digests))

    def test_a_header_is_read_back(self) -> None:
        header = parse_header(self.header(), KEY)
        assert header == Header(
            kind=Kind.MANIFEST, chunks=6, total_bytes=5001, chunk_bytes=1000, generation=GENERATION
        )
        assert header.payload_bytes == 6 * 16
        assert list(header.spans()) == [
            (0, 1000), (1000, 2000), (2000, 3000), (3000, 4000), (4000, 5000), (5000, 5001),
        ]  # fmt: skip
        assert header.chunk_keys(KEY) == [chunk_key(KEY, GENERATION, index) for index in range(6)]

    def test_a_whole_value_has_no_chunks(self) -> None:
        header = parse_header(whole_header(KEY, 7), KEY)
        assert isinstance(header, Header)
        assert (header.kind, header.payload_bytes, header.chunk_keys(KEY)) == (Kind.WHOLE, 7, [])

    @pytest.mark.parametrize(
        ("changed", "damage"),
        [
            ({"magic": b"\xabICBLOB\r"}, Damage.FOREIGN),
            ({"version": 0}, Damage.VERSION),
            ({"version": 2}, Damage.VERSION),
            ({"kind": 0}, Damage.VERSION),
            ({"kind": 3}, Damage.VERSION),
            ({"reserved": 1}, Damage.VERSION),
            ({"kind": 1, "reserved": 1}, Damage.VERSION),
            ({"key": b"ray:other"}, Damage.FOREIGN),
            ({"chunks": 5}, Damage.FOREIGN),
            ({"chunks": 7}, Damage.FOREIGN),
            ({"chunk": 0}, Damage.FOREIGN),
            ({"total": 5000}, Damage.FOREIGN),
            ({"total": 6001}, Damage.FOREIGN),
            ({"chunks": MAX_CHUNKS + 1, "total": MAX_CHUNKS + 1, "chunk": 1}, Damage.FOREIGN),
        ],
    )
    def test_a_sound_header_of_something_else_is_refused(
        self, changed: dict[str, Any], damage: Damage
    ) -> None:
        assert parse_header(self.header(**changed), KEY) is damage

    def test_as_many_chunks_as_allowed_are_read(self) -> None:
        largest = self.header(chunks=MAX_CHUNKS, total=MAX_CHUNKS, chunk=1)
        assert isinstance(parse_header(largest, KEY), Header)
        assert isinstance(parse_header(self.header(total=6000), KEY), Header)

    def test_a_newer_version_is_told_before_its_seal_is_read(self) -> None:
        """Its header may be sealed in another way, or mean something else by every field."""
        newer = self.header(version=9)
        assert parse_header(newer[:-1] + bytes([newer[-1] ^ 1]), KEY) is Damage.VERSION

    @pytest.mark.parametrize("offset", range(12, 64))
    def test_a_changed_byte_breaks_the_seal(self, offset: int) -> None:
        header = bytearray(self.header())
        header[offset] ^= 1
        assert parse_header(bytes(header), KEY) is Damage.CHECKSUM

    @pytest.mark.parametrize("length", range(64))
    def test_a_beginning_is_short(self, length: int) -> None:
        assert parse_header(self.header()[:length], KEY) is Damage.SHORT

    def test_a_key_of_a_chunk_lies_under_its_value_and_names_generation_and_index(self) -> None:
        assert chunk_key(KEY, GENERATION, 12) == b"ray:object:~000102030405060708090a0b0c0d0e0f:12"

    @given(st.binary(max_size=40), st.binary(min_size=16, max_size=16), st.integers(0, MAX_CHUNKS))
    def test_every_key_of_a_chunk_is_known_for_one(self, key: bytes, generation: bytes, index: int) -> None:
        assert is_chunk_key(chunk_key(key, generation, index))

    @pytest.mark.parametrize(
        "key",
        [
            b"",
            KEY,
            b"ray:object:12",
            b"ray:object:~000102030405060708090a0b0c0d0e0f",
            b"ray:object:~000102030405060708090a0b0c0d0e0f:",
            b"ray:object:~000102030405060708090a0b0c0d0e0f:x",
            b"ray:object:~000102030405060708090a0b0c0d0e0f:-1",
            b"ray:object:~000102030405060708090a0b0c0d0e0F:1",
            b"ray:object:~000102030405060708090a0b0c0d0e0:1",
            b"ray:object:~000102030405060708090a0b0c0d0e0g:1",
            b"ray:object:~g00102030405060708090a0b0c0d0e0f:1",
            b"ray:object:-000102030405060708090a0b0c0d0e0f:1",
            b"ray:object.~000102030405060708090a0b0c0d0e0f:1",
            b"~000102030405060708090a0b0c0d0e0f:1",
            b":~:1",
        ],
    )
    def test_no_other_key_is(self, key: bytes) -> None:
        assert is_chunk_key(key) is False

    def test_generations_are_16_bytes_and_new(self) -> None:
        drawn = {new_generation() for _ in range(100)}
        assert {len(one) for one in drawn} == {16}
        assert len(drawn) == 100

    def test_a_length_is_right_short_or_long(self) -> None:
        assert [damage_of_length(found, 5) for found in (4, 5, 6)] == [Damage.SHORT, None, Damage.LONG]


class TestVectors:
    """Layout by the head of ``embeddings/_frame.py``."""

    DIGEST = bytes(range(32))
    ROW = bytes(range(100, 116))

    @property
    def framing(self) -> Framing:
        return Framing(dtype_code=1, dimensions=4, row_bytes=16)

    def frame(self, **changed: Any) -> bytes:
        """The frame of ``ROW`` with fields changed and a right checksum."""
        field = {"magic": b"ICE", "version": 1, "dtype": 1, "dimensions": 4, "bound": self.DIGEST[:16]}
        field |= {"row": self.ROW} | changed
        body = struct.pack("<B3xI16s", field["dtype"], field["dimensions"], field["bound"]) + field["row"]
        return field["magic"] + struct.pack("<BQ", field["version"], xxh3_64_intdigest(body)) + body

    def test_a_frame_has_the_documented_bytes(self) -> None:
        assert self.framing.wrap(self.DIGEST, memoryview(self.ROW)) == self.frame()
        assert len(self.frame()) == 36 + 16

    def test_it_gives_the_row_back(self) -> None:
        found = self.framing.unwrap(self.DIGEST, self.frame())
        assert not isinstance(found, Refusal)
        assert found.tobytes() == self.ROW

    @pytest.mark.parametrize(
        ("changed", "refusal"),
        [
            ({"magic": b"ICF"}, Refusal.FOREIGN),
            ({"version": 2}, Refusal.WRONG_VERSION),
            ({"bound": bytes(16)}, Refusal.FOREIGN),
            ({"dtype": 2}, Refusal.WRONG_SHAPE),
            ({"dimensions": 5}, Refusal.WRONG_SHAPE),
            ({"row": ROW + b"\0"}, Refusal.WRONG_SHAPE),
            ({"row": ROW[:-1]}, Refusal.WRONG_SHAPE),
            ({"row": b""}, Refusal.WRONG_SHAPE),
        ],
    )
    def test_a_sound_frame_of_something_else_is_refused(
        self, changed: dict[str, Any], refusal: Refusal
    ) -> None:
        assert self.framing.unwrap(self.DIGEST, self.frame(**changed)) is refusal

    @pytest.mark.parametrize("offset", range(4, 52))
    def test_a_changed_byte_is_damage(self, offset: int) -> None:
        frame = bytearray(self.frame())
        frame[offset] ^= 1
        assert self.framing.unwrap(self.DIGEST, bytes(frame)) is Refusal.CORRUPT

    @pytest.mark.parametrize("length", range(36))
    def test_a_beginning_is_damage_and_a_few_other_bytes_are_foreign(self, length: int) -> None:
        assert self.framing.unwrap(self.DIGEST, self.frame()[:length]) is Refusal.CORRUPT
        if length:
            assert self.framing.unwrap(self.DIGEST, b"ECI"[:length].ljust(length)) is Refusal.FOREIGN

    def test_a_missing_package_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "xxhash", None)
        with pytest.raises(MissingExtra) as caught:
            Framing(dtype_code=1, dimensions=4, row_bytes=16)
        assert (caught.value.module, caught.value.extra) == ("xxhash", "embeddings")


class TestTexts:
    """What is hashed for the key of a text."""

    def digest(self, text: str, *, max_text_bytes: int) -> bytes:
        identity = Identity(model="m", revision="r", dimensions=4, dtype="int8", task="query")
        return identity.digest(text, max_text_bytes=max_text_bytes)

    def test_name_and_content_of_every_field_are_hashed_with_their_lengths(self) -> None:
        hashed = b"inference-cache embedding key 1"
        for name, content in (
            (b"model", b"m"),
            (b"revision", b"r"),
            (b"dtype", b"int8"),
            (b"task", b"query"),
            (b"dimensions", b"4"),
            (b"text", "é".encode()),
        ):
            hashed += struct.pack(">B", len(name)) + name + struct.pack(">Q", len(content)) + content
        assert self.digest("é", max_text_bytes=2) == hashlib.sha256(hashed).digest()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"secret", "a text is a str, not bytes"),
            ("", "a text is empty: leave it out, there is nothing to embed"),
            (
                "secret\ud800",
                "a text of 7 characters is not valid Unicode at character 6: surrogates not allowed",
            ),
            (
                "secret é",
                "a text has 9 bytes, more than max_text_bytes=8: split it into passages, "
                "or raise the limit if the model reads as much",
            ),
        ],
    )
    def test_a_text_that_cannot_be_is_refused_without_repeating_it(self, text: Any, says: str) -> None:
        with pytest.raises(InvalidText) as caught:
            self.digest(text, max_text_bytes=8)
        assert str(caught.value) == says
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"model": ""}, "model names what computes the vectors, as 'BAAI/bge-m3' does; it is empty"),
            ({"model": 1}, "model is a str, not int"),
            ({"task": None}, "task is a str, not NoneType"),
            ({"revision": "\ud800"}, "revision is not valid Unicode (surrogates not allowed): '\\ud800'"),
        ],
    )
    def test_an_identity_that_cannot_be_is_refused(self, changed: dict[str, Any], says: str) -> None:
        fields: dict[str, Any] = {"model": "m", "revision": "r", "dimensions": 4, "dtype": "int8", "task": ""}
        with pytest.raises(UsageError) as caught:
            Identity(**fields | changed)
        assert str(caught.value) == says


class TestTurns:
    """Layout by the head of ``sessions/_turns.py``; the scripts of the server add place and seal."""

    TURN = Turn(
        content=b"content", role="usér", metadata=b"{meta}", idempotency_key="key", position=3, at_ms=99
    )

    def body(self, **changed: Any) -> bytes:
        field = {"role": "usér".encode(), "key": b"key", "metadata": b"{meta}", "content": b"content"}
        field |= {"magic": b"T1"} | changed
        covered = struct.pack(">HHI", *(len(field[name]) for name in ("role", "key", "metadata")))
        covered += field["role"] + field["key"] + field["metadata"] + field["content"]
        return field["magic"] + hashlib.blake2b(covered, digest_size=8).digest() + covered

    def entry(self, body: bytes, *, position: int = 3, generation: bytes = b"g" * 16) -> bytes:
        """What the server makes of a body."""
        place = struct.pack(">QQ", position, 99)
        return place + hashlib.sha1(generation + place + body[2:10]).hexdigest()[:16].encode() + body

    def decoded(self, entry: object, *, position: int = 3, generation: bytes = b"g" * 16) -> Turn:
        return decode_turn(entry, key=b"session:{a}", generation=generation, position=position)

    def test_a_turn_has_the_documented_bytes(self) -> None:
        assert encode_turn(self.TURN, idempotency_key=b"key", max_bytes=13) == self.body()

    def test_a_turn_is_read_back(self) -> None:
        assert self.decoded(self.entry(self.body())) == self.TURN

    def test_a_turn_without_anything_is_read_back(self) -> None:
        empty = encode_turn(Turn(content=b""), idempotency_key=b"", max_bytes=0)
        assert self.decoded(self.entry(empty)) == Turn(content=b"", position=3, at_ms=99)

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"content": "text"}, "the content of a turn is bytes, not str"),
            ({"metadata": None}, "the metadata of a turn is bytes, not NoneType"),
            ({"role": b"user"}, "the role of a turn is str, not bytes"),
            ({"role": "\ud800"}, "the role of a turn is not valid Unicode: surrogates not allowed"),
            ({"role": "é" * 129}, "the role of a turn has 258 bytes; 256 are allowed"),
            (
                {"content": b"x" * 10, "metadata": b"y" * 4},
                "content and metadata of a turn have 14 bytes; max_turn_bytes is 13",
            ),
        ],
    )
    def test_a_turn_that_cannot_be_is_refused(self, changed: dict[str, Any], says: str) -> None:
        fields: dict[str, Any] = {"content": b"", "metadata": b"", "role": ""}
        with pytest.raises(UsageError) as caught:
            encode_turn(Turn(**fields | changed), idempotency_key=b"", max_bytes=13)
        assert str(caught.value) == says

    def test_the_longest_role_is_taken(self) -> None:
        longest = Turn(content=b"", role="x" * MAX_ROLE_BYTES)
        assert encode_turn(longest, idempotency_key=b"", max_bytes=0).endswith(b"x" * 256)

    @pytest.mark.parametrize("offset", range(71))
    def test_a_changed_byte_is_found(self, offset: int) -> None:
        entry = bytearray(self.entry(self.body()))
        entry[offset] ^= 1
        with pytest.raises(SessionCorrupt):
            self.decoded(bytes(entry))

    def test_a_turn_of_another_place_session_or_form_is_told_apart(self) -> None:
        entry = self.entry(self.body())
        moved = "the turn at position 4 was not written there"
        for found, position, generation, says in (
            (entry, 4, b"g" * 16, moved),
            (entry, 3, b"h" * 16, "the turn at position 3 was not written there"),
            (
                self.entry(self.body(), position=4),
                3,
                b"g" * 16,
                "the turn at position 3 was not written there",
            ),
            (self.entry(self.body(magic=b"T2")), 3, b"g" * 16, "the turn at position 3 is damaged"),
            (entry + b"x", 3, b"g" * 16, "the turn at position 3 is damaged"),
            (None, 3, b"g" * 16, "the turn at position 3 is too short to be one"),
            (entry[:49], 3, b"g" * 16, "the turn at position 3 is too short to be one"),
        ):
            with pytest.raises(SessionCorrupt) as caught:
                self.decoded(found, position=position, generation=generation)
            assert str(caught.value) == says
            assert caught.value.key == b"session:{a}"

    @pytest.mark.parametrize("field", ["content", "role", "metadata", "idempotency_key"])
    def test_the_same_turn_is_the_same_in_everything_that_was_sent(self, field: str) -> None:
        sent = Turn(content=b"content", role="usér", metadata=b"{meta}")
        assert same_turn(self.TURN, sent, idempotency_key="key")
        other: Any = {"content": b"", "role": "", "metadata": b"", "idempotency_key": ""}
        if field == "idempotency_key":
            assert not same_turn(self.TURN, sent, idempotency_key="")
        else:
            changed = {"content": b"content", "role": "usér", "metadata": b"{meta}", field: other[field]}
            assert not same_turn(self.TURN, Turn(**changed), idempotency_key="key")


class TestStates:
    GENERATION = b"g" * 16

    def body(self, value: bytes = b"value", version: int = 7, magic: bytes = b"S1") -> bytes:
        covered = struct.pack(">Q", version) + b"u" * 16 + value
        return magic + hashlib.blake2b(covered, digest_size=8).digest() + covered

    def decoded(self, entry: object, version: int = 7) -> State:
        return decode_state(entry, key=b"session:{a}", generation=self.GENERATION, version=version)

    def test_a_state_has_the_documented_bytes(self) -> None:
        assert encode_state(b"value", version=7, update=b"u" * 16) == self.body()

    def test_a_state_is_read_back(self) -> None:
        assert self.decoded(self.GENERATION + self.body()) == State(b"value", 7)
        assert self.decoded(self.GENERATION + self.body(b"")) == State(b"", 7)

    def test_before_the_first_there_is_an_empty_one(self) -> None:
        assert self.decoded(b"", version=0) == State(b"", 0)

    @pytest.mark.parametrize("offset", [*range(34), 50, 54])
    def test_a_changed_byte_is_found(self, offset: int) -> None:
        entry = bytearray(self.GENERATION + self.body())
        entry[offset] ^= 1
        with pytest.raises(SessionCorrupt, match=r"^the state is damaged, or not that of this session$"):
            self.decoded(bytes(entry))

    def test_a_state_of_another_version_or_form_is_told_apart(self) -> None:
        damaged = "the state is damaged, or not that of this session"
        for entry, version, says in (
            (self.GENERATION + self.body(), 8, damaged),
            (self.GENERATION + self.body(magic=b"S2"), 7, damaged),
            (self.GENERATION + self.body() + b"x", 7, damaged),
            (None, 7, "the state is too short to be one"),
            ((self.GENERATION + self.body(b""))[:-1], 7, "the state is too short to be one"),
        ):
            with pytest.raises(SessionCorrupt) as caught:
                self.decoded(entry, version)
            assert str(caught.value) == says
            assert caught.value.key == b"session:{a}"

    def test_a_value_is_bytes_of_at_most_the_bound(self) -> None:
        check_state(b"12345", max_bytes=5)
        with pytest.raises(UsageError, match=r"^the state has 6 bytes; max_state_bytes is 5$"):
            check_state(b"123456", max_bytes=5)
        with pytest.raises(UsageError, match=r"^a state is bytes, not str$"):
            check_state("12345", max_bytes=5)
